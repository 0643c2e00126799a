//! Gives tasks that wait to nodes that have room, and ends what will not end by itself. The leader does so; other voters and
//! gateways pass on to it that something has changed.
//!
//! ```text
//! facts: queue, current attempts ┐
//! heartbeats: what nodes offer   ┴─ plan ─> assignments ─> one proposal ─> the nodes are woken
//! ```
//!
//! Always: what attempts hold of a node never sums to more than it offers, as far as the leader has heard; nothing is kept
//! here: a new leader plans from the same facts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use makai_erasure::NodeId;
use makai_gateway::jobs::Capacity;
use makai_gpu_runtime::inventory::Inventory;
use makai_raft::facts::cluster::{ClusterMap, Node, Role, Standing};
use makai_raft::facts::command::{Command, Reply};
use makai_raft::facts::jobs::{
    ActiveAttempt, Assignment, AttemptId, JobSpec, JobsAnswer, JobsCommand, JobsQuery, JobsReply, QueuedJob,
    QueuedTask, Resources,
};
use makai_raft::facts::query::{Answer, Query};
use makai_raft::handle::MetaError;

use super::Shell;
use crate::clock;
use crate::members::{Heard, WAKE};

/// A look without a hint: nodes come, pauses end, deadlines pass.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a hint, so long is waited for more of them.
const GATHER: Duration = Duration::from_millis(2);
/// Tasks of the queue that one plan looks at.
const TASKS_AT_ONCE: u32 = 2000;
/// Attempts of one node at a time.
const NODE_ATTEMPTS_MAX: usize = 200;
/// A node that has offered nothing for so long runs nothing any more.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Jobs that are over, and receipts, are kept for a week.
const HISTORY_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Beyond its time limit, an attempt has so long for inputs, outputs and a node that was away.
const REPORT_WITHIN_MS: u64 = 6 * 60 * 60 * 1000;
const FORGET_EVERY: Duration = Duration::from_secs(60);
const WAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is left of a node.
#[derive(Debug, Clone)]
struct Room {
    site: String,
    free: Inventory,
    attempts: usize,
}

impl Room {
    fn has(&self, wanted: &Resources, site: &str) -> bool {
        self.attempts < NODE_ATTEMPTS_MAX
            && (site.is_empty() || site == self.site)
            && u64::from(wanted.cpu_millis) <= self.free.cpu_millis
            && wanted.memory_bytes <= self.free.memory_bytes
            && wanted.scratch_bytes <= self.free.scratch_bytes
            // Shares of cards are not handed out: nothing here runs on one yet.
            && wanted.gpu.is_none()
    }

    fn take(&mut self, wanted: &Resources) {
        self.attempts += 1;
        self.free.cpu_millis = self.free.cpu_millis.saturating_sub(wanted.cpu_millis.into());
        self.free.memory_bytes = self.free.memory_bytes.saturating_sub(wanted.memory_bytes);
        self.free.scratch_bytes = self.free.scratch_bytes.saturating_sub(wanted.scratch_bytes);
    }
}

fn may_run(node: &Node) -> bool {
    node.is_up && node.standing == Standing::Active && node.roles.contains(&Role::Compute)
}

/// Nodes that take tasks, with what attempts leave of them. Pure.
fn rooms(
    map: &ClusterMap,
    offers: &HashMap<NodeId, Inventory>,
    active: &[ActiveAttempt],
) -> BTreeMap<NodeId, Room> {
    let open = map.nodes.iter().filter(|node| may_run(node));
    let mut rooms: BTreeMap<NodeId, Room> = open
        .filter_map(|node| {
            let free = offers.get(&node.id)?.clone();
            Some((node.id, Room { site: node.site.clone(), free, attempts: 0 }))
        })
        .collect();
    for attempt in active {
        if let Some(room) = rooms.get_mut(&attempt.node) {
            room.take(&attempt.resources);
        }
    }
    rooms
}

