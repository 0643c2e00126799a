//! What a round of the scheduler promises.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::order::own_rank;
use super::*;

const MINUTE: u64 = 60_000;

fn node(number: u64, gpus: usize) -> Node {
    let gpu = Gpu { model: "A10".into(), memory_mib: 24_000, level_max: 5, has_shadow: false };
    Node {
        number: NodeNumber(number),
        cpu_milli: 64_000,
        memory_mib: 262_144,
        gpus: vec![gpu; gpus],
        is_open: true,
        ..Node::default()
    }
}

fn demand(cards: u32, milli: u32) -> Demand {
    let gpu = (cards > 0).then(|| GpuDemand { cards, milli, ..GpuDemand::default() });
    Demand { cpu_milli: 1000, memory_mib: 1024, gpu, ..Demand::default() }
}

fn runtime(minutes: u64) -> Estimate {
    Estimate { median_ms: minutes * MINUTE, p90_ms: minutes * MINUTE }
}

fn waiting(job: u64, cards: u32, minutes: u64) -> Waiting {
    Waiting {
        task: TaskId { job, index: 0 },
        demand: demand(cards, 1000),
        runtime: runtime(minutes),
        ..Waiting::default()
    }
}

fn running(job: u64, node: u64, gpus: &[u16], minutes: u64) -> Running {
    Running {
        task: TaskId { job, index: 0 },
        node: NodeNumber(node),
        gpus: gpus.to_vec(),
        demand: demand(gpus.len() as u32, 1000),
        runtime: runtime(minutes),
        ..Running::default()
    }
}

fn queue(waiting: Vec<Waiting>) -> Queue {
    Queue { waiting, ..Queue::default() }
}

/// Jobs that the plan starts, in order.
fn started(actions: &[Action]) -> Vec<u64> {
    let job = |action: &Action| match action {
        Action::Start { task, .. } => Some(task.job),
        _ => None,
    };
    actions.iter().filter_map(job).collect()
}

fn any_waiting() -> impl Strategy<Value = Waiting> {
    let gpu = prop_oneof![Just((0, 0)), (Just(1), (1_u32..=10).prop_map(|part| part * 100)), Just((2, 1000))];
    (gpu, 0_u8..40, 0_u64..4, 1_u64..100, prop::option::of(0_u64..3), 0_u64..1000).prop_map(
        |((cards, milli), priority, tenant, minutes, gang, submitted)| Waiting {
            tenant,
            priority,
            submitted_ms: submitted,
            demand: demand(cards, milli),
            runtime: runtime(minutes),
            gang,
            ..Waiting::default()
        },
    )
}

