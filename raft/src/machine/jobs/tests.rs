//! Properties of jobs, checked against a plain model of what each report should do.

use std::collections::BTreeMap;

use bytes::Bytes;
use makai_erasure::NodeId;
use proptest::prelude::*;

use super::super::kv::MemKv;
use super::super::{apply, query};
use crate::facts::Timestamp;
use crate::facts::command::{Batch, Command, Envelope, Refusal, Reply};
use crate::facts::jobs::{
    Assignment, AttemptId, End, Job, JobId, JobPhase, JobSpec, JobState, JobsAnswer, JobsCommand, JobsQuery,
    JobsReply, ObjectPath, Resources, Statement, Task, TaskPhase, Usage, Work,
};
use crate::facts::query::{Answer, Query};
use crate::facts::tenant::TenantId;

mod each;
mod quorum;

const TENANT: TenantId = TenantId(1);

struct World {
    kv: MemKv,
    index: u64,
    now: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self { kv: MemKv::default(), index: 0, now: 1_000_000 };
        for name in ["one", "two"] {
            let (name, wrapped_key) = (name.to_owned(), Bytes::from_static(b"key"));
            world.run(Command::CreateTenant { name, wrapped_key, quota_bytes: None }).unwrap();
        }
        world
    }

    fn run(&mut self, command: Command) -> Result<Reply, Refusal> {
        self.index += 1;
        let envelope = Envelope { session: 1, serial: self.index, answered_below: self.index, command };
        let batch = Batch { at: Timestamp(self.now), envelopes: vec![envelope] };
        apply(&mut self.kv, self.index, &batch).expect("the store is sound").remove(0)
    }

    fn jobs(&mut self, command: JobsCommand) -> Result<Reply, Refusal> {
        self.run(Command::Jobs(command))
    }

    fn ask(&self, asked: JobsQuery) -> Result<JobsAnswer, Refusal> {
        match query(&self.kv, &Query::Jobs(asked)).expect("the store is sound")? {
            Answer::Jobs(answer) => Ok(answer),
            other => panic!("{other:?}"),
        }
    }

    fn submit(&mut self, token: &str, spec: JobSpec) -> Result<(JobId, bool), Refusal> {
        let (access_key_id, client_token) = ("KEY".to_owned(), token.to_owned());
        match self.jobs(JobsCommand::Submit {
            tenant: TENANT,
            access_key_id,
            client_token,
            spec,
            list: None,
        })? {
            Reply::Jobs(JobsReply::Submitted { job, existed }) => Ok((job, existed)),
            other => panic!("{other:?}"),
        }
    }

    fn assign(&mut self, job: JobId, index: u32, node: u8) -> Option<AttemptId> {
        let assignments =
            vec![Assignment { job, index, node: NodeId([node; 32]), gpus: Vec::new(), is_twin: false }];
        match self.jobs(JobsCommand::Assign { assignments }).unwrap() {
            Reply::Jobs(JobsReply::Assigned(assigned)) => assigned.into_iter().next(),
            other => panic!("{other:?}"),
        }
    }

    /// All tasks of a gang at once, backwards.
    fn assign_all(&mut self, job: JobId, tasks: u32) -> Vec<AttemptId> {
        let node = NodeId([1; 32]);
        let one = |index| Assignment { job, index, node, gpus: Vec::new(), is_twin: false };
        let assignments = (0..tasks).rev().map(one).collect();
        match self.jobs(JobsCommand::Assign { assignments }).unwrap() {
            Reply::Jobs(JobsReply::Assigned(assigned)) => {
                assert_eq!(assigned.len(), tasks as usize);
                assigned
            }
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, attempt: AttemptId, node: u8, end: End) -> Result<Reply, Refusal> {
        let statement = Statement {
            attempt,
            node: NodeId([node; 32]),
            end,
            usage: Usage::default(),
            outputs: Vec::new(),
        };
        self.jobs(JobsCommand::Finish { statement, signature: Bytes::new(), outputs: Vec::new(), log: None })
    }

    fn state(&self, job: JobId) -> (Job, JobState) {
        match self.ask(JobsQuery::Job { tenant: None, job }).unwrap() {
            JobsAnswer::Job(job, state) => (job, state),
            other => panic!("{other:?}"),
        }
    }

    fn tasks(&self, job: JobId) -> Vec<Task> {
        match self.ask(JobsQuery::Tasks { job, from_index: 0, entries_max: 1000 }).unwrap() {
            JobsAnswer::Tasks(tasks) => tasks,
            other => panic!("{other:?}"),
        }
    }

    fn queue(&self) -> Vec<(u64, u32)> {
        let JobsAnswer::Queue(jobs) =
            self.ask(JobsQuery::Queue { tasks_max: 10_000, per_job: 0, after: None }).unwrap()
        else {
            panic!("a queue")
        };
        jobs.iter().flat_map(|job| job.tasks.iter().map(|task| (job.job.0, task.index))).collect()
    }

    fn active(&self) -> Vec<(u8, AttemptId)> {
        let JobsAnswer::Active(active) = self.ask(JobsQuery::Active).unwrap() else { panic!("attempts") };
        active.iter().map(|active| (active.node.0[0], active.attempt)).collect()
    }

    /// What is counted for a node in the open epoch: attempts, right and wrong answers, what it verified, what all lost.
    fn leased(&self, node: NodeId) -> (u32, u32, u32, u64, u32) {
        super::super::accounts::billing::counted(&self.kv, node)
    }

    /// How many keys each record of jobs has, the counters left out.
    fn records(&self) -> BTreeMap<u8, usize> {
        let mut records = BTreeMap::new();
        for key in self.kv.entries.keys().filter(|key| (0x70..0x80).contains(&key[0])) {
            *records.entry(key[0]).or_default() += 1;
        }
        records
    }
}

