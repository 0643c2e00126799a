//! Lots, stakes and quorums by the rules that know them: what is taken, from when on it counts, what is sealed.

use super::accounts::{EPOCH_MS, Keys, act, ask, close, genesis, opened, opened_by, seal, usage};
use super::*;
use crate::facts::accounts::*;
use crate::machine::accounts::stake_digest;

fn late() -> (World, Vec<Keys>) {
    opened_by(Genesis { rules: RULES_LOTS, ..genesis(0) })
}

fn bind(keys: &Keys, key: u8) -> AccountsCommand {
    let key = Hash([key; 32]);
    let node_signature = keys.sign_as_node(PURPOSE_LOTS, &key.0);
    AccountsCommand::BindLots(LotBinding { node: keys.id(), key, node_signature })
}

fn draw(keys: &Keys, epoch: u64, proof: u8) -> AccountsCommand {
    let proof = Bytes::from(vec![proof; LOT_PROOF_BYTES]);
    AccountsCommand::Draw { epoch, node: keys.id(), proof }
}

/// A key draws two epochs after it became known, so that nobody chooses one by a beacon; a new key waits again.
#[test]
fn a_key_draws_nothing_before_its_time() {
    let (mut world, nodes) = late();
    let node = &nodes[0];
    assert!(act(&mut world, draw(node, 1, 1)).is_err(), "no key");
    let mut forged = bind(node, 7);
    if let AccountsCommand::BindLots(binding) = &mut forged {
        binding.key = Hash([8; 32]);
    }
    assert!(matches!(act(&mut world, forged), Err(Refusal::Accounts(AccountsRefusal::BadSignature(_)))));
    act(&mut world, bind(node, 7)).unwrap();
    act(&mut world, bind(node, 7)).unwrap();
    for epoch in 1..=2 {
        assert!(act(&mut world, draw(node, epoch, 1)).is_err(), "epoch {epoch}");
        seal(&mut world, epoch);
    }
    assert!(act(&mut world, draw(node, 2, 1)).is_err(), "it is sealed");
    let short = AccountsCommand::Draw { epoch: 3, node: node.id(), proof: Bytes::from_static(b"x") };
    assert!(act(&mut world, short).is_err());
    act(&mut world, draw(node, 3, 1)).unwrap();
    act(&mut world, draw(node, 3, 2)).unwrap();
    seal(&mut world, 3);
    let lot = usage(&world, 3, node.id()).extra.lot.unwrap();
    assert_eq!((lot.key, lot.proof[0]), (Hash([7; 32]), 2), "the last word counts");
    assert_eq!(usage(&world, 3, nodes[1].id()).extra.lot, None);
    act(&mut world, bind(node, 9)).unwrap();
    assert!(act(&mut world, draw(node, 4, 1)).is_err(), "the new key waits");
    let AccountsAnswer::LotKey(Some(known)) = ask(&world, AccountsQuery::LotKey { node: node.id() }) else {
        panic!("a key")
    };
    assert_eq!((known.key, known.epoch), (Hash([9; 32]), 4));
}

/// Earlier rules know none of it, and their records stay as they were.
#[test]
fn earlier_rules_draw_no_lots_and_count_no_stakes() {
    let (mut world, nodes) = opened(0);
    assert!(act(&mut world, bind(&nodes[0], 7)).is_err());
    assert!(act(&mut world, order(&nodes[0], 1, 0)).is_err());
    let rows = vec![(nodes[0].address(), Amount(5))];
    assert!(act(&mut world, AccountsCommand::Stakes { epoch: 1, reporter: nodes[0].id(), rows }).is_err());
    seal(&mut world, 1);
    assert!(usage(&world, 1, nodes[0].id()).extra.is_none());
}

fn order(keys: &Keys, serial: u64, amount: u128) -> AccountsCommand {
    let (payout, amount) = (keys.address(), Amount(amount));
    let signature = keys.sign(&stake_digest(&genesis(0).ledger, &payout, serial, amount));
    AccountsCommand::Stake(StakeOrder { payout, serial, amount, signature })
}

