//! What placement promises, on clusters small enough to check by hand or by counting again.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::moves::{Ledger, Moves};
use super::replay::{ListError, Load, bound_percent, read_nodes, read_tasks, replay};
use super::*;

fn node(number: u64, cpu_milli: u64, memory_mib: u64, gpus: usize) -> Node {
    let gpu = Gpu { model: "A10".into(), memory_mib: 24_000, level_max: 5, has_shadow: false };
    Node {
        number: NodeNumber(number),
        cpu_milli,
        memory_mib,
        gpus: vec![gpu; gpus],
        is_open: true,
        ..Node::default()
    }
}

fn demand(cpu_milli: u64, memory_mib: u64, cards: u32, milli: u32) -> Demand {
    let gpu = (cards > 0).then(|| GpuDemand { cards, milli, ..GpuDemand::default() });
    Demand { cpu_milli, memory_mib, gpu, ..Demand::default() }
}

fn any_demand() -> impl Strategy<Value = Demand> {
    let gpu = prop_oneof![
        Just((0, 0)),
        (Just(1), (1_u32..=20).prop_map(|part| part * 50)),
        (2_u32..=4, Just(1000)),
        (2_u32..=2, (1_u32..=20).prop_map(|part| part * 50)),
    ];
    (1_u64..8, 1_u64..8, gpu)
        .prop_map(|(cpu, memory, (cards, milli))| demand(cpu * 1000, memory * 1024, cards, milli))
}

/// Puts the demand where the placer wants it.
fn put(placer: &mut Placer, demand: &Demand) -> Option<Place> {
    let shape = placer.shape(demand);
    placer.observe(shape, 1);
    let place = placer.find(shape, &Wish::default())?;
    assert!(placer.take(place.node, shape, &place.gpus), "a place that was found can be taken");
    Some(place)
}

proptest! {
    /// Whatever comes and goes, no node and no card ever holds more than it has, and a task is turned away only
    /// when, by the test's own books, it fits on no node.
    #[test]
    fn room_is_never_given_twice_and_never_denied(
        steps in vec((any_demand(), any::<bool>(), any::<prop::sample::Index>()), 1..120),
    ) {
        let nodes: Vec<Node> =
            (0..4).map(|at| node(at, 16_000, 16 * 1024, at as usize)).collect();
        let mut placer = Placer::new(&nodes);
        let mut held: Vec<(Demand, Place)> = Vec::new();
        for (demand, leaves, which) in steps {
            if leaves && !held.is_empty() {
                let (demand, place) = held.swap_remove(which.index(held.len()));
                let shape = placer.shape(&demand);
                placer.give_back(place.node, shape, &place.gpus);
            }
            let place = put(&mut placer, &demand);
            let on = |number: NodeNumber| held.iter().filter(move |(_, place)| place.node == number);
            let fits = |node: &Node| {
                let cpu: u64 = on(node.number).map(|(held, _)| held.cpu_milli).sum();
                let memory: u64 = on(node.number).map(|(held, _)| held.memory_mib).sum();
                let free = |card: usize| {
                    let used: u32 = on(node.number)
                        .filter(|(_, place)| place.gpus.contains(&(card as u16)))
                        .map(|(held, _)| held.gpu.as_ref().map_or(0, |gpu| gpu.milli))
                        .sum();
                    1000 - used // Underflow is a card given twice.
                };
                let (cards, milli) = demand.gpu.as_ref().map_or((0, 0), |gpu| (gpu.cards, gpu.milli));
                let fitting = (0..node.gpus.len()).filter(|card| free(*card) >= milli).count();
                cpu + demand.cpu_milli <= node.cpu_milli
                    && memory + demand.memory_mib <= node.memory_mib
                    && fitting >= cards as usize
            };
            match place {
                Some(place) => {
                    prop_assert!(fits(&nodes[place.node.0 as usize]));
                    held.push((demand, place));
                }
                None => prop_assert!(!nodes.iter().any(fits)),
            }
        }
    }

    /// Scores that are kept and mended choose what scores made from nothing choose.
    #[test]
    fn kept_scores_are_the_scores(steps in vec(any_demand(), 1..150)) {
        let nodes: Vec<Node> = (0..12).map(|at| node(at, 32_000, 32 * 1024, 4)).collect();
        let mut placer = Placer::new(&nodes);
        for demand in steps {
            put(&mut placer, &demand);
            let shape = placer.shape(&demand);
            let kept = placer.find(shape, &Wish::default());
            placer.forget_scores();
            prop_assert_eq!(kept, placer.find(shape, &Wish::default()));
        }
    }
}

