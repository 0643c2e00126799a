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

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use makai_erasure::NodeId;
use makai_gpu_runtime::inventory::{self, Inventory};
use makai_gpu_runtime::scheduler::predict::{History, Subject};
use makai_gpu_runtime::scheduler::{
    self, Action, Cluster, Demand, Estimate, Gpu, GpuDemand, Node as Place, NodeNumber, Queue, Refusal,
    Refusals, Running, Score, TaskId, Traits, Waiting,
};
use makai_gpu_runtime::slice::Level;
use makai_raft::facts::cluster::{ClusterMap, Node, Role, Standing};
use makai_raft::facts::jobs::{ActiveAttempt, Assignment, AttemptId, JobId, QueuedJob, Resources};

const MIB: u64 = 1 << 20;
/// Attempts of one node at a time.
pub const NODE_ATTEMPTS_MAX: usize = 200;
/// Tasks that can be explained, and lines of one explanation.
const EXPLAINED_MAX: usize = 20_000;
const LINES_MAX: usize = 100;
/// An attempt of a task that was stopped or lost so often is left alone: a task may be lost a bounded number of times.
const STOPPED_MAX: u32 = 8;

/// What is known of a job beyond its queue entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Same program, same number.
    pub work: u64,
    /// Its tasks can run on a card.
    pub is_module: bool,
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

/// What is measured of a node. `median`: of all nodes' speeds; 0: none is known.
fn traits(offer: &Inventory, median: u64, ends: Ends) -> Traits {
    let ratio = (u64::from(offer.cpu.ptx_mips) * 1000).checked_div(median).filter(|ratio| *ratio > 0);
    let value = ratio.filter(|ratio| !SPEED_ALIKE_MILLI.contains(ratio)).unwrap_or(1000);
    let good = ends.by_task.saturating_add(GOOD_ENDS_FIRST);
    Traits {
        value_milli: u32::try_from(value).unwrap_or(u32::MAX),
        reliability_milli: u32::try_from(good * 1000 / good.saturating_add(ends.by_node)).unwrap_or(1000),
        ..Traits::default()
    }
}

fn median_speed(offers: &HashMap<NodeId, Inventory>) -> u64 {
    let mut speeds: Vec<u32> =
        offers.values().map(|offer| offer.cpu.ptx_mips).filter(|speed| *speed > 0).collect();
    speeds.sort_unstable();
    speeds.get(speeds.len() / 2).copied().unwrap_or(0).into()
}

/// Why a task stands where it does.
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
    /// It was given to a node, which scored so.
    Placed { node: NodeId, score: Score },
    /// Nowhere is room.
    Waits { why: Refusals },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Placed { node, score } => {
                write!(f, "placed on {node}, score {:.1} (less is better: GPU left over ", score.total)?;
                write!(
                    f,
                    "{:.1}, locality {:.1}, price {:.1}, ",
                    score.packing, score.locality, score.value
                )?;
                write!(
                    f,
                    "reliability {:.1}, load {:.1}, trust {:.1})",
                    score.reliability, score.load, score.trust
                )
            }
            Self::Waits { why } => {
                let count = |(refusal, nodes): (&Refusal, &u32)| {
                    format!("{nodes} {}: {}", if *nodes == 1 { "node" } else { "nodes" }, reason(*refusal))
                };
                let nodes: Vec<String> = why.nodes.iter().map(count).collect();
                let nodes =
                    if nodes.is_empty() { "no node runs jobs now".to_owned() } else { nodes.join("; ") };
                write!(f, "waits: {nodes}")?;
                if why.is_reserved {
                    f.write_str(
                        "; others are kept for tasks before it, or its gang does not fit as a whole",
                    )?;
                }
                Ok(())
            }
        }
    }
}

fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotOpen => "has as many attempts as a node may",
        Refusal::WrongSite => "is of another site",
        Refusal::TooLittleTrust => "is not trusted enough",
        Refusal::Avoided => "failed it before, or has given its owner's result",
        Refusal::NoSuchGpu => "has no such GPU",
        Refusal::LevelTooWeak => "has a GPU that is closed, or that does not confine it as demanded",
        Refusal::TooSmall => "is too small even when idle",
        Refusal::CpuTaken => "has its processors taken",
        Refusal::MemoryTaken => "has its memory taken",
        Refusal::ScratchTaken => "has its scratch taken",
        Refusal::GpuFragmented => "has GPU left, on no card enough",
        Refusal::GpuTaken => "has its GPUs taken",
    }
}

