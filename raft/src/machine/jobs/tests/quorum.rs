//! Results that need agreement: what is published, who is asked, who is credited.

use super::*;
use crate::facts::command::NewContent;
use crate::facts::jobs::{NewOutput, Output, Published};
use crate::facts::object::Content;

fn world() -> (World, JobId) {
    let mut world = World::new();
    let (name, tenant) = ("results".to_owned(), TENANT);
    world.run(Command::CreateBucket { name, tenant, scheme: None }).unwrap();
    let outputs = vec![Output { path: String::new(), to: to() }];
    let (job, _) = world.submit("", JobSpec { outputs, quorum: 3, ..spec(1) }).unwrap();
    (world, job)
}

fn to() -> ObjectPath {
    ObjectPath { bucket: "results".into(), key: "out".into() }
}

/// Ends an attempt with outputs of this hash.
fn succeed(world: &mut World, attempt: AttemptId, node: u8, hash: u8) -> Result<Reply, Refusal> {
    let ObjectPath { bucket, key } = to();
    let statement = Statement {
        attempt,
        node: NodeId([node; 32]),
        end: End::Exited { code: 0 },
        usage: Usage::default(),
        outputs: vec![Published { bucket, key, size: 0, blake3: [hash; 32] }],
    };
    let new = NewContent {
        size: 0,
        etag: format!("{hash:032x}"),
        checksum: None,
        content: Content::Empty,
        blobs: Vec::new(),
        bucket_id: 0,
    };
    let outputs = vec![NewOutput { to: to(), new }];
    world.jobs(JobsCommand::Finish { statement, signature: Bytes::new(), outputs, log: None })
}

/// The ETag of what is visible.
fn visible(world: &World) -> Option<String> {
    let ObjectPath { bucket, key } = to();
    let asked = Query::Object { bucket, key, from_offset: 0, extents_max: 1 };
    match query(&world.kv, &asked).expect("the store is sound") {
        Ok(Answer::Object(found)) => Some(found.head.etag),
        _ => None,
    }
}

fn try_at(world: &mut World, job: JobId, node: u8, hash: u8) {
    let attempt = world.assign(job, 0, node).expect("it waits for a node");
    succeed(world, attempt, node, hash).unwrap();
    // A report that is sent again changes nothing.
    succeed(world, attempt, node, hash).unwrap();
}

#[test]
fn outputs_are_published_when_nodes_agree() {
    let (mut world, job) = world();
    try_at(&mut world, job, 1, 7);
    assert_eq!((visible(&world), world.state(job).1.phase), (None, JobPhase::Running));
    assert_eq!(world.queue(), [(job.0, 0)], "it waits for another");
    assert_eq!(world.assign(job, 0, 1), None, "not for the same node");
    let JobsAnswer::Queue(queue) =
        world.ask(JobsQuery::Queue { tasks_max: 10, per_job: 0, after: None }).unwrap()
    else {
        panic!()
    };
    assert_eq!(queue[0].tasks[0].barred, [NodeId([1; 32])]);
    // A node that is lost in between costs nothing but time.
    let lost = world.assign(job, 0, 2).unwrap();
    world.jobs(JobsCommand::Lose { attempts: vec![(lost, "gone".into())] }).unwrap();
    assert_eq!(world.assign(job, 0, 1), None);
    try_at(&mut world, job, 3, 9);
    assert_eq!(visible(&world), None);
    try_at(&mut world, job, 4, 7);
    assert_eq!(visible(&world), Some(format!("{:032x}", 7)));
    let (_, state) = world.state(job);
    assert_eq!((state.phase, state.counts.succeeded, state.counts.active), (JobPhase::Succeeded, 1, 0));
    assert_eq!(world.records().get(&0x7E), None, "votes go with their task");
    assert_eq!(world.records().get(&0x7F), Some(&3), "each of three is remembered for it");
}

#[test]
fn where_all_differ_nothing_is_published() {
    let (mut world, job) = world();
    for node in 1..=5 {
        assert!(!world.state(job).1.phase.is_over());
        try_at(&mut world, job, node, node);
    }
    let (_, state) = world.state(job);
    assert_eq!((state.phase, visible(&world)), (JobPhase::Failed, None));
    assert!(state.reason.contains("no majority"), "{}", state.reason);
    assert_eq!(world.records().get(&0x7F), None, "nobody is credited, nobody blamed");
}

/// Opens accounts by the rules that pay verifiers.
fn open_accounts(world: &mut World, forfeits_all: bool) {
    open_accounts_by(world, crate::facts::accounts::RULES_LOTS, forfeits_all);
}

fn open_accounts_by(world: &mut World, rules: u32, forfeits_all: bool) {
    use crate::facts::accounts::{AccountsCommand, Amount, Emission, Genesis, Hash};
    let tokenomics = "{}".to_owned();
    let genesis = Genesis {
        rules,
        tokenomics_hash: Hash(*blake3::hash(tokenomics.as_bytes()).as_bytes()),
        tokenomics,
        emission: Emission::of_pool(Amount(1_000_000), 100),
        epoch_ms: 10_000,
        challenge_ms: 0,
        payout_cooldown_ms: 0,
        chain_id: 0,
        ledger: crate::facts::accounts::Address([9; 20]),
        forfeits_all,
        pledge: None,
    };
    world.run(Command::Accounts(AccountsCommand::Open { genesis })).unwrap();
}