proptest! {
    /// Carried out step by step, a plan never holds more than a card has, stops only what may be stopped and matters less,
    /// and starts all of a gang or none; and the order in which facts are listed changes nothing.
    #[test]
    fn plans_can_be_carried_out(
        mut tasks in vec(any_waiting(), 1..40),
        first in vec((0_u64..3, 0_u16..2, 0_u8..30, any::<bool>()), 0..6),
    ) {
        let nodes: Vec<Node> = (0..3).map(|at| node(at, 2)).collect();
        tasks.iter_mut().enumerate().for_each(|(at, task)| task.task.job = 100 + at as u64);
        let mut cluster = Cluster { nodes, running: Vec::new() };
        for (at, (node, card, priority, can_stop)) in first.into_iter().enumerate() {
            let is_free = |running: &Running| running.node.0 != node || !running.gpus.contains(&card);
            if cluster.running.iter().all(is_free) {
                let stop_cost_ms = can_stop.then_some(MINUTE);
                cluster.running.push(Running { priority, stop_cost_ms, ..running(at as u64, node, &[card], 30) });
            }
        }
        let now = 10 * MINUTE;
        let actions = plan(&cluster, &queue(tasks.clone()), now);
        let find = |id: TaskId| tasks.iter().find(|task| task.task == id).expect("it was waiting");
        let mut used: BTreeMap<(NodeNumber, u16), u32> = BTreeMap::new();
        for running in &cluster.running {
            running.gpus.iter().for_each(|&card| *used.entry((running.node, card)).or_default() += 1000);
        }
        for action in &actions {
            match action {
                Action::Start { task, node, gpus, .. } => {
                    let milli = find(*task).demand.gpu.as_ref().map_or(0, |gpu| gpu.milli);
                    prop_assert_eq!(gpus.len() as u32, find(*task).demand.gpu.as_ref().map_or(0, |gpu| gpu.cards));
                    for &card in gpus {
                        let used = used.entry((*node, card)).or_default();
                        *used += milli;
                        prop_assert!(*used <= 1000);
                    }
                }
                Action::Preempt { task, node, for_task } => {
                    let victim = cluster.running.iter().find(|running| running.task == *task);
                    let victim = victim.expect("it was running");
                    prop_assert!(victim.stop_cost_ms.is_some() && victim.priority < find(*for_task).priority);
                    for &card in &victim.gpus {
                        *used.get_mut(&(*node, card)).expect("it held the card") -= 1000;
                    }
                }
                Action::Reissue { .. } => prop_assert!(false, "nothing is late"),
                Action::Wait { .. } => {}
            }
        }
        let starts = started(&actions);
        for gang in 0..3 {
            let members = tasks.iter().filter(|task| task.gang == Some(gang));
            let (all, run) = members.fold((0, 0), |(all, run), task| {
                (all + 1, run + usize::from(starts.contains(&task.task.job)))
            });
            prop_assert!(run == 0 || run == all, "{run} of {all} of gang {gang}");
        }
        tasks.reverse();
        cluster.running.reverse();
        let turned = plan(&cluster, &queue(tasks), now);
        prop_assert_eq!(started(&turned), starts);
    }
}

/// A wide task at the head waits for both cards; a short one may use the free card meanwhile, a long one may not.
#[test]
fn backfill_never_delays_a_reservation() {
    let cluster = Cluster { nodes: vec![node(0, 2)], running: vec![running(1, 0, &[0], 60)] };
    let wide = Waiting { priority: 50, ..waiting(2, 2, 10) };
    let actions = plan(&cluster, &queue(vec![wide.clone(), waiting(3, 1, 90), waiting(4, 1, 30)]), 0);
    assert_eq!(started(&actions), [4]);
    let actions = plan(&cluster, &queue(vec![wide.clone(), waiting(3, 1, 90)]), 0);
    let waits = actions.iter().filter_map(|action| match action {
        Action::Wait { task, why } => Some((task.job, why.is_reserved)),
        _ => None,
    });
    assert_eq!(waits.collect::<Vec<_>>(), [(2, false), (3, true)]);
    // Where nothing is known of what runs, no time can be promised, and nobody is held back.
    let unknown = Running { runtime: Estimate::default(), ..running(1, 0, &[0], 0) };
    let cluster = Cluster { running: vec![unknown], ..cluster };
    assert_eq!(started(&plan(&cluster, &queue(vec![wide, waiting(3, 1, 90)]), 0)), [3]);
}

/// Stopping an hour's work for an urgent task pays; for one barely more important it does not.
#[test]
fn preemption_must_gain_more_than_it_costs() {
    let held = Running { stop_cost_ms: Some(30 * MINUTE), ..running(1, 0, &[0], 60) };
    let cluster = Cluster { nodes: vec![node(0, 1)], running: vec![held] };
    let urgent = Waiting { priority: 60, ..waiting(2, 1, 10) };
    let actions = plan(&cluster, &queue(vec![urgent.clone()]), 50 * MINUTE);
    assert!(matches!(actions[0], Action::Preempt { task: TaskId { job: 1, .. }, .. }), "{actions:?}");
    assert_eq!(started(&actions), [2]);
    let like = Waiting { priority: 1, ..urgent };
    assert_eq!(started(&plan(&cluster, &queue(vec![like]), 50 * MINUTE)), [0; 0]);
}