/// Places tasks in the order of the queue, each on the node with most processor left; one that was tried before goes to
/// another node if there is one. Pure.
fn plan(queue: &[QueuedJob], rooms: &mut BTreeMap<NodeId, Room>, now_ms: u64) -> Vec<Assignment> {
    let mut assignments = Vec::new();
    for job in queue {
        let ready = job.tasks.iter().filter(|task| task.not_before.0 <= now_ms);
        if job.gang_tasks > 0 {
            if ready.clone().count() == job.gang_tasks as usize {
                place_gang(job, rooms, &mut assignments);
            }
            continue;
        }
        for task in ready {
            // Its other tasks want the same.
            let Some(node) = place(job, task, rooms) else { break };
            assignments.push(Assignment { job: job.job, index: task.index, node });
        }
    }
    assignments
}

/// Takes room for a task.
fn place(job: &QueuedJob, task: &QueuedTask, rooms: &mut BTreeMap<NodeId, Room>) -> Option<NodeId> {
    let (node, room) = rooms
        .iter_mut()
        .filter(|(_, room)| room.has(&job.resources, &job.site))
        .max_by_key(|(id, room)| (Some(**id) != task.last_node, room.free.cpu_millis))?;
    room.take(&job.resources);
    Some(*node)
}

/// Takes room for all tasks of a gang, or for none.
fn place_gang(job: &QueuedJob, rooms: &mut BTreeMap<NodeId, Room>, assignments: &mut Vec<Assignment>) {
    let mut left = rooms.clone();
    let placed: Option<Vec<Assignment>> = job
        .tasks
        .iter()
        .map(|task| {
            let node = place(job, task, &mut left)?;
            Some(Assignment { job: job.job, index: task.index, node })
        })
        .collect();
    if let Some(placed) = placed {
        assignments.extend(placed);
        *rooms = left;
    }
}

/// Current attempts that their nodes will not end. Pure.
fn lost(
    map: &ClusterMap,
    heard: &HashMap<NodeId, Heard>,
    active: &[ActiveAttempt],
    silent: &BTreeSet<NodeId>,
    now_ms: u64,
) -> Vec<(AttemptId, String)> {
    let why = |attempt: &ActiveAttempt| {
        let node = map.nodes.iter().find(|node| node.id == attempt.node);
        match node {
            None => Some("its node has left the cluster"),
            Some(node) if node.standing == Standing::Lost => Some("its node was removed"),
            Some(node) if !node.is_up => Some("its node does not answer"),
            Some(node) if silent.contains(&node.id) && heard.contains_key(&node.id) => {
                Some("its node runs no jobs any more")
            }
            Some(_) => {
                let due = attempt
                    .assigned_at
                    .0
                    .saturating_add(attempt.time_limit_ms)
                    .saturating_add(REPORT_WITHIN_MS);
                (due < now_ms).then_some("its node never reported how it ended")
            }
        }
    };
    active.iter().filter_map(|attempt| Some((attempt.attempt, why(attempt)?.to_owned()))).collect()
}

/// Where tasks of `spec` could run if nothing else did.
#[must_use]
pub fn capacity(heard: &HashMap<NodeId, Heard>, spec: &JobSpec) -> Capacity {
    let mut capacity = Capacity::default();
    for offer in heard.values().filter_map(|heard| heard.compute.as_ref()) {
        let mut room = Room { site: spec.site.clone(), free: offer.clone(), attempts: 0 };
        let mut tasks = 0;
        while room.has(&spec.resources, &spec.site) {
            room.take(&spec.resources);
            tasks += 1;
        }
        capacity.nodes += u32::from(tasks > 0);
        capacity.tasks_at_once += tasks;
    }
    capacity
}