/// Who came to what was accepted after the first is paid for verifying; the first and the liar are not. Where all lose,
/// nobody is paid, the liar alone is blamed, and the customer has its result.
#[test]
fn verifiers_are_counted_and_under_the_literal_rule_all_lose() {
    for forfeits_all in [false, true] {
        let (mut world, job) = world();
        open_accounts(&mut world, forfeits_all);
        for (node, hash) in [(1, 7), (3, 9), (4, 7)] {
            let attempt = world.assign(job, 0, node).expect("it waits for a node");
            world.now += 1_000;
            succeed(&mut world, attempt, node, hash).unwrap();
        }
        assert_eq!(visible(&world), Some(format!("{:032x}", 7)), "the majority's outputs");
        assert_eq!(world.state(job).1.phase, JobPhase::Succeeded);
        let done = |node: u8| world.leased(NodeId([node; 32]));
        // Attempts, right and wrong answers, verified milliseconds of cores, runs that all lost.
        match forfeits_all {
            false => {
                assert_eq!(done(1), (1, 1, 0, 0, 0));
                assert_eq!(done(3), (0, 0, 1, 0, 0));
                assert_eq!(done(4), (1, 1, 0, 100, 0));
            }
            true => {
                assert_eq!(done(1), (0, 0, 0, 0, 1));
                assert_eq!(done(3), (0, 0, 1, 0, 1));
                assert_eq!(done(4), (0, 0, 0, 0, 1));
            }
        }
    }
}

/// A card's kernels are run again by a processor, which holds no card and is paid for none; where the accounts follow older rules
/// nothing changes.
#[test]
fn a_processor_runs_again_what_a_card_ran() {
    use crate::facts::accounts::{RULES_LOTS, RULES_PLEDGES};
    use crate::facts::jobs::{
        GpuShare, ModuleBuffer, ModuleCode, ModuleFill, ModuleStep, ModuleWork, RERUN_SLOWER,
    };
    for rules in [RULES_LOTS, RULES_PLEDGES] {
        let mut world = World::new();
        open_accounts_by(&mut world, rules, false);
        let (name, tenant) = ("results".to_owned(), TENANT);
        world.run(Command::CreateBucket { name, tenant, scheme: None }).unwrap();
        let buffer =
            ModuleBuffer { name: "y".into(), bytes: 100 << 20, fill: ModuleFill::Zero, is_output: true };
        let step = ModuleStep {
            kernel: "k".into(),
            grid: [1; 3],
            block: [1; 3],
            shared_bytes: 0,
            arguments: vec![],
            repeat: 1,
        };
        let work =
            ModuleWork { code: ModuleCode::Text("ptx".into()), buffers: vec![buffer], steps: vec![step] };
        let gpu = Some(GpuShare { cards: 1, ..GpuShare::default() });
        let base = spec(1);
        let resources = Resources { gpu, ..base.resources.clone() };
        let outputs = vec![Output { path: "y".into(), to: to() }];
        let module = JobSpec { work: Work::Module(work), resources, outputs, quorum: 2, ..base };
        let (job, _) = world.submit("", module.clone()).unwrap();
        let active = |world: &World| {
            let JobsAnswer::Active(active) = world.ask(JobsQuery::Active).unwrap() else { panic!() };
            active[0].clone()
        };
        let first = world.assign(job, 0, 1).unwrap();
        assert!(active(&world).resources.gpu.is_some(), "the first is no second opinion");
        world.now += 1_000;
        succeed(&mut world, first, 1, 7).unwrap();
        let second = world.assign(job, 0, 3).unwrap();
        let held = active(&world);
        assert_eq!(held.resources.gpu.is_none(), rules == RULES_PLEDGES);
        if rules == RULES_PLEDGES {
            assert!(held.resources.memory_bytes >= (100 << 20) + module.resources.memory_bytes);
            assert_eq!(held.time_limit_ms, module.time_limit_ms * RERUN_SLOWER);
        }
        world.now += 1_000;
        succeed(&mut world, second, 3, 7).unwrap();
        assert_eq!(world.state(job).1.phase, JobPhase::Succeeded);
        // A second of a tenth of a core, and of a card as 32 cores where that was held.
        let verified_ms = world.leased(NodeId([3; 32])).3;
        assert_eq!(verified_ms, if rules == RULES_PLEDGES { 100 } else { 32_100 });
    }
}

/// Nodes that agree lose nothing under either rule.
#[test]
fn agreement_is_paid_under_the_literal_rule_too() {
    let (mut world, job) = world();
    open_accounts(&mut world, true);
    for node in [1, 4] {
        let attempt = world.assign(job, 0, node).expect("it waits for a node");
        world.now += 1_000;
        succeed(&mut world, attempt, node, 7).unwrap();
    }
    let done = |node: u8| world.leased(NodeId([node; 32]));
    assert_eq!([done(1), done(4)], [(1, 1, 0, 0, 0), (1, 1, 0, 100, 0)]);
}

#[test]
fn a_quorum_needs_something_to_compare() {
    let mut world = World::new();
    assert!(world.submit("", JobSpec { quorum: 2, ..spec(1) }).is_err(), "no outputs");
    let outputs = vec![Output { path: String::new(), to: to() }];
    assert!(
        world.submit("", JobSpec { quorum: 6, outputs: outputs.clone(), ..spec(1) }).is_err(),
        "too many"
    );
    assert!(world.submit("", JobSpec { quorum: 2, is_gang: true, outputs, ..spec(2) }).is_err(), "a gang");
}