fn spec(tasks: u32) -> JobSpec {
    JobSpec {
        name: "test".into(),
        work: Work::Container {
            image: ObjectPath { bucket: "images".into(), key: "busybox.tar".into() },
            command: vec!["true".into()],
            env: Vec::new(),
            working_dir: String::new(),
            user: String::new(),
        },
        resources: Resources { cpu_millis: 100, memory_bytes: 1 << 26, scratch_bytes: 0, gpu: None },
        inputs: Vec::new(),
        outputs: Vec::new(),
        tasks,
        priority: 50,
        attempts_max: 2,
        backoff_ms: 1000,
        time_limit_ms: 60_000,
        deadline: None,
        site: String::new(),
        after: Vec::new(),
        is_gang: false,
        price_max: 0,
        quorum: 0,
        each: None,
    }
}

#[test]
fn a_token_submits_once_and_a_large_array_costs_little() {
    let mut world = World::new();
    let (first, existed) = world.submit("t", spec(100_000)).unwrap();
    assert!(!existed);
    assert_eq!(world.submit("t", spec(3)).unwrap(), (first, true));
    assert_ne!(world.submit("u", spec(3)).unwrap().0, first);
    assert!(world.records().values().all(|count| *count <= 2), "{:?}", world.records());
    assert_eq!(world.queue().len(), 10_000, "an answer has a bound");
    let JobsAnswer::Jobs(jobs) =
        world.ask(JobsQuery::Jobs { tenant: TENANT, before: None, entries_max: 10 }).unwrap()
    else {
        panic!("jobs")
    };
    assert_eq!(jobs.iter().map(|(job, _)| job.id.0).collect::<Vec<_>>(), [2, 1]);
    let other = world.ask(JobsQuery::Job { tenant: Some(TenantId(2)), job: first });
    assert!(matches!(other, Err(Refusal::NotFound(_))), "{other:?}");
}