/// Who waits long enough comes before any fixed priority, a near deadline before a far one, one that is lost before neither.
#[test]
fn waiting_and_deadlines_raise() {
    let hour = 60 * MINUTE;
    let old = Waiting { submitted_ms: 0, ..waiting(1, 1, 60) };
    let new = |now: u64| Waiting { submitted_ms: now, priority: 100, ..waiting(2, 1, 60) };
    assert!(own_rank(&old, hour) < own_rank(&new(hour), hour));
    assert!(own_rank(&old, 10 * hour) > own_rank(&new(10 * hour), 10 * hour));
    let due = |at: u64| own_rank(&Waiting { deadline_ms: Some(at), ..old.clone() }, 0);
    assert!(due(hour) > due(2 * hour) && due(2 * hour) > due(10 * hour));
    assert_eq!(due(hour / 2), due(100 * hour), "it cannot end in time any more");
    let short = waiting(1, 1, 1);
    assert!(own_rank(&short, 0) > own_rank(&old, 0));
}

/// Of two tenants with equal weight and like tasks each gets half of the cards; with weights of 3 to 1, three quarters.
#[test]
fn tenants_get_their_shares() {
    let cluster = Cluster { nodes: vec![node(0, 8), node(1, 8)], running: Vec::new() };
    let tasks: Vec<Waiting> = (0..200)
        .map(|job| Waiting { tenant: u64::from(job >= 150), submitted_ms: job, ..waiting(job, 1, 60) })
        .collect();
    let of_second = |weights: &[(u64, u32)]| {
        let queue = Queue { weights: weights.iter().copied().collect(), ..queue(tasks.clone()) };
        let starts = started(&plan(&cluster, &queue, 1000));
        assert_eq!(starts.len(), 16);
        starts.into_iter().filter(|job| *job >= 150).count()
    };
    assert_eq!(of_second(&[]), 8);
    assert_eq!(of_second(&[(0, 1), (1, 3)]), 12);
}

/// A task far over its prediction gets one twin on another node, once nothing of its job waits.
#[test]
fn stragglers_get_a_twin_at_the_tail() {
    let cluster = Cluster { nodes: vec![node(0, 1), node(1, 1)], running: vec![running(1, 0, &[0], 10)] };
    let twins = |cluster: &Cluster, waiting: Vec<Waiting>, now: u64| {
        let actions = plan(cluster, &queue(waiting), now);
        let node = |action: &Action| match action {
            Action::Reissue { node, .. } => Some(node.0),
            _ => None,
        };
        actions.iter().filter_map(node).collect::<Vec<_>>()
    };
    assert_eq!(twins(&cluster, vec![], 14 * MINUTE), [0; 0], "not late yet");
    assert_eq!(twins(&cluster, vec![], 15 * MINUTE), [1]);
    let sibling = Waiting { task: TaskId { job: 1, index: 1 }, ..waiting(1, 2, 10) };
    assert_eq!(twins(&cluster, vec![sibling], 15 * MINUTE), [0; 0], "its job is not at the tail");
    let mut twinned = cluster.clone();
    twinned.running[0].is_reissued = true;
    assert_eq!(twins(&twinned, vec![], 15 * MINUTE), [0; 0]);
}

/// A full cluster with a long queue of a few kinds of tasks is planned without looking at every node for every task.
#[test]
fn a_long_queue_is_planned() {
    let nodes: Vec<Node> = (0..50).map(|at| node(at, 4)).collect();
    let tasks: Vec<Waiting> = (0..5000).map(|job| waiting(job, 1 + (job % 2) as u32, 10)).collect();
    let actions = plan(&Cluster { nodes, running: Vec::new() }, &queue(tasks), 0);
    let cards: u64 = started(&actions).iter().map(|job| 1 + job % 2).sum();
    assert_eq!(cards, 200);
    assert!(actions.len() < 1300, "waiting is explained a thousand times at most");
}
