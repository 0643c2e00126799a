//! From agreed facts to the scheduler's words, and back: what the leader's loop plans with.
//!
//! ```text
//! map, heartbeats ─> nodes ┐
//! current attempts ────────┼─ scheduler::plan ─> assignments, preemptions, and why the others wait
//! queue, predictions ──────┘
//! ```
//!
//! Pure. Always: a task that was tried before goes to another node where one has room, and back to the same rather than nowhere;
//! what a node holds never exceeds what it offers.
//!
//! | file        | holds                                                             |
//! |-------------|-------------------------------------------------------------------|
//! | `offers`    | what attempts ask of machines, what machines offer, and what fits |
//! | `explained` | why tasks stand where they do                                     |

mod explained;
mod offers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use makai_erasure::NodeId;
use makai_gpu_runtime::inventory::{self, Inventory};
use makai_gpu_runtime::module;
use makai_gpu_runtime::scheduler::predict::{History, Subject};
use makai_gpu_runtime::scheduler::{
    self, Action, Cluster, Estimate, Node as Place, NodeNumber, Queue, Running, TaskId, Traits, Waiting,
};
use makai_raft::facts::cluster::{ClusterMap, Node, Role, Standing};
use makai_raft::facts::jobs::{
    ActiveAttempt, Assignment, AttemptId, INDEX_MARK, JobId, JobSpec, ModuleCode, ModuleWork, ObjectPath,
    QueuedJob, Resources, Work, of_task,
};
use makai_raft::facts::tenant::TenantId;

pub use self::explained::{Explained, Why};
use self::offers::model_number;
pub use self::offers::{demand, fits, level, never, place};

/// Attempts of one node at a time.
pub const NODE_ATTEMPTS_MAX: usize = 200;
/// An attempt of a task that was stopped or lost so often is left alone: a task may be lost a bounded number of times.
const STOPPED_MAX: u32 = 8;

/// What is known of a job beyond its queue entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Same program, same number.
    pub work: u64,
    /// Its tasks can run on a card.
    pub is_module: bool,
    /// What a processor takes that runs again what a card ran, to the same bits; `None`: it may not.
    pub on_processor: Option<Resources>,
    /// Objects of a task, where tasks are for objects: what is learnt is learnt of one.
    pub per_task: Option<u32>,
    /// What all its tasks begin with, by number (see [`inventory::source_number`]).
    pub sources: Vec<u64>,
    /// What each task begins with that is its own.
    pub own_sources: Vec<ObjectPath>,
}

impl Known {
    /// Of a specification.
    #[must_use]
    pub fn of(work: u64, tenant: TenantId, spec: &JobSpec) -> Self {
        let paths = spec.work.object().into_iter();
        // A range of an object is not kept.
        let inputs = spec.inputs.iter().filter(|input| input.range.is_none()).map(|input| &input.from);
        let is_own = |path: &&ObjectPath| path.key.contains(INDEX_MARK) || path.bucket.contains(INDEX_MARK);
        let (own, common): (Vec<&ObjectPath>, Vec<&ObjectPath>) = paths.chain(inputs).partition(is_own);
        Self {
            work,
            is_module: matches!(spec.work, Work::Module(_)),
            on_processor: on_processor(spec),
            per_task: spec.each.as_ref().map(|each| each.per_task.max(1)),
            sources: common.into_iter().map(|path| inventory::source_number(tenant, path)).collect(),
            own_sources: own.into_iter().cloned().collect(),
        }
    }
}

/// Of a quorum's module whose text is at hand and whose kernels are exact. One that lies in an object is compared among cards.
fn on_processor(spec: &JobSpec) -> Option<Resources> {
    let Work::Module(ModuleWork { code: ModuleCode::Text(text), steps, .. }) = &spec.work else {
        return None;
    };
    let on_processor = spec.on_processor().filter(|_| spec.quorum > 1)?;
    module::is_exact(text, steps.iter().map(|step| step.kernel.as_str())).then_some(on_processor)
}

/// All that a plan is made from.
pub struct Facts<'a> {
    pub map: &'a ClusterMap,
    pub offers: &'a HashMap<NodeId, Inventory>,
    pub active: &'a [ActiveAttempt],
    pub queue: &'a [QueuedJob],
    pub known: &'a BTreeMap<JobId, Known>,
    pub history: &'a History,
    /// How attempts ended on nodes that reported any.
    pub ends: &'a BTreeMap<NodeId, Ends>,
    /// How often in a row the results of nodes were those of others, where any were compared.
    pub agreements: &'a BTreeMap<NodeId, u32>,
    /// Whether the cluster's rules have processors run again what cards ran.
    pub has_reruns: bool,
    pub now_ms: u64,
}

/// How attempts ended on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    pub by_task: u64,
    /// By the node's doing.
    pub by_node: u64,
}

/// So many good ends a node is trusted with before it has any.
const GOOD_ENDS_FIRST: u64 = 20;
/// Speeds within this part of the median count as alike: they are measured in a moment, beside other work.
const SPEED_ALIKE_MILLI: std::ops::RangeInclusive<u64> = 700..=1400;

/// Trust in a node none of whose results were compared, where those of others were; and after how many in a row it is full.
const TRUST_FIRST_MILLI: u32 = 800;
const TRUST_FULL_AFTER: u32 = 10;

/// What its results have earned a node. Where nobody's were compared, all are alike.
fn trust_milli(agreements: &BTreeMap<NodeId, u32>, node: NodeId) -> u32 {
    if agreements.is_empty() {
        return Traits::default().trust_milli;
    }
    let streak = agreements.get(&node).copied().unwrap_or(0).min(TRUST_FULL_AFTER);
    TRUST_FIRST_MILLI + (1000 - TRUST_FIRST_MILLI) * streak / TRUST_FULL_AFTER
}

/// Nodes whose copies of a task's inputs are considered: those with the most.
const NEAR_MAX: usize = 256;

