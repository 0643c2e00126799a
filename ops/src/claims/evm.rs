//! What an Ethereum node is told: calls of the distributor contract, and signed transactions (EIP-1559) that carry them.
//!
//! Only what the outbox needs: encoding by hand from the ABI's and RLP's texts, checked against vectors of `ethers`.

use makai_raft::facts::accounts::{Address, Amount, Hash, RecoverableSignature};
use makai_raft::signatures::keccak256;

use super::statement::ClaimKey;

const WORD: usize = 32;
/// Transactions of EIP-1559.
const TYPE_2: u8 = 2;

/// First four bytes of a call, or of an error's data.
#[must_use]
pub fn selector(signature: &str) -> [u8; 4] {
    let hash = keccak256(signature.as_bytes()).0;
    [hash[0], hash[1], hash[2], hash[3]]
}

fn number(value: u128) -> [u8; WORD] {
    let mut word = [0; WORD];
    word[16..].copy_from_slice(&value.to_be_bytes());
    word
}

fn address(value: &Address) -> [u8; WORD] {
    let mut word = [0; WORD];
    word[12..].copy_from_slice(&value.0);
    word
}

fn call(signature: &str, words: &[[u8; WORD]]) -> Vec<u8> {
    let mut data = selector(signature).to_vec();
    words.iter().for_each(|word| data.extend_from_slice(word));
    data
}

/// What is posted of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    pub epoch: u64,
    pub root: Hash,
    pub total: Amount,
    pub data_hash: Hash,
    pub prev_root: Hash,
    /// In ascending order of their signers.
    pub signatures: Vec<RecoverableSignature>,
}

/// `propose(uint64,bytes32,uint256,bytes32,bytes32,bytes[])`
#[must_use]
pub fn propose(post: &Post) -> Vec<u8> {
    /// Words before the list of signatures.
    const HEAD_WORDS: usize = 6;
    /// Length, 65 bytes, padding.
    const SIGNATURE_WORDS: usize = 4;
    let count = post.signatures.len();
    let mut words = vec![
        number(post.epoch.into()),
        post.root.0,
        number(post.total.0),
        post.data_hash.0,
        post.prev_root.0,
        number((HEAD_WORDS * WORD) as u128),
        number(count as u128),
    ];
    words.extend((0..count).map(|at| number(((count + at * SIGNATURE_WORDS) * WORD) as u128)));
    for signature in &post.signatures {
        let mut padded = [0; 3 * WORD];
        padded[..65].copy_from_slice(&signature.0);
        words.push(number(65));
        words.extend(padded.as_chunks::<WORD>().0);
    }
    call("propose(uint64,bytes32,uint256,bytes32,bytes32,bytes[])", &words)
}

/// `claim(uint256,address,uint256,bytes32[])`
#[must_use]
pub fn claim(index: u64, payout: &Address, cumulative: Amount, proof: &[Hash]) -> Vec<u8> {
    const HEAD_WORDS: usize = 4;
    let mut words = vec![
        number(index.into()),
        address(payout),
        number(cumulative.0),
        number((HEAD_WORDS * WORD) as u128),
        number(proof.len() as u128),
    ];
    words.extend(proof.iter().map(|hash| hash.0));
    call("claim(uint256,address,uint256,bytes32[])", &words)
}

#[must_use]
pub fn root_count() -> Vec<u8> {
    call("rootCount()", &[])
}

#[must_use]
pub fn roots(index: u64) -> Vec<u8> {
    call("roots(uint256)", &[number(index.into())])
}

/// Whether signatures of this address count.
#[must_use]
pub fn is_signer(signer: &Address) -> Vec<u8> {
    call("isSigner(address)", &[address(signer)])
}

/// All that the contract may ever pay, and how often its emission halves.
#[must_use]
pub fn terms() -> [Vec<u8>; 2] {
    [call("pool()", &[]), call("halvingEpochs()", &[])]
}

#[must_use]
pub fn claimed(payout: &Address) -> Vec<u8> {
    call("claimed(address)", &[address(payout)])
}

/// Of the contract `Staking`: what an operator has bonded, in the first word.
#[must_use]
pub fn bonds(operator: &Address) -> Vec<u8> {
    call("bonds(address)", &[address(operator)])
}

