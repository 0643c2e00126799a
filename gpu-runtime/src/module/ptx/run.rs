//! The executor: a grid of blocks, one after the other; a block's threads in turns, from barrier to barrier.
//!
//! A thread runs until it ends, or meets others: at a barrier of its block, or at an exchange in its warp of 32. When no
//! thread of a block can run, either all wait for the same and go on, or the kernel would hang on a card, and is a fault.
//!
//! Addresses: bits 40 and up of a global address number a buffer, from 1; the bits below are an offset into it. So an
//! address that leaves its buffer never lands in another one.

use super::code::{
    Atom, Binary, Code, GLOBAL_SHIFT, LOCAL_WINDOW, NO_GUARD, Op, SHARED_WINDOW, SPECIAL, Shuffle, Slot,
    Type, Vote,
};
use super::math;
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
const WARP: usize = 32;

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
    let state = (code.frame.len() as u64 * 8).saturating_add(code.local_bytes).saturating_mul(threads as u64);
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
    check(code, launch)?;
    let threads = launch.block.iter().map(|side| *side as usize).product::<usize>();
    let mut block = Block {
        code,
        launch,
        buffers,
        is_over,
        frames: vec![0; code.frame.len() * threads],
        threads: vec![Thread::default(); threads],
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

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ready,
    AtBarrier,
    /// At an exchange in its warp, with the lanes that take part.
    AtExchange {
        mask: u32,
    },
    Ended,
}

#[derive(Debug, Clone, Copy, Default)]
struct Thread {
    state: State,
    /// The next step.
    at: u32,
    carry: bool,
}

struct Block<'a> {
    code: &'a Code,
    launch: &'a Launch,
    buffers: &'a mut Buffers,
    is_over: &'a mut dyn FnMut(u64) -> bool,
    frames: Vec<u64>,
    threads: Vec<Thread>,
    shared: Vec<u8>,
    local: Vec<u8>,
    index: [u32; 3],
    steps: u64,
    look_at: u64,
}