/// Which nodes hold what, by its number.
struct Holders(HashMap<u64, Vec<(NodeNumber, u64)>>);

impl Holders {
    fn of(nodes: &[&Node], offers: &HashMap<NodeId, Inventory>) -> Self {
        let mut holders: HashMap<u64, Vec<(NodeNumber, u64)>> = HashMap::new();
        for node in nodes {
            for held in offers.get(&node.id).into_iter().flat_map(|offer| &offer.held) {
                holders.entry(held.what).or_default().push((NodeNumber(node.number), held.bytes));
            }
        }
        Self(holders)
    }

    /// Bytes of these sources that nodes hold.
    fn near(&self, sources: impl Iterator<Item = u64>) -> BTreeMap<NodeNumber, u64> {
        let mut near: BTreeMap<NodeNumber, u64> = BTreeMap::new();
        for (node, bytes) in sources.filter_map(|source| self.0.get(&source)).flatten() {
            let sum = near.entry(*node).or_default();
            *sum = sum.saturating_add(*bytes);
        }
        if near.len() > NEAR_MAX {
            let mut most: Vec<(NodeNumber, u64)> = near.into_iter().collect();
            most.sort_by_key(|(node, bytes)| (std::cmp::Reverse(*bytes), *node));
            most.truncate(NEAR_MAX);
            near = most.into_iter().collect();
        }
        near
    }
}

/// What is measured of a node. `median`: of all nodes' speeds; 0: none is known.
fn traits(offer: &Inventory, median: u64, ends: Ends, trust_milli: u32) -> Traits {
    let ratio = (u64::from(offer.cpu.ptx_mips) * 1000).checked_div(median).filter(|ratio| *ratio > 0);
    let value = ratio.filter(|ratio| !SPEED_ALIKE_MILLI.contains(ratio)).unwrap_or(1000);
    let good = ends.by_task.saturating_add(GOOD_ENDS_FIRST);
    Traits {
        value_milli: u32::try_from(value).unwrap_or(u32::MAX),
        reliability_milli: u32::try_from(good * 1000 / good.saturating_add(ends.by_node)).unwrap_or(1000),
        trust_milli,
        ..Traits::default()
    }
}

fn median_speed(offers: &HashMap<NodeId, Inventory>) -> u64 {
    let mut speeds: Vec<u32> =
        offers.values().map(|offer| offer.cpu.ptx_mips).filter(|speed| *speed > 0).collect();
    speeds.sort_unstable();
    speeds.get(speeds.len() / 2).copied().unwrap_or(0).into()
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Planned {
    /// Stopped so that what is worth more can start; they wait again.
    pub preempted: Vec<(AttemptId, String)>,
    pub assignments: Vec<Assignment>,
    /// Tasks that were placed, and the first of those that wait.
    pub why: BTreeMap<(JobId, u32), Why>,
}

fn may_run(node: &Node) -> bool {
    node.is_up && node.standing == Standing::Active && node.roles.contains(&Role::Compute)
}

/// The run time that a task of a job is expected to take. What is not known is bounded by its limit.
fn estimate(facts: &Facts<'_>, job: JobId, tenant: u64, resources: &Resources, limit_ms: u64) -> Estimate {
    let unknown = Known::default();
    let known = facts.known.get(&job).unwrap_or(&unknown);
    let times = u64::from(known.per_task.unwrap_or(1));
    match facts.history.predict(&subject(known, tenant, resources)) {
        Some(found) => Estimate {
            median_ms: found.runtime_ms.median.saturating_mul(times).min(limit_ms),
            p90_ms: found.runtime_ms.p90.saturating_mul(times).clamp(1, limit_ms.max(1)),
        },
        None => Estimate { median_ms: 0, p90_ms: limit_ms },
    }
}

/// What predictions are grouped by.
#[must_use]
pub fn subject(known: &Known, tenant: u64, resources: &Resources) -> Subject {
    let gpu = resources.gpu.as_ref();
    Subject {
        tenant,
        // One object is no task of a job that has indices.
        work: known.work ^ u64::from(known.per_task.is_some()),
        card: gpu.map_or(0, |gpu| model_number(&gpu.model)),
        input_bytes: 0,
        cpu_milli: resources.cpu_millis.into(),
        gpu_milli: gpu
            .map_or(0, |gpu| if gpu.cards > 0 { u64::from(gpu.cards) * 1000 } else { gpu.sm_millis.into() }),
    }
}

struct Names<'a> {
    numbers: BTreeMap<NodeId, NodeNumber>,
    ids: BTreeMap<NodeNumber, NodeId>,
    offers: &'a HashMap<NodeId, Inventory>,
}

impl Names<'_> {
    fn gpus(&self, node: NodeId, places: &[u16]) -> Vec<String> {
        let gpus = self.offers.get(&node).map_or(&[][..], |offer| offer.gpus.as_slice());
        places.iter().filter_map(|at| gpus.get(usize::from(*at))).map(|gpu| gpu.uuid.clone()).collect()
    }

    fn places(&self, node: NodeId, uuids: &[String]) -> Vec<u16> {
        let gpus = self.offers.get(&node).map_or(&[][..], |offer| offer.gpus.as_slice());
        let at = |uuid: &String| gpus.iter().position(|gpu| gpu.uuid == *uuid);
        uuids.iter().filter_map(at).filter_map(|at| u16::try_from(at).ok()).collect()
    }
}

