//! Tasks for objects: the list is there exactly as long as its job is.

use super::*;
use crate::facts::command::NewContent;
use crate::facts::jobs::each::list_key;
use crate::facts::jobs::{Each, Machine, MachineGpu, log_bucket};
use crate::facts::object::Content;
use crate::facts::query::{ListObjects, Listed};

fn each(objects: u32, per_task: u32) -> Each {
    let from = ObjectPath { bucket: "inputs".into(), key: "p/".into() };
    Each { from, is_manifest: false, path: "each".into(), per_task, is_predicted: false, objects }
}

fn list() -> NewContent {
    NewContent {
        size: 0,
        etag: "e".into(),
        checksum: None,
        content: Content::Empty,
        blobs: Vec::new(),
        bucket_id: 0,
    }
}

impl World {
    fn submit_each(
        &mut self,
        token: &str,
        spec: JobSpec,
        list: Option<NewContent>,
    ) -> Result<(JobId, bool), Refusal> {
        let (access_key_id, client_token) = ("KEY".to_owned(), token.to_owned());
        match self.jobs(JobsCommand::Submit { tenant: TENANT, access_key_id, client_token, spec, list })? {
            Reply::Jobs(JobsReply::Submitted { job, existed }) => Ok((job, existed)),
            other => panic!("{other:?}"),
        }
    }

    fn lists(&self) -> Vec<String> {
        let asked = ListObjects {
            bucket: log_bucket(TENANT),
            prefix: String::new(),
            delimiter: String::new(),
            after: String::new(),
            entries_max: 100,
        };
        match query(&self.kv, &Query::Objects(asked)).expect("the store is sound").unwrap() {
            Answer::Objects { entries, .. } => entries
                .into_iter()
                .filter_map(|entry| match entry {
                    Listed::Object(head) => Some(head.key),
                    Listed::CommonPrefix(_) => None,
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_list_lives_as_long_as_its_job() {
    let mut world = World::new();
    let spec = |objects, per_task, tasks| JobSpec { each: Some(each(objects, per_task)), ..spec(tasks) };
    for (wrong, given) in [
        (spec(7, 3, 2), Some(list())),
        (spec(0, 3, 3), Some(list())),
        (spec(7, 3, 3), None),
        (super::spec(3), Some(list())),
    ] {
        assert!(world.submit_each("", wrong.clone(), given).is_err(), "{wrong:?}");
    }
    let (job, _) = world.submit_each("once", spec(7, 3, 3), Some(list())).unwrap();
    assert_eq!(world.submit_each("once", spec(7, 3, 3), Some(list())), Ok((job, true)));
    assert_eq!((world.lists(), world.queue().len()), (vec![list_key(job)], 3));
    world.jobs(JobsCommand::Cancel { tenant: None, job, reason: String::new() }).unwrap();
    assert_eq!(world.lists(), [list_key(job)], "it may be asked for yet");
    let before_ms = world.now + 1;
    world.jobs(JobsCommand::Forget { before_ms }).unwrap();
    assert_eq!(world.lists(), [""; 0]);
}

/// What a machine offered last is remembered, each once.
#[test]
fn machines_are_remembered() {
    let mut world = World::new();
    let machine = |node: u8, cpu_millis| Machine {
        node: NodeId([node; 32]),
        cpu_millis,
        memory_bytes: 1,
        scratch_bytes: 1,
        gpus: vec![MachineGpu { model: "card".into(), memory_mib: 1, level_max: 5, has_shadow: false }],
    };
    for machines in [vec![machine(2, 100), machine(1, 100)], vec![machine(2, 200)]] {
        world.jobs(JobsCommand::NoteMachines { machines }).unwrap();
    }
    let known = world.ask(JobsQuery::Machines).unwrap();
    assert_eq!(known, JobsAnswer::Machines(vec![machine(1, 100), machine(2, 200)]));
    let mut too_many = machine(1, 1);
    too_many.gpus = vec![too_many.gpus[0].clone(); 65];
    assert!(world.jobs(JobsCommand::NoteMachines { machines: vec![too_many] }).is_err());
    assert_eq!(world.ask(JobsQuery::Agreements).unwrap(), JobsAnswer::Agreements(Vec::new()));
}
