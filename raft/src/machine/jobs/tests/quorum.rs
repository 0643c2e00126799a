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
    let JobsAnswer::Queue(queue) = world.ask(JobsQuery::Queue { tasks_max: 10 }).unwrap() else { panic!() };
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
