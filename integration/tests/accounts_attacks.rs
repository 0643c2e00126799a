//! Promise: lying pays at most what honesty pays. Each attack is played against the cores that decide what is paid, over
//! many seeds: the liar's earnings beside those of an honest node of the same size.
//!
//! `ops/ATTACKS.md` is the table of all attacks, with what is left of each; here are those that need a whole settlement.

use std::collections::{BTreeMap, BTreeSet};

use makai_erasure::NodeId;
use makai_erasure::stripe::{Root, blob_root};
use makai_ops::audit::draw::{Lots, audits_per_epoch};
use makai_ops::audit::proof::{AuditAnswer, LEAF_BYTES, Outline, check, leaf_range};
use makai_ops::claims::compute::{EpochFacts, compute, usage_hash};
use makai_ops::claims::tree::embedded_ledger;
use makai_ops::rewards::settle::{Inputs, Outcome, settle};
use makai_ops::rewards::tokenomics::{RULES, Tokenomics};
use makai_raft::facts::Timestamp;
use makai_raft::facts::accounts::{
    Address, Amount, Component, Epoch, EpochState, Genesis, Hash, NodeUsage, Reason, Status, UsageExtra,
};

const EPOCH_MS: u64 = 3_600_000;
const DAY_EPOCHS: u64 = 24;
const LEAVES_PER_DAY: u32 = 96;
/// Leaves that each node should hold.
const LEAVES: u64 = 20_000;
const BYTE_MS: u128 = (LEAVES * LEAF_BYTES) as u128 * EPOCH_MS as u128;

fn node(id: u8) -> NodeId {
    NodeId([id; 32])
}

fn beacon(seed: u64, epoch: u64) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_be_bytes()).update(&epoch.to_be_bytes());
    Hash(*hasher.finalize().as_bytes())
}

/// What a node does when it is asked for a leaf.
enum Answer {
    Right,
    Wrong,
    None,
}

/// Plays epochs with nodes 1.. of one size each, by what they answer to (seed's beacon) epoch and leaf.
fn play(
    seed: u64,
    epochs: u64,
    nodes: u8,
    mut answer: impl FnMut(u8, u64, u64) -> Answer,
) -> (Outcome, BTreeMap<u8, u64>) {
    let table = Tokenomics::profile("makai", EPOCH_MS).expect("a known profile");
    let (mut state, mut found): (Option<Outcome>, BTreeMap<u8, u64>) = (None, BTreeMap::new());
    for epoch in 1..=epochs {
        let mut usage = Vec::new();
        for id in 1..=nodes {
            let mut row = NodeUsage {
                payout: Some(Address([id; 20])),
                storage_byte_ms: BYTE_MS,
                stored_bytes: LEAVES * LEAF_BYTES,
                ..NodeUsage::of(node(id))
            };
            for at in 0..audits_per_epoch(LEAVES_PER_DAY, EPOCH_MS) {
                let leaf = Lots::new(&beacon(seed, epoch), &node(id), at).below(LEAVES);
                match answer(id, epoch, leaf) {
                    Answer::Right => row.audits_pass += 1,
                    Answer::Wrong => {
                        row.audits_fail += 1;
                        found.entry(id).or_insert(epoch);
                    }
                    Answer::None => row.audits_offline += 1,
                }
            }
            usage.push(row);
        }
        let before = state.as_ref();
        state = Some(settle(&Inputs {
            rules: RULES,
            table: &table,
            epoch,
            epoch_ms: EPOCH_MS,
            beacon: beacon(seed, epoch),
            usage: &usage,
            accounts: before.map_or(&[], |before| &before.accounts),
            leaves: before.map_or(&[], |before| &before.leaves),
            difficulty: before.map_or(&[], |before| &before.difficulty),
        }));
    }
    (state.expect("at least one epoch"), found)
}

fn earned(outcome: &Outcome, id: u8) -> u128 {
    outcome
        .accounts
        .iter()
        .find(|account| account.node == node(id))
        .map_or(0, |account| account.earned_total.0)
}