pub async fn run(shell: Shell) {
    // Since when a node that is up has offered nothing.
    let mut silent_since: BTreeMap<NodeId, std::time::Instant> = BTreeMap::new();
    let mut forgotten_at = clock::instant();
    loop {
        let is_hint = tokio::select! {
            () = shell.members.jobs_changed.notified() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
            () = shell.stop.cancelled() => return,
        };
        if !shell.is_leader() {
            silent_since.clear();
            if is_hint {
                wake(&shell, shell.members.leader().filter(|leader| *leader != shell.id));
            }
            continue;
        }
        if is_hint {
            tokio::time::sleep(GATHER).await;
        }
        if let Err(error) = step(&shell, &mut silent_since).await {
            tracing::debug!(%error, "nothing was scheduled; trying again");
        }
        if forgotten_at.elapsed() > FORGET_EVERY {
            forgotten_at = clock::instant();
            let before_ms = clock::now().0.saturating_sub(HISTORY_MS);
            if let Err(error) = shell.facts.propose(Command::Jobs(JobsCommand::Forget { before_ms })).await {
                tracing::debug!(%error, "old jobs stay");
            }
        }
    }
}

/// Tells other nodes that jobs have changed, without waiting for them.
fn wake(shell: &Shell, nodes: impl IntoIterator<Item = NodeId>) {
    for node in nodes {
        let transport = shell.transport.clone();
        tokio::spawn(async move {
            // A hint that is lost costs a second.
            let _ = transport.request(node, WAKE, bytes::Bytes::new(), WAKE_TIMEOUT).await;
        });
    }
}

async fn ask(shell: &Shell, query: JobsQuery) -> Result<JobsAnswer, MetaError> {
    match shell.facts.query(Query::Jobs(query)).await? {
        Answer::Jobs(answer) => Ok(answer),
        other => Err(MetaError::Unavailable(format!("the facts answered {other:?}"))),
    }
}

async fn step(
    shell: &Shell,
    silent_since: &mut BTreeMap<NodeId, std::time::Instant>,
) -> Result<(), MetaError> {
    let now_ms = clock::now().0;
    if let JobsAnswer::Due(due) = ask(shell, JobsQuery::Due { now_ms }).await? {
        for job in due {
            let reason = "its deadline has passed".to_owned();
            shell.facts.propose(Command::Jobs(JobsCommand::Cancel { tenant: None, job, reason })).await?;
        }
    }
    let JobsAnswer::Active(mut active) = ask(shell, JobsQuery::Active).await? else { return Ok(()) };
    let (map, heard) = (shell.map.get(), shell.members.heard());
    note_silent(&heard, silent_since);
    let silent = silent_since
        .iter()
        .filter(|(_, since)| since.elapsed() > SILENCE_MAX)
        .map(|(node, _)| *node)
        .collect();
    let lost = lost(&map.map, &heard, &active, &silent, now_ms);
    if !lost.is_empty() {
        tracing::info!(attempts = lost.len(), "attempts are lost with their nodes");
        shell.facts.propose(Command::Jobs(JobsCommand::Lose { attempts: lost.clone() })).await?;
        active.retain(|attempt| !lost.iter().any(|(id, _)| *id == attempt.attempt));
    }
    let JobsAnswer::Queue(queue) = ask(shell, JobsQuery::Queue { tasks_max: TASKS_AT_ONCE }).await? else {
        return Ok(());
    };
    if queue.is_empty() {
        return Ok(());
    }
    let offers = heard.into_iter().filter_map(|(node, heard)| Some((node, heard.compute?))).collect();
    let mut rooms = rooms(&map.map, &offers, &active);
    let assignments = plan(&queue, &mut rooms, now_ms);
    if assignments.is_empty() {
        return Ok(());
    }
    let nodes: BTreeSet<NodeId> = assignments.iter().map(|assignment| assignment.node).collect();
    match shell.facts.propose(Command::Jobs(JobsCommand::Assign { assignments })).await? {
        Reply::Jobs(JobsReply::Assigned(assigned)) => tracing::debug!(count = assigned.len(), "assigned"),
        other => tracing::debug!(?other, "the facts answered something else"),
    }
    for node in nodes {
        if node != shell.id {
            wake(shell, [node]);
        } else if let Some(agent) = shell.members.agent() {
            agent.wake();
        }
    }
    Ok(())
}

