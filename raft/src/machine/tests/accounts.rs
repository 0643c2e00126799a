//! Properties of the accounts: what may happen in which order, who may sign, what is paid.

use k256::ecdsa::SigningKey;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::*;
use crate::facts::accounts::*;
use crate::machine::accounts::{payout_digest, payout_message, signer_digest};
use crate::signatures::{address_of, claim_leaf, node_message, parent_of};

pub(super) const EPOCH_MS: u64 = 10_000;

/// A node with both of its keys.
pub(super) struct Keys {
    identity: Ed25519KeyPair,
    claim: SigningKey,
}

impl Keys {
    fn new(seed: u8) -> Self {
        Self {
            identity: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap(),
            claim: SigningKey::from_slice(&[seed; 32]).unwrap(),
        }
    }

    pub(super) fn id(&self) -> NodeId {
        NodeId(self.identity.public_key().as_ref().try_into().unwrap())
    }

    pub(super) fn address(&self) -> Address {
        address_of(self.claim.verifying_key())
    }

    pub(super) fn sign(&self, digest: &Hash) -> RecoverableSignature {
        let (signature, id) = self.claim.sign_prehash_recoverable(&digest.0);
        let mut bytes = [27 + id.to_byte(); 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        RecoverableSignature(bytes)
    }

    pub(super) fn sign_as_node(&self, purpose: &str, message: &[u8]) -> Bytes {
        Bytes::copy_from_slice(self.identity.sign(&node_message(purpose, message)).as_ref())
    }

    fn signer(&self) -> Signer {
        let address = self.address();
        Signer {
            node: self.id(),
            address,
            node_signature: self.sign_as_node(PURPOSE_SIGNER, &address.0),
            signature: self.sign(&signer_digest(self.id())),
        }
    }

    pub(super) fn binding(&self, payout: &Self, serial: u64) -> PayoutBinding {
        let (node, address) = (self.id(), payout.address());
        PayoutBinding {
            node,
            payout: address,
            serial,
            node_signature: self.sign_as_node(PURPOSE_PAYOUT, &payout_message(&address, serial)),
            signature: payout.sign(&payout_digest(node, serial)),
        }
    }

    fn statement(&self, digest: &Hash) -> ClaimSignature {
        ClaimSignature { signer: self.address(), signature: self.sign(digest) }
    }
}

pub(super) fn genesis(challenge_ms: u64) -> Genesis {
    let tokenomics = "{}".to_owned();
    Genesis {
        rules: 1,
        tokenomics_hash: Hash(*blake3::hash(tokenomics.as_bytes()).as_bytes()),
        tokenomics,
        emission: Emission::of_pool(Amount(1_000_000), 100),
        epoch_ms: EPOCH_MS,
        challenge_ms,
        payout_cooldown_ms: 60_000,
        chain_id: 0,
        ledger: Address([9; 20]),
        forfeits_all: false,
        pledge: None,
    }
}

/// Three voters with their keys known, and accounts open.
pub(super) fn opened(challenge_ms: u64) -> (World, Vec<Keys>) {
    opened_by(genesis(challenge_ms))
}

pub(super) fn opened_by(genesis: Genesis) -> (World, Vec<Keys>) {
    let mut world = World::new();
    let voters: Vec<Keys> = (1..=3).map(Keys::new).collect();
    for voter in &voters {
        let token = crate::facts::cluster::JoinToken {
            id: format!("t{}", voter.id()),
            secret_hash: [1; 32],
            roles: vec![Role::Voter, Role::Storage, Role::Gateway],
            expires_at: Timestamp(u64::MAX),
            uses_left: 1,
        };
        let roles = token.roles.clone();
        let token_id = token.id.clone();
        world.run(Command::CreateJoinToken { token }).unwrap();
        let node = Node {
            id: voter.id(),
            number: 0,
            name: String::new(),
            owner: String::new(),
            site: String::new(),
            roles,
            addresses: vec!["a:1".into()],
            standing: Standing::Active,
            joined_at: Timestamp(0),
            is_up: true,
            changed_at: Timestamp(0),
            version: String::new(),
            down_ppm: 0,
        };
        world.run(Command::JoinNode { node, disks: vec![], token: Some((token_id, [1; 32])) }).unwrap();
    }
    act(&mut world, AccountsCommand::Open { genesis }).unwrap();
    for voter in &voters {
        act(&mut world, AccountsCommand::AddSigner(voter.signer())).unwrap();
    }
    (world, voters)
}

pub(super) fn act(world: &mut World, command: AccountsCommand) -> Result<AccountsReply, Refusal> {
    match world.run(Command::Accounts(command))? {
        Reply::Accounts(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

pub(super) fn ask(world: &World, query: AccountsQuery) -> AccountsAnswer {
    match crate::machine::query(&world.kv, &Query::Accounts(query)).unwrap().unwrap() {
        Answer::Accounts(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn state(world: &World) -> AccountsState {
    match ask(world, AccountsQuery::State) {
        AccountsAnswer::State(Some(state)) => *state,
        other => panic!("{other:?}"),
    }
}

fn ledger(world: &World) -> Vec<LedgerEntry> {
    match ask(world, AccountsQuery::Ledger { from: 1, entries_max: 1000 }) {
        AccountsAnswer::Ledger(entries) => entries,
        other => panic!("{other:?}"),
    }
}

pub(super) fn usage(world: &World, epoch: u64, node: NodeId) -> NodeUsage {
    match ask(world, AccountsQuery::Usage { epoch, after: None, entries_max: 1000 }) {
        AccountsAnswer::Usage(usage) => usage.into_iter().find(|usage| usage.node == node).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn is_refusal(result: Result<AccountsReply, Refusal>, is_it: impl Fn(&AccountsRefusal) -> bool) {
    match result {
        Err(Refusal::Accounts(refusal)) if is_it(&refusal) => {}
        other => panic!("{other:?}"),
    }
}

pub(super) fn seal(world: &mut World, epoch: u64) {
    world.now.0 += EPOCH_MS;
    act(world, AccountsCommand::Seal { epoch }).unwrap();
}

fn result(epoch: u64, attempt: u32, leaves: &[Leaf]) -> EpochResult {
    let hash = |leaf: &Leaf| claim_leaf(&leaf.payout, leaf.cumulative.0);
    let claim_root = match leaves {
        [a] => hash(a),
        [a, b] => parent_of(&hash(a), &hash(b)),
        _ => Hash::default(),
    };
    EpochResult {
        epoch,
        attempt,
        claim_root,
        total: leaves.iter().fold(Amount(0), |sum, leaf| sum.plus(leaf.cumulative)),
        data_hash: Hash([1; 32]),
        digest: Hash([epoch as u8; 32]),
        account_count: 0,
        leaf_count: leaves.len() as u64,
        difficulty: vec![],
    }
}

fn sign(world: &mut World, voter: &Keys, result: &EpochResult) -> Result<AccountsReply, Refusal> {
    let signature = voter.statement(&result.digest);
    act(world, AccountsCommand::Sign { epoch: result.epoch, attempt: result.attempt, signature })
}

/// Seals, proposes and signs an epoch that ends with these leaves.
pub(super) fn close(world: &mut World, voters: &[Keys], epoch: u64, leaves: &[Leaf]) -> EpochResult {
    seal(world, epoch);
    let result = result(epoch, 1, leaves);
    act(world, AccountsCommand::Result(result.clone())).unwrap();
    for voter in &voters[..2] {
        sign(world, voter, &result).unwrap();
    }
    result
}

fn leaf(payout: u8, cumulative: u128) -> Leaf {
    Leaf { payout: Address([payout; 20]), cumulative: Amount(cumulative) }
}

#[test]
fn an_epoch_ends_when_its_time_is_over_and_takes_nothing_after() {
    let (mut world, voters) = opened(0);
    is_refusal(act(&mut world, AccountsCommand::Seal { epoch: 1 }), |refusal| {
        matches!(refusal, AccountsRefusal::NotDue { epoch: 1, .. })
    });
    let reporter = voters[0].id();
    let meter = |epoch, part, bytes| AccountsCommand::Meter {
        epoch,
        reporter,
        part,
        served: vec![ServedRow { egress_bytes: bytes, ..ServedRow::of(reporter) }],
        tenants: vec![],
    };
    act(&mut world, meter(1, 0, 100)).unwrap();
    // The same part again is the same report, whatever it says; another part adds.
    act(&mut world, meter(1, 0, 100)).unwrap();
    act(&mut world, meter(1, 1, 11)).unwrap();
    seal(&mut world, 1);
    is_refusal(act(&mut world, meter(1, 2, 5)), |refusal| *refusal == AccountsRefusal::EpochClosed(1));
    is_refusal(act(&mut world, AccountsCommand::Seal { epoch: 1 }), |refusal| {
        *refusal == AccountsRefusal::EpochClosed(1)
    });
    assert_eq!(usage(&world, 1, reporter).egress_bytes, 111);
    act(&mut world, meter(2, 0, 7)).unwrap();
    seal(&mut world, 2);
    assert_eq!(usage(&world, 2, reporter).egress_bytes, 7);
}

#[test]
fn only_voters_audit_and_only_the_trusted_report() {
    let (mut world, voters) = opened(0);
    let stranger = NodeId([77; 32]);
    let report =
        AccountsCommand::Meter { epoch: 1, reporter: stranger, part: 0, served: vec![], tenants: vec![] };
    assert!(matches!(act(&mut world, report), Err(Refusal::Invalid(_))));
    let audit = |auditor| AccountsCommand::Audit {
        epoch: 1,
        auditor,
        part: 0,
        rows: vec![AuditRow { pass: 3, fail: 1, ..AuditRow::of(voters[1].id()) }],
    };
    assert!(matches!(act(&mut world, audit(stranger)), Err(Refusal::Invalid(_))));
    act(&mut world, audit(voters[0].id())).unwrap();
    seal(&mut world, 1);
    let usage = usage(&world, 1, voters[1].id());
    assert_eq!((usage.audits_pass, usage.audits_fail), (3, 1));
}

/// The integral of what lies in a group, by hand: put after 2 s of an epoch of 10 s, deleted after 9 s.
#[test]
fn stored_bytes_are_integrated_over_time() {
    let (mut world, _) = opened(0);
    world.now.0 += 2_000;
    let now = world.now;
    world.put("k", whole(1, MIB, now)).unwrap();
    world.now.0 += 7_000;
    world.run(delete("aaa", "k")).unwrap();
    world.now.0 += 1_000;
    act(&mut world, AccountsCommand::Seal { epoch: 1 }).unwrap();
    let scheme = Scheme { data: 2, parity: 1 };
    let shard_len = makai_erasure::layout::BlobLayout::new(scheme, BLOB_BYTES).unwrap().shard_len();
    let AccountsAnswer::Usage(usage) =
        ask(&world, AccountsQuery::Usage { epoch: 1, after: None, entries_max: 1000 })
    else {
        panic!("usage")
    };
    let sum: u128 = usage.iter().map(|usage| usage.storage_byte_ms).sum();
    assert_eq!(sum, u128::from(shard_len) * 7_000 * 3);
    assert!(usage.iter().all(|usage| usage.stored_bytes == 0));
}

#[test]
fn more_than_half_must_sign_and_each_counts_once() {
    let (mut world, voters) = opened(0);
    seal(&mut world, 1);
    let first = result(1, 1, &[leaf(1, 10)]);
    act(&mut world, AccountsCommand::Result(first.clone())).unwrap();
    sign(&mut world, &voters[0], &first).unwrap();
    sign(&mut world, &voters[0], &first).unwrap();
    assert_eq!(state(&world).signed, 0, "one of three is no majority, however often");
    let stranger = Keys::new(99);
    is_refusal(sign(&mut world, &stranger, &first), |refusal| {
        *refusal == AccountsRefusal::NotASigner(stranger.address())
    });
    let mut forged = voters[1].statement(&Hash([0xEE; 32]));
    forged.signer = voters[1].address();
    let forged = AccountsCommand::Sign { epoch: 1, attempt: 1, signature: forged };
    is_refusal(act(&mut world, forged), |refusal| matches!(refusal, AccountsRefusal::BadSignature(_)));
    sign(&mut world, &voters[1], &first).unwrap();
    assert_eq!((state(&world).signed, state(&world).signed_total), (1, Amount(10)));
    is_refusal(act(&mut world, AccountsCommand::Result(result(1, 2, &[leaf(1, 11)]))), |refusal| {
        matches!(refusal, AccountsRefusal::WrongState { epoch: 1, .. })
    });
}

#[test]
fn a_result_that_nobody_signs_is_replaced_and_its_signatures_with_it() {
    let (mut world, voters) = opened(0);
    seal(&mut world, 1);
    let bad = EpochResult { digest: Hash([5; 32]), ..result(1, 1, &[leaf(1, 4_000)]) };
    act(&mut world, AccountsCommand::Result(bad.clone())).unwrap();
    sign(&mut world, &voters[0], &bad).unwrap();
    let good = result(1, 2, &[leaf(1, 10)]);
    assert!(matches!(act(&mut world, AccountsCommand::Result(result(1, 1, &[]))), Err(Refusal::Invalid(_))));
    act(&mut world, AccountsCommand::Result(good.clone())).unwrap();
    is_refusal(sign(&mut world, &voters[1], &bad), |refusal| {
        matches!(refusal, AccountsRefusal::WrongState { .. })
    });
    sign(&mut world, &voters[1], &good).unwrap();
    assert_eq!(state(&world).signed, 0, "the signature for the bad one is gone");
    sign(&mut world, &voters[2], &good).unwrap();
    assert_eq!(state(&world).signed_total, Amount(10));
}

/// However much the signers sign: at most the emission of the epochs they post, and never less than before.
#[test]
fn totals_stay_within_the_emission_and_never_fall() {
    let (mut world, voters) = opened(0);
    let emission = genesis(0).emission;
    seal(&mut world, 1);
    let over = result(1, 1, &[leaf(1, emission.of_epoch(1).0 + 1)]);
    is_refusal(act(&mut world, AccountsCommand::Result(over)), |refusal| {
        matches!(refusal, AccountsRefusal::OverEmission { epoch: 1, .. })
    });
    let all = result(1, 1, &[leaf(1, emission.of_epoch(1).0)]);
    act(&mut world, AccountsCommand::Result(all.clone())).unwrap();
    for voter in &voters[..2] {
        sign(&mut world, voter, &all).unwrap();
    }
    seal(&mut world, 2);
    is_refusal(act(&mut world, AccountsCommand::Result(result(2, 1, &[leaf(1, 1)]))), |refusal| {
        matches!(refusal, AccountsRefusal::Decreases { .. })
    });
}

#[test]
fn what_is_owed_is_paid_once_and_only_with_a_proof() {
    let (mut world, voters) = opened(0);
    let leaves = [leaf(1, 300), leaf(2, 50)];
    close(&mut world, &voters, 1, &leaves);
    let sibling = |of: &Leaf| claim_leaf(&of.payout, of.cumulative.0);
    let claim = |epoch, leaf: Leaf, proof: Vec<Hash>| AccountsCommand::Claim { epoch, leaf, proof };
    let more = Leaf { cumulative: Amount(301), ..leaves[0] };
    for (leaf, proof) in
        [(more, vec![sibling(&leaves[1])]), (leaves[0], vec![]), (leaves[0], vec![Hash::default(); 41])]
    {
        is_refusal(act(&mut world, claim(1, leaf, proof)), |refusal| {
            *refusal == AccountsRefusal::BadProof(1)
        });
    }
    let paid = act(&mut world, claim(1, leaves[0], vec![sibling(&leaves[1])]));
    assert_eq!(paid, Ok(AccountsReply::Paid(Amount(300))));
    is_refusal(act(&mut world, claim(1, leaves[0], vec![sibling(&leaves[1])])), |refusal| {
        *refusal == AccountsRefusal::NothingToClaim(leaves[0].payout)
    });
    // Later only what came on top, against the newest or an older root.
    let later = [leaf(1, 340), leaf(2, 90)];
    close(&mut world, &voters, 2, &later);
    let paid = act(&mut world, claim(2, later[0], vec![sibling(&later[1])]));
    assert_eq!(paid, Ok(AccountsReply::Paid(Amount(40))));
    let paid = act(&mut world, claim(1, leaves[1], vec![sibling(&leaves[0])]));
    assert_eq!(paid, Ok(AccountsReply::Paid(Amount(50))));
    assert_eq!(state(&world).claimed_total, Amount(390));
}

/// Whoever leads dies after any step, and the next one does all of it again, while what the first one sent arrives late and
/// twice: one seal, one result, one payment, the same chain.
#[test]
fn a_leader_that_dies_at_any_step_costs_nothing() {
    let steps = |voters: &[Keys]| {
        let leaves = vec![leaf(1, 300)];
        let done = result(1, 1, &leaves);
        let sign = |voter: &Keys| AccountsCommand::Sign {
            epoch: 1,
            attempt: 1,
            signature: voter.statement(&done.digest),
        };
        vec![
            AccountsCommand::Seal { epoch: 1 },
            AccountsCommand::Stage { epoch: 1, attempt: 1, accounts: vec![], leaves: leaves.clone() },
            AccountsCommand::Result(done.clone()),
            sign(&voters[0]),
            sign(&voters[1]),
            AccountsCommand::Claim { epoch: 1, leaf: leaves[0], proof: vec![] },
        ]
    };
    let play = |cut: usize| {
        let (mut world, voters) = opened(0);
        world.now.0 += EPOCH_MS;
        let steps = steps(&voters);
        let mut paid = 0;
        let (before, late) = steps.split_at(cut);
        // The next leader begins at the beginning; the last step of the first one comes in the midst of it.
        let again = steps.iter().flat_map(|step| before.last().into_iter().chain([step, step]));
        for step in before.iter().chain(again).chain(late) {
            if let Ok(AccountsReply::Paid(amount)) = act(&mut world, step.clone()) {
                paid += amount.0;
            }
        }
        let state = state(&world);
        let kinds: Vec<u64> = ledger(&world).iter().map(|entry| entry.height).collect();
        (paid, state.signed, state.open, state.signed_total, state.claimed_total, kinds)
    };
    let expected = play(0);
    assert_eq!((expected.0, expected.1, expected.2), (300, 1, 2));
    for cut in 1..=6 {
        assert_eq!(play(cut), expected, "dead after step {cut}");
    }
}

/// A quorum that signs a small total over large leaves: payments stop exactly at the total.
#[test]
fn payments_stop_at_the_total() {
    let (mut world, voters) = opened(0);
    seal(&mut world, 1);
    let leaves = [leaf(1, 300), leaf(2, 50)];
    let lying = EpochResult { total: Amount(310), ..result(1, 1, &leaves) };
    act(&mut world, AccountsCommand::Result(lying.clone())).unwrap();
    for voter in &voters[..2] {
        sign(&mut world, voter, &lying).unwrap();
    }
    let hash = |leaf: &Leaf| claim_leaf(&leaf.payout, leaf.cumulative.0);
    let first = AccountsCommand::Claim { epoch: 1, leaf: leaves[0], proof: vec![hash(&leaves[1])] };
    let second = AccountsCommand::Claim { epoch: 1, leaf: leaves[1], proof: vec![hash(&leaves[0])] };
    assert_eq!(act(&mut world, first), Ok(AccountsReply::Paid(Amount(300))));
    assert_eq!(act(&mut world, second.clone()), Ok(AccountsReply::Paid(Amount(10))));
    is_refusal(act(&mut world, second), |refusal| matches!(refusal, AccountsRefusal::NothingToClaim(_)));
}

#[test]
fn a_signer_may_take_a_root_back_before_it_is_active() {
    let (mut world, voters) = opened(60_000);
    let first = close(&mut world, &voters, 1, &[leaf(1, 10)]);
    let claim = AccountsCommand::Claim { epoch: 1, leaf: leaf(1, 10), proof: vec![] };
    is_refusal(act(&mut world, claim.clone()), |refusal| {
        matches!(refusal, AccountsRefusal::NotActive { epoch: 1, .. })
    });
    let reason = "usage of one node was left out".to_owned();
    let digest = crate::machine::accounts::dispute_digest(&first.digest, &reason);
    let dispute = |voter: &Keys| AccountsCommand::Dispute {
        epoch: 1,
        reason: reason.clone(),
        signature: voter.statement(&digest),
    };
    act(&mut world, dispute(&voters[2])).unwrap();
    assert_eq!((state(&world).signed, state(&world).signed_total), (0, Amount(0)));
    let second = EpochResult { digest: Hash([0x77; 32]), ..result(1, 2, &[leaf(1, 12)]) };
    act(&mut world, AccountsCommand::Result(second.clone())).unwrap();
    for voter in &voters[..2] {
        sign(&mut world, voter, &second).unwrap();
    }
    // Each signer may once, so that one alone cannot hold everybody up.
    let again = crate::machine::accounts::dispute_digest(&second.digest, &reason);
    let signature = voters[2].statement(&again);
    let command = AccountsCommand::Dispute { epoch: 1, reason: reason.clone(), signature };
    assert!(matches!(act(&mut world, command), Err(Refusal::Invalid(_))));
    world.now.0 += 60_000;
    let command = AccountsCommand::Dispute { epoch: 1, reason, signature: voters[1].statement(&again) };
    is_refusal(act(&mut world, command), |refusal| matches!(refusal, AccountsRefusal::WrongState { .. }));
    is_refusal(act(&mut world, claim), |refusal| *refusal == AccountsRefusal::BadProof(1));
    let claim = AccountsCommand::Claim { epoch: 1, leaf: leaf(1, 12), proof: vec![] };
    assert_eq!(act(&mut world, claim), Ok(AccountsReply::Paid(Amount(12))));
}

/// A thief with the node's key alone cannot redirect anything; with both, the old address earns through the cool-down.
/// Digest and signature made with ethers 6 (`TypedDataEncoder.hash`, `Wallet.signTypedData`): what a wallet signs counts.
#[test]
fn a_wallet_can_sign_for_a_payout() {
    use crate::machine::accounts::{is_payout_signed, payout_typed_digest};
    let node = NodeId([0xaa; 32]);
    let digest = payout_typed_digest(node, 5);
    assert_eq!(digest.to_string(), "0x11981adf11716ad1d22b285111b235acd8a0af21c853e6eb5e705219ff64326f");
    let wallet = Keys::new(7);
    assert_eq!(
        wallet.sign(&digest).to_string(),
        "0x883551c9dd9bee301a584497f4b415b0849eb2fe24b175b243ec6780856b28bc\
         05618364b327ae6acb0eb1b391cba76a52f3ac0c09614ef84e43ee2bbd65a7011c"
    );
    let node = Keys::new(1);
    let mut binding = node.binding(&wallet, 5);
    binding.signature = wallet.sign(&payout_typed_digest(node.id(), 5));
    assert!(is_payout_signed(&binding));
    assert!(!is_payout_signed(&PayoutBinding { serial: 6, ..binding.clone() }), "another serial");
    assert!(
        !is_payout_signed(&PayoutBinding { payout: Address([1; 20]), ..binding.clone() }),
        "another address"
    );
    assert!(!is_payout_signed(&PayoutBinding { node: Keys::new(2).id(), ..binding }), "another node");
}

#[test]
fn a_payout_address_needs_both_keys_and_time() {
    let (mut world, voters) = opened(0);
    let (node, old, new) = (&voters[0], Keys::new(50), Keys::new(51));
    let mut forged = node.binding(&old, 1);
    forged.payout = new.address();
    is_refusal(act(&mut world, AccountsCommand::BindPayout(forged)), |refusal| {
        matches!(refusal, AccountsRefusal::BadSignature(_))
    });
    act(&mut world, AccountsCommand::BindPayout(node.binding(&old, 1))).unwrap();
    act(&mut world, AccountsCommand::BindPayout(node.binding(&old, 1))).unwrap();
    assert!(matches!(
        act(&mut world, AccountsCommand::BindPayout(node.binding(&new, 1))),
        Err(Refusal::Invalid(_))
    ));
    act(&mut world, AccountsCommand::BindPayout(node.binding(&new, 2))).unwrap();
    seal(&mut world, 1);
    assert_eq!(usage(&world, 1, node.id()).payout, Some(old.address()));
    for epoch in 2..=7 {
        seal(&mut world, epoch);
    }
    assert_eq!(usage(&world, 7, node.id()).payout, Some(new.address()));
}

#[test]
fn the_chain_holds_and_old_epochs_are_forgotten_in_order() {
    let (mut world, voters) = opened(0);
    let last = 11;
    for epoch in 1..=last {
        close(&mut world, &voters, epoch, &[leaf(1, u128::from(epoch))]);
    }
    let mut prev = Hash::default();
    for (height, entry) in (1..).zip(ledger(&world)) {
        assert_eq!((entry.height, entry.prev), (height, prev));
        assert_eq!(entry.hash, crate::machine::accounts::entry_hash(height, entry.at, &prev, &entry.body));
        prev = entry.hash;
    }
    assert_eq!(state(&world).head.hash, prev);
    assert!(act(&mut world, AccountsCommand::Prune { epoch: 2 }).is_err(), "the oldest goes first");
    for epoch in 1..=3 {
        let pruned = act(&mut world, AccountsCommand::Prune { epoch });
        assert_eq!(pruned, Ok(AccountsReply::Pruned { is_more: false }));
    }
    assert!(act(&mut world, AccountsCommand::Prune { epoch: 4 }).is_err(), "eight are kept");
    assert_eq!(state(&world).kept_from, 4);
    let AccountsAnswer::Usage(gone) =
        ask(&world, AccountsQuery::Usage { epoch: 3, after: None, entries_max: 10 })
    else {
        panic!("usage")
    };
    assert!(gone.is_empty());
    assert_eq!(state(&world).leaves_from, 1, "claims may still be made by them");
    assert!(act(&mut world, AccountsCommand::PruneLeaves { epoch: 2 }).is_err(), "the oldest goes first");
    for epoch in 1..=3 {
        let pruned = act(&mut world, AccountsCommand::PruneLeaves { epoch });
        assert_eq!(pruned, Ok(AccountsReply::Pruned { is_more: false }));
    }
    assert!(act(&mut world, AccountsCommand::PruneLeaves { epoch: 4 }).is_err(), "no longer than accounts");
    assert_eq!(state(&world).leaves_from, 4);
}

/// Where the window is longer than the epochs that are kept, what may be claimed now can still be proved.
#[test]
fn leaves_stay_until_a_later_root_pays() {
    const WINDOW_MS: u64 = 14 * EPOCH_MS;
    let (mut world, voters) = opened(WINDOW_MS);
    for epoch in 1..=20 {
        close(&mut world, &voters, epoch, &[leaf(1, u128::from(epoch))]);
        let kept_from = state(&world).kept_from;
        drop(act(&mut world, AccountsCommand::Prune { epoch: kept_from }));
        let leaves_from = state(&world).leaves_from;
        drop(act(&mut world, AccountsCommand::PruneLeaves { epoch: leaves_from }));
    }
    let AccountsAnswer::Epochs(epochs) = ask(&world, AccountsQuery::Epochs { from: 1, entries_max: 100 })
    else {
        panic!("epochs")
    };
    let now = epochs.last().unwrap().opened_at;
    let payable = epochs.iter().rfind(|epoch| epoch.active_at.is_some_and(|active_at| active_at <= now));
    let payable = payable.unwrap().number;
    assert!(payable < state(&world).kept_from, "its accounts are forgotten");
    assert!(payable >= state(&world).leaves_from, "its leaves are not");
    let claimed = act(
        &mut world,
        AccountsCommand::Claim { epoch: payable, leaf: leaf(1, payable.into()), proof: vec![] },
    );
    assert_eq!(claimed, Ok(AccountsReply::Paid(Amount(payable.into()))));
}

/// Most signers together move claims to a contract: later epochs are signed for it, and it alone pays.
#[test]
fn claims_move_to_a_contract_once_and_by_majority() {
    let (mut world, voters) = opened(0);
    close(&mut world, &voters, 1, &[leaf(1, 5)]);
    seal(&mut world, 2);
    act(&mut world, AccountsCommand::Result(result(2, 1, &[leaf(1, 6)]))).unwrap();
    let (contract, other) = (Address([0xC0; 20]), Address([0xC1; 20]));
    let from = state(&world).genesis.ledger;
    let word = |voter: &Keys, ledger: Address| {
        let digest = crate::machine::accounts::move_digest(&from, 31_337, &ledger);
        AccountsCommand::Move { chain_id: 31_337, ledger, signature: voter.statement(&digest) }
    };
    act(&mut world, word(&voters[0], contract)).unwrap();
    act(&mut world, word(&voters[0], contract)).unwrap();
    assert_eq!(state(&world).genesis.chain_id, 0, "one voice, however often");
    act(&mut world, word(&voters[1], other)).unwrap();
    act(&mut world, word(&voters[0], contract)).unwrap();
    assert_eq!(state(&world).genesis.chain_id, 0, "each for another contract");
    let AccountsCommand::Move { signature, .. } = word(&voters[1], other) else { unreachable!() };
    let forged = AccountsCommand::Move { chain_id: 31_337, ledger: contract, signature };
    is_refusal(act(&mut world, forged), |refusal| matches!(refusal, AccountsRefusal::BadSignature(_)));
    act(&mut world, word(&voters[1], contract)).unwrap();
    let moved = state(&world);
    assert_eq!((moved.genesis.chain_id, moved.genesis.ledger), (31_337, contract));
    assert_eq!(moved.moved_after, Some(1));
    let claim = AccountsCommand::Claim { epoch: 1, leaf: leaf(1, 5), proof: vec![] };
    is_refusal(act(&mut world, claim), |refusal| matches!(refusal, AccountsRefusal::PaidByContract { .. }));
    is_refusal(act(&mut world, word(&voters[2], other)), |refusal| {
        matches!(refusal, AccountsRefusal::PaidByContract { .. })
    });
    let AccountsAnswer::Epochs(epochs) = ask(&world, AccountsQuery::Epochs { from: 2, entries_max: 1 })
    else {
        panic!("epochs")
    };
    assert!(
        matches!(epochs[0].state, EpochState::Sealed),
        "what was proposed for the old ledger is not signed"
    );
}

#[test]
fn a_voter_keeps_its_right_to_sign_until_it_is_none() {
    let (mut world, voters) = opened(0);
    let gone = voters[2].address();
    assert!(act(&mut world, AccountsCommand::RemoveSigner { address: gone }).is_err());
    world.run(Command::SetNodeStanding { node: voters[2].id(), standing: Standing::Lost }).unwrap();
    act(&mut world, AccountsCommand::RemoveSigner { address: gone }).unwrap();
    assert_eq!(state(&world).signers.len(), 2);
    let mut forged = Keys::new(4).signer();
    forged.node = voters[0].id();
    is_refusal(act(&mut world, AccountsCommand::AddSigner(forged)), |refusal| {
        matches!(refusal, AccountsRefusal::BadSignature(_))
    });
}