#[test]
fn priority_then_age_is_the_order() {
    let mut world = World::new();
    for priority in [10, 90, 50, 90] {
        world.submit("", JobSpec { priority, ..spec(1) }).unwrap();
    }
    assert_eq!(world.queue(), [(2, 0), (4, 0), (3, 0), (1, 0)]);
}

/// Only the attempt that is current counts, and what it says twice counts once.
#[test]
fn a_result_counts_once() {
    let mut world = World::new();
    let (job, _) = world.submit("", spec(1)).unwrap();
    let first = world.assign(job, 0, 1).unwrap();
    assert_eq!(world.assign(job, 0, 2), None, "it waits no longer");
    world.jobs(JobsCommand::Lose { attempts: vec![(first, "node died".into())] }).unwrap();
    let second = world.assign(job, 0, 2).unwrap();
    let done = End::Exited { code: 0 };
    let stale = world.finish(first, 1, done.clone());
    assert_eq!(stale, Err(Refusal::StaleAttempt(first)));
    let thief = world.finish(second, 1, done.clone());
    assert_eq!(thief, Err(Refusal::StaleAttempt(second)), "another node has it");
    assert_eq!(world.finish(second, 2, done.clone()), Ok(Reply::Done));
    let after = world.kv.entries.clone();
    assert_eq!(world.finish(second, 2, done), Ok(Reply::Done), "a repeat hears the same");
    let changed: Vec<_> =
        world.kv.entries.iter().filter(|(key, value)| after.get(*key) != Some(value)).collect();
    assert!(changed.iter().all(|(key, _)| key[0] < 0x10), "a repeat changes nothing: {changed:?}");
    let (_, state) = world.state(job);
    assert_eq!((state.phase, state.counts.succeeded), (JobPhase::Succeeded, 1));
}

#[test]
fn failures_wait_longer_each_time_and_end_the_task() {
    let mut world = World::new();
    let (job, _) = world.submit("", JobSpec { attempts_max: 3, ..spec(1) }).unwrap();
    for expected_pause in [1000, 2000] {
        let attempt = world.assign(job, 0, 1).unwrap();
        world.finish(attempt, 1, End::Exited { code: 3 }).unwrap();
        let JobsAnswer::Queue(queue) =
            world.ask(JobsQuery::Queue { tasks_max: 9, per_job: 0, after: None }).unwrap()
        else {
            panic!("a queue")
        };
        assert_eq!(queue[0].tasks[0].not_before.0 - world.now, expected_pause);
    }
    let attempt = world.assign(job, 0, 1).unwrap();
    world.finish(attempt, 1, End::OutOfMemory).unwrap();
    let (_, state) = world.state(job);
    assert_eq!(state.phase, JobPhase::Failed);
    assert!(state.reason.contains("memory"), "{}", state.reason);
    assert_eq!(world.tasks(job)[0].history.len(), 3);
    // What cannot work is not tried again.
    let (job, _) = world.submit("", spec(1)).unwrap();
    let attempt = world.assign(job, 0, 1).unwrap();
    world.finish(attempt, 1, End::Refused { why: "no such image".into() }).unwrap();
    assert_eq!(world.state(job).1.phase, JobPhase::Failed);
}

