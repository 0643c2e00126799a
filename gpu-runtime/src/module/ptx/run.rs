//! The executor: a grid of blocks, one after the other; a block's warps of 32 threads in turns, from barrier to barrier.
//!
//! A warp's threads go through the code together: one step is done for all lanes that stand at it, over arrays of 32
//! values, so that what a step costs to look up is paid once. Where lanes part, those furthest behind go first, until they
//! meet the others again. A lane waits at a barrier of its block, or at an exchange in its warp. When no lane of a block
//! can run, either all wait for the same and go on, or the kernel would hang on a card, and is a fault.
//!
//! Addresses: bits 40 and up of a global address number a buffer, from 1; the bits below are an offset into it. So an
//! address that leaves its buffer never lands in another one.

use super::code::{
    Atom, Binary, Code, Compare, GLOBAL_SHIFT, LOCAL_WINDOW, NO_GUARD, Op, SHARED_WINDOW, SPECIAL, Shuffle,
    Slot, Type, Unary, Vote,
};
use super::math;
use super::native::call::{Broke, ENDED, Entry, Meter, Place as Room, Table};
use super::native::span_from;
use super::text::Space;

/// What a card allows, and with it every kernel that would run on one.
pub const BLOCK_THREADS_MAX: u64 = 1024;
pub const SHARED_BYTES_MAX: u64 = 227 << 10;
/// Threads of one launch: more take longer than anyone waits on a CPU.
pub const THREADS_MAX: u64 = 1 << 36;
/// Memory that a block's threads may take for registers and local variables.
const BLOCK_STATE_BYTES_MAX: u64 = 256 << 20;
/// How many instructions are run between two looks at the clock.
const STEPS_PER_LOOK: u64 = 1 << 20;
pub(super) const WARP: usize = 32;

/// A slot of a warp: one value for each lane.
pub(super) type Lanes = [u64; WARP];
/// Bytes from a lane's slot to its next.
pub(super) const LANE_STRIDE: usize = size_of::<Lanes>();

/// The shape of a launch and its arguments.
#[derive(Debug, Clone)]
pub struct Launch {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared_bytes: u32,
    /// The parameters' bytes, laid out as the kernel declares them.
    pub parameters: Vec<u8>,
}

/// Device memory: buffer n is at [`address_of`]`(n)`.
pub type Buffers = Vec<Vec<u8>>;

/// Where a buffer starts.
#[must_use]
pub fn address_of(buffer: usize) -> u64 {
    (buffer as u64 + 1) << GLOBAL_SHIFT
}

/// Why a launch did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunFault {
    /// The launch itself is wrong.
    #[error("{0}")]
    Launch(String),
    /// A thread did what a card would end the kernel for.
    #[error("{kernel}, line {line}, block {block:?}, thread {thread:?}: {what}")]
    Thread { kernel: String, line: u32, block: [u32; 3], thread: [u32; 3], what: String },
    /// It was asked to end.
    #[error("ended after {steps} instructions")]
    Stopped { steps: u64 },
}

/// Checks a launch against what a card and this executor take.
///
/// # Errors
/// [`RunFault::Launch`] with the number that is wrong.
pub fn check(code: &Code, launch: &Launch) -> Result<(), RunFault> {
    let wrong = |text: String| Err(RunFault::Launch(format!("{}: {text}", code.name)));
    let product = |sides: [u32; 3]| sides.iter().map(|side| u128::from(*side)).product::<u128>();
    let (blocks, threads) = (product(launch.grid), product(launch.block));
    if blocks == 0 || threads == 0 {
        return wrong("grid and block must have at least one of everything".into());
    }
    if threads > u128::from(BLOCK_THREADS_MAX) || launch.block[2] > 64 {
        return wrong(format!("a block of {threads} threads; at most {BLOCK_THREADS_MAX}, and 64 deep"));
    }
    if launch.grid[1] > 65_535 || launch.grid[2] > 65_535 || launch.grid[0] > i32::MAX as u32 {
        return wrong(format!("a grid of {:?} blocks; at most [2147483647, 65535, 65535]", launch.grid));
    }
    if blocks * threads > u128::from(THREADS_MAX) {
        return wrong(format!("{} threads in all; at most {THREADS_MAX} on a CPU", blocks * threads));
    }
    let shared = code.shared_bytes + u64::from(launch.dynamic_shared_bytes);
    if shared > SHARED_BYTES_MAX {
        return wrong(format!("{shared} bytes of shared memory; at most {SHARED_BYTES_MAX}"));
    }
    let threads_held = (threads as u64).next_multiple_of(WARP as u64);
    let state = (code.frame.len() as u64 * 8).saturating_add(code.local_bytes).saturating_mul(threads_held);
    if state > BLOCK_STATE_BYTES_MAX {
        return wrong(format!(
            "a block's registers and local variables take {state} bytes; at most {BLOCK_STATE_BYTES_MAX}"
        ));
    }
    let wanted = code.parameters.iter().map(|(_, at, bytes)| u64::from(*at) + bytes).max().unwrap_or(0);
    if launch.parameters.len() as u64 != wanted {
        return wrong(format!(
            "{} bytes of arguments; its parameters take {wanted}",
            launch.parameters.len()
        ));
    }
    Ok(())
}

/// Runs a launch to its end; answers how many instructions its threads ran.
///
/// `is_over` is asked about every million instructions.
///
/// # Errors
/// As [`RunFault`]; the buffers then hold what was written until the fault.
pub fn launch(
    code: &Code,
    launch: &Launch,
    buffers: &mut Buffers,
    is_over: &mut dyn FnMut(u64) -> bool,
) -> Result<u64, RunFault> {
    launch_as(code, None, launch, buffers, is_over)
}