/// Every node that does not fit is counted once, for the first thing that is in the way.
#[test]
fn each_refusal_has_its_reason() {
    let mut closed = node(0, 64_000, 65_536, 2);
    closed.is_open = false;
    let mut weak = node(1, 64_000, 65_536, 2);
    weak.gpus.iter_mut().for_each(|gpu| gpu.level_max = 1);
    let mut other = node(2, 64_000, 65_536, 2);
    other.gpus.iter_mut().for_each(|gpu| gpu.model = "T4".into());
    let small = node(3, 1_000, 65_536, 2);
    let mut distrusted = node(4, 64_000, 65_536, 2);
    distrusted.traits.trust_milli = 10;
    let broken_up = node(5, 64_000, 65_536, 2);
    let elsewhere = Node { site: "b".into(), ..node(6, 64_000, 65_536, 2) };
    let avoided = node(7, 64_000, 65_536, 2);
    let mut nodes = vec![closed, weak, other, small, distrusted, broken_up, elsewhere, avoided];
    nodes.iter_mut().filter(|node| node.site.is_empty()).for_each(|node| node.site = "a".into());
    let mut placer = Placer::new(&nodes);
    let half = placer.shape(&demand(1000, 1024, 1, 500));
    placer.occupy(NodeNumber(5), half, &[0]);
    placer.occupy(NodeNumber(5), half, &[1]);
    let mut wanted = demand(2_000, 1024, 1, 1000);
    wanted.site = "a".into();
    wanted.trust_min_milli = 100;
    wanted.gpu = Some(GpuDemand {
        cards: 1,
        milli: 1000,
        models: vec!["A10".into()],
        level_min: 4,
        ..GpuDemand::default()
    });
    let shape = placer.shape(&wanted);
    let avoid = [NodeNumber(7)];
    assert_eq!(placer.find(shape, &Wish { local_bytes: None, avoid: &avoid }), None);
    let counted = placer.refusals(shape, &avoid).nodes;
    let expected = [
        Refusal::NotOpen,
        Refusal::LevelTooWeak,
        Refusal::NoSuchGpu,
        Refusal::TooSmall,
        Refusal::TooLittleTrust,
        Refusal::GpuFragmented,
        Refusal::WrongSite,
        Refusal::Avoided,
    ];
    assert_eq!(counted, expected.into_iter().map(|refusal| (refusal, 1)).collect());
}

/// Half-card tasks fill a started card before a new one: eight of them leave four of eight cards for whole-card tasks.
#[test]
fn shares_complete_each_other() {
    let nodes: Vec<Node> = (0..8).map(|at| node(at, 16_000, 65_536, 1)).collect();
    let mut placer = Placer::new(&nodes);
    let (small, whole) = (demand(1000, 1024, 1, 500), demand(1000, 1024, 1, 1000));
    for demand in [&small, &whole].into_iter().cycle().take(200) {
        let shape = placer.shape(demand);
        placer.observe(shape, 1);
    }
    for _ in 0..8 {
        put(&mut placer, &small).expect("there is room");
    }
    for _ in 0..4 {
        put(&mut placer, &whole).expect("the shares stand on four cards");
    }
    assert_eq!(put(&mut placer, &whole), None);
}

