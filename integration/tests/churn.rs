//! Promise: machines of people come and go for a year, and no object is lost, for a small part of the traffic that mending at
//! each loss would take. A model: real groups by the real planner, the real decision when a slot is made again; time in steps.

use std::collections::BTreeMap;

use makai_erasure::placement::{Danger, Member, Patience, Presence, danger, plan};
use makai_erasure::{DiskId, NodeId, Scheme};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const STEP_MS: u64 = 30 * 60 * 1000;
const STEPS_PER_DAY: u64 = 48;
/// Permanent losses a month.
const LOST_PER_MONTH: f64 = 0.02;
/// Slots that one machine makes again in a step: 100 GB a slot would take a home line longer, 2 GB less.
const REMAKES_PER_STEP: usize = 2;
/// Of the machines, so many are switched off each night.
const NIGHTLY: f64 = 0.4;

/// Why a machine does not answer.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Up,
    DownUntil(u64),
    Lost,
}

struct Pool {
    scheme: Scheme,
    states: Vec<State>,
    since: Vec<u64>,
    /// Machines by slot.
    groups: Vec<Vec<usize>>,
    /// Slots on their way: group, slot, disk that makes it.
    moves: Vec<(usize, u8, usize)>,
}

/// What a year came to.
#[derive(Debug, Default, Clone, PartialEq)]
struct Year {
    /// Groups that had fewer shards on machines not lost than are needed.
    lost: usize,
    /// Group steps in which a group could not be read, its machines being off.
    unreadable_steps: u64,
    group_steps: u64,
    machines_lost: usize,
    slots_remade: u64,
    remakes_given_up: u64,
    /// Shards read and written, over all slots: how often the stored bytes were moved.
    moved_ratio: f64,
}

fn member(number: usize) -> Member {
    let mut disk = [0; 16];
    disk[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
    let mut node = [0; 32];
    node[..16].copy_from_slice(&disk);
    Member {
        disk: DiskId(disk),
        node: NodeId(node),
        owner: String::new(),
        site: String::new(),
        capacity_bytes: 1 << 40,
    }
}

impl Pool {
    fn new(nodes: usize, scheme: Scheme) -> Self {
        let members: Vec<Member> = (0..nodes).map(member).collect();
        let numbers: BTreeMap<DiskId, usize> =
            members.iter().enumerate().map(|(at, member)| (member.disk, at)).collect();
        let placed = plan(scheme, &members, &[], &[], 1);
        let groups =
            placed.iter().map(|group| group.disks.iter().map(|disk| numbers[disk]).collect()).collect();
        Self { scheme, states: vec![State::Up; nodes], since: vec![0; nodes], groups, moves: Vec::new() }
    }

    fn presence(&self, number: usize, step: u64) -> Presence {
        match self.states[number] {
            State::Up => Presence::Here,
            // Nobody knows yet that a lost machine is lost.
            State::DownUntil(_) | State::Lost => {
                Presence::Away { for_ms: (step - self.since[number]) * STEP_MS }
            }
        }
    }

    /// Machines go, by night, by chance, or for good; each that is lost is replaced by a new one.
    fn live(&mut self, step: u64, dice: &mut StdRng, year: &mut Year) {
        let hour = step % STEPS_PER_DAY / 2;
        for number in 0..self.states.len() {
            match self.states[number] {
                State::Lost => {}
                State::DownUntil(until) if until <= step => {
                    (self.states[number], self.since[number]) = (State::Up, step)
                }
                State::DownUntil(_) => {}
                State::Up => {
                    let is_night = hour >= 22 && number as f64 / (self.states.len() as f64) < NIGHTLY;
                    let until = if dice.random_bool(LOST_PER_MONTH / 30.0 / STEPS_PER_DAY as f64) {
                        year.machines_lost += 1;
                        self.states[number] = State::Lost;
                        self.since[number] = step;
                        self.join();
                        continue;
                    } else if is_night && dice.random_bool(0.5) {
                        step + dice.random_range(14..20)
                    } else if dice.random_bool(1.0 / 5.0 / STEPS_PER_DAY as f64) {
                        // Median an hour, one in ten longer than twelve.
                        let hours = if dice.random_bool(0.1) {
                            dice.random_range(12.0..72.0)
                        } else {
                            dice.random_range(0.5f64..4.0)
                        };
                        step + (hours * 2.0).ceil() as u64
                    } else {
                        continue;
                    };
                    (self.states[number], self.since[number]) = (State::DownUntil(until), step);
                }
            }
        }
    }

    fn join(&mut self) {
        self.states.push(State::Up);
        self.since.push(0);
    }

    /// What was begun a step ago is done, unless its machine is back; what is due begins, the most endangered first.
    fn mend(&mut self, step: u64, policy: Policy, dice: &mut StdRng, year: &mut Year) {
        let data = usize::from(self.scheme.data);
        let mut moved = 0;
        for (group, slot, to) in std::mem::take(&mut self.moves) {
            let from = self.groups[group][usize::from(slot)];
            if self.states[from] == State::Up || self.states[to] != State::Up {
                year.remakes_given_up += 1;
                continue;
            }
            self.groups[group][usize::from(slot)] = to;
            year.slots_remade += 1;
            // Each slot is made by its own machine, which reads k shards.
            moved += data + 1;
        }
        year.moved_ratio += moved as f64 / (self.groups.len() * self.scheme.shard_count()) as f64;

        let mut due: Vec<(i32, usize, u8)> = Vec::new();
        for (at, group) in self.groups.iter().enumerate() {
            let presence = |number: &usize| match (self.presence(*number, step), policy) {
                (Presence::Away { for_ms }, Policy::Eager { after_ms }) if for_ms >= after_ms => {
                    Presence::Gone
                }
                (presence, _) => presence,
            };
            let presences: Vec<Presence> = group.iter().map(presence).collect();
            let held = group.iter().filter(|number| self.states[**number] != State::Lost).count();
            year.group_steps += 1;
            year.lost += usize::from(held < data);
            let Danger { spare, slots } = danger(self.scheme, &presences, PATIENCE);
            year.unreadable_steps += u64::from(spare < 0);
            if spare >= 0 {
                due.extend(slots.into_iter().map(|slot| (spare, at, slot)));
            }
        }
        due.sort_unstable();
        let up: Vec<usize> =
            (0..self.states.len()).filter(|number| self.states[*number] == State::Up).collect();
        let mut busy: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, group, slot) in due {
            let is_taken = |number: usize| {
                let is_coming = |moving: &(usize, u8, usize)| moving.0 == group && moving.2 == number;
                self.groups[group].contains(&number) || self.moves.iter().any(is_coming)
            };
            let is_free = |number: &usize| {
                !is_taken(*number) && busy.get(number).copied().unwrap_or(0) < REMAKES_PER_STEP
            };
            if let Some(to) = (0..20).map(|_| up[dice.random_range(0..up.len())]).find(is_free) {
                *busy.entry(to).or_default() += 1;
                self.moves.push((group, slot, to));
            }
        }
    }
}