/// Plans one round.
#[must_use]
pub fn plan(facts: &Facts<'_>) -> Planned {
    let nodes: Vec<&Node> = facts.map.nodes.iter().filter(|node| may_run(node)).collect();
    let mut busy: BTreeMap<NodeId, usize> = BTreeMap::new();
    for attempt in facts.active {
        *busy.entry(attempt.node).or_default() += 1;
    }
    let names = Names {
        numbers: nodes.iter().map(|node| (node.id, NodeNumber(node.number))).collect(),
        ids: nodes.iter().map(|node| (NodeNumber(node.number), node.id)).collect(),
        offers: facts.offers,
    };
    let median = median_speed(facts.offers);
    let places = nodes.iter().filter_map(|node| {
        let offer = facts.offers.get(&node.id)?;
        let is_open = busy.get(&node.id).copied().unwrap_or(0) < NODE_ATTEMPTS_MAX;
        let ends = facts.ends.get(&node.id).copied().unwrap_or_default();
        let place = place(node.number, &node.site, offer, is_open);
        let trust = trust_milli(facts.agreements, node.id);
        Some(Place { traits: traits(offer, median, ends, trust), ..place })
    });
    let mut cluster = Cluster { nodes: places.collect(), running: running(facts, &names) };
    let waiting = waiting(facts, &names, &Holders::of(&nodes, facts.offers));
    let near: HashMap<TaskId, Arc<BTreeMap<NodeNumber, u64>>> = waiting
        .iter()
        .filter(|task| !task.local_bytes.is_empty())
        .map(|task| (task.task, Arc::clone(&task.local_bytes)))
        .collect();
    let local = |task: &TaskId, node| near.get(task).and_then(|near| near.get(&node)).copied().unwrap_or(0);
    let mut planned = Planned::default();
    let mut settle = |actions: Vec<Action>, cluster: &mut Cluster| {
        let mut left = BTreeSet::new();
        for action in actions {
            match action {
                Action::Start { task, node, gpus, score } => {
                    let Some(id) = names.ids.get(&node).copied() else { continue };
                    let held = busy.entry(id).or_default();
                    if *held >= NODE_ATTEMPTS_MAX {
                        continue;
                    }
                    *held += 1;
                    let gpus = names.gpus(id, &gpus);
                    let why = Why::Placed { node: id, score, local_bytes: local(&task, node) };
                    planned.why.insert((JobId(task.job), task.index), why);
                    planned.assignments.push(Assignment {
                        job: JobId(task.job),
                        index: task.index,
                        node: id,
                        gpus,
                        is_twin: false,
                    });
                }
                Action::Preempt { task, node, for_task } => {
                    let is_it = |attempt: &&ActiveAttempt| {
                        attempt.attempt.job.0 == task.job
                            && attempt.attempt.index == task.index
                            && names.numbers.get(&attempt.node) == Some(&node)
                    };
                    if let Some(victim) = facts.active.iter().find(is_it) {
                        let why = format!(
                            "stopped to make room for task {} of job {}, which gains more than this loses",
                            for_task.index, for_task.job
                        );
                        planned.preempted.push((victim.attempt, why));
                    }
                    cluster.running.retain(|running| running.task != task);
                }
                Action::Wait { task, why } => {
                    left.insert(task);
                    planned.why.insert((JobId(task.job), task.index), Why::Waits { why });
                }
                Action::Reissue { task, node, gpus, score } => {
                    let Some(id) = names.ids.get(&node).copied() else { continue };
                    let held = busy.entry(id).or_default();
                    if *held >= NODE_ATTEMPTS_MAX {
                        continue;
                    }
                    *held += 1;
                    let (job, index) = (JobId(task.job), task.index);
                    planned.why.insert((job, index), Why::Placed { node: id, score, local_bytes: 0 });
                    let gpus = names.gpus(id, &gpus);
                    planned.assignments.push(Assignment { job, index, node: id, gpus, is_twin: true });
                }
            }
        }
        left
    };
    let queue = Queue { waiting, ..Queue::default() };
    let actions = scheduler::plan(&cluster, &queue, facts.now_ms);
    let started = starts(&actions, &queue);
    let left = settle(actions, &mut cluster);
    let (reruns, held) = (reruns(facts, &names, &queue, &left), held_by(facts));
    // Better where it failed before than nowhere.
    let mut again: Vec<Waiting> = queue.waiting;
    again.retain(|task| left.contains(&task.task) && !task.avoid.is_empty() && task.gang.is_none());
    cluster.running.extend(started);
    if !again.is_empty() {
        again.iter_mut().for_each(|task| {
            task.avoid = barred(facts, &names, held.get(&task.task).copied().unwrap_or_default());
        });
        let again = Queue { waiting: again, ..Queue::default() };
        let actions = only_starts(scheduler::plan(&cluster, &again, facts.now_ms));
        cluster.running.extend(starts(&actions, &again));
        settle(actions, &mut cluster);
    }
    // A second opinion needs no card.
    let is_left = |task: &Waiting| !cluster.running.iter().any(|running| running.task == task.task);
    let reruns: Vec<Waiting> = reruns.into_iter().filter(is_left).collect();
    if !reruns.is_empty() {
        let reruns = Queue { waiting: reruns, ..Queue::default() };
        let actions = only_starts(scheduler::plan(&cluster, &reruns, facts.now_ms));
        settle(actions, &mut cluster);
    }
    planned
}

fn only_starts(actions: Vec<Action>) -> Vec<Action> {
    actions.into_iter().filter(|action| matches!(action, Action::Start { .. })).collect()
}

/// Who has given results of which tasks.
fn held_by<'a>(facts: &Facts<'a>) -> BTreeMap<TaskId, &'a [NodeId]> {
    let tasks = facts.queue.iter().flat_map(|job| job.tasks.iter().map(|task| (job.job.0, task)));
    tasks
        .filter(|(_, task)| !task.barred.is_empty())
        .map(|(job, task)| (TaskId { job, index: task.index }, &*task.barred))
        .collect()
}

