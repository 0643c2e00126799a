//! Properties of what tenants pay: nothing is spent twice or lost, and nothing runs unpaid.

use proptest::prelude::*;

use super::accounts::{EPOCH_MS, act, ask, opened, seal, usage};
use super::*;
use crate::facts::accounts::*;
use crate::facts::jobs::{
    Assignment, AttemptId, End, JobId, JobPhase, JobSpec, JobsAnswer, JobsCommand, JobsQuery, JobsReply,
    ObjectPath, Resources, Statement, Usage, Work,
};

const TENANT: TenantId = TenantId(1);
/// A core costs a thousandth of a credit a second.
const PRICES: Prices = Prices {
    storage_gib_month: 1_000_000,
    ingress_gib: 0,
    egress_gib: 2_000_000,
    requests_thousand: 0,
    cpu_core_hour: 3_600_000,
    memory_gib_hour: 0,
    gpu_card_hour: 0,
};
const CORE_SECOND: u128 = 1_000_000;
const CREDIT: u128 = UNITS_PER_CREDIT;

fn jobs(world: &mut World, command: JobsCommand) -> Result<Reply, Refusal> {
    world.run(Command::Jobs(command))
}

fn submit(world: &mut World, tasks: u32, cpu_millis: u32) -> Result<JobId, Refusal> {
    submit_with(world, tasks, cpu_millis, |_| ())
}

fn submit_with(
    world: &mut World,
    tasks: u32,
    cpu_millis: u32,
    change: impl FnOnce(&mut JobSpec),
) -> Result<JobId, Refusal> {
    let mut spec = JobSpec {
        name: "test".into(),
        work: Work::Container {
            image: ObjectPath { bucket: "images".into(), key: "busybox.tar".into() },
            command: vec!["true".into()],
            env: Vec::new(),
            working_dir: String::new(),
            user: String::new(),
        },
        resources: Resources { cpu_millis, memory_bytes: 1 << 26, scratch_bytes: 0, gpu: None },
        inputs: Vec::new(),
        outputs: Vec::new(),
        tasks,
        priority: 50,
        attempts_max: 1,
        backoff_ms: 0,
        time_limit_ms: 3_600_000,
        deadline: None,
        site: String::new(),
        after: Vec::new(),
        is_gang: false,
        price_max: 0,
        quorum: 0,
        each: None,
    };
    change(&mut spec);
    let (access_key_id, client_token) = ("KEY".to_owned(), String::new());
    match jobs(world, JobsCommand::Submit { tenant: TENANT, access_key_id, client_token, spec, list: None })?
    {
        Reply::Jobs(JobsReply::Submitted { job, .. }) => Ok(job),
        other => panic!("{other:?}"),
    }
}

fn assign(world: &mut World, job: JobId, index: u32, node: NodeId) -> Option<AttemptId> {
    let assignments = vec![Assignment { job, index, node, gpus: Vec::new(), is_twin: false }];
    match jobs(world, JobsCommand::Assign { assignments }).unwrap() {
        Reply::Jobs(JobsReply::Assigned(assigned)) => assigned.into_iter().next(),
        other => panic!("{other:?}"),
    }
}

fn finish(world: &mut World, attempt: AttemptId, node: NodeId) {
    let end = End::Exited { code: 0 };
    let statement = Statement { attempt, node, end, usage: Usage::default(), outputs: Vec::new() };
    let (signature, outputs) = (Bytes::new(), Vec::new());
    jobs(world, JobsCommand::Finish { statement, signature, outputs, log: None }).unwrap();
}

fn phase(world: &World, job: JobId) -> JobPhase {
    match world.ask(Query::Jobs(JobsQuery::Job { tenant: None, job })).unwrap() {
        Answer::Jobs(JobsAnswer::Job(_, state)) => state.phase,
        other => panic!("{other:?}"),
    }
}

fn queue(world: &World) -> usize {
    match world.ask(Query::Jobs(JobsQuery::Queue { tasks_max: 100, per_job: 0, after: None })).unwrap() {
        Answer::Jobs(JobsAnswer::Queue(jobs)) => jobs.iter().map(|job| job.tasks.len()).sum(),
        other => panic!("{other:?}"),
    }
}