fn live(nodes: usize, days: u64, scheme: Scheme, policy: Policy, seed: u64) -> Year {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut pool = Pool::new(nodes, scheme);
    let mut year = Year::default();
    for step in 1..=days * STEPS_PER_DAY {
        pool.live(step, &mut dice, &mut year);
        pool.mend(step, policy, &mut dice, &mut year);
    }
    year
}

const HOUR_MS: u64 = 3_600_000;
const PATIENCE: Patience = Patience { grace_ms: 24 * HOUR_MS, urgent_ms: HOUR_MS / 6, is_outage: false };

/// When a slot is made again.
#[derive(Clone, Copy)]
enum Policy {
    /// As the daemon does.
    Lazy,
    /// Whatever is away for so long.
    Eager { after_ms: u64 },
}

const EAGER: Policy = Policy::Eager { after_ms: HOUR_MS };

fn given(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn a_year_of_coming_and_going_loses_nothing_and_moves_little() {
    let (nodes, days) = (given("MAKAI_CHURN_NODES", 100) as usize, given("MAKAI_CHURN_DAYS", 60));
    let scheme = Scheme::new(16, 8).unwrap();
    let lazy = live(nodes, days, scheme, Policy::Lazy, 1);
    println!("{scheme}, {nodes} machines, {days} days: {lazy:?}");
    assert_eq!(lazy.lost, 0);
    assert!(lazy.machines_lost > 0 && lazy.slots_remade > 0);
    let eager = live(nodes, days.min(60), scheme, EAGER, 1);
    println!("mended at each loss, {} days: {eager:?}", days.min(60));
    assert_eq!(eager.lost, 0);
    let per_day = |year: &Year, days: u64| year.moved_ratio / days as f64;
    let (lazily, eagerly) = (per_day(&lazy, days), per_day(&eager, days.min(60)));
    println!(
        "moved a month: {:.2} times what is stored lazily, {:.2} eagerly",
        lazily * 30.0,
        eagerly * 30.0
    );
    assert!(eagerly > 5.0 * lazily, "{eagerly} against {lazily}");
}

/// Thousands of short histories of small clusters: what was placed stays whole or is mended, and nothing is lost.
#[test]
fn short_histories_lose_nothing() {
    let histories = given("MAKAI_CHURN_HISTORIES", 1000);
    let mut remade = 0;
    for seed in 0..histories {
        let (nodes, data, parity) = [(12, 4, 3), (16, 6, 4), (24, 10, 6)][seed as usize % 3];
        let year = live(nodes, 10, Scheme::new(data, parity).unwrap(), Policy::Lazy, seed);
        assert_eq!(year.lost, 0, "MAKAI_CHURN_HISTORIES, seed {seed}: {year:?}");
        remade += year.slots_remade;
    }
    assert!(remade > 0);
}