#[test]
fn what_is_over_is_forgotten_whole() {
    let mut world = World::new();
    let empty = world.records();
    for token in ["a", ""] {
        let deadline = Some(Timestamp(world.now + 50));
        let (job, _) = world.submit(token, JobSpec { deadline, ..spec(3) }).unwrap();
        let attempt = world.assign(job, 0, 1).unwrap();
        world.finish(attempt, 1, End::Exited { code: 0 }).unwrap();
        world.assign(job, 1, 1).unwrap();
        let JobsAnswer::Due(due) = world.ask(JobsQuery::Due { now_ms: world.now + 50 }).unwrap() else {
            panic!("jobs")
        };
        assert_eq!(due, [job]);
        let tenant = Some(TenantId(2));
        let stranger = world.jobs(JobsCommand::Cancel { tenant, job, reason: "mine".into() });
        assert!(matches!(stranger, Err(Refusal::NotFound(_))));
        world.jobs(JobsCommand::Cancel { tenant: None, job, reason: "enough".into() }).unwrap();
        let (_, state) = world.state(job);
        assert_eq!(
            (state.phase, state.counts.succeeded, state.counts.cancelled),
            (JobPhase::Cancelled, 1, 2)
        );
    }
    assert!(world.active().is_empty() && world.queue().is_empty());
    let before_ms = world.now + 1;
    world.jobs(JobsCommand::Forget { before_ms }).unwrap();
    let mut left = world.records();
    left.remove(&0x7A);
    assert_eq!(left, empty);
}

/// A large job does not hide those behind it; where there is room, it is taken whole; what was looked at last is gone on from.
#[test]
fn every_job_of_the_queue_is_looked_at() {
    let mut world = World::new();
    for (priority, tasks) in [(50, 1000), (50, 3), (90, 1), (50, 1000)] {
        world.submit("", JobSpec { priority, ..spec(tasks) }).unwrap();
    }
    // One of the first job waits again.
    let attempt = world.assign(JobId(1), 0, 1).unwrap();
    world.finish(attempt, 1, End::Failed { why: String::new() }).unwrap();
    let look = |world: &World, tasks_max, per_job, after| match world
        .ask(JobsQuery::Queue { tasks_max, per_job, after })
        .unwrap()
    {
        JobsAnswer::Queue(jobs) => {
            jobs.iter().map(|job| (job.job.0, job.tasks.iter().map(|task| task.index).collect())).collect()
        }
        other => panic!("{other:?}"),
    };
    let seen: Vec<(u64, Vec<u32>)> = look(&world, 20, 4, None);
    let many = |from, to| (from..to).collect::<Vec<u32>>();
    // One, four, three and four; eight more of the first that has more.
    assert_eq!(seen, [(3, vec![0]), (1, many(0, 12)), (2, many(0, 3)), (4, many(0, 4))]);
    let seen: Vec<(u64, Vec<u32>)> = look(&world, 20, 4, Some((50, JobId(1))));
    assert_eq!(seen, [(2, many(0, 3)), (4, many(0, 17))]);
    let seen: Vec<(u64, Vec<u32>)> = look(&world, 3, 0, None);
    assert_eq!(seen, [(3, vec![0]), (1, many(0, 2))]);
    let seen: Vec<(u64, Vec<u32>)> = look(&world, 5000, 1, None);
    assert_eq!(seen, [(3, vec![0]), (1, many(0, 1000)), (2, many(0, 3)), (4, many(0, 1000))]);
    let seen: Vec<(u64, Vec<u32>)> = look(&world, 20, 4, Some((50, JobId(4))));
    assert_eq!(seen, []);
}