fn note_silent(heard: &HashMap<NodeId, Heard>, silent_since: &mut BTreeMap<NodeId, std::time::Instant>) {
    let now = clock::instant();
    silent_since.retain(|node, _| heard.get(node).is_some_and(|heard| heard.compute.is_none()));
    for (node, _) in heard.iter().filter(|(_, heard)| heard.compute.is_none()) {
        silent_since.entry(*node).or_insert(now);
    }
}

#[cfg(test)]
mod tests {
    use makai_raft::facts::Timestamp;
    use makai_raft::facts::jobs::{JobId, QueuedTask};
    use makai_raft::facts::tenant::TenantId;

    use super::*;

    fn room(cpu_millis: u64) -> Room {
        let free =
            Inventory { cpu_millis, memory_bytes: 1 << 30, scratch_bytes: 1 << 30, ..Inventory::default() };
        Room { site: "here".into(), free, attempts: 0 }
    }

    fn job(id: u64, cpu_millis: u32, tasks: u32) -> QueuedJob {
        let task = |index| QueuedTask { index, not_before: Timestamp(0), last_node: None };
        QueuedJob {
            job: JobId(id),
            tenant: TenantId(1),
            priority: 50,
            submitted_at: Timestamp(0),
            deadline: None,
            time_limit_ms: 1,
            resources: Resources { cpu_millis, memory_bytes: 1, scratch_bytes: 1, gpu: None },
            site: String::new(),
            tasks: (0..tasks).map(task).collect(),
            gang_tasks: 0,
        }
    }

    fn id(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    /// Nothing is given twice, and nothing that has room waits.
    #[test]
    fn rooms_are_filled_and_never_beyond() {
        let mut rooms = BTreeMap::from([(id(1), room(2000)), (id(2), room(1000))]);
        let queue = [job(1, 1500, 2), job(2, 500, 9)];
        let planned = plan(&queue, &mut rooms, 0);
        let used = |node| {
            let of = planned.iter().filter(|assignment| assignment.node == node);
            of.map(|assignment| if assignment.job == JobId(1) { 1500 } else { 500 }).sum::<u64>()
        };
        assert_eq!((used(id(1)), used(id(2))), (2000, 1000));
        assert_eq!(planned.iter().filter(|assignment| assignment.job == JobId(1)).count(), 1);
    }

    /// A gang for which there is no room as a whole takes none, and keeps nobody behind it from going.
    #[test]
    fn a_gang_starts_whole_or_not_at_all() {
        let rooms = BTreeMap::from([(id(1), room(2000)), (id(2), room(1000))]);
        let gang = |tasks| QueuedJob { gang_tasks: tasks, ..job(1, 1000, tasks) };
        assert_eq!(plan(&[gang(3)], &mut rooms.clone(), 0).len(), 3);
        let planned = plan(&[gang(4), job(2, 1000, 9)], &mut rooms.clone(), 0);
        assert!(
            planned.len() == 3 && planned.iter().all(|assignment| assignment.job == JobId(2)),
            "{planned:?}"
        );
        let mut waits = gang(3);
        waits.tasks[1].not_before = Timestamp(10);
        assert!(plan(&[waits.clone()], &mut rooms.clone(), 9).is_empty());
        assert_eq!(plan(&[waits], &mut rooms.clone(), 10).len(), 3);
    }

    #[test]
    fn a_task_waits_its_time_and_goes_elsewhere_then() {
        let mut wanted = job(1, 100, 1);
        wanted.tasks[0].not_before = Timestamp(10);
        wanted.tasks[0].last_node = Some(id(1));
        let rooms = BTreeMap::from([(id(1), room(9000)), (id(2), room(1000))]);
        assert!(plan(&[wanted.clone()], &mut rooms.clone(), 9).is_empty());
        assert_eq!(plan(&[wanted.clone()], &mut rooms.clone(), 10)[0].node, id(2));
        let mut alone = BTreeMap::from([(id(1), room(9000))]);
        assert_eq!(plan(&[wanted.clone()], &mut alone, 10)[0].node, id(1), "better there than nowhere");
        wanted.site = "elsewhere".into();
        assert!(plan(&[wanted], &mut rooms.clone(), 10).is_empty());
    }
}