impl Block<'_> {
    fn run(&mut self) -> Result<(), RunFault> {
        self.set_up();
        loop {
            for thread in 0..self.threads.len() {
                if self.threads[thread].state == State::Ready {
                    self.run_thread(thread)?;
                }
            }
            let mut goes_on = false;
            for warp in 0..self.threads.len().div_ceil(WARP) {
                goes_on |= self.exchange(warp * WARP)?;
            }
            if goes_on {
                continue;
            }
            if self.threads.iter().all(|thread| thread.state == State::Ended) {
                return Ok(());
            }
            // A barrier counts those that have not ended, as on a card.
            if let Some(stuck) =
                self.threads.iter().position(|thread| matches!(thread.state, State::AtExchange { .. }))
            {
                return Err(self.fault(stuck, "it waits for lanes of its warp that never come"));
            }
            for thread in &mut self.threads {
                if thread.state == State::AtBarrier {
                    thread.state = State::Ready;
                }
            }
        }
    }

    fn set_up(&mut self) {
        self.shared.fill(0);
        self.local.fill(0);
        let [width, height, _] = self.launch.block;
        let special_at = self.code.special_at;
        for (index, (thread, frame)) in
            self.threads.iter_mut().zip(self.frames.chunks_exact_mut(self.code.frame.len())).enumerate()
        {
            *thread = Thread::default();
            frame.copy_from_slice(&self.code.frame);
            let at = index as u32;
            let lane = at % WARP as u32;
            let [cx, cy, cz] = self.index;
            let ([nx, ny, nz], [gx, gy, gz]) = (self.launch.block, self.launch.grid);
            let values = [
                at % width,
                at / width % height,
                at / (width * height),
                cx,
                cy,
                cz,
                nx,
                ny,
                nz,
                gx,
                gy,
                gz,
                lane,
                at / WARP as u32,
                (1u32 << lane).wrapping_sub(1),
            ];
            const { assert!(SPECIAL.len() == 15) };
            for (slot, value) in frame[special_at..].iter_mut().zip(values) {
                *slot = u64::from(value);
            }
        }
    }

    fn fault(&self, thread: usize, what: impl Into<String>) -> RunFault {
        let at = self.threads[thread].at as usize;
        let [width, height, _] = self.launch.block;
        let index = thread as u32;
        RunFault::Thread {
            kernel: self.code.name.clone(),
            line: self.code.steps.get(at).map_or(0, |step| step.line),
            block: self.index,
            thread: [index % width, index / width % height, index / (width * height)],
            what: what.into(),
        }
    }

    /// Runs one thread until it ends or meets others.
    fn run_thread(&mut self, index: usize) -> Result<(), RunFault> {
        let size = self.code.frame.len();
        let steps = &self.code.steps;
        let mut thread = self.threads[index];
        // Taken out, so that memory and slots can be used at once.
        let mut frames = std::mem::take(&mut self.frames);
        let frame = &mut frames[index * size..(index + 1) * size];
        let mut done = self.steps;
        let outcome = loop {
            let step = &steps[thread.at as usize];
            done += 1;
            if done >= self.look_at {
                self.look_at = done + STEPS_PER_LOOK;
                if (self.is_over)(done) {
                    break Err(None);
                }
            }
            if step.guard != NO_GUARD && (frame[step.guard as usize] & 1 == 1) == step.guard_negated {
                thread.at += 1;
                continue;
            }
            let slot = |slot: Slot| frame[slot as usize];
            match step.op {
                Op::Binary { op, kind: Type::U32 | Type::S32, d, a, b, saturate: false, .. }
                    if matches!(op, Binary::Add | Binary::Sub | Binary::MulLo) =>
                {
                    let (a, b) = (slot(a), slot(b));
                    let value = match op {
                        Binary::Add => a.wrapping_add(b),
                        Binary::Sub => a.wrapping_sub(b),
                        _ => a.wrapping_mul(b),
                    };
                    frame[d as usize] = value & 0xFFFF_FFFF;
                }
                Op::Binary { op: Binary::Add, kind: Type::U64 | Type::S64, d, a, b, .. } => {
                    frame[d as usize] = slot(a).wrapping_add(slot(b));
                }
                Op::Binary { op, kind, d, a, b, flush, saturate } => {
                    frame[d as usize] = math::binary(op, kind, slot(a), slot(b), flush, saturate);
                }
                Op::Unary { op, kind, d, a, flush } => {
                    frame[d as usize] = math::unary(op, kind, slot(a), flush)
                }
                Op::Mad { kind, d, a, b, c, high } => {
                    frame[d as usize] = math::mad(kind, slot(a), slot(b), slot(c), high)
                }
                Op::MulWide { kind, d, a, b, c } => {
                    frame[d as usize] = math::mul_wide(kind, slot(a), slot(b), slot(c))
                }
                Op::Fma { kind, d, a, b, c, flush, saturate } => {
                    frame[d as usize] = math::fma(kind, slot(a), slot(b), slot(c), flush, saturate);
                }
                Op::Carry { kind, d, a, b, subtract, takes, gives } => {
                    let carry = takes && thread.carry;
                    let (value, carry) = math::carry(kind.bits(), slot(a), slot(b), carry, subtract);
                    frame[d as usize] = value;
                    if gives {
                        thread.carry = carry;
                    }
                }
                Op::Lop3 { d, a, b, c, table } => {
                    frame[d as usize] = math::lop3(slot(a), slot(b), slot(c), table)
                }
                Op::Funnel { d, a, b, c, left, clamp } => {
                    frame[d as usize] = math::funnel(slot(a), slot(b), slot(c), left, clamp);
                }
                Op::Bfe { kind, d, a, b, c } => {
                    frame[d as usize] = math::bfe(kind, slot(a), slot(b), slot(c))
                }
                Op::Bfi { kind, d, a, b, c, e } => {
                    frame[d as usize] = math::bfi(kind, slot(a), slot(b), slot(c), slot(e))
                }
                Op::Prmt { d, a, b, c } => frame[d as usize] = math::prmt(slot(a), slot(b), slot(c)),
                Op::Setp { compare, unordered, kind, p, q, a, b, flush, with } => {
                    let holds = math::compare(compare, unordered, kind, slot(a), slot(b), flush);
                    let combine = |holds: bool| match with {
                        None => holds,
                        Some((op, other, negated)) => {
                            let other = (slot(other) & 1 == 1) != negated;
                            match op {
                                Binary::And => holds && other,
                                Binary::Or => holds || other,
                                _ => holds != other,
                            }
                        }
                    };
                    let (first, second) = (combine(holds), combine(!holds));
                    frame[q as usize] = u64::from(second);
                    frame[p as usize] = u64::from(first);
                }
                Op::Select { d, a, b, p } => {
                    frame[d as usize] = if slot(p) & 1 == 1 { slot(a) } else { slot(b) }
                }
                Op::Convert { to, from, d, a, rounding, integral, flush, saturate } => {
                    frame[d as usize] = math::convert(to, from, slot(a), rounding, integral, flush, saturate);
                }
                Op::Pack { bits, d, parts, count } => {
                    let parts = parts[..usize::from(count)].iter().rev();
                    frame[d as usize] = parts.fold(0, |all, part| {
                        all.checked_shl(bits).unwrap_or(0) | (frame[*part as usize] & math::mask(bits))
                    });
                }
                Op::Unpack { bits, a, parts, count } => {
                    let mut value = slot(a);
                    for part in &parts[..usize::from(count)] {
                        frame[*part as usize] = value & math::mask(bits);
                        value = value.checked_shr(bits).unwrap_or(0);
                    }
                }
                Op::Parameter { kind, d, offset } => {
                    let bytes = (kind.bits() / 8) as usize;
                    match self.launch.parameters.get(offset as usize..offset as usize + bytes) {
                        Some(value) => frame[d as usize] = from_bytes(value, kind),
                        None => break Err(Some("it reads behind its parameters".to_owned())),
                    }
                }
                Op::Load { at, kind, base, offset, d, count } => {
                    let bytes = (kind.bits() / 8).max(1) as usize;
                    let address = slot(base).wrapping_add(offset as u64);
                    match self.memory(index, at, address, bytes * usize::from(count)) {
                        Ok(found) => {
                            for (to, value) in d.iter().zip(found.chunks_exact(bytes)) {
                                frame[*to as usize] = from_bytes(value, kind);
                            }
                        }
                        Err(fault) => break Err(Some(format!("it reads {fault}"))),
                    }
                }
                Op::Store { at, kind, base, offset, a, count } => {
                    let bytes = (kind.bits() / 8).max(1) as usize;
                    let address = frame[base as usize].wrapping_add(offset as u64);
                    match self.memory(index, at, address, bytes * usize::from(count)) {
                        Ok(_) if at == Some(Space::Const) => {
                            break Err(Some("it writes to constant memory".to_owned()));
                        }
                        Ok(found) => {
                            for (from, value) in a.iter().zip(found.chunks_exact_mut(bytes)) {
                                value.copy_from_slice(&frame[*from as usize].to_le_bytes()[..bytes]);
                            }
                        }
                        Err(fault) => break Err(Some(format!("it writes {fault}"))),
                    }
                }
                Op::Window { space, to_generic, d, a } => {
                    let window = match space {
                        Space::Shared => SHARED_WINDOW,
                        Space::Local => LOCAL_WINDOW,
                        Space::Global | Space::Const => 0,
                    };
                    let a = slot(a);
                    frame[d as usize] = if to_generic { a | window } else { a & !window };
                }
                Op::Atomic { op, at, kind, base, offset, d, a } => {
                    let address = slot(base).wrapping_add(offset as u64);
                    let a = slot(a);
                    match self.memory(index, at, address, (kind.bits() / 8) as usize) {
                        Ok(found) => {
                            let old = from_bytes(found, kind);
                            let new = atomic(op, kind, old, a);
                            found.copy_from_slice(&new.to_le_bytes()[..found.len()]);
                            frame[d as usize] = old;
                        }
                        Err(fault) => break Err(Some(format!("it changes {fault}"))),
                    }
                }
                Op::Swap { at, kind, base, offset, d, a, b } => {
                    let address = slot(base).wrapping_add(offset as u64);
                    let (expected, new) = (slot(a) & math::mask(kind.bits()), slot(b));
                    match self.memory(index, at, address, (kind.bits() / 8) as usize) {
                        Ok(found) => {
                            let old = from_bytes(found, kind);
                            if old == expected {
                                found.copy_from_slice(&new.to_le_bytes()[..found.len()]);
                            }
                            frame[d as usize] = old;
                        }
                        Err(fault) => break Err(Some(format!("it changes {fault}"))),
                    }
                }
                Op::Branch { to } => {
                    thread.at = to;
                    continue;
                }
                Op::Barrier => {
                    thread.at += 1;
                    thread.state = State::AtBarrier;
                    break Ok(());
                }
                // Stays at its step: the exchange reads the operands from there, and moves it on.
                Op::WarpBarrier { mask } | Op::Shuffle { mask, .. } | Op::Vote { mask, .. } => {
                    let mask = slot(mask) as u32;
                    if mask >> (index % WARP) & 1 == 0 {
                        break Err(Some("it is not among the lanes that it names".to_owned()));
                    }
                    thread.state = State::AtExchange { mask };
                    break Ok(());
                }
                Op::Fence => {}
                Op::Exit => {
                    thread.state = State::Ended;
                    break Ok(());
                }
                Op::Trap => break Err(Some("it trapped".to_owned())),
            }
            thread.at += 1;
        };
        self.steps = done;
        self.frames = frames;
        self.threads[index] = thread;
        match outcome {
            Ok(()) => Ok(()),
            Err(None) => Err(RunFault::Stopped { steps: done }),
            Err(Some(what)) => Err(self.fault(index, what)),
        }
    }

    /// The bytes at an address.
    fn memory(
        &mut self,
        thread: usize,
        at: Option<Space>,
        address: u64,
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
        if !(address as usize).is_multiple_of(bytes) {
            return Err(format!("{bytes} bytes at {address:#x}, which is not a multiple of {bytes}"));
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

    /// Carries out what a warp's threads wait for together, when all of them are there; says whether any goes on.
    fn exchange(&mut self, first: usize) -> Result<bool, RunFault> {
        let end = (first + WARP).min(self.threads.len());
        let mut goes_on = false;
        for lead in first..end {
            let State::AtExchange { mask } = self.threads[lead].state else { continue };
            let at = self.threads[lead].at;
            let lanes: Vec<usize> = (first..end).filter(|lane| mask >> (lane - first) & 1 == 1).collect();
            // Lanes that have ended take no part.
            let is_there = |lane: &usize| match self.threads[*lane].state {
                State::Ended => true,
                State::AtExchange { mask: other } => other == mask && self.threads[*lane].at == at,
                _ => false,
            };
            if !lanes.iter().all(is_there) {
                continue;
            }
            let lanes: Vec<usize> =
                lanes.into_iter().filter(|lane| self.threads[*lane].state != State::Ended).collect();
            self.resolve(first, &lanes, at);
            for lane in lanes {
                self.threads[lane].state = State::Ready;
                self.threads[lane].at += 1;
            }
            goes_on = true;
        }
        Ok(goes_on)
    }

    fn resolve(&mut self, first: usize, lanes: &[usize], at: u32) {
        let size = self.code.frame.len();
        let read = |frames: &[u64], lane: usize, slot: Slot| frames[lane * size + slot as usize];
        match self.code.steps[at as usize].op {
            Op::Shuffle { mode, d, p, a, b, c, .. } => {
                let before: Vec<u64> = lanes.iter().map(|lane| read(&self.frames, *lane, a)).collect();
                for lane in lanes {
                    let own = (lane - first) as u32;
                    let (b, c) =
                        (read(&self.frames, *lane, b) as u32 & 31, read(&self.frames, *lane, c) as u32);
                    let (source, is_inside) = source_lane(mode, own, b, c);
                    let from = lanes.iter().position(|other| *other == first + source as usize);
                    let value = from.map_or(0, |from| before[from]);
                    self.frames[lane * size + d as usize] = value & 0xFFFF_FFFF;
                    self.frames[lane * size + p as usize] = u64::from(is_inside);
                }
            }
            Op::Vote { mode, d, p, negated, .. } => {
                let holds = |lane: &usize| (read(&self.frames, *lane, p) & 1 == 1) != negated;
                let count = lanes.iter().filter(|lane| holds(lane)).count();
                let value = match mode {
                    Vote::All => u64::from(count == lanes.len()),
                    Vote::Any => u64::from(count > 0),
                    Vote::Uniform => u64::from(count == 0 || count == lanes.len()),
                    Vote::Ballot => lanes
                        .iter()
                        .filter(|lane| holds(lane))
                        .fold(0, |bits, lane| bits | 1 << (lane - first)),
                };
                for lane in lanes {
                    self.frames[lane * size + d as usize] = value;
                }
            }
            _ => {}
        }
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

fn atomic(op: Atom, kind: Type, old: u64, a: u64) -> u64 {
    let plain = |op| math::binary(op, kind, old, a, false, false);
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