fn active(world: &World) -> Vec<(AttemptId, NodeId)> {
    match world.ask(Query::Jobs(JobsQuery::Active)).unwrap() {
        Answer::Jobs(JobsAnswer::Active(active)) => {
            active.iter().map(|one| (one.attempt, one.node)).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn balance(world: &World) -> Option<Balance> {
    match ask(world, AccountsQuery::Billing) {
        AccountsAnswer::Billing { balances, .. } => balances.into_iter().find(|one| one.tenant == TENANT),
        other => panic!("{other:?}"),
    }
}

fn credit(world: &mut World, amount: u128, reference: &str) -> Result<AccountsReply, Refusal> {
    let (amount, reference) = (Amount(amount), reference.to_owned());
    act(world, AccountsCommand::Credit { tenant: TENANT, amount, reference })
}

fn priced() -> (World, NodeId) {
    let (mut world, voters) = opened(0);
    act(&mut world, AccountsCommand::SetPrices(PRICES)).unwrap();
    (world, voters[0].id())
}

fn rows(world: &World, epoch: u64) -> Option<TenantRow> {
    match ask(world, AccountsQuery::TenantUsage { epoch }) {
        AccountsAnswer::TenantUsage(rows) => rows.into_iter().find(|row| row.tenant == TENANT),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_payment_counts_once() {
    let (mut world, _) = priced();
    assert_eq!(balance(&world), None, "who never paid in is not charged");
    credit(&mut world, 5, "invoice 1").unwrap();
    credit(&mut world, 5, "invoice 1").unwrap();
    assert!(credit(&mut world, 6, "invoice 1").is_err(), "another payment under the same reference");
    assert!(credit(&mut world, 6, "").is_err());
    assert_eq!(balance(&world).unwrap().amount, Amount(5));
    let unknown = AccountsCommand::Credit { tenant: TenantId(99), amount: Amount(1), reference: "x".into() };
    assert!(act(&mut world, unknown).is_err());
}

/// Held when it begins, charged while it runs, given back where its node lost it; its node earns what was used.
#[test]
fn an_attempt_is_held_charged_and_refunded() {
    let (mut world, node) = priced();
    credit(&mut world, CREDIT, "1").unwrap();
    let job = submit(&mut world, 1, 2000).unwrap();
    let first = assign(&mut world, job, 0, node).unwrap();
    assert_eq!(balance(&world).unwrap().held, Amount(2 * 120 * CORE_SECOND));
    world.now.0 += 30_000;
    act(&mut world, AccountsCommand::Charge).unwrap();
    assert_eq!(balance(&world).unwrap().amount, Amount(CREDIT - 60 * CORE_SECOND));
    jobs(&mut world, JobsCommand::Lose { attempts: vec![(first, "its node died".into())] }).unwrap();
    let refunded = balance(&world).unwrap();
    assert_eq!((refunded.amount, refunded.held, refunded.spent), (Amount(CREDIT), Amount(0), Amount(0)));
    let second = assign(&mut world, job, 0, node).unwrap();
    world.now.0 += 10_000;
    finish(&mut world, second, node);
    let done = balance(&world).unwrap();
    assert_eq!((done.amount, done.held), (Amount(CREDIT - 20 * CORE_SECOND), Amount(0)));
    seal(&mut world, 1);
    let row = rows(&world, 1).unwrap();
    assert_eq!(row.slices.cpu_core_ms, 80_000, "what was lost was used, too");
    assert_eq!((row.charged, row.refunded), (Amount(80 * CORE_SECOND), Amount(60 * CORE_SECOND)));
    let earned = usage(&world, 1, node);
    assert_eq!((earned.lease.cpu_core_ms, earned.jobs_ok), (20_000, 1), "and earns nothing");
}

#[test]
fn jobs_end_before_the_balance_does_and_others_go_on() {
    let (mut world, node) = priced();
    // For three minutes of one core.
    credit(&mut world, 180 * CORE_SECOND, "1").unwrap();
    let job = submit(&mut world, 2, 1000).unwrap();
    assert!(assign(&mut world, job, 0, node).is_some());
    assert!(assign(&mut world, job, 1, node).is_none(), "two minutes of a second one cannot be held");
    assert_eq!(queue(&world), 0, "and it does not stand before others");
    assert!(submit(&mut world, 1, 1000).is_err());
    for _ in 0..4 {
        world.now.0 += 55_000;
        act(&mut world, AccountsCommand::Charge).unwrap();
    }
    assert_eq!(phase(&world, job), JobPhase::Cancelled);
    let left = balance(&world).unwrap();
    assert_eq!((left.held, left.amount.plus(left.spent)), (Amount(0), Amount(180 * CORE_SECOND)));
    assert!(left.amount > Amount(0), "it ended while something was left");
    credit(&mut world, CREDIT, "2").unwrap();
    assert!(submit(&mut world, 1, 1000).is_ok());
}

/// The tasks of a gang are paid for together or not begun at all, and what they would have held stays free for others.
#[test]
fn a_gang_is_paid_for_as_a_whole() {
    let (mut world, node) = priced();
    credit(&mut world, 300 * CORE_SECOND, "1").unwrap();
    let gang = submit_with(&mut world, 3, 1000, |spec| spec.is_gang = true).unwrap();
    let all = |world: &mut World, job| {
        let one = |index| Assignment { job, index, node, gpus: Vec::new(), is_twin: false };
        match jobs(world, JobsCommand::Assign { assignments: (0..3).map(one).collect() }).unwrap() {
            Reply::Jobs(JobsReply::Assigned(assigned)) => assigned.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (all(&mut world, gang), balance(&world).unwrap().held),
        (0, Amount(0)),
        "two of three could be paid"
    );
    assert_eq!(queue(&world), 0, "and it does not stand before others");
    let alone = submit(&mut world, 1, 1000).unwrap();
    assert!(assign(&mut world, alone, 0, node).is_some());
    credit(&mut world, 180 * CORE_SECOND, "2").unwrap();
    assert_eq!(queue(&world), 3);
    assert_eq!((all(&mut world, gang), balance(&world).unwrap().held), (3, Amount(4 * 120 * CORE_SECOND)));
}

/// A job ends when it comes to its maximum price, whether its tenant pays in advance or not, and begins nothing that would pass it.
#[test]
fn a_job_costs_no_more_than_its_maximum_price() {
    for pays in [false, true] {
        let (mut world, node) = priced();
        if pays {
            credit(&mut world, CREDIT, "1").unwrap();
        }
        // A core second is a thousand millionths.
        let job = submit_with(&mut world, 3, 1000, |spec| spec.price_max = 250_000).unwrap();
        let first = assign(&mut world, job, 0, node).expect("two minutes of 250 seconds");
        assert!(assign(&mut world, job, 1, node).is_some());
        assert!(assign(&mut world, job, 2, node).is_none(), "six minutes");
        world.now.0 += 60_000;
        finish(&mut world, first, node);
        assert!(
            assign(&mut world, job, 2, node).is_none(),
            "one is spent, two are held, two more are wanted"
        );
        let cost = |world: &World| match world.ask(Query::Jobs(JobsQuery::Job { tenant: None, job })).unwrap()
        {
            Answer::Jobs(JobsAnswer::Job(_, state)) => state.cost,
            other => panic!("{other:?}"),
        };
        assert_eq!((phase(&world, job), cost(&world)), (JobPhase::Running, 60_000));
        world.now.0 += 130_000;
        act(&mut world, AccountsCommand::Charge).unwrap();
        assert_eq!((phase(&world, job), cost(&world)), (JobPhase::Cancelled, 250_000));
        let dear = submit_with(&mut world, 1, 1000, |spec| spec.price_max = 100_000).unwrap();
        assert!(assign(&mut world, dear, 0, node).is_none());
        assert_eq!(phase(&world, dear), JobPhase::Cancelled, "it could never begin");
    }
}

#[test]
fn data_is_charged_and_what_cannot_be_paid_is_owed_first() {
    let (mut world, reporter) = priced();
    credit(&mut world, 1, "1").unwrap();
    let traffic = TenantRow { egress_bytes: 1 << 30, ..TenantRow::of(TENANT) };
    let report =
        AccountsCommand::Meter { epoch: 1, reporter, part: 0, served: vec![], tenants: vec![traffic] };
    act(&mut world, report).unwrap();
    seal(&mut world, 1);
    let owing = balance(&world).unwrap();
    assert_eq!((owing.amount, owing.owed), (Amount(0), Amount(2 * CREDIT - 1)));
    let bytes = whole(1, 5, world.now);
    let refused = world.put("k", bytes.clone());
    assert!(matches!(&refused, Err(Refusal::Accounts(AccountsRefusal::BalanceSpent { .. }))), "{refused:?}");
    credit(&mut world, 3 * CREDIT, "2").unwrap();
    let paid = balance(&world).unwrap();
    assert_eq!((paid.amount, paid.owed), (Amount(CREDIT + 1), Amount(0)));
    world.put("k", bytes).unwrap();
    let stored = paid.amount;
    seal(&mut world, 2);
    let row = rows(&world, 2).unwrap();
    assert_eq!(row.stored_byte_ms, 5 * u128::from(EPOCH_MS));
    assert!(balance(&world).unwrap().amount <= stored);
}

#[derive(Debug, Clone)]
enum Step {
    Credit(u32),
    Submit { tasks: u8, cpu_millis: u16 },
    Assign(u8),
    Pass { seconds: u8 },
    Finish(u8),
    Lose(u8),
    Cancel(u8),
    Seal,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..2_000_000_000u32).prop_map(Step::Credit),
        (1..4u8, 1..4000u16).prop_map(|(tasks, cpu_millis)| Step::Submit { tasks, cpu_millis }),
        any::<u8>().prop_map(Step::Assign),
        any::<u8>().prop_map(Step::Assign),
        (0..200u8).prop_map(|seconds| Step::Pass { seconds }),
        any::<u8>().prop_map(Step::Finish),
        any::<u8>().prop_map(Step::Lose),
        any::<u8>().prop_map(Step::Cancel),
        Just(Step::Seal),
    ]
}

proptest! {
    /// Whatever happens: what was paid in is there or was spent, holds are covered, and what runs is held.
    #[test]
    fn money_is_neither_made_nor_lost(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut world, node) = priced();
        credit(&mut world, CREDIT, "first").unwrap();
        let (mut submitted, mut epoch) = (Vec::new(), 1);
        for (at, step) in steps.into_iter().enumerate() {
            let running = active(&world);
            let chosen = |number: u8| running.get(usize::from(number) % running.len().max(1)).copied();
            match step {
                Step::Credit(amount) => drop(credit(&mut world, amount.into(), &format!("{at}"))),
                Step::Submit { tasks, cpu_millis } => {
                    submitted.extend(submit(&mut world, tasks.into(), cpu_millis.into()));
                }
                Step::Assign(number) => {
                    for index in 0..3 {
                        if let Some(job) = submitted.get(usize::from(number) % submitted.len().max(1)) {
                            assign(&mut world, *job, index, node);
                        }
                    }
                }
                Step::Pass { seconds } => {
                    world.now.0 += u64::from(seconds) * 1000;
                    act(&mut world, AccountsCommand::Charge).unwrap();
                }
                Step::Finish(number) => {
                    if let Some((attempt, node)) = chosen(number) {
                        finish(&mut world, attempt, node);
                    }
                }
                Step::Lose(number) => {
                    if let Some((attempt, _)) = chosen(number) {
                        let attempts = vec![(attempt, "lost".to_owned())];
                        jobs(&mut world, JobsCommand::Lose { attempts }).unwrap();
                    }
                }
                Step::Cancel(number) => {
                    if let Some(job) = submitted.get(usize::from(number) % submitted.len().max(1)) {
                        let (tenant, reason) = (None, "enough".to_owned());
                        jobs(&mut world, JobsCommand::Cancel { tenant, job: *job, reason }).unwrap();
                    }
                }
                Step::Seal => {
                    seal(&mut world, epoch);
                    epoch += 1;
                }
            }
            let now = balance(&world).unwrap();
            prop_assert_eq!(now.amount.plus(now.spent).plus(now.owed), now.credited.plus(now.owed));
            prop_assert!(now.held <= now.amount, "{:?}", now);
            let running = active(&world);
            prop_assert!(running.is_empty() || now.amount > Amount(0), "{:?} run unpaid", running);
            prop_assert!(!running.is_empty() || now.held == Amount(0), "{:?} is held for nothing", now);
        }
    }
}