#[test]
fn nothing_stored_earns_nothing() {
    let (outcome, _) =
        play(1, 3 * DAY_EPOCHS, 2, |id, _, _| if id == 1 { Answer::Wrong } else { Answer::Right });
    assert_eq!(earned(&outcome, 1), 0);
    assert!(earned(&outcome, 2) > 0);
    let liar = outcome.accounts.iter().find(|account| account.node == node(1)).expect("an account");
    assert_eq!(liar.status, Status::Suspended);
    assert!(liar.reasons.contains(&(Component::Storage, Reason::Suspended)));
}

/// Whatever share is dropped: less is earned than is saved, and 5 % are found within a day.
#[test]
fn dropping_data_pays_less_than_keeping_it() {
    for dropped_pct in [1, 5, 20] {
        let (mut liars, mut honest, mut found_in_a_day) = (0u128, 0u128, 0);
        const WORLDS: u64 = 60;
        for seed in 0..WORLDS {
            let is_dropped = |leaf: u64| leaf % 100 < dropped_pct;
            let (outcome, found) = play(seed, 5 * DAY_EPOCHS, 2, |id, _, leaf| {
                if id == 1 && is_dropped(leaf) { Answer::Wrong } else { Answer::Right }
            });
            liars += earned(&outcome, 1);
            honest += earned(&outcome, 2);
            found_in_a_day += u64::from(found.get(&1).is_some_and(|epoch| *epoch <= DAY_EPOCHS));
        }
        // What it keeps is what an honest node of that size would be paid for.
        let fair = honest / 100 * u128::from(100 - dropped_pct);
        assert!(liars <= fair, "{dropped_pct} % dropped: {liars} of {fair}");
        if dropped_pct >= 5 {
            assert!(found_in_a_day >= WORLDS * 97 / 100, "{found_in_a_day} of {WORLDS}");
        }
    }
}

/// The questions of an epoch can be known when it opens. Who keeps those leaves alone has the next ones asked in vain.
#[test]
fn keeping_only_what_was_asked_is_found_at_once() {
    for seed in 0..20 {
        let mut kept: BTreeSet<u64> = BTreeSet::new();
        for at in 0..audits_per_epoch(LEAVES_PER_DAY, EPOCH_MS) {
            kept.insert(Lots::new(&beacon(seed, 1), &node(1), at).below(LEAVES));
        }
        let (outcome, found) = play(seed, 3 * DAY_EPOCHS, 2, |id, _, leaf| {
            if id == 1 && !kept.contains(&leaf) { Answer::Wrong } else { Answer::Right }
        });
        assert_eq!(found.get(&1), Some(&2));
        assert!(earned(&outcome, 1) * 50 < earned(&outcome, 2), "one epoch at most is paid");
    }
}

#[test]
fn silence_pays_less_than_an_answer() {
    for seed in 0..20 {
        let (outcome, _) = play(seed, 5 * DAY_EPOCHS, 3, |id, epoch, leaf| match id {
            // Silent where it would fail: it dropped a fifth. The third is away every other hour.
            1 if leaf % 5 == 0 => Answer::None,
            3 if epoch % 2 == 0 => Answer::None,
            _ => Answer::Right,
        });
        assert!(earned(&outcome, 1) < earned(&outcome, 2) * 4 / 5);
        assert!(earned(&outcome, 3) <= earned(&outcome, 2) * 6 / 10);
    }
}

/// Who keeps nothing and fetches every leaf that it is asked for from others earns at most what keeping it earns, and less with
/// each answer that comes too late: it pays for what it fetches, and the data is there as far as anyone can tell.
#[test]
fn fetching_when_asked_pays_at_most_what_keeping_does() {
    for late_pct in [0, 2, 10, 50] {
        let (mut fetched, mut kept) = (0u128, 0u128);
        for seed in 0..20 {
            let (outcome, _) = play(seed, 5 * DAY_EPOCHS, 2, |id, epoch, leaf| {
                let lot = Lots::new(&beacon(seed, epoch), &node(99), leaf as u32).below(100);
                if id == 1 && lot < late_pct { Answer::None } else { Answer::Right }
            });
            fetched += earned(&outcome, 1);
            kept += earned(&outcome, 2);
        }
        assert!(fetched <= kept, "{late_pct} % late: {fetched} of {kept}");
        // Four answers an epoch: one that is late voids all of it.
        let in_time = 100 - u128::from(late_pct);
        assert!(fetched <= kept / 100 * in_time + kept / 50, "{late_pct} % late: {fetched} of {kept}");
    }
}

