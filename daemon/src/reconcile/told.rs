//! What nodes are told of attempts that were just assigned to them, so that they need not ask. Pure.

use std::collections::{BTreeMap, BTreeSet};

use makai_erasure::NodeId;
use makai_raft::facts::desk::{Told, ToldAttempt};
use makai_raft::facts::jobs::{Assignment, AttemptId, JobId, JobSpec};
use makai_raft::facts::tenant::TenantId;

use crate::members::decode;

/// Jobs that one node is told of at once.
const JOBS_MAX: usize = 64;

/// By node, what it is told; nothing: it is woken, and looks. So it is where not all of it can be told.
///
/// `assigned`: of the `assignments`, those that were made.
#[must_use]
pub fn told(
    assignments: &[Assignment],
    assigned: &[AttemptId],
    specs: &BTreeMap<JobId, (TenantId, JobSpec)>,
) -> BTreeMap<NodeId, Vec<Told>> {
    let mut by_task: BTreeMap<(JobId, u32), Vec<&Assignment>> = BTreeMap::new();
    for assignment in assignments {
        by_task.entry((assignment.job, assignment.index)).or_default().push(assignment);
    }
    let mut by_node: BTreeMap<NodeId, BTreeMap<JobId, Told>> = BTreeMap::new();
    let mut must_look: BTreeSet<NodeId> = BTreeSet::new();
    for AttemptId { job, index, attempt } in assigned {
        match (by_task.get(&(*job, *index)).map(Vec::as_slice), specs.get(job)) {
            (Some([Assignment { node, gpus, .. }]), Some((tenant, spec))) => {
                let told = by_node.entry(*node).or_default().entry(*job).or_insert_with(|| Told {
                    job: *job,
                    tenant: *tenant,
                    spec: spec.clone(),
                    attempts: Vec::new(),
                });
                told.attempts.push(ToldAttempt { index: *index, attempt: *attempt, gpus: gpus.clone() });
            }
            // Which of two it was is not said.
            (assignments, _) => must_look.extend(assignments.into_iter().flatten().map(|one| one.node)),
        }
    }
    let nodes: BTreeSet<NodeId> = assignments.iter().map(|assignment| assignment.node).collect();
    let told = nodes.into_iter().map(|node| {
        let told = by_node.remove(&node).unwrap_or_default();
        let is_all = told.len() <= JOBS_MAX && !must_look.contains(&node);
        (node, if is_all { told.into_values().collect() } else { Vec::new() })
    });
    told.collect()
}

/// What a node was told; nothing where it cannot be read, as of a later release: it looks then.
#[must_use]
pub fn read(body: &[u8]) -> Vec<Told> {
    decode(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use makai_raft::facts::jobs::{Resources, Work};

    use super::*;
    use crate::members::encode;

    fn spec() -> JobSpec {
        JobSpec {
            name: String::new(),
            work: Work::Container {
                image: makai_raft::facts::jobs::ObjectPath { bucket: "b".into(), key: "k".into() },
                command: Vec::new(),
                env: Vec::new(),
                working_dir: String::new(),
                user: String::new(),
            },
            resources: Resources { cpu_millis: 1, memory_bytes: 1, scratch_bytes: 1, gpu: None },
            inputs: Vec::new(),
            outputs: Vec::new(),
            tasks: 9,
            priority: 0,
            attempts_max: 1,
            backoff_ms: 0,
            time_limit_ms: 1,
            deadline: None,
            site: String::new(),
            after: Vec::new(),
            is_gang: false,
            price_max: 0,
            quorum: 0,
            each: None,
        }
    }

    fn node(id: u8) -> NodeId {
        NodeId([id; 32])
    }

    fn give(job: u64, index: u32, to: u8) -> Assignment {
        Assignment {
            job: JobId(job),
            index,
            node: node(to),
            gpus: vec![format!("card-{to}")],
            is_twin: false,
        }
    }

    fn made(job: u64, index: u32) -> AttemptId {
        AttemptId { job: JobId(job), index, attempt: 3 }
    }

    /// Every attempt that was made is told to its node and to no other, or its node looks; what was not made is told to nobody.
    #[test]
    fn nodes_hear_what_is_theirs() {
        let specs = BTreeMap::from([(JobId(1), (TenantId(5), spec()))]);
        let assignments = [give(1, 0, 1), give(1, 1, 2), give(1, 2, 1), give(1, 3, 1), give(2, 0, 3)];
        let told = told(&assignments, &[made(1, 0), made(1, 1), made(1, 2), made(2, 0)], &specs);
        let attempts = |of: u8| {
            let told = told[&node(of)].iter().cloned().flat_map(Told::assigned);
            told.map(|task| (task.attempt, task.tenant, task.gpus)).collect::<Vec<_>>()
        };
        let its = |index, of: u8| (made(1, index), TenantId(5), vec![format!("card-{of}")]);
        assert_eq!(attempts(1), [its(0, 1), its(2, 1)]);
        assert_eq!(attempts(2), [its(1, 2)]);
        assert_eq!(attempts(3), [], "what its job is is not at hand: it looks");
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn who_cannot_be_told_all_is_told_nothing() {
        let specs: BTreeMap<_, _> = (1..=100).map(|job| (JobId(job), (TenantId(1), spec()))).collect();
        let many: Vec<_> = (1..=65).map(|job| give(job, 0, 1)).collect();
        let all: Vec<_> = (1..=65).map(|job| made(job, 0)).collect();
        assert_eq!(told(&many, &all, &specs)[&node(1)], []);
        assert_eq!(told(&many[..64], &all[..64], &specs)[&node(1)].len(), 64);
        let twice = [give(1, 0, 1), give(1, 0, 2), give(2, 0, 2)];
        let told = told(&twice, &[made(1, 0), made(2, 0)], &specs);
        assert_eq!((&told[&node(1)], &told[&node(2)]), (&Vec::new(), &Vec::new()));
    }

    #[test]
    fn what_cannot_be_read_is_a_wake() {
        let attempts = vec![ToldAttempt { index: 2, attempt: 3, gpus: vec!["card".into()] }];
        let told = vec![Told { job: JobId(1), tenant: TenantId(5), spec: spec(), attempts }];
        let body = encode(&told).unwrap();
        assert_eq!(read(&body), told);
        assert_eq!(read(&[]), []);
        assert_eq!(read(&body[..body.len() - 1]), []);
        assert_eq!(read(&encode(&[("a later", "release's")]).unwrap()), []);
    }
}
