//! The arbiter on a modelled card: one kernel at a time in the order of launching, tenants that loop, time that jumps from
//! event to event.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use super::arbiter::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// A program that keeps `ahead` launches under way and takes `pause_ns` before it replaces one that ended.
#[derive(Debug, Clone, Copy)]
struct Program {
    due: Due,
    kernel_ns: u64,
    pause_ns: u64,
    ahead: usize,
    starts_at: u64,
}

impl Program {
    fn loop_of(sm_millis: u32, kernel_ms: u64) -> Self {
        let due = Due { sm_millis, is_hard_cap: false };
        Self { due, kernel_ns: kernel_ms * MS, pause_ns: 20_000, ahead: 1, starts_at: 0 }
    }

    fn capped(self) -> Self {
        Self { due: Due { is_hard_cap: true, ..self.due }, ..self }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Request(usize),
    Ended,
    Wake,
}

/// GPU time that each program got between `from` and `until`, in thousandths of that time.
fn run(programs: &[Program], from: u64, until: u64) -> Vec<f64> {
    let mut arbiter = Arbiter::default();
    let mut events: BinaryHeap<Reverse<(u64, u64, Event)>> = BinaryHeap::new();
    let mut sequence = 0;
    let mut at = |events: &mut BinaryHeap<Reverse<(u64, u64, Event)>>, time: u64, event: Event| {
        sequence += 1;
        events.push(Reverse((time, sequence, event)));
    };
    for (slice, program) in programs.iter().enumerate() {
        arbiter.add(SliceId(slice as u64), program.due, 0);
        (0..program.ahead).for_each(|_| at(&mut events, program.starts_at, Event::Request(slice)));
    }
    let mut card: VecDeque<(usize, Ticket, u64)> = VecDeque::new();
    let mut used: BTreeMap<usize, u64> = BTreeMap::new();
    let mut noise = 1_u64;
    let mut wake_at = u64::MAX;
    while let Some(Reverse((now, _, event))) = events.pop() {
        if now >= until {
            break;
        }
        match event {
            Event::Request(slice) => {
                arbiter.request(SliceId(slice as u64), FunctionId(0), now).expect("the line is short");
            }
            Event::Ended => {
                let (slice, ticket, length) = card.pop_front().expect("a kernel was running");
                let counted = now.saturating_sub(from).min(length);
                *used.entry(slice).or_default() += counted;
                arbiter.finished(ticket, Some(length), now);
                at(&mut events, now + programs[slice].pause_ns, Event::Request(slice));
                if let Some((_, _, length)) = card.front() {
                    at(&mut events, now + length, Event::Ended);
                }
            }
            Event::Wake => wake_at = u64::MAX,
        }
        loop {
            match arbiter.next(now) {
                Decision::Grant { slice, ticket, .. } => {
                    let slice = slice.0 as usize;
                    // A tenth more or less, as real kernels vary.
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                    let length = programs[slice].kernel_ns * (90 + (noise >> 33) % 21) / 100;
                    card.push_back((slice, ticket, length));
                    if card.len() == 1 {
                        at(&mut events, now + length, Event::Ended);
                    }
                }
                Decision::WaitUntil(time) => {
                    assert!(time > now, "waiting gets on");
                    if time < wake_at {
                        wake_at = time;
                        at(&mut events, time, Event::Wake);
                    }
                    break;
                }
                Decision::Idle => break,
            }
        }
    }
    let part = |slice| used.get(&slice).copied().unwrap_or(0) as f64 * 1000.0 / (until - from) as f64;
    (0..programs.len()).map(part).collect()
}

fn shares(programs: &[Program]) -> Vec<f64> {
    run(programs, SECOND, 61 * SECOND)
}

/// Each got what it is due of the time that was used, within two points, and little time was wasted.
fn assert_due(programs: &[Program]) {
    let shares = shares(programs);
    let used: f64 = shares.iter().sum();
    let due: u32 = programs.iter().map(|program| program.due.sm_millis).sum();
    assert!(used > 960.0, "{used} of 1000 used: {shares:?}");
    for (program, share) in programs.iter().zip(&shares) {
        let wanted = 1000.0 * f64::from(program.due.sm_millis) / f64::from(due);
        assert!((share * 1000.0 / used - wanted).abs() < 20.0, "{shares:?} for {programs:?}");
    }
}

#[test]
fn thirty_to_seventy_whatever_the_kernels() {
    for (a, b) in [(80, 2), (2, 80), (21, 21), (1, 80), (80, 1), (5, 40)] {
        assert_due(&[Program::loop_of(300, a), Program::loop_of(700, b)]);
        assert_due(&[Program::loop_of(300, a).capped(), Program::loop_of(700, b).capped()]);
    }
}

#[test]
fn four_quarters() {
    assert_due(&[80, 21, 5, 1].map(|kernel| Program::loop_of(250, kernel)));
}

/// Alone under a hard cap of a half it gets a half; without the cap all there is.
#[test]
fn a_cap_holds_alone_and_a_weight_does_not() {
    for kernel in [1, 21, 80] {
        let capped = shares(&[Program::loop_of(500, kernel).capped()])[0];
        assert!((capped - 500.0).abs() < 20.0, "{capped} with {kernel} ms");
        let free = shares(&[Program::loop_of(500, kernel)])[0];
        assert!(free > 970.0, "{free} with {kernel} ms");
    }
    let both = shares(&[Program::loop_of(200, 5).capped(), Program::loop_of(200, 5)]);
    assert!((both[0] - 200.0).abs() < 20.0 && both[1] > 750.0, "the other has the rest: {both:?}");
}

/// Who comes back after ten idle seconds has saved nothing up, and who arrives late is not put off.
#[test]
fn idleness_saves_nothing_up() {
    let late = Program { starts_at: 10 * SECOND, ..Program::loop_of(500, 20) };
    let shares = run(&[Program::loop_of(500, 20), late], 10 * SECOND, 12 * SECOND);
    assert!((shares[0] - shares[1]).abs() < 60.0, "{shares:?}");
}

/// A tenant that holds the card by dawdling, always just back in time, takes none of the other's share.
#[test]
fn dawdling_is_charged() {
    let dawdler = Program { kernel_ns: 10_000, pause_ns: 240_000, ..Program::loop_of(500, 1) };
    let shares = shares(&[dawdler, Program::loop_of(500, 20)]);
    assert!(shares[1] > 480.0, "{shares:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever the weights, kernels and habits of programs that always have work, each gets its due within two points.
    #[test]
    fn due_shares_for_any_programs(
        programs in vec((1_u32..=9, 1_u64..=80, 0_u64..=50, 1_usize..=3, any::<bool>()), 2..5),
    ) {
        let programs: Vec<Program> = programs
            .into_iter()
            .map(|(weight, kernel, pause_us, ahead, _)| Program {
                pause_ns: pause_us * 1000,
                ahead,
                ..Program::loop_of(weight * 100, kernel)
            })
            .collect();
        assert_due(&programs);
    }
}

/// What cannot be is refused, and late news of a slice that is gone changes nothing.
#[test]
fn strangers_and_floods_are_refused() {
    let mut arbiter = Arbiter::default();
    let (slice, function) = (SliceId(1), FunctionId(1));
    assert_eq!(arbiter.request(slice, function, 0), Err(ArbiterError::NoSuchSlice(slice)));
    arbiter.add(slice, Due { sm_millis: 0, is_hard_cap: true }, 0);
    for _ in 0..LINE_MAX {
        arbiter.request(slice, function, 0).expect("the line has room");
    }
    assert_eq!(arbiter.request(slice, function, 0), Err(ArbiterError::LineFull(slice)));
    let Decision::Grant { ticket, .. } = arbiter.next(0) else { panic!("the card is free") };
    arbiter.remove(slice);
    arbiter.finished(ticket, Some(u64::MAX), 5);
    assert_eq!((arbiter.next(10), arbiter.used_ns(slice)), (Decision::Idle, None));
}