/// A root as the contract has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostedRoot {
    pub root: Hash,
    pub total: Amount,
    pub epoch: u64,
    /// Unix seconds.
    pub active_at: u64,
    pub is_disabled: bool,
}

/// A number from a call's answer; `None`: it is none, or too large for any amount.
#[must_use]
pub fn read_number(answer: &[u8], word: usize) -> Option<u128> {
    let bytes = answer.get(word * WORD..(word + 1) * WORD)?;
    let (high, low) = bytes.split_at(16);
    high.iter().all(|byte| *byte == 0).then(|| u128::from_be_bytes(low.try_into().unwrap_or_default()))
}

/// The answer to [`roots`].
#[must_use]
pub fn read_root(answer: &[u8]) -> Option<PostedRoot> {
    let small = |word| read_number(answer, word).and_then(|number| u64::try_from(number).ok());
    Some(PostedRoot {
        root: Hash(answer.get(..WORD)?.try_into().ok()?),
        total: Amount(read_number(answer, 2)?),
        epoch: small(3)?,
        active_at: small(4)?,
        is_disabled: small(5)? != 0,
    })
}

/// The name of an error of the contract, by the data that it reverts with.
#[must_use]
pub fn error_name(data: &[u8]) -> Option<&'static str> {
    const ERRORS: [(&str, &str); 7] = [
        ("AlreadyProposed", "AlreadyProposed(uint64)"),
        ("TotalFalls", "TotalFalls(uint256,uint256)"),
        ("OverEmission", "OverEmission(uint256,uint256)"),
        ("NotEnoughSignatures", "NotEnoughSignatures(uint256,uint256)"),
        ("NotActive", "NotActive(uint256)"),
        ("BadProof", "BadProof()"),
        ("NothingToClaim", "NothingToClaim(address)"),
    ];
    let found = ERRORS.iter().find(|(_, signature)| data.starts_with(&selector(signature)));
    found.map(|(name, _)| *name)
}

/// Addresses of the keys that anvil, hardhat and ganache print when they start (`test test .. junk`).
const DEVELOPMENT_ACCOUNTS: [&str; 10] = [
    "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266",
    "0x70997970c51812dc3a010c7d01b50e0d17dc79c8",
    "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc",
    "0x90f79bf6eb2c4f870365e785982e1f101e93b906",
    "0x15d34aaf54267db7d7c367839aaf71a00a2c6a65",
    "0x9965507d1a55bcc2695c58ba16fb37d819b0a4dc",
    "0x976ea74026e726554db657fa54763abd0c3a0aa9",
    "0x14dc79964da2c08b23698b3d3cc7ca32193d9955",
    "0x23618e81e3f5cdf7f54c3d65f7fbc0abf5b21e8f",
    "0xa0ee7a142d267c1f36714e4a8f75612f20a79720",
];

/// Whether everybody has the key of this address.
#[must_use]
pub fn is_development_account(account: &Address) -> bool {
    let text = account.to_string();
    DEVELOPMENT_ACCOUNTS.contains(&text.as_str())
}

/// Whether code on a chain is that of the Distributor which is compiled from `ops/contracts`, or was by an earlier release:
/// equal but for the words that its constructor filled in, which the compiler leaves as zeros behind a `PUSH32`.
#[must_use]
pub fn is_distributor_code(code: &[u8]) -> bool {
    const ARTEFACT: &str = include_str!("../../contracts/artifacts/Distributor.json");
    /// Whoever deployed it keeps it: its calls and its rules are the same, a claim takes more gas.
    const EARLIER: [&str; 1] = [include_str!("../../contracts/artifacts/earlier/Distributor.1.hex")];
    let artefact: Option<serde_json::Value> = serde_json::from_str(ARTEFACT).ok();
    let made = artefact.and_then(|made| made["deployedBytecode"].as_str().map(str::to_owned));
    let known = made.iter().map(String::as_str).chain(EARLIER);
    known
        .filter_map(|made| hex::decode(made.trim().trim_start_matches("0x")).ok())
        .any(|made| is_code_of(&made, code))
}