/// At most what was claimed; more at once, less after the cool-down; sealed with every node of the address.
#[test]
fn stakes_are_of_what_was_claimed_and_leave_slowly() {
    let (mut world, nodes) = late();
    let (staker, other) = (&nodes[0], &nodes[1]);
    for node in [staker, other] {
        act(&mut world, AccountsCommand::BindPayout(node.binding(staker, 1))).unwrap();
    }
    assert!(act(&mut world, order(staker, 1, 1)).is_err(), "nothing was claimed");
    let leaf = Leaf { payout: staker.address(), cumulative: Amount(300) };
    close(&mut world, &nodes, 1, &[leaf]);
    act(&mut world, AccountsCommand::Claim { epoch: 1, leaf, proof: vec![] }).unwrap();
    assert!(act(&mut world, order(staker, 1, 301)).is_err(), "more than was claimed");
    let mut forged = order(staker, 1, 300);
    if let AccountsCommand::Stake(order) = &mut forged {
        order.amount = Amount(299);
    }
    assert!(act(&mut world, forged).is_err());
    act(&mut world, order(staker, 1, 200)).unwrap();
    act(&mut world, order(staker, 1, 200)).unwrap();
    let staked = |world: &World, epoch, node: &Keys| usage(world, epoch, node.id()).extra.stake.0;
    seal(&mut world, 2);
    assert_eq!([staker, other, &nodes[2]].map(|node| staked(&world, 2, node)), [200, 200, 0]);
    act(&mut world, order(staker, 2, 50)).unwrap();
    assert!(act(&mut world, order(staker, 1, 300)).is_err(), "an order of before");
    seal(&mut world, 3);
    assert_eq!(staked(&world, 3, staker), 200, "it still stands for what was done");
    let epochs = genesis(0).payout_cooldown_ms / EPOCH_MS;
    for epoch in 4..=4 + epochs {
        seal(&mut world, epoch);
    }
    assert_eq!(staked(&world, 4 + epochs, staker), 50);
    act(&mut world, order(staker, 3, 300)).unwrap();
    seal(&mut world, 5 + epochs);
    assert_eq!(staked(&world, 5 + epochs, staker), 300, "more counts at once");
}

/// On a chain: what more than half of the signers read; orders are the contract's business.
#[test]
fn stakes_on_a_chain_are_what_signers_agree_on() {
    let (mut world, nodes) = opened_by(Genesis { rules: RULES_LOTS, chain_id: 5, ..genesis(0) });
    let staker = &nodes[0];
    act(&mut world, AccountsCommand::BindPayout(staker.binding(staker, 1))).unwrap();
    assert!(act(&mut world, order(staker, 1, 0)).is_err());
    let tell = |epoch, by: &Keys, amount| AccountsCommand::Stakes {
        epoch,
        reporter: by.id(),
        rows: vec![(staker.address(), Amount(amount))],
    };
    let stranger = AccountsCommand::Stakes { epoch: 1, reporter: NodeId([9; 32]), rows: vec![] };
    assert!(act(&mut world, stranger).is_err());
    act(&mut world, tell(1, staker, 1_000_000)).unwrap();
    seal(&mut world, 1);
    assert_eq!(usage(&world, 1, staker.id()).extra.stake, Amount(0), "one of three says so");
    for (by, amount) in nodes.iter().zip([1_000_000, 70, 80]) {
        act(&mut world, tell(2, by, amount)).unwrap();
    }
    seal(&mut world, 2);
    assert_eq!(usage(&world, 2, staker.id()).extra.stake, Amount(80), "two of three read no less");
    assert!(act(&mut world, tell(2, staker, 1)).is_err(), "the epoch is sealed");
}