/// Tasks that wait for another node's word where no node that may give it has such a card, as a processor could give it: it takes
/// much longer, so that a card that is only taken is waited for.
fn reruns(facts: &Facts<'_>, names: &Names<'_>, queue: &Queue, left: &BTreeSet<TaskId>) -> Vec<Waiting> {
    if !facts.has_reruns {
        return Vec::new();
    }
    let held = held_by(facts);
    let rerun = |task: &Waiting| {
        let voters = held.get(&task.task)?;
        let resources = facts.known.get(&JobId(task.task.job))?.on_processor.as_ref()?;
        let avoid = barred(facts, names, voters);
        let may_ask = |node: &NodeId| names.numbers.get(node).is_some_and(|node| !avoid.contains(node));
        if facts.offers.iter().any(|(node, offer)| may_ask(node) && fits(offer, &task.demand) > 0) {
            return None;
        }
        let demand = demand(resources, &task.demand.site, true);
        Some(Waiting { demand, avoid, ..task.clone() })
    };
    queue.waiting.iter().filter(|task| left.contains(&task.task)).filter_map(rerun).collect()
}

/// What has just been started, as running.
fn starts(actions: &[Action], queue: &Queue) -> Vec<Running> {
    let tasks: BTreeMap<TaskId, &Waiting> = queue.waiting.iter().map(|task| (task.task, task)).collect();
    let running = actions.iter().filter_map(|action| match action {
        Action::Start { task, node, gpus, .. } => {
            let waiting = tasks.get(task)?;
            Some(Running {
                task: *task,
                tenant: waiting.tenant,
                priority: waiting.priority,
                node: *node,
                gpus: gpus.clone(),
                demand: waiting.demand.clone(),
                ..Running::default()
            })
        }
        _ => None,
    });
    running.collect()
}

fn running(facts: &Facts<'_>, names: &Names<'_>) -> Vec<Running> {
    let mut attempts: BTreeMap<(JobId, u32), u32> = BTreeMap::new();
    for attempt in facts.active {
        *attempts.entry((attempt.attempt.job, attempt.attempt.index)).or_default() += 1;
    }
    let running = facts.active.iter().filter_map(|attempt| {
        let node = *names.numbers.get(&attempt.node)?;
        let AttemptId { job, index, attempt: number } = attempt.attempt;
        let started_ms = attempt.assigned_at.0;
        let is_module = facts.known.get(&job).is_none_or(|known| known.is_module);
        Some(Running {
            task: TaskId { job: job.0, index },
            tenant: attempt.tenant.0,
            priority: attempt.priority,
            node,
            gpus: names.places(attempt.node, &attempt.gpus),
            demand: demand(&attempt.resources, "", is_module),
            started_ms,
            runtime: estimate(facts, job, attempt.tenant.0, &attempt.resources, attempt.time_limit_ms),
            // What it has done so far is lost.
            stop_cost_ms: (number < STOPPED_MAX).then(|| facts.now_ms.saturating_sub(started_ms)),
            // A gang is no array of tasks that could end one by one; the facts give none of it a twin.
            is_reissued: attempts.get(&(job, index)).is_some_and(|count| *count > 1),
        })
    });
    running.collect()
}

fn waiting(facts: &Facts<'_>, names: &Names<'_>, holders: &Holders) -> Vec<Waiting> {
    let mut waiting = Vec::new();
    for job in facts.queue {
        let unknown = Known::default();
        let known = facts.known.get(&job.job).unwrap_or(&unknown);
        let demand = demand(&job.resources, &job.site, known.is_module);
        let near = Arc::new(holders.near(known.sources.iter().copied()));
        let own_near = |index: u32| {
            if known.own_sources.is_empty() || holders.0.is_empty() {
                return Arc::clone(&near);
            }
            let own = known.own_sources.iter().map(|path| {
                let bucket = of_task(&path.bucket, index);
                inventory::source_number(job.tenant, &ObjectPath { bucket, key: of_task(&path.key, index) })
            });
            Arc::new(holders.near(known.sources.iter().copied().chain(own)))
        };
        let runtime = estimate(facts, job.job, job.tenant.0, &job.resources, job.time_limit_ms);
        let ready = job.tasks.iter().filter(|task| task.not_before.0 <= facts.now_ms);
        let gang = job.gang_tasks as usize;
        if gang > 0 && ready.clone().count() != gang {
            continue;
        }
        waiting.extend(ready.map(|task| Waiting {
            task: TaskId { job: job.job.0, index: task.index },
            tenant: job.tenant.0,
            priority: job.priority,
            submitted_ms: job.submitted_at.0,
            deadline_ms: job.deadline.map(|deadline| deadline.0),
            demand: demand.clone(),
            runtime,
            gang: (gang > 0).then_some(job.job.0),
            local_bytes: own_near(task.index),
            avoid: {
                let last = task.last_node.and_then(|node| names.numbers.get(&node).copied());
                last.into_iter().chain(barred(facts, names, &task.barred)).collect()
            },
        }));
    }
    waiting
}

/// Nodes that may not have a task since their owner has tried it: those nodes themselves, and all of the same owners.
fn barred(facts: &Facts<'_>, names: &Names<'_>, voters: &[NodeId]) -> Vec<NodeNumber> {
    if voters.is_empty() {
        return Vec::new();
    }
    let is_voter = |node: &&Node| voters.contains(&node.id);
    let owners: BTreeSet<&str> = facts
        .map
        .nodes
        .iter()
        .filter(is_voter)
        .map(|node| node.owner.as_str())
        .filter(|owner| !owner.is_empty())
        .collect();
    let nodes = facts.map.nodes.iter();
    let is_barred = |node: &&Node| is_voter(node) || owners.contains(node.owner.as_str());
    nodes.filter(is_barred).filter_map(|node| names.numbers.get(&node.id).copied()).collect()
}

#[cfg(test)]
mod tests {
    use makai_gpu_runtime::scheduler::predict::Needed;
    use makai_raft::facts::Timestamp;
    use makai_raft::facts::jobs::{GpuShare, QueuedTask};
    use makai_raft::facts::tenant::TenantId;

    use super::*;

    fn id(number: u8) -> NodeId {
        NodeId([number; 32])
    }

    /// Nodes 1, 2, ... with so many thousandths of a core, each with a card of 1000 MiB.
    struct Scene {
        map: ClusterMap,
        offers: HashMap<NodeId, Inventory>,
        active: Vec<ActiveAttempt>,
        known: BTreeMap<JobId, Known>,
        history: History,
        ends: BTreeMap<NodeId, Ends>,
        agreements: BTreeMap<NodeId, u32>,
    }