/// As [`launch`], with the kernel compiled where it is.
///
/// # Errors
/// As [`launch`].
pub fn launch_as(
    code: &Code,
    native: Option<&Entry>,
    launch: &Launch,
    buffers: &mut Buffers,
    is_over: &mut dyn FnMut(u64) -> bool,
) -> Result<u64, RunFault> {
    check(code, launch)?;
    let threads = launch.block.iter().map(|side| *side as usize).product::<usize>();
    let warps = threads.div_ceil(WARP);
    let mut block = Block {
        code,
        native: native.map(|entry| (entry, Table::of(buffers))),
        launch,
        buffers,
        is_over,
        threads,
        frame_slots: code.frame.len() + 1,
        frames: frames(code, launch, warps),
        warps: vec![Warp::default(); warps],
        shared: vec![0; (code.shared_bytes + u64::from(launch.dynamic_shared_bytes)) as usize],
        local: vec![0; code.local_bytes as usize * threads],
        index: [0; 3],
        steps: 0,
        look_at: STEPS_PER_LOOK,
    };
    for z in 0..launch.grid[2] {
        for y in 0..launch.grid[1] {
            for x in 0..launch.grid[0] {
                block.index = [x, y, z];
                block.run()?;
            }
        }
    }
    Ok(block.steps)
}

/// Where the lanes of a warp are. A lane that is in none of the sets has ended.
#[derive(Debug, Clone, Default)]
struct Warp {
    /// Each lane's next step.
    at: Lanes32,
    ready: u32,
    at_barrier: u32,
    at_exchange: u32,
    /// The lanes that each lane at an exchange waits for.
    named: Lanes32,
    carry: u32,
}

type Lanes32 = [u32; WARP];

/// The slots of all warps at the start of a launch. What differs from block to block is written by each; registers keep
/// what the block before left in them, which no kernel may rely on.
fn frames(code: &Code, launch: &Launch, warps: usize) -> Vec<Lanes> {
    let [width, height, _] = launch.block;
    let ([nx, ny, nz], [gx, gy, gz]) = (launch.block, launch.grid);
    let mut frames = Vec::with_capacity((code.frame.len() + 1) * warps);
    for warp in 0..warps {
        let first = frames.len();
        frames.extend(code.frame.iter().map(|value| [*value; WARP]));
        // Compiled threads leave their carry here while they wait.
        frames.push([0; WARP]);
        let special = &mut frames[first + code.special_at..][..SPECIAL.len()];
        for lane in 0..WARP as u32 {
            let at = warp as u32 * WARP as u32 + lane;
            let values = [
                at % width,
                at / width % height,
                at / (width * height),
                0,
                0,
                0,
                nx,
                ny,
                nz,
                gx,
                gy,
                gz,
                lane,
                warp as u32,
                (1u32 << lane).wrapping_sub(1),
            ];
            const { assert!(SPECIAL.len() == 15) };
            for (slot, value) in special.iter_mut().zip(values) {
                slot[lane as usize] = u64::from(value);
            }
        }
    }
    frames
}

/// Where the block's index is among the special registers.
const CTAID_AT: usize = 3;

struct Block<'a> {
    code: &'a Code,
    native: Option<(&'a Entry, Table)>,
    launch: &'a Launch,
    buffers: &'a mut Buffers,
    is_over: &'a mut dyn FnMut(u64) -> bool,
    threads: usize,
    /// Slots of a warp: those of the code, and the carry.
    frame_slots: usize,
    frames: Vec<Lanes>,
    warps: Vec<Warp>,
    shared: Vec<u8>,
    local: Vec<u8>,
    index: [u32; 3],
    steps: u64,
    look_at: u64,
}

/// Why a warp stopped.
enum Halt {
    /// It was asked to end.
    Over,
    /// A lane did what a card would end the kernel for.
    Lane { lane: usize, at: u32, what: String },
}

/// The lanes of a set, ascending.
fn lanes_of(mut set: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = set.trailing_zeros();
        set &= set.wrapping_sub(1);
        (lane < WARP as u32).then_some(lane as usize)
    })
}

#[inline(always)]
fn each(value: impl Fn(usize) -> u64) -> Lanes {
    let mut lanes = [0; WARP];
    for (lane, slot) in lanes.iter_mut().enumerate() {
        *slot = value(lane);
    }
    lanes
}

/// The lanes for which it holds.
#[inline(always)]
fn those(holds: impl Fn(usize) -> bool) -> u32 {
    let mut set = 0;
    for lane in 0..WARP {
        set |= u32::from(holds(lane)) << lane;
    }
    set
}

#[inline(always)]
fn set(frame: &mut [Lanes], d: Slot, active: u32, value: Lanes) {
    let slot = &mut frame[d as usize];
    if active == u32::MAX {
        *slot = value;
        return;
    }
    for lane in 0..WARP {
        slot[lane] = if active >> lane & 1 == 1 { value[lane] } else { slot[lane] };
    }
}

