//! Replays a recorded load in time, through the scheduler's own rounds: how long jobs take from their arrival to their end, by what is
//! predicted of them, and by an oracle that knows.
//!
//! ```text
//! arrivals, as recorded, at a pace that asks for a given part of the cluster ─> plan ─> runs as long as recorded ─> history
//! ```
//!
//! The list says nothing of programs, so tasks that ask for the same count as the same work. Nothing is stopped, and nothing runs twice.

use std::collections::{BTreeMap, BinaryHeap};

use super::model::{Action, Cluster, Demand, Estimate, Node, NodeNumber, Queue, Running, TaskId, Waiting};
use super::placement::Placer;
use super::predict::{Calibration, History, Needed, Subject};
use super::replay::{ListError, read_durations, read_tasks};

/// Who says how long a task will take, and in what order they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knows {
    /// The history of what ended before.
    History,
    /// The list itself.
    Oracle,
    /// The list itself, and nobody's waiting counts: the shortest goes first, whatever becomes of the others.
    OracleShortest,
    /// Nobody.
    Nobody,
}

/// One task of a recorded load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub demand: Demand,
    pub arrives_ms: u64,
    pub runs_ms: u64,
    /// Same demand, same number.
    pub work: u64,
}

/// What came out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Completed {
    pub tasks: u64,
    /// From arrival to end.
    pub mean_ms: f64,
    /// From arrival to start.
    pub mean_wait_ms: f64,
    pub rounds: u64,
    pub calibration: Calibration,
}

/// Reads tasks with their times, and lets them arrive so that they ask for `load_percent` of all GPU time while they do. Those that
/// no node could ever take are left out.
///
/// # Errors
/// The first line that cannot be read.
pub fn read(list: &str, nodes: &[Node], load_percent: u32) -> Result<Vec<Recorded>, ListError> {
    let demands = read_tasks(list)?;
    let times = read_durations(list)?;
    let mut works: BTreeMap<&Demand, u64> = BTreeMap::new();
    let mut placer = Placer::new(nodes);
    let mut tasks = Vec::new();
    for (demand, (arrives, runs)) in demands.iter().zip(times) {
        let number = works.len() as u64 + 1;
        let work = *works.entry(demand).or_insert(number);
        let shape = placer.shape(demand);
        let fits = placer.find(shape, &super::placement::Wish::default()).is_some();
        if fits && runs > 0 {
            tasks.push(Recorded { demand: demand.clone(), arrives_ms: arrives, runs_ms: runs * 1000, work });
        }
    }
    let capacity: u64 = nodes.iter().map(|node| node.gpus.len() as u64 * 1000).sum();
    let asked: f64 = tasks.iter().map(|task| task.demand.gpu_milli() as f64 * task.runs_ms as f64).sum();
    let span_ms = asked / capacity.max(1) as f64 * 100.0 / f64::from(load_percent.max(1));
    let last = tasks.iter().map(|task| task.arrives_ms).max().unwrap_or(0).max(1);
    for task in &mut tasks {
        task.arrives_ms = (task.arrives_ms as f64 / last as f64 * span_ms) as u64;
    }
    tasks.sort_by_key(|task| task.arrives_ms);
    Ok(tasks)
}

fn subject(task: &Recorded) -> Subject {
    let demand = &task.demand;
    Subject {
        tenant: 1,
        work: task.work,
        card: u64::from(demand.gpu.is_some()),
        input_bytes: 0,
        cpu_milli: demand.cpu_milli,
        gpu_milli: demand.gpu_milli(),
    }
}