    impl Scene {
        fn of(cpu_millis: &[u64]) -> Self {
            let node = |number: u8| Node {
                id: id(number),
                number: number.into(),
                name: String::new(),
                owner: String::new(),
                site: "here".into(),
                roles: vec![Role::Compute],
                addresses: Vec::new(),
                standing: Standing::Active,
                joined_at: Timestamp(0),
                is_up: true,
                changed_at: Timestamp(0),
                version: String::new(),
                down_ppm: 0,
            };
            let offer = |number: u8, cpu_millis: u64| Inventory {
                cpu_millis,
                memory_bytes: 1 << 40,
                scratch_bytes: 1 << 40,
                gpus: vec![inventory::Gpu {
                    uuid: format!("GPU-{number}"),
                    model: "NVIDIA Test Card".into(),
                    memory_mib: 1000,
                    level_max: 5,
                    ..inventory::Gpu::default()
                }],
                ..Inventory::default()
            };
            let numbers = || (1_u8..).zip(cpu_millis);
            Self {
                map: ClusterMap {
                    nodes: numbers().map(|(number, _)| node(number)).collect(),
                    ..ClusterMap::default()
                },
                offers: numbers().map(|(number, cpu)| (id(number), offer(number, *cpu))).collect(),
                active: Vec::new(),
                known: (1..100)
                    .map(|job| (JobId(job), Known { work: job, is_module: true, ..Known::default() }))
                    .collect(),
                history: History::default(),
                ends: BTreeMap::new(),
                agreements: BTreeMap::new(),
            }
        }

        fn plan(&self, queue: &[QueuedJob], now_ms: u64) -> Planned {
            plan(&Facts {
                map: &self.map,
                offers: &self.offers,
                active: &self.active,
                queue,
                known: &self.known,
                history: &self.history,
                ends: &self.ends,
                agreements: &self.agreements,
                has_reruns: true,
                now_ms,
            })
        }
    }

    fn job(id: u64, cpu_millis: u32, tasks: u32) -> QueuedJob {
        let task =
            |index| QueuedTask { index, not_before: Timestamp(0), last_node: None, barred: Vec::new() };
        QueuedJob {
            job: JobId(id),
            tenant: TenantId(1),
            priority: 50,
            submitted_at: Timestamp(0),
            deadline: None,
            time_limit_ms: 1000,
            resources: Resources { cpu_millis, memory_bytes: 1, scratch_bytes: 1, gpu: None },
            site: String::new(),
            tasks: (0..tasks).map(task).collect(),
            gang_tasks: 0,
        }
    }

    fn on_card(id: u64, sm_millis: u32, memory_mib: u64, tasks: u32) -> QueuedJob {
        let mut job = job(id, 1, tasks);
        job.resources.gpu = Some(GpuShare { cards: 0, memory_mib, sm_millis, ..GpuShare::default() });
        job
    }

    /// An attempt at a task of a job on a node, since the beginning.
    fn running(job: u64, index: u32, node: u8) -> ActiveAttempt {
        ActiveAttempt {
            node: id(node),
            attempt: AttemptId { job: JobId(job), index, attempt: node.into() },
            is_running: true,
            assigned_at: Timestamp(0),
            time_limit_ms: 10_000_000,
            resources: Resources { cpu_millis: 500, memory_bytes: 1, scratch_bytes: 1, gpu: None },
            tenant: TenantId(1),
            priority: 50,
            gpus: Vec::new(),
        }
    }

    fn used(planned: &Planned, node: u8, job: u64) -> usize {
        let is_it = |given: &&Assignment| given.node == id(node) && given.job == JobId(job);
        planned.assignments.iter().filter(is_it).count()
    }

    /// Nothing is given twice, nothing that has room waits, and who waits is told why.
    #[test]
    fn nodes_are_filled_and_never_beyond() {
        let scene = Scene::of(&[2000, 1000]);
        let planned = scene.plan(&[job(1, 1500, 2), job(2, 500, 9)], 0);
        assert_eq!(planned.assignments.len(), 4, "{planned:?}");
        assert_eq!((used(&planned, 1, 1), used(&planned, 1, 2), used(&planned, 2, 2)), (1, 1, 2));
        let waits =
            planned.why.values().filter(|why| matches!(why, Why::Waits { why } if !why.nodes.is_empty()));
        assert_eq!(waits.count(), 7, "{:?}", planned.why);
    }

    #[test]
    fn a_task_waits_its_time_and_goes_elsewhere_then() {
        let mut wanted = job(1, 100, 1);
        wanted.tasks[0].not_before = Timestamp(10);
        wanted.tasks[0].last_node = Some(id(1));
        let scene = Scene::of(&[9000, 1000]);
        assert!(scene.plan(&[wanted.clone()], 9).assignments.is_empty());
        assert_eq!(scene.plan(&[wanted.clone()], 10).assignments[0].node, id(2));
        let alone = Scene::of(&[9000]).plan(&[wanted.clone()], 10);
        assert_eq!(alone.assignments[0].node, id(1), "better there than nowhere");
        wanted.site = "elsewhere".into();
        assert!(scene.plan(&[wanted], 10).assignments.is_empty());
    }

    /// Results of a quorum come from different owners: neither where there is no other room, nor by the second choice.
    #[test]
    fn a_task_goes_to_no_owner_that_has_voted() {
        let mut scene = Scene::of(&[4000, 4000, 4000]);
        for (node, owner) in scene.map.nodes.iter_mut().zip(["ann", "ann", "bob"]) {
            node.owner = owner.into();
        }
        let mut wanted = job(1, 100, 1);
        wanted.tasks[0].barred = vec![id(1)];
        assert_eq!(scene.plan(&[wanted.clone()], 1000).assignments[0].node, id(3));
        scene.map.nodes.pop();
        assert!(scene.plan(&[wanted.clone()], 1000).assignments.is_empty(), "the second is ann's too");
        // Whose owner is not known is nobody's but itself.
        scene.map.nodes.iter_mut().for_each(|node| node.owner.clear());
        assert_eq!(scene.plan(&[wanted], 1000).assignments[0].node, id(2));
    }