impl Block<'_> {
    fn run(&mut self) -> Result<(), RunFault> {
        self.set_up();
        loop {
            for warp in 0..self.warps.len() {
                if self.warps[warp].ready != 0 {
                    self.run_warp(warp)?;
                }
            }
            if let Some(stuck) = self.warps.iter().position(|warp| warp.at_exchange != 0) {
                let lane = self.warps[stuck].at_exchange.trailing_zeros() as usize;
                let at = self.warps[stuck].at[lane];
                return Err(self.fault(stuck, lane, at, "it waits for lanes of its warp that never come"));
            }
            // A barrier counts those that have not ended, as on a card.
            let mut has_ended = true;
            for warp in &mut self.warps {
                has_ended &= warp.at_barrier == 0;
                warp.ready = std::mem::take(&mut warp.at_barrier);
            }
            if has_ended {
                return Ok(());
            }
        }
    }

    fn set_up(&mut self) {
        self.shared.fill(0);
        self.local.fill(0);
        let (size, special_at) = (self.frame_slots, self.code.special_at);
        for (number, warp) in self.warps.iter_mut().enumerate() {
            let threads = (self.threads - number * WARP).min(WARP) as u32;
            *warp = Warp { ready: u32::MAX >> (WARP as u32 - threads), ..Warp::default() };
            let own = &mut self.frames[number * size + special_at + CTAID_AT..];
            for (slot, value) in own.iter_mut().zip(self.index) {
                *slot = [u64::from(value); WARP];
            }
        }
    }

    fn fault(&self, warp: usize, lane: usize, at: u32, what: impl Into<String>) -> RunFault {
        let [width, height, _] = self.launch.block;
        let index = (warp * WARP + lane) as u32;
        RunFault::Thread {
            kernel: self.code.name.clone(),
            line: self.code.steps.get(at as usize).map_or(0, |step| step.line),
            block: self.index,
            thread: [index % width, index / width % height, index / (width * height)],
            what: what.into(),
        }
    }

    /// Runs a warp until none of its lanes can go on by itself.
    fn run_warp(&mut self, number: usize) -> Result<(), RunFault> {
        let size = self.frame_slots;
        // Taken out, so that memory and slots can be used at once.
        let mut frames = std::mem::take(&mut self.frames);
        let mut warp = std::mem::take(&mut self.warps[number]);
        let frame = &mut frames[number * size..(number + 1) * size];
        let halted = loop {
            if warp.ready != 0 {
                let ran = match self.native {
                    None => self.advance(number, &mut warp, frame),
                    Some(_) => self.advance_native(number, &mut warp, frame),
                };
                if let Err(halt) = ran {
                    break Some(halt);
                }
            } else if !exchange(self.code, &mut warp, frame) {
                break None;
            }
        };
        self.frames = frames;
        self.warps[number] = warp;
        match halted {
            None => Ok(()),
            Some(Halt::Over) => Err(RunFault::Stopped { steps: self.steps }),
            Some(Halt::Lane { lane, at, what }) => Err(self.fault(number, lane, at, what)),
        }
    }

    /// Runs the lanes furthest behind until they end, wait, part, or come to where others are.
    fn advance(&mut self, number: usize, warp: &mut Warp, frame: &mut [Lanes]) -> Result<(), Halt> {
        let code = self.code;
        let mut at = lanes_of(warp.ready).map(|lane| warp.at[lane]).min().unwrap_or(0);
        let mut here = warp.ready & those(|lane| warp.at[lane] == at);
        let others = warp.ready & !here;
        let next = lanes_of(others).map(|lane| warp.at[lane]).min().unwrap_or(u32::MAX);
        loop {
            let step = &code.steps[at as usize];
            self.steps += u64::from(here.count_ones());
            if self.steps >= self.look_at {
                self.look_at = self.steps + STEPS_PER_LOOK;
                if (self.is_over)(self.steps) {
                    return Err(Halt::Over);
                }
            }
            let mut active = here;
            if step.guard != NO_GUARD {
                let guard = &frame[step.guard as usize];
                active &= those(|lane| (guard[lane] & 1 == 1) != step.guard_negated);
            }
            match step.op {
                Op::Branch { to } => {
                    if active == here {
                        at = to;
                    } else {
                        at += 1;
                        if active != 0 {
                            for lane in lanes_of(here) {
                                warp.at[lane] = if active >> lane & 1 == 1 { to } else { at };
                            }
                            return Ok(());
                        }
                    }
                    if at >= next {
                        break;
                    }
                    continue;
                }
                _ if active == 0 => {}
                Op::Exit => {
                    warp.ready &= !active;
                    here &= !active;
                }
                Op::Barrier => {
                    lanes_of(active).for_each(|lane| warp.at[lane] = at + 1);
                    warp.ready &= !active;
                    warp.at_barrier |= active;
                    here &= !active;
                }
                Op::WarpBarrier { mask } | Op::Shuffle { mask, .. } | Op::Vote { mask, .. } => {
                    for lane in lanes_of(active) {
                        let named = frame[mask as usize][lane] as u32;
                        if named >> lane & 1 == 0 {
                            let what = "it is not among the lanes that it names".to_owned();
                            return Err(Halt::Lane { lane, at, what });
                        }
                        warp.named[lane] = named;
                    }
                    let there = warp.ready | warp.at_barrier | warp.at_exchange;
                    if lanes_of(active).all(|lane| warp.named[lane] & there == active) {
                        resolve(&step.op, frame, active);
                    } else {
                        // Those that wait stay at this step, and are moved on by the exchange.
                        lanes_of(active).for_each(|lane| warp.at[lane] = at);
                        warp.ready &= !active;
                        warp.at_exchange |= active;
                        here &= !active;
                    }
                }
                Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } | Op::Swap { .. } => {
                    self.touch(&step.op, number, frame, active).map_err(|(lane, what)| Halt::Lane {
                        lane,
                        at,
                        what,
                    })?;
                }
                Op::Parameter { kind, d, offset } => {
                    let bytes = (kind.bits() / 8) as usize;
                    let value = self.launch.parameters.get(offset as usize..offset as usize + bytes);
                    let Some(value) = value else {
                        let (lane, what) =
                            (active.trailing_zeros() as usize, "it reads behind its parameters");
                        return Err(Halt::Lane { lane, at, what: what.to_owned() });
                    };
                    set(frame, d, active, [from_bytes(value, kind); WARP]);
                }
                Op::Carry { kind, d, a, b, subtract, takes, gives } => {
                    for lane in lanes_of(active) {
                        let carry = takes && warp.carry >> lane & 1 == 1;
                        let (a, b) = (frame[a as usize][lane], frame[b as usize][lane]);
                        let (value, carry) = math::carry(kind.bits(), a, b, carry, subtract);
                        frame[d as usize][lane] = value;
                        if gives {
                            warp.carry = warp.carry & !(1 << lane) | u32::from(carry) << lane;
                        }
                    }
                }
                Op::Trap => {
                    let (lane, what) = (active.trailing_zeros() as usize, "it trapped".to_owned());
                    return Err(Halt::Lane { lane, at, what });
                }
                Op::Fence => {}
                ref op => compute(op, frame, active),
            }
            at += 1;
            if here == 0 {
                return Ok(());
            }
            if at >= next {
                break;
            }
        }
        lanes_of(here).for_each(|lane| warp.at[lane] = at);
        Ok(())
    }

    /// As [`Self::advance`], for compiled code: each lane goes as far as it can, one after the other.
    fn advance_native(&mut self, number: usize, warp: &mut Warp, frame: &mut [Lanes]) -> Result<(), Halt> {
        let Some((entry, table)) = &self.native else { return Ok(()) };
        let first = warp.ready.trailing_zeros() as usize;
        let resume = warp.at[first];
        let is_next = |lane: &usize| warp.ready >> lane & 1 == 1 && warp.at[*lane] == resume;
        let lanes = first..(first..WARP).take_while(is_next).last().map_or(first, |last| last + 1);
        let local_bytes = self.code.local_bytes as usize;
        let own = number * WARP * local_bytes..((number + 1) * WARP).min(self.threads) * local_bytes;
        let mut place = Room {
            frame,
            shared: &mut self.shared,
            local: &mut self.local[own],
            local_bytes,
            parameters: &self.launch.parameters,
        };
        let mut meter = Meter { spent: self.steps, budget: self.look_at };
        let is_over = &mut *self.is_over;
        let mut more = |steps: u64| if is_over(steps) { 0 } else { steps + STEPS_PER_LOOK };
        let ran = entry.run(
            self.code,
            &mut place,
            self.buffers,
            table,
            &mut meter,
            resume,
            lanes.clone(),
            &mut more,
        );
        (self.steps, self.look_at) = (meter.spent, meter.budget);
        let came = match ran {
            Ok(came) => came,
            Err(Broke::Stopped) => return Err(Halt::Over),
            Err(Broke::Fault { lane, at, address }) => {
                let (at, what) = self.what_is_wrong(number * WARP + lane, at, address);
                return Err(Halt::Lane { lane, at, what });
            }
        };
        for lane in lanes {
            let set = 1 << lane;
            warp.ready &= !set;
            if i64::from(came[lane]) == ENDED {
                continue;
            }
            let at = came[lane] >> 2;
            match self.code.steps[at as usize].op {
                Op::WarpBarrier { mask } | Op::Shuffle { mask, .. } | Op::Vote { mask, .. } => {
                    let named = frame[mask as usize][lane] as u32;
                    if named & set == 0 {
                        let what = "it is not among the lanes that it names".to_owned();
                        return Err(Halt::Lane { lane, at, what });
                    }
                    (warp.named[lane], warp.at[lane]) = (named, at);
                    warp.at_exchange |= set;
                }
                _ => {
                    warp.at[lane] = at + 1;
                    warp.at_barrier |= set;
                }
            }
        }
        Ok(())
    }

    /// Which step is wrong, and what with it, of those that compiled code held against their memory together and refused.
    fn what_is_wrong(&mut self, thread: usize, first: u32, address: u64) -> (u32, String) {
        for (at, away) in span_from(self.code, first) {
            let (doing, space, kind, count) = match self.code.steps[at as usize].op {
                Op::Load { at, kind, count, .. } => ("reads", at, kind, count),
                Op::Store { at, kind, count, .. } => ("writes", at, kind, count),
                Op::Atomic { at, kind, .. } | Op::Swap { at, kind, .. } => ("changes", at, kind, 1),
                _ => continue,
            };
            let bytes = (kind.bits() / 8).max(1) as usize;
            let address = address.wrapping_add(away as u64);
            if let Err(fault) = self.memory(thread, space, address, bytes, bytes * usize::from(count)) {
                return (at, format!("it {doing} {fault}"));
            }
        }
        (first, "it trapped".to_owned())
    }

    /// Reads or writes memory, lane by lane where their addresses have no plain form together.
    fn touch(
        &mut self,
        op: &Op,
        warp: usize,
        frame: &mut [Lanes],
        active: u32,
    ) -> Result<(), (usize, String)> {
        let thread = |lane: usize| warp * WARP + lane;
        match *op {
            Op::Load { at, kind, base, offset, d, count } => {
                let bytes = (kind.bits() / 8).max(1) as usize;
                let addresses = frame[base as usize].map(|base| base.wrapping_add(offset as u64));
                if count == 1 && active == u32::MAX {
                    let first = addresses[0];
                    if addresses.iter().all(|address| *address == first) && !is_local(at, first) {
                        let found = self.memory(thread(0), at, first, bytes, bytes);
                        let found = found.map_err(|fault| (0, format!("it reads {fault}")))?;
                        frame[d[0] as usize] = [from_bytes(found, kind); WARP];
                        return Ok(());
                    }
                    if let Some(found) = self.line(at, &addresses, bytes) {
                        read_line(found, kind, &mut frame[d[0] as usize]);
                        return Ok(());
                    }
                }
                let read = self.region(at, &addresses, active, warp).is_some_and(|region| {
                    let Region { bytes: memory, place } = region;
                    let d = &d[..usize::from(count)];
                    match bytes {
                        1 => read_lanes::<1>(memory, place, &addresses, active, kind, frame, d),
                        2 => read_lanes::<2>(memory, place, &addresses, active, kind, frame, d),
                        4 => read_lanes::<4>(memory, place, &addresses, active, kind, frame, d),
                        _ => read_lanes::<8>(memory, place, &addresses, active, kind, frame, d),
                    }
                });
                if read {
                    return Ok(());
                }
                // Lanes that read from here and there, or one of them where there is nothing.
                for lane in lanes_of(active) {
                    let found =
                        self.memory(thread(lane), at, addresses[lane], bytes, bytes * usize::from(count));
                    let found = found.map_err(|fault| (lane, format!("it reads {fault}")))?;
                    for (to, value) in d.iter().zip(found.chunks_exact(bytes)) {
                        frame[*to as usize][lane] = from_bytes(value, kind);
                    }
                }
            }
            Op::Store { at, kind, base, offset, a, count } => {
                let bytes = (kind.bits() / 8).max(1) as usize;
                let addresses = frame[base as usize].map(|base| base.wrapping_add(offset as u64));
                if at == Some(Space::Const) {
                    return Err((
                        active.trailing_zeros() as usize,
                        "it writes to constant memory".to_owned(),
                    ));
                }
                if count == 1
                    && active == u32::MAX
                    && let Some(found) = self.line(at, &addresses, bytes)
                {
                    write_line(found, bytes, &frame[a[0] as usize]);
                    return Ok(());
                }
                let written = self.region(at, &addresses, active, warp).is_some_and(|region| {
                    let Region { bytes: memory, place } = region;
                    let a = &a[..usize::from(count)];
                    match bytes {
                        1 => write_lanes::<1>(memory, place, &addresses, active, frame, a),
                        2 => write_lanes::<2>(memory, place, &addresses, active, frame, a),
                        4 => write_lanes::<4>(memory, place, &addresses, active, frame, a),
                        _ => write_lanes::<8>(memory, place, &addresses, active, frame, a),
                    }
                });
                if written {
                    return Ok(());
                }
                // What some lanes wrote already is written again, the same.
                for lane in lanes_of(active) {
                    let found =
                        self.memory(thread(lane), at, addresses[lane], bytes, bytes * usize::from(count));
                    let found = found.map_err(|fault| (lane, format!("it writes {fault}")))?;
                    for (from, value) in a.iter().zip(found.chunks_exact_mut(bytes)) {
                        value.copy_from_slice(&frame[*from as usize][lane].to_le_bytes()[..bytes]);
                    }
                }
            }
            Op::Atomic { op, at, kind, base, offset, d, a } => {
                let bytes = (kind.bits() / 8) as usize;
                for lane in lanes_of(active) {
                    let address = frame[base as usize][lane].wrapping_add(offset as u64);
                    let found = self.memory(thread(lane), at, address, bytes, bytes);
                    let found = found.map_err(|fault| (lane, format!("it changes {fault}")))?;
                    let old = from_bytes(found, kind);
                    let new = atomic(op, kind, old, frame[a as usize][lane]);
                    found.copy_from_slice(&new.to_le_bytes()[..bytes]);
                    frame[d as usize][lane] = old;
                }
            }
            Op::Swap { at, kind, base, offset, d, a, b } => {
                let bytes = (kind.bits() / 8) as usize;
                for lane in lanes_of(active) {
                    let address = frame[base as usize][lane].wrapping_add(offset as u64);
                    let (expected, new) =
                        (frame[a as usize][lane] & math::mask(kind.bits()), frame[b as usize][lane]);
                    let found = self.memory(thread(lane), at, address, bytes, bytes);
                    let found = found.map_err(|fault| (lane, format!("it changes {fault}")))?;
                    let old = from_bytes(found, kind);
                    if old & math::mask(kind.bits()) == expected {
                        found.copy_from_slice(&new.to_le_bytes()[..bytes]);
                    }
                    frame[d as usize][lane] = old;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The bytes of all lanes, where they lie one behind the other.
    fn line(&mut self, at: Option<Space>, addresses: &Lanes, bytes: usize) -> Option<&mut [u8]> {
        let first = addresses[0];
        let is_line = addresses
            .iter()
            .enumerate()
            .all(|(lane, address)| *address == first.wrapping_add((lane * bytes) as u64));
        if !is_line || is_local(at, first) {
            return None;
        }
        // Whose fault it is, if there is one, is found lane by lane.
        self.memory(0, at, first, bytes, bytes * WARP).ok()
    }

    /// The memory that all these lanes' addresses are in, if it is one.
    fn region(
        &mut self,
        at: Option<Space>,
        addresses: &Lanes,
        active: u32,
        warp: usize,
    ) -> Option<Region<'_>> {
        let windows = SHARED_WINDOW | LOCAL_WINDOW;
        let all = |mask: u64, value: u64| {
            let differs =
                each(|lane| if active >> lane & 1 == 1 { addresses[lane] & mask ^ value } else { 0 });
            differs.iter().all(|differs| *differs == 0)
        };
        let first = addresses[active.trailing_zeros() as usize % WARP];
        if at == Some(Space::Shared) || at.is_none() && all(windows, SHARED_WINDOW) {
            let limit = self.shared.len();
            let place = Place { mask: !windows, start: 0, stride: 0, limit };
            return Some(Region { bytes: &mut self.shared, place });
        }
        if at == Some(Space::Local) || at.is_none() && all(windows, LOCAL_WINDOW) {
            let limit = self.code.local_bytes as usize;
            let place = Place { mask: !windows, start: warp * WARP * limit, stride: limit, limit };
            return Some(Region { bytes: &mut self.local, place });
        }
        let within = (1 << GLOBAL_SHIFT) - 1;
        if !all(!within, first & !within) || at.is_none() && first & windows != 0 {
            return None;
        }
        let index = usize::try_from((first >> GLOBAL_SHIFT).wrapping_sub(1)).ok()?;
        let bytes = self.buffers.get_mut(index)?;
        let place = Place { mask: within, start: 0, stride: 0, limit: bytes.len() };
        Some(Region { bytes, place })
    }

    /// The bytes at an address, which is a multiple of `align` bytes and of their number up to 16.
    fn memory(
        &mut self,
        thread: usize,
        at: Option<Space>,
        address: u64,
        align: usize,
        bytes: usize,
    ) -> Result<&mut [u8], String> {
        let (space, offset) = match at {
            Some(space @ (Space::Shared | Space::Local)) => {
                (space, address & !(SHARED_WINDOW | LOCAL_WINDOW))
            }
            None if address & SHARED_WINDOW != 0 => (Space::Shared, address & !SHARED_WINDOW),
            None if address & LOCAL_WINDOW != 0 => (Space::Local, address & !LOCAL_WINDOW),
            _ => (Space::Global, address & ((1 << GLOBAL_SHIFT) - 1)),
        };
        // A vector is aligned as a whole; a line of lanes is not.
        let align = if bytes <= 32 { bytes } else { align };
        if !(address as usize).is_multiple_of(align) {
            return Err(format!("{align} bytes at {address:#x}, which is not a multiple of {align}"));
        }
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = offset..offset.saturating_add(bytes);
        match space {
            Space::Shared => {
                let size = self.shared.len();
                self.shared
                    .get_mut(range)
                    .ok_or_else(|| format!("at byte {offset} of {size} bytes of shared memory"))
            }
            Space::Local => {
                let size = self.code.local_bytes as usize;
                let own = &mut self.local[thread * size..(thread + 1) * size];
                own.get_mut(range).ok_or_else(|| format!("at byte {offset} of {size} bytes of local memory"))
            }
            Space::Global | Space::Const => {
                let index = (address >> GLOBAL_SHIFT).wrapping_sub(1);
                let buffer = usize::try_from(index).ok().and_then(|index| self.buffers.get_mut(index));
                let Some(buffer) = buffer else {
                    return Err(format!("at {address:#x}, where there is no buffer"));
                };
                let size = buffer.len();
                buffer.get_mut(range).ok_or_else(|| format!("at byte {offset} of a buffer of {size} bytes"))
            }
        }
    }
}

/// Where lanes' addresses lie in a region: `start + lane * stride` and the address's bits in `mask`, which stay below `limit`.
#[derive(Clone, Copy)]
struct Place {
    mask: u64,
    start: usize,
    stride: usize,
    limit: usize,
}

struct Region<'a> {
    bytes: &'a mut [u8],
    place: Place,
}

impl Place {
    /// Where a lane's `bytes` begin; `None`: outside, or crooked.
    #[inline(always)]
    fn of(self, lane: usize, address: u64, bytes: usize) -> Option<usize> {
        let offset = (address & self.mask) as usize;
        let is_inside = offset.wrapping_add(bytes) <= self.limit && offset <= self.limit;
        (is_inside && offset.is_multiple_of(bytes)).then(|| self.start + lane * self.stride + offset)
    }
}

/// False where a lane's address is none: then nothing is read.
#[inline(always)]
fn read_lanes<const BYTES: usize>(
    memory: &[u8],
    place: Place,
    addresses: &Lanes,
    active: u32,
    kind: Type,
    frame: &mut [Lanes],
    d: &[Slot],
) -> bool {
    let whole = BYTES * d.len();
    let mut found = [[0; WARP]; 4];
    for lane in 0..WARP {
        if active >> lane & 1 == 0 {
            continue;
        }
        let Some(at) = place.of(lane, addresses[lane], whole) else { return false };
        let Some(bytes) = memory.get(at..at + whole) else { return false };
        for (found, bytes) in found.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
            let mut wide = [0; 8];
            wide[..BYTES].copy_from_slice(bytes);
            found[lane] = u64::from_le_bytes(wide);
        }
    }
    for (to, found) in d.iter().zip(found) {
        let found =
            if kind.is_signed() { found.map(|value| math::signed(value, kind.bits()) as u64) } else { found };
        set(frame, *to, active, found);
    }
    true
}