#[test]
fn a_specification_that_cannot_work_is_refused() {
    let wrong: [(&str, fn(&mut JobSpec)); 9] = [
        ("tasks", |spec| spec.tasks = 0),
        ("priority", |spec| spec.priority = 101),
        ("attempts_max", |spec| spec.attempts_max = 0),
        ("time_limit_ms", |spec| spec.time_limit_ms = 0),
        ("cpu_millis", |spec| spec.resources.cpu_millis = 0),
        ("memory_bytes", |spec| spec.resources.memory_bytes = 1),
        ("image", |spec| {
            let Work::Container { image, .. } = &mut spec.work else { panic!("a container") };
            image.key.clear();
        }),
        ("env", |spec| {
            let Work::Container { env, .. } = &mut spec.work else { panic!("a container") };
            env.push(("A=B".into(), String::new()));
        }),
        ("input", |spec| {
            let from = ObjectPath { bucket: "b".into(), key: "k".into() };
            spec.inputs.push(crate::facts::jobs::Input { from, path: "../etc/passwd".into(), range: None });
        }),
    ];
    let mut world = World::new();
    for (field, change) in wrong {
        let mut spec = spec(1);
        change(&mut spec);
        match world.submit("", spec) {
            Err(Refusal::Invalid(why)) => assert!(why.starts_with(field), "{field}: {why}"),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Submit(u32),
    Assign { job: u64, index: u32, node: u8 },
    Start { known: usize, node: u8 },
    Finish { known: usize, node: u8, end: u8 },
    Lose { known: usize },
    Cancel { job: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 1u8..4;
    prop_oneof![
        1 => (1u32..5).prop_map(Step::Submit),
        6 => (1u64..4, 0u32..5, node()).prop_map(|(job, index, node)| Step::Assign { job, index, node }),
        2 => (any::<usize>(), node()).prop_map(|(known, node)| Step::Start { known, node }),
        6 => (any::<usize>(), node(), 0u8..3).prop_map(|(known, node, end)| Step::Finish { known, node, end }),
        2 => any::<usize>().prop_map(|known| Step::Lose { known }),
        1 => (1u64..4).prop_map(|job| Step::Cancel { job }),
    ]
}

/// A task as a person would keep it on paper.
#[derive(Debug, Clone, Default)]
struct Paper {
    attempt: u32,
    /// Who works on it.
    at: Option<u8>,
    failures: u32,
    losses: u32,
    end: Option<TaskPhase>,
}

proptest! {
    /// After any reports in any order, from any node, stale or not: each task has at most one end, counts are the
    /// tasks counted, what waits is in the queue once, and what is active stands under its node.
    #[test]
    fn any_order_of_reports_leaves_what_paper_says(steps in proptest::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        let mut paper: BTreeMap<(u64, u32), Paper> = BTreeMap::new();
        let mut fresh: BTreeMap<u64, u32> = BTreeMap::new();
        let mut known: Vec<AttemptId> = Vec::new();
        let mut jobs = 0;
        for step in steps {
            world.now += 7;
            match step {
                Step::Submit(tasks) => {
                    if jobs == 3 { continue }
                    jobs += 1;
                    world.submit("", spec(tasks)).unwrap();
                    fresh.insert(jobs, 0);
                    paper.extend((0..tasks).map(|index| ((jobs, index), Paper::default())));
                }
                Step::Assign { job, index, node } => {
                    let got = world.assign(JobId(job), index, node);
                    let may = paper.get_mut(&(job, index)).filter(|task| {
                        task.end.is_none() && task.at.is_none() && (task.attempt > 0 || fresh[&job] == index)
                    });
                    prop_assert_eq!(got.is_some(), may.is_some());
                    if let Some(task) = may {
                        if task.attempt == 0 { *fresh.get_mut(&job).unwrap() += 1 }
                        task.attempt += 1;
                        task.at = Some(node);
                        known.push(got.unwrap());
                        prop_assert_eq!(got.unwrap().attempt, task.attempt);
                    }
                }
                Step::Start { known: at, node } if !known.is_empty() => {
                    let attempts = vec![known[at % known.len()]];
                    world.jobs(JobsCommand::Start { node: NodeId([node; 32]), attempts }).unwrap();
                }
                Step::Finish { known: at, node, end } if !known.is_empty() => {
                    let attempt = known[at % known.len()];
                    let task = paper.get_mut(&(attempt.job.0, attempt.index)).unwrap();
                    let counts = task.at == Some(node) && task.attempt == attempt.attempt;
                    let ends = [End::Exited { code: 0 }, End::TimedOut, End::Refused { why: String::new() }];
                    let said = world.finish(attempt, node, ends[usize::from(end)].clone());
                    if counts {
                        prop_assert_eq!(said, Ok(Reply::Done));
                        task.at = None;
                        task.failures += u32::from(end == 1);
                        task.end = match end {
                            0 => Some(TaskPhase::Succeeded),
                            1 if task.failures < 2 => None,
                            _ => Some(TaskPhase::Failed),
                        };
                    }
                }
                Step::Lose { known: at } if !known.is_empty() => {
                    let attempt = known[at % known.len()];
                    let task = paper.get_mut(&(attempt.job.0, attempt.index)).unwrap();
                    world.jobs(JobsCommand::Lose { attempts: vec![(attempt, "gone".into())] }).unwrap();
                    if task.at.is_some() && task.attempt == attempt.attempt {
                        task.at = None;
                        task.losses += 1;
                        if task.losses == crate::facts::jobs::LOSSES_MAX { task.end = Some(TaskPhase::Failed) }
                    }
                }
                Step::Cancel { job } if job <= jobs => {
                    world.jobs(JobsCommand::Cancel { tenant: None, job: JobId(job), reason: String::new() }).unwrap();
                    for (_, task) in paper.iter_mut().filter(|((of, _), task)| *of == job && task.end.is_none()) {
                        task.at = None;
                        task.end = Some(TaskPhase::Cancelled);
                    }
                }
                _ => {}
            }
        }
        let mut waiting: Vec<(u64, u32)> =
            paper.iter().filter(|(_, task)| task.at.is_none() && task.end.is_none()).map(|(id, _)| *id).collect();
        let mut queue = world.queue();
        waiting.sort_unstable();
        queue.sort_unstable();
        prop_assert_eq!(queue, waiting);
        let mut expected: Vec<(u8, u64, u32, u32)> = paper
            .iter()
            .filter_map(|((job, index), task)| Some((task.at?, *job, *index, task.attempt)))
            .collect();
        expected.sort_unstable();
        let mut active: Vec<_> =
            world.active().iter().map(|(node, id)| (*node, id.job.0, id.index, id.attempt)).collect();
        active.sort_unstable();
        prop_assert_eq!(active, expected);
        for job in 1..=jobs {
            let (_, state) = world.state(JobId(job));
            let of = |phase: TaskPhase| {
                u32::try_from(paper.iter().filter(|((of, _), task)| *of == job && task.end == Some(phase)).count())
                    .unwrap()
            };
            prop_assert_eq!(state.counts.succeeded, of(TaskPhase::Succeeded));
            prop_assert_eq!(state.counts.failed, of(TaskPhase::Failed));
            prop_assert_eq!(state.counts.cancelled, of(TaskPhase::Cancelled));
            let open = paper.iter().filter(|((of, _), task)| *of == job && task.end.is_none()).count();
            prop_assert_eq!((state.counts.pending + state.counts.active) as usize, open);
            prop_assert_eq!(state.phase.is_over(), open == 0);
        }
    }
}

fn after(jobs: &[JobId]) -> JobSpec {
    JobSpec { after: jobs.to_vec(), ..spec(2) }
}

impl World {
    fn run_whole(&mut self, job: JobId, end: &End) {
        for index in 0..self.state(job).0.spec.tasks {
            let attempt = self.assign(job, index, 1).expect("it waits for a node");
            self.finish(attempt, 1, end.clone()).unwrap();
        }
    }
}

/// A diamond of jobs: each begins when all before it have succeeded, and not before.
#[test]
fn stages_begin_when_those_before_have_succeeded() {
    let mut world = World::new();
    let (first, _) = world.submit("", spec(1)).unwrap();
    let (left, _) = world.submit("", after(&[first])).unwrap();
    let (right, _) = world.submit("", after(&[first])).unwrap();
    let (last, _) = world.submit("", after(&[left, right, first])).unwrap();
    let queued = |world: &World| world.queue().into_iter().map(|(job, _)| JobId(job)).collect::<Vec<_>>();
    assert_eq!(queued(&world), [first]);
    assert!(world.assign(left, 0, 1).is_none(), "what is held is given to nobody");
    world.run_whole(first, &End::Exited { code: 0 });
    assert_eq!(queued(&world), [left, left, right, right]);
    world.run_whole(right, &End::Exited { code: 0 });
    assert_eq!(queued(&world), [left, left]);
    world.run_whole(left, &End::Exited { code: 0 });
    assert_eq!(queued(&world), [last, last]);
    world.run_whole(last, &End::Exited { code: 0 });
    assert_eq!(world.state(last).1.phase, JobPhase::Succeeded);
    let (late, _) = world.submit("", after(&[last])).unwrap();
    assert_eq!(queued(&world), [late, late], "what has succeeded is not waited for");
    let records = world.records();
    assert!(!records.contains_key(&0x7B) && !records.contains_key(&0x7C), "{records:?}");
}

/// What waits for a job that does not succeed ends with it, however long the chain; nothing is left of the waiting.
#[test]
fn stages_end_with_what_they_wait_for() {
    let mut world = World::new();
    for cancelled in [false, true] {
        let (first, _) = world.submit("", JobSpec { attempts_max: 1, ..spec(1) }).unwrap();
        let mut chain = vec![first];
        for _ in 0..200 {
            let mut before = vec![first, *chain.last().unwrap()];
            before.dedup();
            chain.push(world.submit("", after(&before)).unwrap().0);
        }
        if cancelled {
            let reason = "enough".to_owned();
            world.jobs(JobsCommand::Cancel { tenant: Some(TENANT), job: first, reason }).unwrap();
        } else {
            world.run_whole(first, &End::Exited { code: 3 });
        }
        for job in &chain[1..] {
            let state = world.state(*job).1;
            assert_eq!(
                (state.phase, state.counts.cancelled, state.counts.pending),
                (JobPhase::Cancelled, 2, 0)
            );
            assert!(state.reason.contains("which it waits for"), "{}", state.reason);
        }
        let refused = world.submit("", after(&[first])).unwrap_err();
        assert!(matches!(&refused, Refusal::Invalid(why) if why.contains("never will")), "{refused:?}");
    }
    assert!(world.queue().is_empty());
    let records = world.records();
    assert!(!records.contains_key(&0x7B) && !records.contains_key(&0x7C), "{records:?}");
    let (held_by, _) = world.submit("", spec(1)).unwrap();
    let (held, _) = world.submit("", after(&[held_by])).unwrap();
    world.jobs(JobsCommand::Cancel { tenant: None, job: held, reason: "no".into() }).unwrap();
    world.run_whole(held_by, &End::Exited { code: 0 });
    assert!(world.queue().is_empty(), "what was cancelled while it waited stays so");
    let unknown = world.submit("", after(&[JobId(99_999)])).unwrap_err();
    assert!(matches!(unknown, Refusal::NotFound(_)), "{unknown:?}");
}

/// A twin may begin beside an attempt that runs, once and elsewhere; the first success is the task's, and of two that end otherwise the
/// last decides. No number is given twice.
#[test]
fn the_first_of_two_attempts_that_succeeds_is_the_result() {
    let mut world = World::new();
    let twin = |world: &mut World, job, node: u8| {
        let assignments =
            vec![Assignment { job, index: 0, node: NodeId([node; 32]), gpus: Vec::new(), is_twin: true }];
        match world.jobs(JobsCommand::Assign { assignments }).unwrap() {
            Reply::Jobs(JobsReply::Assigned(assigned)) => assigned.into_iter().next(),
            other => panic!("{other:?}"),
        }
    };
    let begin = |world: &mut World| {
        let (job, _) = world.submit("", JobSpec { attempts_max: 2, ..spec(1) }).unwrap();
        let first = world.assign(job, 0, 1).unwrap();
        assert_eq!(twin(world, job, 2), None, "it does not run yet");
        world.jobs(JobsCommand::Start { node: NodeId([1; 32]), attempts: vec![first] }).unwrap();
        assert_eq!(twin(world, job, 1), None, "not on the same node");
        let second = twin(world, job, 2).unwrap();
        assert_eq!((second.attempt, twin(world, job, 3)), (2, None), "one is enough");
        world.jobs(JobsCommand::Start { node: NodeId([2; 32]), attempts: vec![second] }).unwrap();
        let its = world.active().iter().filter(|(_, attempt)| attempt.job == job).count();
        assert_eq!(its, 2);
        (job, first, second)
    };
    let (job, first, second) = begin(&mut world);
    world.finish(second, 2, End::Exited { code: 0 }).unwrap();
    assert!(matches!(world.finish(first, 1, End::Exited { code: 0 }), Err(Refusal::StaleAttempt(_))));
    let state = world.state(job).1;
    assert_eq!((state.phase, state.counts.succeeded, world.active().len()), (JobPhase::Succeeded, 1, 0));

    let (job, first, second) = begin(&mut world);
    world.finish(first, 1, End::Exited { code: 0 }).unwrap();
    assert!(matches!(world.finish(second, 2, End::Exited { code: 0 }), Err(Refusal::StaleAttempt(_))));
    assert_eq!((world.state(job).1.phase, world.active().len()), (JobPhase::Succeeded, 0));

    let (job, first, second) = begin(&mut world);
    world.jobs(JobsCommand::Lose { attempts: vec![(first, "gone".into())] }).unwrap();
    assert_eq!((world.queue().len(), world.active().len()), (0, 1), "the twin goes on");
    assert_eq!(world.state(job).1.counts.active, 1);
    world.finish(second, 2, End::Exited { code: 1 }).unwrap();
    assert_eq!((world.queue().len(), world.active().len()), (1, 0), "now it is tried again");
    world.now += 10_000_000;
    assert_eq!(world.assign(job, 0, 1).unwrap().attempt, 3);

    let (job, _, second) = begin(&mut world);
    world.jobs(JobsCommand::Lose { attempts: vec![(second, "gone".into())] }).unwrap();
    assert_eq!(twin(&mut world, job, 3).unwrap().attempt, 3, "a number is not given twice");
    world.jobs(JobsCommand::Cancel { tenant: None, job, reason: "no".into() }).unwrap();
    assert_eq!(world.active().iter().filter(|(_, attempt)| attempt.job == job).count(), 0);
}

/// A gang whose task is lost begins again as a whole; where a task may not be tried again, all of it ends.
#[test]
fn a_gang_begins_again_together_or_ends() {
    let mut world = World::new();
    let (job, _) = world.submit("", JobSpec { is_gang: true, attempts_max: 2, ..spec(3) }).unwrap();
    assert!(world.assign(job, 0, 1).is_none(), "none begins alone");
    let start = |world: &mut World| world.assign_all(job, 3);
    let attempts = start(&mut world);
    world.jobs(JobsCommand::Lose { attempts: vec![(attempts[1], "gone".into())] }).unwrap();
    assert_eq!((world.queue().len(), world.active().len()), (3, 0), "all wait again");
    assert!(matches!(world.finish(attempts[0], 1, End::Exited { code: 0 }), Err(Refusal::StaleAttempt(_))));
    world.now += 1_000_000;
    let attempts = start(&mut world);
    world.finish(attempts[2], 1, End::Exited { code: 1 }).unwrap();
    assert_eq!((world.queue().len(), world.active().len()), (3, 0));
    world.now += 10_000_000;
    let attempts = start(&mut world);
    world.finish(attempts[0], 1, End::Exited { code: 0 }).unwrap();
    world.finish(attempts[2], 1, End::Exited { code: 1 }).unwrap();
    let state = world.state(job).1;
    assert_eq!(
        (state.phase, state.counts.failed, state.counts.cancelled, state.counts.succeeded),
        (JobPhase::Failed, 1, 1, 1)
    );
    assert!(world.queue().is_empty() && world.active().is_empty());
}