    /// Who has no card gives the second opinion of a card's exact kernels, where no other owner has a card; never the first.
    #[test]
    fn a_processor_gives_the_second_opinion() {
        let mut scene = Scene::of(&[4000, 4000]);
        scene.offers.get_mut(&id(2)).expect("a node").gpus.clear();
        let mut wanted = on_card(1, 1000, 100, 1);
        let on_processor = Resources { memory_bytes: 1 << 30, gpu: None, ..wanted.resources.clone() };
        let first = scene.plan(&[wanted.clone()], 0).assignments;
        assert_eq!((first[0].node, first[0].gpus.len()), (id(1), 1));
        wanted.tasks[0].barred = vec![id(1)];
        assert!(
            scene.plan(&[wanted.clone()], 0).assignments.is_empty(),
            "its kernels are not known to be exact"
        );
        scene.known.get_mut(&JobId(1)).expect("a job").on_processor = Some(on_processor);
        let second = scene.plan(&[wanted.clone()], 0).assignments;
        assert_eq!((second.len(), second[0].node, second[0].gpus.len()), (1, id(2), 0));
        // A card of another owner goes before a processor.
        let mut more = Scene::of(&[4000, 4000, 4000]);
        more.offers.get_mut(&id(2)).expect("a node").gpus.clear();
        more.known.clone_from(&scene.known);
        let second = more.plan(&[wanted.clone()], 0).assignments;
        assert_eq!((second.len(), second[0].node, second[0].gpus.len()), (1, id(3), 1));
        // One that is taken is waited for.
        let mut held = running(2, 0, 3);
        held.resources.gpu = wanted.resources.gpu.clone();
        held.gpus = vec!["GPU-3".into()];
        more.active.push(held);
        assert!(more.plan(&[wanted.clone()], 0).assignments.is_empty());
        scene.offers.get_mut(&id(2)).expect("a node").memory_bytes = 1 << 29;
        assert!(scene.plan(&[wanted], 0).assignments.is_empty(), "its buffers need room");
    }