/// False where a lane's address is none: then lanes before it may have written.
#[inline(always)]
fn write_lanes<const BYTES: usize>(
    memory: &mut [u8],
    place: Place,
    addresses: &Lanes,
    active: u32,
    frame: &[Lanes],
    a: &[Slot],
) -> bool {
    let whole = BYTES * a.len();
    for lane in 0..WARP {
        if active >> lane & 1 == 0 {
            continue;
        }
        let Some(at) = place.of(lane, addresses[lane], whole) else { return false };
        let Some(bytes) = memory.get_mut(at..at + whole) else { return false };
        for (from, bytes) in a.iter().zip(bytes.as_chunks_mut::<BYTES>().0) {
            bytes.copy_from_slice(&frame[*from as usize][lane].to_le_bytes()[..BYTES]);
        }
    }
    true
}

/// Whether the same address is another place for each thread.
fn is_local(at: Option<Space>, address: u64) -> bool {
    at == Some(Space::Local) || at.is_none() && address & LOCAL_WINDOW != 0
}

fn read_line(found: &[u8], kind: Type, to: &mut Lanes) {
    match kind {
        Type::U32 | Type::F32 => {
            for (slot, value) in to.iter_mut().zip(found.as_chunks::<4>().0) {
                *slot = u64::from(u32::from_le_bytes(*value));
            }
        }
        Type::U64 | Type::S64 | Type::F64 => {
            for (slot, value) in to.iter_mut().zip(found.as_chunks::<8>().0) {
                *slot = u64::from_le_bytes(*value);
            }
        }
        _ => {
            let bytes = (kind.bits() / 8).max(1) as usize;
            for (slot, value) in to.iter_mut().zip(found.chunks_exact(bytes)) {
                *slot = from_bytes(value, kind);
            }
        }
    }
}