fn a_compute_node(world: &mut World) -> NodeId {
    let id = NodeId([77; 32]);
    let token = crate::facts::cluster::JoinToken {
        id: "miner".into(),
        secret_hash: [1; 32],
        roles: vec![Role::Storage, Role::Compute],
        expires_at: Timestamp(u64::MAX),
        uses_left: 1,
    };
    let (roles, secret) = (token.roles.clone(), (token.id.clone(), token.secret_hash));
    world.run(Command::CreateJoinToken { token }).unwrap();
    let node = Node { id, roles, ..node(77) };
    world.run(Command::JoinNode { node, disks: vec![], token: Some(secret) }).unwrap();
    id
}

/// The seed is of the epoch after the announcement, checkpoints come in order, verdicts in a later epoch still; two of three
/// signers decide, once, and nobody judges itself.
#[test]
fn training_is_judged_after_its_segments_are_drawn() {
    let (mut world, voters) = late();
    let miner = a_compute_node(&mut world);
    let spec = Hash([5; 32]);
    let announce = |node, checkpoints| AccountsCommand::AnnounceTraining { node, spec, checkpoints };
    let commit =
        |at, hash| AccountsCommand::CommitCheckpoint { node: miner, spec, at, hash: Hash([hash; 32]) };
    let judge = |by: NodeId, has_passed: bool, work_mut| {
        let why = if has_passed { String::new() } else { "a segment ends elsewhere".into() };
        let verdict = TrainingVerdict { verifier: by, has_passed, work_mut, why };
        AccountsCommand::JudgeTraining { node: miner, spec, verdict }
    };
    assert!(act(&mut world, announce(voters[0].id(), 2)).is_err(), "it computes nothing");
    assert!(act(&mut world, announce(miner, 1)).is_err());
    assert!(act(&mut world, commit(0, 1)).is_err(), "it was not announced");
    act(&mut world, announce(miner, 2)).unwrap();
    act(&mut world, announce(miner, 2)).unwrap();
    assert!(act(&mut world, announce(miner, 3)).is_err(), "another count");
    assert!(act(&mut world, commit(0, 1)).is_err(), "nobody knows the seed yet");
    seal(&mut world, 1);
    assert!(act(&mut world, commit(1, 1)).is_err(), "in order");
    act(&mut world, commit(0, 1)).unwrap();
    act(&mut world, commit(0, 1)).unwrap();
    assert!(act(&mut world, commit(0, 2)).is_err(), "it said otherwise before");
    assert!(act(&mut world, judge(voters[0].id(), true, 9)).is_err(), "one is missing");
    act(&mut world, commit(1, 2)).unwrap();
    assert!(act(&mut world, commit(2, 2)).is_err(), "there are two");
    assert!(act(&mut world, judge(voters[0].id(), true, 9)).is_err(), "segments are not drawn yet");
    seal(&mut world, 2);
    assert!(act(&mut world, judge(miner, true, 9)).is_err(), "its own");
    assert!(act(&mut world, judge(NodeId([66; 32]), true, 9)).is_err(), "no voter");
    act(&mut world, judge(voters[0].id(), true, 9_000)).unwrap();
    act(&mut world, judge(voters[0].id(), false, 0)).unwrap();
    act(&mut world, judge(voters[1].id(), false, 0)).unwrap();
    act(&mut world, judge(voters[2].id(), true, 700)).unwrap();
    let AccountsAnswer::Trainings(known) =
        ask(&world, AccountsQuery::Trainings { after: None, entries_max: 10 })
    else {
        panic!("trainings")
    };
    assert_eq!((known[0].verdicts.len(), known[0].outcome), (3, Some(true)));
    seal(&mut world, 3);
    let computed = usage(&world, 3, miner).computed;
    assert_eq!(
        (computed.pass, computed.fail, computed.train_mut),
        (1, 0, 700),
        "the least of those who let it pass"
    );
    seal(&mut world, 4);
    assert_eq!(usage(&world, 4, miner).computed, Computed::default(), "once");
}