    /// Only exact kernels of a quorum, whose text is at hand.
    #[test]
    fn only_exact_kernels_are_run_again() {
        use makai_raft::facts::jobs::{ModuleStep, ObjectPath};
        let text = |body: &str| {
            format!(
                ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n.reg .f32 %f<3>;\n{body}\nret;\n}}\n"
            )
        };
        let step = ModuleStep {
            kernel: "k".into(),
            grid: [1; 3],
            block: [1; 3],
            shared_bytes: 0,
            arguments: vec![],
            repeat: 1,
        };
        let of = |code: ModuleCode, quorum: u32| {
            let work = ModuleWork { code, buffers: vec![], steps: vec![step.clone()] };
            let spec = JobSpec {
                work: Work::Module(work),
                resources: on_card(1, 1000, 100, 1).resources,
                quorum,
                ..bare_spec()
            };
            on_processor(&spec).is_some()
        };
        let exact = || ModuleCode::Text(text("mov.f32 %f1, 0f3F800000;\nadd.rn.f32 %f2, %f1, %f1;"));
        assert!(of(exact(), 2));
        assert!(!of(exact(), 1), "one node's word is asked for");
        let approximate = text("mov.f32 %f1, 0f3F800000;\nsin.approx.f32 %f2, %f1;");
        assert!(!of(ModuleCode::Text(approximate), 2));
        assert!(!of(ModuleCode::Text("no PTX".into()), 2));
        assert!(!of(ModuleCode::Object(ObjectPath { bucket: "b".into(), key: "k".into() }), 2));
    }

    fn bare_spec() -> JobSpec {
        JobSpec {
            name: String::new(),
            work: Work::Module(ModuleWork {
                code: ModuleCode::Text(String::new()),
                buffers: vec![],
                steps: vec![],
            }),
            resources: Resources::default(),
            inputs: vec![],
            outputs: vec![],
            tasks: 1,
            priority: 50,
            attempts_max: 1,
            backoff_ms: 0,
            time_limit_ms: 1000,
            deadline: None,
            site: String::new(),
            after: vec![],
            is_gang: false,
            price_max: 0,
            quorum: 0,
            each: None,
        }
    }

    /// A gang for which there is no room as a whole takes none, and the room goes to who fits.
    #[test]
    fn a_gang_starts_whole_or_not_at_all() {
        let scene = Scene::of(&[2000, 1000]);
        let gang = |tasks| QueuedJob { gang_tasks: tasks, ..job(1, 1000, tasks) };
        assert_eq!(scene.plan(&[gang(3)], 0).assignments.len(), 3);
        let planned = scene.plan(&[gang(4), job(2, 1000, 9)], 0);
        assert_eq!((used(&planned, 1, 1), used(&planned, 2, 1)), (0, 0));
        assert_eq!(used(&planned, 1, 2) + used(&planned, 2, 2), 3);
        let mut waits = gang(3);
        waits.tasks[1].not_before = Timestamp(10);
        assert!(scene.plan(&[waits.clone()], 9).assignments.is_empty());
        assert_eq!(scene.plan(&[waits], 10).assignments.len(), 3);
    }

    /// Shares of a card sum to no more than the card, in time and in memory, those that run included; a closed card and a container
    /// get nothing.
    #[test]
    fn shares_of_cards_are_given_by_name_and_never_twice() {
        let mut scene = Scene::of(&[9000]);
        let planned = scene.plan(&[on_card(1, 300, 100, 5)], 0);
        assert_eq!(planned.assignments.len(), 3);
        assert!(planned.assignments.iter().all(|given| given.gpus == ["GPU-1"]), "{planned:?}");
        assert_eq!(scene.plan(&[on_card(1, 1, 400, 5)], 0).assignments.len(), 2, "memory");
        let holds = ActiveAttempt {
            node: id(1),
            attempt: AttemptId { job: JobId(9), index: 0, attempt: 1 },
            is_running: true,
            assigned_at: Timestamp(0),
            time_limit_ms: 1000,
            resources: on_card(9, 600, 100, 1).resources,
            tenant: TenantId(1),
            priority: 50,
            gpus: vec!["GPU-1".into()],
        };
        scene.active.push(holds);
        assert_eq!(scene.plan(&[on_card(1, 300, 100, 5)], 0).assignments.len(), 1);
        scene.active.clear();
        scene.known.insert(JobId(1), Known::default());
        assert!(
            scene.plan(&[on_card(1, 300, 0, 1)], 0).assignments.is_empty(),
            "nothing keeps a container here"
        );
        scene.offers.get_mut(&id(1)).unwrap().gpus[0].has_shadow = true;
        assert_eq!(scene.plan(&[on_card(1, 300, 0, 9)], 0).assignments.len(), 3, "containers");
        let strict = |level_min| {
            let mut job = on_card(1, 300, 0, 9);
            job.resources.gpu = job.resources.gpu.map(|gpu| GpuShare { cards: 1, level_min, ..gpu });
            job
        };
        assert_eq!(scene.plan(&[strict(5)], 0).assignments.len(), 1, "a whole card");
        scene.offers.get_mut(&id(1)).unwrap().gpus[0].level_max = 4;
        assert_eq!(scene.plan(&[strict(4)], 0).assignments.len(), 1, "an instance");
        assert!(scene.plan(&[strict(5)], 0).assignments.is_empty(), "an instance is no card");
        scene.known.insert(JobId(1), Known { work: 1, is_module: true, ..Known::default() });
        scene.offers.get_mut(&id(1)).unwrap().gpus[0].closed = "paused".into();
        assert!(scene.plan(&[on_card(1, 300, 0, 1)], 0).assignments.is_empty(), "a closed card");
    }

    /// What is worth more stops what is worth less, where that frees the room; what is equal waits.
    #[test]
    fn a_higher_priority_takes_a_lower_ones_place() {
        let mut scene = Scene::of(&[1000]);
        scene.active.push(ActiveAttempt {
            node: id(1),
            attempt: AttemptId { job: JobId(9), index: 0, attempt: 1 },
            is_running: true,
            assigned_at: Timestamp(0),
            time_limit_ms: 1_000_000,
            resources: job(9, 1000, 1).resources,
            tenant: TenantId(2),
            priority: 10,
            gpus: Vec::new(),
        });
        let urgent = QueuedJob { priority: 90, time_limit_ms: 1_000_000, ..job(1, 1000, 1) };
        let planned = scene.plan(&[urgent], 1000);
        assert_eq!((planned.preempted.len(), planned.assignments.len()), (1, 1), "{planned:?}");
        assert!(planned.preempted[0].1.contains("task 0 of job 1"), "{planned:?}");
        let equal = QueuedJob { priority: 10, ..job(1, 1000, 1) };
        let planned = scene.plan(&[equal], 1000);
        assert_eq!((planned.preempted.len(), planned.assignments.len()), (0, 0), "{planned:?}");
    }

    /// A task that takes far longer than those like it gets a twin elsewhere, one; where nothing is known, none does.
    #[test]
    fn a_straggler_gets_one_twin() {
        let mut scene = Scene::of(&[1000, 1000]);
        let mut late = running(1, 0, 1);
        late.time_limit_ms = 10_000_000;
        scene.active.push(late.clone());
        let now_ms = 5_000_000;
        assert!(scene.plan(&[], now_ms).assignments.is_empty(), "nothing is known of it");
        let like_it = subject(&scene.known[&JobId(1)], 1, &late.resources);
        for _ in 0..50 {
            let needed = Needed { runtime_ms: 10_000, memory_peak_mib: 1, gpu_ms: 0 };
            scene.history.observe(&like_it, &needed);
        }
        assert!(scene.plan(&[], 10_000).assignments.is_empty(), "it is not late");
        let planned = scene.plan(&[], now_ms).assignments;
        assert_eq!(planned.len(), 1, "{planned:?}");
        assert!(planned[0].is_twin && planned[0].node == id(2) && planned[0].job == JobId(1), "{planned:?}");
        scene.active.push(running(1, 0, 2));
        assert!(scene.plan(&[], now_ms).assignments.is_empty(), "it has one");
    }

    /// Among nodes with room, one that lost attempts or is far slower comes last; a small difference of a moment's measurement is none.
    #[test]
    fn what_is_measured_of_nodes_decides_among_them() {
        let chosen = |change: &dyn Fn(&mut Scene)| {
            let mut scene = Scene::of(&[2000, 2000, 2000]);
            scene.offers.values_mut().for_each(|offer| offer.cpu.ptx_mips = 1000);
            change(&mut scene);
            scene.plan(&[job(1, 1000, 1)], 0).assignments[0].node
        };
        let first = chosen(&|_| ());
        let unreliable = chosen(&|scene| _ = scene.ends.insert(first, Ends { by_task: 0, by_node: 20 }));
        let slow = chosen(&|scene| scene.offers.get_mut(&first).unwrap().cpu.ptx_mips = 300);
        let alike = chosen(&|scene| scene.offers.get_mut(&first).unwrap().cpu.ptx_mips = 900);
        assert!(
            unreliable != first && slow != first && alike == first,
            "{first} {unreliable} {slow} {alike}"
        );
    }

    /// Among nodes alike, one that holds what a task begins with is chosen, and it is said; so is one whose results proved right, once any
    /// were compared.
    #[test]
    fn a_task_goes_where_its_inputs_are_and_to_whom_is_trusted() {
        let path = |key: &str| ObjectPath { bucket: "b".into(), key: key.into() };
        let hold = |scene: &mut Scene, node: u8, key: &str| {
            let what = inventory::source_number(TenantId(1), &path(key));
            scene.offers.get_mut(&id(node)).unwrap().held.push(inventory::Held { what, bytes: 1 << 30 });
        };
        let mut scene = Scene::of(&[4000, 4000, 4000]);
        let first = scene.plan(&[job(1, 1000, 1)], 0).assignments[0].node;
        let other = if first == id(2) { 3 } else { 2 };
        hold(&mut scene, other, "image");
        let known = scene.known.get_mut(&JobId(1)).unwrap();
        known.sources = vec![inventory::source_number(TenantId(1), &path("image"))];
        let planned = scene.plan(&[job(1, 1000, 1)], 0);
        assert_eq!(planned.assignments[0].node, id(other), "{planned:?}");
        let why = planned.why[&(JobId(1), 0)].to_string();
        assert!(why.contains("locality -") && why.contains("held 1024.0 MiB"), "{why}");
        // Each task has inputs of its own.
        let known = scene.known.get_mut(&JobId(1)).unwrap();
        (known.sources, known.own_sources) = (Vec::new(), vec![path("in/{index}")]);
        hold(&mut scene, 3, "in/0");
        hold(&mut scene, 2, "in/1");
        let planned = scene.plan(&[job(1, 1000, 2)], 0).assignments;
        let node = |index| planned.iter().find(|given| given.index == index).unwrap().node;
        assert_eq!((node(0), node(1)), (id(3), id(2)), "{planned:?}");

        let mut scene = Scene::of(&[4000, 4000, 4000]);
        scene.agreements.insert(id(other), 20);
        let planned = scene.plan(&[job(1, 1000, 1)], 0);
        assert_eq!(planned.assignments[0].node, id(other), "{planned:?}");
        assert!(planned.why[&(JobId(1), 0)].to_string().contains("trust 0.0"), "{planned:?}");
    }

    /// A task for many objects is expected to take as long as so many of them.
    #[test]
    fn tasks_for_objects_are_predicted_by_their_number() {
        let mut scene = Scene::of(&[1000]);
        scene.known.get_mut(&JobId(1)).unwrap().per_task = Some(1);
        let resources = job(1, 1000, 1).resources;
        let one = subject(&scene.known[&JobId(1)], 1, &resources);
        assert_ne!(one.work, subject(&scene.known[&JobId(2)], 1, &resources).work);
        for _ in 0..50 {
            let needed = Needed { runtime_ms: 1000, memory_peak_mib: 1, gpu_ms: 0 };
            scene.history.observe(&one, &needed);
        }
        let mut median = |per_task| {
            scene.known.get_mut(&JobId(1)).unwrap().per_task = Some(per_task);
            let facts = Facts {
                has_reruns: true,
                map: &scene.map,
                offers: &scene.offers,
                active: &[],
                queue: &[],
                known: &scene.known,
                history: &scene.history,
                ends: &scene.ends,
                agreements: &scene.agreements,
                now_ms: 0,
            };
            estimate(&facts, JobId(1), 1, &resources, 1_000_000).median_ms
        };
        let (one, forty) = (median(1), median(40));
        assert!((900..1100).contains(&one) && forty == 40 * one, "{one} {forty}");
    }

    /// What no machine could ever run is told with what is too much; what one could run later is not.
    #[test]
    fn what_can_never_run_is_told() {
        let scene = Scene::of(&[2000, 4000]);
        let (small, large) = (&scene.offers[&id(1)], &scene.offers[&id(2)]);
        let machines = [("here", small), ("", large)];
        let why = |machines: &[(&str, &Inventory)], job: &QueuedJob, is_module| {
            never(machines, &demand(&job.resources, &job.site, is_module)).unwrap_or_default()
        };
        assert_eq!(why(&machines, &job(1, 4000, 1), false), "");
        let told = why(&machines, &job(1, 5000, 1), false);
        assert!(told.contains("5 cores") && told.contains("largest machine offers 4 cores"), "{told}");
        let mut fat = job(1, 1, 1);
        fat.resources.memory_bytes = 900 << 40;
        let told = why(&machines, &fat, false);
        assert!(
            told.contains("of memory") && told.contains("1024.0 GiB") && !told.contains("cores"),
            "{told}"
        );
        let at = |site: &str, cpu_millis| QueuedJob { site: site.into(), ..job(1, cpu_millis, 1) };
        assert_eq!(why(&machines, &at("here", 2000), false), "");
        assert!(why(&machines, &at("here", 4000), false).contains("2 cores"), "the larger is elsewhere");
        assert!(why(&machines, &at("there", 1), false).contains("there are here"));
        assert!(why(&[], &job(1, 1, 1), false).contains("role compute"));
        let mut card = on_card(1, 1000, 100, 1);
        card.resources.gpu = card.resources.gpu.map(|gpu| GpuShare { model: "H900".into(), ..gpu });
        assert!(why(&machines, &card, true).contains("NVIDIA Test Card"));
        assert!(why(&machines, &on_card(1, 1000, 1001, 1), true).contains("has 1000"));
        // Closed for now.
        let mut closed = small.clone();
        closed.gpus[0].closed = "paused".into();
        assert_eq!(why(&[("", &closed)], &on_card(1, 300, 100, 1), true), "");
    }

    #[test]
    fn capacity_counts_processors_and_cards() {
        let scene = Scene::of(&[2000]);
        let offer = &scene.offers[&id(1)];
        let fit = |job: &QueuedJob, is_module| fits(offer, &demand(&job.resources, "", is_module));
        assert_eq!(fit(&job(1, 600, 1), false), 3);
        assert_eq!((fit(&on_card(1, 300, 100, 1), true), fit(&on_card(1, 300, 600, 1), true)), (3, 1));
        assert_eq!((fit(&on_card(1, 300, 1001, 1), true), fit(&on_card(1, 300, 1, 1), false)), (0, 0));
    }
}