fn write_line(found: &mut [u8], bytes: usize, from: &Lanes) {
    if bytes == 4 {
        for (value, slot) in found.as_chunks_mut::<4>().0.iter_mut().zip(from) {
            *value = (*slot as u32).to_le_bytes();
        }
        return;
    }
    for (value, slot) in found.chunks_exact_mut(bytes).zip(from) {
        value.copy_from_slice(&slot.to_le_bytes()[..bytes]);
    }
}

/// A step that touches nothing but slots.
#[inline(always)]
fn compute(op: &Op, frame: &mut [Lanes], active: u32) {
    // The arms of the first kinds are compiled for those kinds alone, which is where the time goes.
    macro_rules! with {
        ($d:expr, |$lane:ident| $value:expr) => {{
            let value = each(|$lane| $value);
            set(frame, $d, active, value);
        }};
    }
    macro_rules! slot {
        ($slot:expr) => {
            &frame[$slot as usize]
        };
    }
    match *op {
        Op::Binary { op, kind, d, a, b, flush, saturate } => {
            let (a, b) = (slot!(a), slot!(b));
            macro_rules! kinds {
                ($($op:ident $kind:ident),*) => {
                    match (op, kind, flush || saturate) {
                        $((Binary::$op, Type::$kind, false) => {
                            with!(d, |l| math::binary(Binary::$op, Type::$kind, a[l], b[l], false, false))
                        })*
                        _ => with!(d, |l| math::binary(op, kind, a[l], b[l], flush, saturate)),
                    }
                };
            }
            kinds!(
                Add U32, Add S32, Add U64, Add S64, Add F32, Add F64, Sub U32, Sub S32, Sub U64, Sub S64, Sub F32,
                Sub F64, MulLo U32, MulLo S32, MulLo U64, MulLo S64, MulLo F32, MulLo F64, Div F32, Div F64,
                And U32, And U64, And Pred, Or U32, Or U64, Or Pred, Xor U32, Xor U64, Shl U32, Shl U64, Shr U32,
                Shr S32, Shr U64, Shr S64, Min U32, Min S32, Max U32, Max S32, Min F32, Max F32
            );
        }
        Op::Unary { op, kind, d, a, flush } => {
            let a = slot!(a);
            match (op, kind) {
                (Unary::Mov, _) => {
                    let mask = math::mask(kind.bits());
                    with!(d, |l| a[l] & mask)
                }
                (Unary::Sqrt, Type::F32) if !flush => {
                    with!(d, |l| math::unary(Unary::Sqrt, Type::F32, a[l], false))
                }
                _ => with!(d, |l| math::unary(op, kind, a[l], flush)),
            }
        }
        Op::Mad { kind, d, a, b, c, high } => {
            let (a, b, c) = (slot!(a), slot!(b), slot!(c));
            match (kind.bits(), high) {
                (32, false) => with!(d, |l| math::mad(Type::U32, a[l], b[l], c[l], false)),
                (64, false) => with!(d, |l| math::mad(Type::U64, a[l], b[l], c[l], false)),
                _ => with!(d, |l| math::mad(kind, a[l], b[l], c[l], high)),
            }
        }
        Op::MulWide { kind, d, a, b, c } => {
            let (a, b, c) = (slot!(a), slot!(b), slot!(c));
            match kind {
                Type::U32 => with!(d, |l| math::mul_wide(Type::U32, a[l], b[l], c[l])),
                Type::S32 => with!(d, |l| math::mul_wide(Type::S32, a[l], b[l], c[l])),
                _ => with!(d, |l| math::mul_wide(kind, a[l], b[l], c[l])),
            }
        }
        Op::Fma { kind, d, a, b, c, flush, saturate } => {
            let (a, b, c) = (slot!(a), slot!(b), slot!(c));
            match (kind, flush || saturate) {
                (Type::F32, false) => with!(d, |l| math::fma(Type::F32, a[l], b[l], c[l], false, false)),
                (Type::F64, false) => with!(d, |l| math::fma(Type::F64, a[l], b[l], c[l], false, false)),
                _ => with!(d, |l| math::fma(kind, a[l], b[l], c[l], flush, saturate)),
            }
        }
        Op::Lop3 { d, a, b, c, table } => {
            let (a, b, c) = (slot!(a), slot!(b), slot!(c));
            with!(d, |l| math::lop3(a[l], b[l], c[l], table))
        }
        Op::Funnel { d, a, b, c, left, clamp } => {
            let (a, b, c) = (slot!(a), slot!(b), slot!(c));
            match (left, clamp) {
                (true, false) => with!(d, |l| math::funnel(a[l], b[l], c[l], true, false)),
                (false, false) => with!(d, |l| math::funnel(a[l], b[l], c[l], false, false)),
                _ => with!(d, |l| math::funnel(a[l], b[l], c[l], left, clamp)),
            }
        }
        Op::Bfe { kind, d, a, b, c } => {
            let (a, b, c) = (slot!(a), slot!(b), slot!(c));
            with!(d, |l| math::bfe(kind, a[l], b[l], c[l]))
        }
        Op::Bfi { kind, d, a, b, c, e } => {
            let (a, b, c, e) = (slot!(a), slot!(b), slot!(c), slot!(e));
            with!(d, |l| math::bfi(kind, a[l], b[l], c[l], e[l]))
        }
        Op::Prmt { d, a, b, c } => {
            let (a, b, c) = (slot!(a), slot!(b), slot!(c));
            with!(d, |l| math::prmt(a[l], b[l], c[l]))
        }
        Op::Setp { compare, unordered, kind, p, q, a, b, flush, with } => {
            let (a, b) = (slot!(a), slot!(b));
            macro_rules! kinds {
                ($($compare:ident $kind:ident),*) => {
                    match (compare, kind, flush || unordered) {
                        $((Compare::$compare, Type::$kind, false) => those(|l| {
                            math::compare(Compare::$compare, false, Type::$kind, a[l], b[l], false)
                        }),)*
                        _ => those(|l| math::compare(compare, unordered, kind, a[l], b[l], flush)),
                    }
                };
            }
            let holds = kinds!(
                Eq U32, Ne U32, Lt U32, Le U32, Gt U32, Ge U32, Eq S32, Ne S32, Lt S32, Le S32, Gt S32, Ge S32,
                Eq U64, Ne U64, Lt U64, Le U64, Gt U64, Ge U64, Eq S64, Ne S64, Lt S64, Le S64, Gt S64, Ge S64,
                Lt F32, Le F32, Gt F32, Ge F32
            );
            let combine = |holds: u32| match with {
                None => holds,
                Some((op, other, negated)) => {
                    let other = slot!(other);
                    let other = those(|l| (other[l] & 1 == 1) != negated);
                    match op {
                        Binary::And => holds & other,
                        Binary::Or => holds | other,
                        _ => holds ^ other,
                    }
                }
            };
            let (first, second) = (combine(holds), combine(!holds));
            with!(q, |l| u64::from(second >> l & 1));
            with!(p, |l| u64::from(first >> l & 1));
        }
        Op::Select { d, a, b, p } => {
            let (a, b, p) = (slot!(a), slot!(b), slot!(p));
            with!(d, |l| if p[l] & 1 == 1 { a[l] } else { b[l] })
        }
        Op::Convert { to, from, d, a, rounding, integral, flush, saturate } => {
            let a = slot!(a);
            with!(d, |l| math::convert(to, from, a[l], rounding, integral, flush, saturate))
        }
        Op::Pack { bits, d, parts, count } => {
            let parts = &parts[..usize::from(count)];
            with!(d, |l| parts.iter().rev().fold(0, |all, part| {
                all.checked_shl(bits).unwrap_or(0) | (frame[*part as usize][l] & math::mask(bits))
            }))
        }
        Op::Unpack { bits, a, parts, count } => {
            let mut value = *slot!(a);
            for part in &parts[..usize::from(count)] {
                with!(*part, |l| value[l] & math::mask(bits));
                value = value.map(|value| value.checked_shr(bits).unwrap_or(0));
            }
        }
        Op::Window { space, to_generic, d, a } => {
            let window = match space {
                Space::Shared => SHARED_WINDOW,
                Space::Local => LOCAL_WINDOW,
                Space::Global | Space::Const => 0,
            };
            let a = slot!(a);
            with!(d, |l| if to_generic { a[l] | window } else { a[l] & !window })
        }
        _ => {}
    }
}