/// What a task prefers decides among nodes that pack alike, and the score says so.
#[test]
fn traits_and_inputs_break_ties_and_are_explained() {
    let mut nodes: Vec<Node> = (0..3).map(|at| node(at, 16_000, 65_536, 1)).collect();
    nodes[0].traits.reliability_milli = 900;
    let mut placer = Placer::new(&nodes);
    let shape = placer.shape(&demand(1000, 1024, 1, 1000));
    let plain = placer.find(shape, &Wish::default()).expect("all are free");
    assert_eq!((plain.node, plain.score.reliability), (NodeNumber(1), 0.0));
    let local: BTreeMap<NodeNumber, u64> = [(NodeNumber(2), 1 << 31)].into();
    let near = placer.find(shape, &Wish { local_bytes: Some(&local), avoid: &[] }).expect("all are free");
    assert_eq!(near.node, NodeNumber(2));
    assert!(near.score.locality < 0.0 && near.score.total < plain.score.total);
}

/// Two half-used cards become one whole one by one move, and everything stays within its card.
#[test]
fn one_move_makes_room_for_a_whole_card() {
    let nodes: Vec<Node> = (0..2).map(|at| node(at, 16_000, 65_536, 1)).collect();
    let mut placer = Placer::new(&nodes);
    let mut ledger = Ledger::default();
    let small = placer.shape(&demand(1000, 1024, 1, 470));
    for at in 0..2 {
        placer.occupy(NodeNumber(at), small, &[0]);
        ledger.put(at, NodeNumber(at), small, vec![0]);
    }
    let whole = placer.shape(&demand(1000, 1024, 1, 1000));
    assert_eq!(placer.find(whole, &Wish::default()), None);
    let (moved, place) =
        Moves { count_max: 2 }.make_room(&mut placer, &mut ledger, whole).expect("a move helps");
    assert_eq!(moved, 1);
    assert!(placer.take(place.node, whole, &place.gpus));
    let other = NodeNumber(1 - place.node.0);
    assert_eq!(ledger.on(other).len(), 2);
    assert_eq!(placer.room(other).map(|room| room.cards[0].free_milli), Some(60));
}

const NODES: &str = "sn,cpu_milli,memory_mib,gpu,model\na,8000,32768,4,A\nb,8000,32768,4,B\n";

/// Ten tasks of a whole card on eight cards: the bound and the outcome are both all of them, and models are respected.
#[test]
fn a_replay_fills_what_can_be_filled() {
    let nodes = read_nodes(NODES).expect("a list of nodes");
    let tasks = read_tasks(
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\nx,1000,1024,1,1000,A|B\ny,1000,1024,1,1000,B\n",
    )
    .expect("a list of tasks");
    let load = Load { seed: 1, arrivals_percent: 400, moves_percent: 0.0 };
    let outcome = replay(&nodes, &tasks, &load, &mut || 0);
    assert_eq!(outcome.tasks, 32);
    assert_eq!(outcome.allocation_percent(), 100.0);
    assert_eq!(bound_percent(&nodes, &tasks, &load), 100.0);
    assert_eq!(outcome, replay(&nodes, &tasks, &load, &mut || 0), "a seed is an order");
}

/// A list that is no list is refused with its line and column.
#[test]
fn lists_that_cannot_be_read_are_refused() {
    assert!(matches!(read_nodes(""), Err(ListError::NoColumn("model"))));
    assert!(matches!(read_nodes("cpu_milli,memory_mib,gpu,model\n"), Err(ListError::Empty)));
    let many = "cpu_milli,memory_mib,gpu,model\n1,1,4000000000,x\n";
    assert!(matches!(read_nodes(many), Err(ListError::Number { line: 2, column: "gpu", .. })));
    let text = "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,1,1,100\n1,-1,1,100\n";
    assert!(matches!(read_tasks(text), Err(ListError::Number { line: 3, column: "memory_mib", .. })));
    let over = "cpu_milli,memory_mib,num_gpu,gpu_milli\n1,1,1,1001\n";
    assert!(matches!(read_tasks(over), Err(ListError::Number { column: "gpu_milli", .. })));
}