/// Who holds as many shards of a group as make the others could drop those. No owner does by its own name, whatever ids come;
/// under names that are not known to belong together a fifth of all nodes could drop one byte in a hundred of theirs, and is
/// paid what all others are.
#[test]
fn who_could_make_shards_again_saves_next_to_nothing() {
    use makai_erasure::DiskId;
    use makai_erasure::placement::{Member, plan};
    const NODES: usize = 60;
    const THEIRS: usize = 12;
    let scheme = makai_erasure::Scheme::new(4, 2).expect("a scheme");
    let (mut could_drop, mut held) = (0, 0);
    for seed in 0..10u64 {
        let id = |at: usize| *blake3::hash(&[seed.to_be_bytes(), at.to_be_bytes()].concat()).as_bytes();
        let members = |is_known: bool| -> Vec<Member> {
            let owner = |at: usize| match at < THEIRS && is_known {
                true => "mallory".to_owned(),
                false => format!("owner {at}"),
            };
            let member = |at: usize| Member {
                disk: DiskId(*id(at).first_chunk().expect("16 of 32 bytes")),
                node: NodeId(id(at)),
                owner: owner(at),
                site: String::new(),
                capacity_bytes: 1 << 40,
                is_part_time: false,
            };
            (0..NODES).map(member).collect()
        };
        let theirs: BTreeSet<DiskId> = members(true)[..THEIRS].iter().map(|member| member.disk).collect();
        let slots = |is_known| -> Vec<usize> {
            let groups = plan(scheme, &members(is_known), &[], &[], 1);
            groups
                .iter()
                .map(|group| group.disks.iter().filter(|disk| theirs.contains(disk)).count())
                .collect()
        };
        let most = slots(true).into_iter().max().unwrap_or(0);
        assert!(most <= usize::from(scheme.parity), "{most} shards of one owner, of {scheme}");
        for slots in slots(false) {
            held += slots;
            could_drop += slots.saturating_sub(scheme.data.into());
        }
    }
    assert!(held > 1000 && could_drop * 100 <= held, "{could_drop} of {held} shards");
}