/// Carries out what a warp's lanes wait for together, when all of them are there; says whether any goes on.
fn exchange(code: &Code, warp: &mut Warp, frame: &mut [Lanes]) -> bool {
    for lead in lanes_of(warp.at_exchange) {
        let (at, named) = (warp.at[lead], warp.named[lead]);
        let there = warp.ready | warp.at_barrier | warp.at_exchange;
        // Lanes that have ended take no part.
        let wanted = named & there;
        let same = those(|lane| warp.at[lane] == at && warp.named[lane] == named);
        if wanted & warp.at_exchange & same != wanted {
            continue;
        }
        resolve(&code.steps[at as usize].op, frame, wanted);
        warp.at_exchange &= !wanted;
        warp.ready |= wanted;
        lanes_of(wanted).for_each(|lane| warp.at[lane] = at + 1);
        return true;
    }
    false
}

/// An exchange among `lanes`.
fn resolve(op: &Op, frame: &mut [Lanes], lanes: u32) {
    match *op {
        Op::Shuffle { mode, d, p, a, b, c, .. } => {
            let before = frame[a as usize];
            for lane in lanes_of(lanes) {
                let (b, c) = (frame[b as usize][lane] as u32 & 31, frame[c as usize][lane] as u32);
                let (source, is_inside) = source_lane(mode, lane as u32, b, c);
                let source = source as usize % WARP;
                let value = if lanes >> source & 1 == 1 { before[source] } else { 0 };
                frame[d as usize][lane] = value & 0xFFFF_FFFF;
                frame[p as usize][lane] = u64::from(is_inside);
            }
        }
        Op::Vote { mode, d, p, negated, .. } => {
            let p = &frame[p as usize];
            let holds = lanes & those(|lane| (p[lane] & 1 == 1) != negated);
            let value = match mode {
                Vote::All => u64::from(holds == lanes),
                Vote::Any => u64::from(holds != 0),
                Vote::Uniform => u64::from(holds == 0 || holds == lanes),
                Vote::Ballot => u64::from(holds),
            };
            set(frame, d, lanes, [value; WARP]);
        }
        _ => {}
    }
}