fn is_code_of(made: &[u8], code: &[u8]) -> bool {
    const PUSH32: u8 = 0x7F;
    if made.len() != code.len() {
        return false;
    }
    let mut at = 0;
    while at < made.len() {
        if made[at] != code[at] {
            return false;
        }
        let is_filled = made[at] == PUSH32
            && made.get(at + 1..at + 1 + WORD).is_some_and(|word| word.iter().all(|byte| *byte == 0));
        at += if is_filled { 1 + WORD } else { 1 };
    }
    true
}

/// A transaction before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub chain_id: u64,
    pub nonce: u64,
    /// In wei per gas: for whoever makes the block, and in all at most.
    pub tip: u128,
    pub fee_cap: u128,
    pub gas: u64,
    pub to: Address,
    pub data: Vec<u8>,
}

impl Transaction {
    /// The bytes to send, and the hash by which the chain knows them.
    #[must_use]
    pub fn sign(&self, key: &ClaimKey) -> (Vec<u8>, Hash) {
        let digest = keccak256(&self.envelope(&[]));
        let signature = key.sign(&digest).0;
        let parity = signature[64] - 27;
        let tail = [integer(parity.into()), trimmed(&signature[..32]), trimmed(&signature[32..64])];
        let raw = self.envelope(&tail);
        let hash = keccak256(&raw);
        (raw, hash)
    }

    fn envelope(&self, tail: &[Vec<u8>]) -> Vec<u8> {
        let mut items = vec![
            integer(self.chain_id.into()),
            integer(self.nonce.into()),
            integer(self.tip),
            integer(self.fee_cap),
            integer(self.gas.into()),
            string(&self.to.0),
            integer(0),
            string(&self.data),
            list(&[]),
        ];
        items.extend_from_slice(tail);
        [vec![TYPE_2], list(&items)].concat()
    }
}

/// RLP of a number: no leading zeros.
fn integer(value: u128) -> Vec<u8> {
    trimmed(&value.to_be_bytes())
}

fn trimmed(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    string(&bytes[zeros..])
}

fn string(bytes: &[u8]) -> Vec<u8> {
    match bytes {
        [byte] if *byte < 0x80 => vec![*byte],
        _ => [prefix(bytes.len(), 0x80), bytes.to_vec()].concat(),
    }
}

fn list(items: &[Vec<u8>]) -> Vec<u8> {
    let body = items.concat();
    [prefix(body.len(), 0xC0), body].concat()
}

