//! What a signer states about an epoch, as EIP-712 typed data, and the key it states it with.
//!
//! ```text
//! domain   name "MAKAI claims", version "1", chainId, verifyingContract
//! message  EpochRoot(uint64 epoch,bytes32 root,uint256 total,bytes32 dataHash,bytes32 prevRoot)
//! ```
//!
//! On the embedded ledger `chainId` is 0 and the contract is derived from the cluster's id: a signature never fits a real
//! chain, nor another cluster.

use k256::ecdsa::SigningKey;
use makai_raft::facts::accounts::{Address, Amount, Hash, RecoverableSignature};
use makai_raft::signatures::{address_of, keccak256};

const DOMAIN_TYPE: &[u8] =
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";
const MESSAGE_TYPE: &[u8] =
    b"EpochRoot(uint64 epoch,bytes32 root,uint256 total,bytes32 dataHash,bytes32 prevRoot)";
/// Ethereum writes the recovery id as 27 or 28.
const RECOVERY_ID_BASE: u8 = 27;

/// What is signed of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    pub chain_id: u64,
    pub ledger: Address,
    pub epoch: u64,
    pub root: Hash,
    pub total: Amount,
    pub data_hash: Hash,
    /// The root signed before; zeros for the first.
    pub prev_root: Hash,
}

fn word(number: u128) -> [u8; 32] {
    let mut word = [0; 32];
    word[16..].copy_from_slice(&number.to_be_bytes());
    word
}

impl Statement {
    #[must_use]
    pub fn digest(&self) -> Hash {
        let mut contract = [0; 32];
        contract[12..].copy_from_slice(&self.ledger.0);
        let domain = keccak256(
            &[
                keccak256(DOMAIN_TYPE).0,
                keccak256(b"MAKAI claims").0,
                keccak256(b"1").0,
                word(self.chain_id.into()),
                contract,
            ]
            .concat(),
        );
        let message = keccak256(
            &[
                keccak256(MESSAGE_TYPE).0,
                word(self.epoch.into()),
                self.root.0,
                word(self.total.0),
                self.data_hash.0,
                self.prev_root.0,
            ]
            .concat(),
        );
        keccak256(&[b"\x19\x01".as_slice(), &domain.0, &message.0].concat())
    }
}

/// A secp256k1 key of a signer or a payout address. Never printed.
#[derive(Clone)]
pub struct ClaimKey(SigningKey);

impl std::fmt::Debug for ClaimKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClaimKey({})", self.address())
    }
}

impl ClaimKey {
    /// `None`: these 32 bytes are no key, which for random ones happens never.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        SigningKey::from_slice(bytes).ok().map(Self)
    }

    #[must_use]
    pub fn address(&self) -> Address {
        address_of(self.0.verifying_key())
    }

    /// The same signature for the same digest each time (RFC 6979).
    #[must_use]
    pub fn sign(&self, digest: &Hash) -> RecoverableSignature {
        let (signature, id) = self.0.sign_prehash_recoverable(&digest.0);
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = RECOVERY_ID_BASE + id.to_byte();
        RecoverableSignature(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use makai_raft::signatures::recover;

    fn statement() -> Statement {
        Statement {
            chain_id: 0,
            ledger: "0x00112233445566778899aabbccddeeff00112233".parse().unwrap(),
            epoch: 7,
            root: Hash([0x11; 32]),
            total: Amount(123_456_789_012_345_678_901_234_567_890),
            data_hash: Hash([0x22; 32]),
            prev_root: Hash([0x33; 32]),
        }
    }

    /// Made with ethers 6 (`TypedDataEncoder.hash`, `Wallet.signTypedData`) from the same values.
    #[test]
    fn digest_and_signature_are_ethers() {
        let digest = statement().digest();
        assert_eq!(digest.to_string(), "0xc9c5883c5a087d471f45c337d3774259a4c079394788ca3b94b6dd1ac8bd5270");
        let key = ClaimKey::from_bytes(&[7; 32]).unwrap();
        assert_eq!(key.address().to_string(), "0x4a62316623ad457f02cdc5d997ded67a383ec569");
        assert_eq!(
            key.sign(&digest).to_string(),
            "0x1e26a34bcbc40b61068a1284a92bbc3e0d911f55ed836614aa7001ed593a9b48\
             5bf0af46a67ec2e0db448830a2e945daed2808fdd2f6f9a302357f307e51f5831c"
        );
        assert_eq!(recover(&digest, &key.sign(&digest)), Some(key.address()));
    }

    #[test]
    fn every_field_changes_the_digest() {
        let base = statement();
        let others = [
            Statement { chain_id: 1, ..base },
            Statement { ledger: Address([1; 20]), ..base },
            Statement { epoch: 8, ..base },
            Statement { root: Hash([0; 32]), ..base },
            Statement { total: Amount(1), ..base },
            Statement { data_hash: Hash([0; 32]), ..base },
            Statement { prev_root: Hash([0; 32]), ..base },
        ];
        for other in others {
            assert_ne!(other.digest(), base.digest(), "{other:?}");
        }
    }
}