/// Runs all tasks to their ends.
#[must_use]
pub fn replay(nodes: &[Node], tasks: &[Recorded], knows: Knows) -> Completed {
    let mut history = History::default();
    let mut cluster = Cluster { nodes: nodes.to_vec(), running: Vec::new() };
    let mut queue = Queue::default();
    // Ends of what runs, the first last.
    let mut ends: BinaryHeap<std::cmp::Reverse<(u64, usize)>> = BinaryHeap::new();
    let (mut next, mut now) = (0, 0);
    let mut done = Completed::default();
    let (mut whole, mut waited) = (0.0, 0.0);
    while next < tasks.len() || !ends.is_empty() {
        let arrival = tasks.get(next).map(|task| task.arrives_ms);
        let end = ends.peek().map(|std::cmp::Reverse((at, _))| *at);
        now = arrival.into_iter().chain(end).min().unwrap_or(now).max(now);
        while let Some(&std::cmp::Reverse((at, task))) = ends.peek()
            && at <= now
        {
            ends.pop();
            cluster.running.retain(|running| running.task.index as usize != task);
            let needed = Needed { runtime_ms: tasks[task].runs_ms, ..Needed::default() };
            history.observe(&subject(&tasks[task]), &needed);
            whole += (now - tasks[task].arrives_ms) as f64;
            done.tasks += 1;
        }
        while let Some(task) = tasks.get(next).filter(|task| task.arrives_ms <= now) {
            queue.waiting.push(Waiting {
                task: TaskId { job: 1, index: next as u32 },
                tenant: 1,
                priority: 50,
                submitted_ms: task.arrives_ms,
                demand: task.demand.clone(),
                ..Waiting::default()
            });
            next += 1;
        }
        for waiting in &mut queue.waiting {
            let task = &tasks[waiting.task.index as usize];
            let truth = Estimate { median_ms: task.runs_ms, p90_ms: task.runs_ms };
            waiting.runtime = match knows {
                Knows::History => {
                    history.predict(&subject(task)).map(|found| found.runtime_ms.into()).unwrap_or_default()
                }
                Knows::Oracle | Knows::OracleShortest => truth,
                Knows::Nobody => Estimate::default(),
            };
            if knows == Knows::OracleShortest {
                waiting.submitted_ms = now;
            }
        }
        if queue.waiting.is_empty() {
            continue;
        }
        done.rounds += 1;
        for action in super::plan::plan(&cluster, &queue, now) {
            let Action::Start { task, node, gpus, .. } = action else { continue };
            let Some(at) = queue.waiting.iter().position(|waiting| waiting.task == task) else { continue };
            let started = queue.waiting.swap_remove(at);
            let recorded = &tasks[task.index as usize];
            waited += (now - recorded.arrives_ms) as f64;
            ends.push(std::cmp::Reverse((now + recorded.runs_ms, task.index as usize)));
            cluster.running.push(running(started, node, gpus, now));
        }
        queue.waiting.sort_by_key(|waiting| waiting.task);
    }
    done.mean_ms = whole / done.tasks.max(1) as f64;
    done.mean_wait_ms = waited / done.tasks.max(1) as f64;
    done.calibration = history.calibration();
    done
}

fn running(started: Waiting, node: NodeNumber, gpus: Vec<u16>, now: u64) -> Running {
    Running {
        task: started.task,
        tenant: started.tenant,
        priority: started.priority,
        node,
        gpus,
        demand: started.demand,
        started_ms: now,
        runtime: started.runtime,
        stop_cost_ms: None,
        is_reissued: true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::replay::read_nodes;
    use super::*;

    /// One card, three tasks at once: whoever knows lets the short ones go first; every task ends, and none before its time.
    #[test]
    fn knowing_shortens_waiting() {
        let nodes = read_nodes("cpu_milli,memory_mib,gpu,model\n8000,8000,1,A\n").unwrap();
        let list = "cpu_milli,memory_mib,num_gpu,gpu_milli,creation_time,deletion_time,scheduled_time\n\
            1000,1,1,1000,0,1000,0\n1001,1,1,1000,0,10,0\n1002,1,1,1000,0,30,10\n9000,1,1,1000,0,10,0\n";
        let tasks = read(list, &nodes, 100).unwrap();
        assert_eq!(tasks.len(), 3, "one fits nowhere");
        let mean = |knows| replay(&nodes, &tasks, knows);
        let (oracle, nobody) = (mean(Knows::OracleShortest), mean(Knows::Nobody));
        assert_eq!((oracle.tasks, nobody.tasks), (3, 3));
        assert_eq!(oracle.mean_ms as u64, (10_000 + 30_000 + 1_030_000) / 3);
        assert!(nobody.mean_ms > oracle.mean_ms, "{nobody:?}");
        assert_eq!(mean(Knows::Oracle).mean_ms, oracle.mean_ms);
    }
}