/// What the leader's plans said of tasks lately. Soft state: another leader explains what it planned itself.
#[derive(Debug, Default)]
pub struct Explained {
    why: Mutex<BTreeMap<(JobId, u32), Why>>,
}

impl Explained {
    /// Remembers what a plan says of its tasks: what waits now, and where others went.
    pub fn explain(&self, why: BTreeMap<(JobId, u32), Why>) {
        let mut known = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, why| matches!(why, Why::Placed { .. }));
        known.extend(why);
        while known.len() > EXPLAINED_MAX {
            known.pop_first();
        }
    }

    /// Why a job's tasks stand where they do, a line each.
    #[must_use]
    pub fn why(&self, job: JobId) -> Vec<String> {
        let known = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        let of_job = known.range((job, 0)..=(job, u32::MAX)).take(LINES_MAX);
        of_job.map(|((_, index), why)| format!("task {index} {why}")).collect()
    }
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

/// A number for a model of cards, as predictions are grouped.
fn model_number(model: &str) -> u64 {
    blake3::hash(model.as_bytes()).as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// What one attempt holds of a node.
pub fn demand(resources: &Resources, site: &str, is_module: bool) -> Demand {
    let gpu = resources.gpu.as_ref().map(|share| GpuDemand {
        cards: share.cards.max(1),
        milli: if share.cards > 0 { 1000 } else { share.sm_millis },
        memory_mib: share.memory_mib,
        models: if share.model.is_empty() { Vec::new() } else { vec![share.model.clone()] },
        // A closed card gives 0. A container brings host code of its own: it gets a card, or an instance of one, to itself, or
        // what keeps it to a share.
        level_min: share.level_min.max(match (is_module, share.cards > 0) {
            (true, _) | (false, false) => Level::Shadow.number(),
            (false, true) => Level::Hardware.number(),
        }),
        needs_shadow: !is_module && share.cards == 0,
    });
    Demand {
        cpu_milli: resources.cpu_millis.into(),
        memory_mib: resources.memory_bytes.div_ceil(MIB),
        scratch_mib: resources.scratch_bytes.div_ceil(MIB),
        gpu,
        site: site.to_owned(),
        trust_min_milli: 0,
    }
}

/// What a node offers, in the scheduler's words.
pub fn place(number: u64, site: &str, offer: &Inventory, is_open: bool) -> Place {
    // A closed card stays in its place, so that what runs on others keeps its number, but offers nothing.
    let card = |gpu: &makai_gpu_runtime::inventory::Gpu| match gpu.closed.is_empty() {
        true => Gpu {
            model: gpu.model.clone(),
            memory_mib: gpu.memory_mib,
            level_max: gpu.level_max,
            has_shadow: gpu.has_shadow,
        },
        false => Gpu { model: "\u{0}closed".into(), memory_mib: 0, level_max: 0, has_shadow: false },
    };
    Place {
        number: NodeNumber(number),
        site: site.to_owned(),
        cpu_milli: offer.cpu_millis,
        memory_mib: offer.memory_bytes / MIB,
        scratch_mib: offer.scratch_bytes / MIB,
        gpus: offer.gpus.iter().map(card).collect(),
        is_open,
        ..Place::default()
    }
}

/// How many such attempts an idle node could run at once.
#[must_use]
pub fn fits(offer: &Inventory, demand: &Demand) -> u32 {
    let place = place(0, &demand.site, offer, true);
    let times = |has: u64, wanted: u64| has.checked_div(wanted).unwrap_or(u64::MAX);
    let cards = demand.gpu.as_ref().map_or(u64::MAX, |gpu| {
        let is_fit = |card: &&Gpu| {
            card.level_max >= gpu.level_min
                && (card.has_shadow || !gpu.needs_shadow)
                && card.memory_mib >= gpu.memory_mib
                && (gpu.models.is_empty() || gpu.models.iter().any(|model| card.model.contains(model)))
        };
        let fit = place.gpus.iter().filter(is_fit);
        if gpu.milli >= 1000 {
            return times(fit.count() as u64, gpu.cards.into());
        }
        fit.map(|card| times(1000, gpu.milli.into()).min(times(card.memory_mib, gpu.memory_mib))).sum()
    });
    let least = times(place.cpu_milli, demand.cpu_milli)
        .min(times(place.memory_mib, demand.memory_mib))
        .min(times(place.scratch_mib, demand.scratch_mib))
        .min(cards)
        .min(NODE_ATTEMPTS_MAX as u64);
    u32::try_from(least).unwrap_or(u32::MAX)
}

/// Why no machine could ever run such an attempt, even if it were idle; `None`: one could. `machines`: all that run jobs, with
/// their sites. Pure.
#[must_use]
pub fn never(machines: &[(&str, &Inventory)], demand: &Demand) -> Option<String> {
    const WHO: &str = "no machine of this cluster could ever run a task of it";
    if machines.is_empty() {
        return Some(format!("{WHO}: none has the role compute"));
    }
    let of_site = |(site, _): &&(&str, &Inventory)| demand.site.is_empty() || *site == demand.site;
    // A card that its owner has taken back may be given again.
    let open = |gpu: &inventory::Gpu| inventory::Gpu { closed: String::new(), ..gpu.clone() };
    let offers: Vec<Inventory> = machines
        .iter()
        .filter(of_site)
        .map(|(_, offer)| Inventory { gpus: offer.gpus.iter().map(open).collect(), ..(*offer).clone() })
        .collect();
    if offers.is_empty() {
        let sites: BTreeSet<&str> =
            machines.iter().map(|(site, _)| *site).filter(|site| !site.is_empty()).collect();
        let sites = match sites.is_empty() {
            true => "none says of which site it is".to_owned(),
            false => format!("there are {}", sites.into_iter().collect::<Vec<_>>().join(", ")),
        };
        return Some(format!("{WHO}: none is of site {:?}; {sites}", demand.site));
    }
    if offers.iter().any(|offer| fits(offer, demand) > 0) {
        return None;
    }
    let cores = |millis: u64| format!("{} cores", millis as f64 / 1000.0);
    let gib = |mib: u64| format!("{:.1} GiB", mib as f64 / 1024.0);
    let most = |of: fn(&Inventory) -> u64| offers.iter().map(of).max().unwrap_or(0);
    let cpu = most(|offer| offer.cpu_millis);
    let memory = most(|offer| offer.memory_bytes / MIB);
    let scratch = most(|offer| offer.scratch_bytes / MIB);
    let mut too_much = Vec::new();
    if demand.cpu_milli > cpu {
        too_much.push(format!(
            "it asks for {}, the largest machine offers {}",
            cores(demand.cpu_milli),
            cores(cpu)
        ));
    }
    if demand.memory_mib > memory {
        let asked = gib(demand.memory_mib);
        too_much.push(format!("it asks for {asked} of memory, the largest machine offers {}", gib(memory)));
    }
    if demand.scratch_mib > scratch {
        let asked = gib(demand.scratch_mib);
        too_much
            .push(format!("it asks for {asked} of scratch, the largest machine offers {} now", gib(scratch)));
    }
    too_much.extend(demand.gpu.as_ref().and_then(|gpu| lacking_gpu(&offers, gpu)));
    if too_much.is_empty() {
        too_much.push(format!(
            "none has all that it asks for together; the most of each is {}, {} of memory, {} of scratch",
            cores(cpu),
            gib(memory),
            gib(scratch)
        ));
    }
    Some(format!("{WHO}: {}", too_much.join("; ")))
}

/// What of a demand for cards no machine has.
fn lacking_gpu(offers: &[Inventory], wanted: &GpuDemand) -> Option<String> {
    let cards = || offers.iter().flat_map(|offer| &offer.gpus);
    if cards().next().is_none() {
        return Some("it asks for a GPU, and no machine has one".into());
    }
    let is_model =
        |model: &str| wanted.models.is_empty() || wanted.models.iter().any(|part| model.contains(part));
    let of_model = || cards().filter(|card| is_model(&card.model));
    if of_model().next().is_none() {
        let models: BTreeSet<&str> = cards().map(|card| card.model.as_str()).collect();
        let models = models.into_iter().collect::<Vec<_>>().join(", ");
        return Some(format!("it asks for a GPU {:?}, and there are: {models}", wanted.models.join(", ")));
    }
    let largest = of_model().map(|card| card.memory_mib).max().unwrap_or(0);
    if wanted.memory_mib > largest {
        return Some(format!(
            "it asks for {} MiB of a GPU's memory, the largest such card has {largest}",
            wanted.memory_mib
        ));
    }
    let at_once = |offer: &Inventory| offer.gpus.iter().filter(|card| is_model(&card.model)).count();
    let most = offers.iter().map(at_once).max().unwrap_or(0);
    if wanted.milli >= 1000 && wanted.cards as usize > most {
        return Some(format!("it asks for {} GPUs, the largest machine has {most} such", wanted.cards));
    }
    let is_kept = |card: &&inventory::Gpu| {
        card.level_max >= wanted.level_min && (card.has_shadow || !wanted.needs_shadow)
    };
    (!of_model().any(|card| is_kept(&card)))
        .then(|| "no GPU there keeps a task to its share as strictly as it asks".to_owned())
}

/// What would keep such an attempt to its card or its share of one, on a node on which it fits: by its number.
#[must_use]
pub fn level(offer: &Inventory, demand: &Demand, share_level: u8) -> Option<u8> {
    let gpu = demand.gpu.as_ref()?;
    if gpu.milli < 1000 {
        return Some(share_level);
    }
    let strong = offer.gpus.iter().filter(|card| card.closed.is_empty() && card.level_max >= gpu.level_min);
    strong.map(|card| card.level_max).min()
}

/// The run time that a task of a job is expected to take. What is not known is bounded by its limit.
fn estimate(facts: &Facts<'_>, job: JobId, tenant: u64, resources: &Resources, limit_ms: u64) -> Estimate {
    let subject = subject(facts.known.get(&job).copied().unwrap_or_default(), tenant, resources);
    match facts.history.predict(&subject) {
        Some(found) => Estimate {
            median_ms: found.runtime_ms.median.min(limit_ms),
            p90_ms: found.runtime_ms.p90.clamp(1, limit_ms.max(1)),
        },
        None => Estimate { median_ms: 0, p90_ms: limit_ms },
    }
}

/// What predictions are grouped by.
#[must_use]
pub fn subject(known: Known, tenant: u64, resources: &Resources) -> Subject {
    let gpu = resources.gpu.as_ref();
    Subject {
        tenant,
        work: known.work,
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
        Some(Place { traits: traits(offer, median, ends), ..place })
    });
    let mut cluster = Cluster { nodes: places.collect(), running: running(facts, &names) };
    let waiting = waiting(facts, &names);
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
                    planned.why.insert((JobId(task.job), task.index), Why::Placed { node: id, score });
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
                    planned.why.insert((job, index), Why::Placed { node: id, score });
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
    // Better where it failed before than nowhere.
    let mut again: Vec<Waiting> = queue.waiting;
    again.retain(|task| left.contains(&task.task) && !task.avoid.is_empty() && task.gang.is_none());
    if !again.is_empty() {
        let tasks = facts.queue.iter().flat_map(|job| job.tasks.iter().map(|task| (job.job.0, task)));
        let held: BTreeMap<TaskId, &[NodeId]> = tasks
            .filter(|(_, task)| !task.barred.is_empty())
            .map(|(job, task)| (TaskId { job, index: task.index }, &*task.barred))
            .collect();
        again.iter_mut().for_each(|task| {
            task.avoid = barred(facts, &names, held.get(&task.task).copied().unwrap_or_default());
        });
        cluster.running.extend(started);
        let actions = scheduler::plan(&cluster, &Queue { waiting: again, ..Queue::default() }, facts.now_ms);
        let actions = actions.into_iter().filter(|action| matches!(action, Action::Start { .. }));
        settle(actions.collect(), &mut cluster);
    }
    planned
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

fn waiting(facts: &Facts<'_>, names: &Names<'_>) -> Vec<Waiting> {
    let mut waiting = Vec::new();
    for job in facts.queue {
        let known = facts.known.get(&job.job).copied().unwrap_or_default();
        let demand = demand(&job.resources, &job.site, known.is_module);
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
            local_bytes: BTreeMap::new(),
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
                known: (1..100).map(|job| (JobId(job), Known { work: job, is_module: true })).collect(),
                history: History::default(),
                ends: BTreeMap::new(),
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

    /// A gang for which there is no room as a whole takes none, and the room goes to who fits.
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
        scene.known.insert(JobId(1), Known { work: 1, is_module: true });
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
        let like_it = subject(scene.known[&JobId(1)], 1, &late.resources);
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