/// Whose value a lane gets, and whether that lane is inside its segment (PTX ISA, `shfl.sync`).
fn source_lane(mode: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (clamp, segment) = (c & 31, c >> 8 & 31);
    let low = lane & segment;
    let high = low | (clamp & !segment);
    let (source, is_inside) = match mode {
        Shuffle::Up => (lane.wrapping_sub(b), lane >= b && lane - b >= high),
        Shuffle::Down => (lane + b, lane + b <= high),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= high),
        Shuffle::Index => {
            let source = low | (b & !segment);
            (source, source <= high)
        }
    };
    if is_inside { (source, true) } else { (lane, false) }
}

fn from_bytes(bytes: &[u8], kind: Type) -> u64 {
    let mut value = [0; 8];
    value[..bytes.len()].copy_from_slice(bytes);
    let value = u64::from_le_bytes(value);
    // A narrow signed value is widened to its register.
    match kind {
        Type::S8 | Type::S16 | Type::S32 => math::signed(value, kind.bits()) as u64,
        _ => value,
    }
}

pub(super) fn atomic(op: Atom, kind: Type, old: u64, a: u64) -> u64 {
    let plain = |op| math::binary(op, kind, old, a, false, false);
    // A slot may hold more than its type, where that is signed.
    let a = a & math::mask(kind.bits());
    match op {
        Atom::Add => plain(Binary::Add),
        Atom::Min => plain(Binary::Min),
        Atom::Max => plain(Binary::Max),
        Atom::And => plain(Binary::And),
        Atom::Or => plain(Binary::Or),
        Atom::Xor => plain(Binary::Xor),
        Atom::Exch => a,
        Atom::Inc => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        Atom::Dec => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
    }
}