fn prefix(len: usize, base: u8) -> Vec<u8> {
    if len <= 55 {
        return vec![base + len as u8];
    }
    let bytes = len.to_be_bytes();
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let mut prefix = vec![base + 55 + (bytes.len() - zeros) as u8];
    prefix.extend_from_slice(&bytes[zeros..]);
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All made with ethers 6.
    #[test]
    fn calls_and_transactions_are_ethers() {
        let claim = claim(3, &Address([0xA1; 20]), Amount(99), &[Hash([0x44; 32]), Hash([0x55; 32])]);
        assert_eq!(hex::encode(&claim), CLAIM);
        let transaction = Transaction {
            chain_id: 31_337,
            nonce: 5,
            tip: 1_000_000_000,
            fee_cap: 30_000_000_000,
            gas: 300_000,
            to: Address([0xBB; 20]),
            data: claim,
        };
        let (raw, hash) = transaction.sign(&ClaimKey::from_bytes(&[7; 32]).unwrap());
        assert_eq!(hex::encode(&raw), RAW);
        assert_eq!(hash.to_string(), "0x2cbc6379f95409f39ddf46693d62fef05657626e6abc212399304cfd87142212");
        let selectors = [selector("rootCount()"), selector("roots(uint256)"), selector("claimed(address)")];
        assert_eq!(selectors.map(hex::encode), ["21111bb4", "c2b40ae4", "c884ef83"]);
        assert_eq!(error_name(&hex::decode("64ab3466").unwrap()), Some("NothingToClaim"));
        assert_eq!(error_name(&hex::decode("79c193d2aa").unwrap()), Some("NotEnoughSignatures"));
        assert_eq!(error_name(&[]), None);
    }

    #[test]
    fn code_may_differ_where_the_constructor_writes_and_nowhere_else() {
        let made = [&[0x60, 0x80, 0x7F][..], &[0; 32], &[0x52, 0x7F], &[9; 32], &[0xF3]].concat();
        assert!(is_code_of(&made, &made));
        let mut filled = made.clone();
        filled[3..35].fill(0xAB);
        assert!(is_code_of(&made, &filled));
        for at in (0..3).chain(35..made.len()) {
            let mut other = filled.clone();
            other[at] ^= 1;
            assert!(!is_code_of(&made, &other), "byte {at}");
        }
        assert!(!is_code_of(&made, &made[1..]) && !is_distributor_code(&[]));
        let earlier = include_str!("../../contracts/artifacts/earlier/Distributor.1.hex");
        assert!(is_distributor_code(&hex::decode(earlier.trim()).unwrap()));
    }

    /// The address of the key that anvil prints first.
    #[test]
    fn published_keys_are_known() {
        let key = hex::decode("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80").unwrap();
        assert!(is_development_account(&ClaimKey::from_bytes(&key).unwrap().address()));
        assert!(!is_development_account(&ClaimKey::from_bytes(&[7; 32]).unwrap().address()));
    }

    #[test]
    fn a_proposal_is_ethers() {
        let post = Post {
            epoch: 7,
            root: Hash([0x11; 32]),
            total: Amount(1_000_000_000_000_000_000_000),
            data_hash: Hash([0x22; 32]),
            prev_root: Hash([0x33; 32]),
            signatures: vec![RecoverableSignature([0xAB; 65]), RecoverableSignature([0xCD; 65])],
        };
        assert_eq!(hex::encode(propose(&post)), PROPOSE);
    }

    #[test]
    fn answers_are_read_and_others_refused() {
        let mut answer = vec![0x11; 32];
        for number in [7u128, 350, 3, 1_700_000_000, 1] {
            answer.extend(super::number(number));
        }
        let root = read_root(&answer).unwrap();
        assert_eq!((root.root, root.total, root.epoch), (Hash([0x11; 32]), Amount(350), 3));
        assert!(root.is_disabled && root.active_at == 1_700_000_000);
        assert_eq!(read_root(&answer[..191]), None);
        assert_eq!(read_number(&[0xFF; 32], 0), None, "no amount is so large");
        assert_eq!(read_number(&[], 0), None);
    }

    const CLAIM: &str = "2e7ba6ef0000000000000000000000000000000000000000000000000000000000000003000000000000000000000000\
        a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a100000000000000000000000000000000000000000000000000000000\
        000000630000000000000000000000000000000000000000000000000000000000000080000000000000000000000000\
        000000000000000000000000000000000000000244444444444444444444444444444444444444444444444444444444\
        444444445555555555555555555555555555555555555555555555555555555555555555";

    const RAW: &str = "02f90153827a6905843b9aca008506fc23ac00830493e094bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb80b8e42e\
        7ba6ef0000000000000000000000000000000000000000000000000000000000000003000000000000000000000000a1\
        a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a10000000000000000000000000000000000000000000000000000000000\
        000063000000000000000000000000000000000000000000000000000000000000008000000000000000000000000000\
        000000000000000000000000000000000000024444444444444444444444444444444444444444444444444444444444\
        4444445555555555555555555555555555555555555555555555555555555555555555c080a01b6a1f9a327c59c770ab\
        6200638fca50912fb2744b7d86bfdf3de5ab69e05edea064dbee77d23259cad05b2a611784f78eb89d9339ea69c2c7b3\
        242c8c340fd391";

    const PROPOSE: &str = "e2ced8800000000000000000000000000000000000000000000000000000000000000007111111111111111111111111\
        111111111111111111111111111111111111111100000000000000000000000000000000000000000000003635c9adc5\
        dea000002222222222222222222222222222222222222222222222222222222222222222333333333333333333333333\
        333333333333333333333333333333333333333300000000000000000000000000000000000000000000000000000000\
        000000c00000000000000000000000000000000000000000000000000000000000000002000000000000000000000000\
        000000000000000000000000000000000000004000000000000000000000000000000000000000000000000000000000\
        000000c00000000000000000000000000000000000000000000000000000000000000041abababababababababababab\
        abababababababababababababababababababababababababababababababababababababababababababababababab\
        ababababab00000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
        0000000000000000000000000000000000000041cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd\
        cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd0000000000000000000000\
        0000000000000000000000000000000000000000";
}