/// An answer to one question is none to any other: another leaf, shard, blob, or a changed byte.
#[test]
fn an_answer_fits_one_question() {
    let shard = |seed: u8| {
        let mut bytes = vec![0; 300_000];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    let shards: Vec<Vec<u8>> = (0..3).map(shard).collect();
    let roots: Vec<Root> = shards.iter().map(|shard| *blake3::hash(shard).as_bytes()).collect();
    let blob = blob_root(&roots);
    let answer = |shard: usize, leaf: u64| {
        let mut outline = Outline::default();
        shards[shard].chunks(LEAF_BYTES as usize).for_each(|leaf| outline.push(leaf));
        let (offset, len) = leaf_range(300_000, leaf).expect("a leaf");
        let bytes = shards[shard][offset as usize..(offset + len) as usize].to_vec();
        AuditAnswer { leaf: bytes.into(), path: outline.path(leaf).expect("a path"), roots: roots.clone() }
    };
    for asked in 0..19 {
        for told in 0..19 {
            for shard in 0..3u8 {
                let is_right = check(&blob, 1, 300_000, asked, &answer(shard.into(), told)).is_ok();
                assert_eq!(is_right, shard == 1 && asked == told, "leaf {told} of {shard} for {asked} of 1");
            }
        }
    }
    let own = blob_root(&[roots[1]]);
    assert!(check(&own, 1, 300_000, 3, &answer(1, 3)).is_err(), "another blob");
}

fn settle_once(usage: &[NodeUsage]) -> Outcome {
    let table = Tokenomics::profile("makai", EPOCH_MS).expect("a known profile");
    let (accounts, leaves, difficulty) = (&[], &[], &[]);
    settle(&Inputs {
        rules: RULES,
        table: &table,
        epoch: 1,
        epoch_ms: EPOCH_MS,
        beacon: beacon(1, 1),
        usage,
        accounts,
        leaves,
        difficulty,
    })
}

#[test]
fn splitting_into_many_ids_gains_nothing() {
    let row = |id: u8, part: u128| NodeUsage {
        storage_byte_ms: BYTE_MS / part,
        egress_bytes: (LEAVES * LEAF_BYTES) / part as u64,
        work_mut: 1_000_000 / part as u64,
        audits_pass: 4,
        ..NodeUsage::of(node(id))
    };
    let whole = settle_once(&[row(1, 1), row(200, 1)]);
    let parts: Vec<NodeUsage> = (1..=10).map(|id| row(id, 10)).chain([row(200, 1)]).collect();
    let split = settle_once(&parts);
    let sum: u128 = (1..=10).map(|id| earned(&split, id)).sum();
    assert!(sum <= earned(&whole, 1) + earned(&whole, 1) / 1_000_000, "{sum} for {}", earned(&whole, 1));
}

/// Work and stake of one, spread over ten addresses in whatever parts: no more than together; and a stake without work, or of
/// an address whose work is nothing, adds nothing.
#[test]
fn spreading_a_stake_gains_nothing() {
    const STAKE: u128 = 5_000_000_000_000_000_000_000;
    let row = |id: u8, work: u128, stake: u128| NodeUsage {
        payout: Some(Address([id; 20])),
        storage_byte_ms: work,
        audits_pass: 4,
        extra: UsageExtra { stake: Amount(stake), ..UsageExtra::default() },
        ..NodeUsage::of(node(id))
    };
    let honest = row(200, BYTE_MS, 0);
    let whole = settle_once(&[row(1, BYTE_MS, STAKE), honest.clone()]);
    let budget = earned(&whole, 1) + earned(&whole, 200);
    assert!(earned(&whole, 1) > earned(&whole, 200), "a stake helps");
    for seed in 0..100u64 {
        let mut lots = Lots::new(&beacon(seed, 1), &node(1), 0);
        let parts: Vec<(u128, u128)> =
            (0..10).map(|_| (1 + u128::from(lots.below(100)), 1 + u128::from(lots.below(100)))).collect();
        let [works, stakes] =
            [parts.iter().map(|part| part.0).sum::<u128>(), parts.iter().map(|part| part.1).sum()];
        let spread = (1..).zip(&parts).map(|(id, (work, stake))| {
            row(
                id,
                BYTE_MS / works * work,
                if seed % 5 == 0 { STAKE / works * work } else { STAKE / stakes * stake },
            )
        });
        let rows: Vec<NodeUsage> = spread.chain([row(150, 0, STAKE), honest.clone()]).collect();
        let split = settle_once(&rows);
        let sum: u128 = (1..=10).map(|id| earned(&split, id)).sum();
        assert!(sum <= earned(&whole, 1) + budget / 1_000_000, "{seed}: {sum} of {}", earned(&whole, 1));
        assert_eq!(earned(&split, 150), 0);
        assert!(sum + earned(&split, 200) <= budget + budget / 1_000_000, "the budget is what it was");
    }
}

/// A client and a miner who are one may move any number of bytes: they share the budget of egress and nothing else.
#[test]
fn wash_traffic_is_bounded_by_its_budget() {
    let table = Tokenomics::profile("makai", EPOCH_MS).expect("a known profile");
    let budget = table.budget(table.emission().of_epoch(1), Component::Egress);
    let honest = NodeUsage {
        egress_bytes: 1 << 30,
        audits_pass: 4,
        storage_byte_ms: BYTE_MS,
        ..NodeUsage::of(node(2))
    };
    let washer = NodeUsage { egress_bytes: u64::MAX / 2, ..NodeUsage::of(node(1)) };
    let outcome = settle_once(&[washer, honest]);
    assert!(earned(&outcome, 1) <= budget.0);
    assert!(budget.0 * 10 <= table.emission().of_epoch(1).0, "a tenth of the emission at most");
}

/// Every voter computes a result from sealed facts: whatever a leader changes, the result is another one.
#[test]
fn a_result_that_lies_gets_no_honest_signature() {
    let table = Tokenomics::profile("makai", EPOCH_MS).expect("a known profile");
    let genesis = Genesis {
        rules: RULES,
        tokenomics: table.canonical(),
        tokenomics_hash: table.hash(),
        emission: table.emission(),
        epoch_ms: EPOCH_MS,
        challenge_ms: 0,
        payout_cooldown_ms: 0,
        chain_id: 0,
        ledger: embedded_ledger("c"),
        forfeits_all: false,
        pledge: None,
    };
    let honest: Vec<NodeUsage> = (1..=3)
        .map(|id| NodeUsage {
            payout: Some(Address([id; 20])),
            storage_byte_ms: BYTE_MS,
            audits_pass: 4,
            ..NodeUsage::of(node(id))
        })
        .collect();
    let epoch = Epoch {
        number: 1,
        state: EpochState::Sealed,
        opened_at: Timestamp(0),
        beacon: Hash([1; 32]),
        sealed_at: Some(Timestamp(EPOCH_MS)),
        sealed_head: Some(Hash([2; 32])),
        node_count: 3,
        usage_hash: Some(usage_hash(&honest)),
        result: None,
        threshold: 0,
        signatures: vec![],
        active_at: None,
        disputed_by: vec![],
    };
    let facts = |usage, epoch| EpochFacts {
        genesis: &genesis,
        epoch,
        usage,
        accounts_before: &[],
        leaves_before: &[],
        result_before: None,
    };
    let (_, right) = compute(&facts(&honest, &epoch), 1).expect("sound facts");
    let mut more = honest.clone();
    more[0].storage_byte_ms *= 2;
    assert!(compute(&facts(&more, &epoch), 1).is_err(), "usage that was not sealed");
    // A liar would have to seal other usage, and then the chain, which every voter has, has another head.
    let other = Epoch { usage_hash: Some(usage_hash(&more)), ..epoch.clone() };
    let (_, lie) = compute(&facts(&more, &other), 1).expect("facts that fit together");
    assert_ne!(lie.digest, right.digest);
    let inflated =
        makai_raft::facts::accounts::EpochResult { total: Amount(right.total.0 + 1), ..right.clone() };
    assert_ne!(inflated, right);
}

/// `ops/ATTACKS.md`: every row names tests that are there, or says what is left; and none of the known attacks is missing.
#[test]
fn every_attack_is_played_or_said_to_be_left() {
    const KNOWN: [&str; 20] = [
        "never stored",
        "deleted after an audit",
        "old answers",
        "receipts",
        "answers kept",
        "many ids",
        "made again",
        "fetched from elsewhere",
        "client and a miner",
        "machine or card",
        "results made up",
        "copies or sleeps",
        "in league",
        "lottery",
        "stakes",
        "griefing",
        "voters who sign",
        "forks or breaks",
        "key stolen",
        "fees",
    ];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join("ops/ATTACKS.md")).expect("the table");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| attack"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    for known in KNOWN {
        assert!(rows.iter().any(|row| row[0].contains(known)), "{known:?} has no row");
    }
    let mut sources = String::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of the sources").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let is_left_out =
                name == "target" || name == "node_modules" || name.to_string_lossy().starts_with('.');
            if path.is_dir() && !is_left_out {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                sources.push_str(&std::fs::read_to_string(path).expect("a source"));
            }
        }
    }
    for row in rows {
        let [attack, stopped_by, tests, left] = row[..] else { panic!("a row has four columns: {row:?}") };
        assert!(!stopped_by.is_empty() && !left.is_empty(), "{attack}");
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(
            !named.is_empty() || (tests == "none" && left.len() > 20),
            "{attack}: no test, and nothing said"
        );
        for test in named {
            assert!(sources.contains(&format!("fn {test}(")), "{attack}: there is no test {test}");
        }
    }
}
