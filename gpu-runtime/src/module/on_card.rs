//! A module task on a card: our process owns the host side, the task gives device code alone.
//!
//! ```text
//! outline ─ check ─> one arena, cleared ── buffers filled ── turns ─> launches, measured ── outputs ── arena cleared
//! ```
//!
//! What always holds: all that the task can reach on the card is one arena no larger than its slice, cleared before its first
//! kernel and after its last; nothing is launched without a turn; every launch is measured.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::ptx::text::{self, Outline};
use super::{ModuleError, check_buffers, kind_of, launch_parameters, plain_name};
use crate::card::{Blame, CardError, CardLaunch, Function, GpuContext, Mark};
use crate::runner::{Fill, ModuleWork};
use crate::slice::pace::Pace;

/// Buffers start at multiples of this, as the driver's own allocations do.
const ALIGN: u64 = 512;
/// What the driver maps at once: an arena of whole pages leaves no stranger's bytes in reach.
const PAGE_BYTES: u64 = 2 << 20;
/// Bytes copied at a time.
const COPY_BYTES: usize = 4 << 20;
/// Launches of one turn at most, so that short kernels are not held up by asking.
const TURN_LAUNCHES_MAX: u32 = 256;
/// Card time that one turn aims at.
const TURN_NS: u64 = 1_000_000;
/// Turns asked for ahead.
const TURNS_AHEAD: usize = 4;
/// What a kernel's launch may ask for on any card.
const BLOCK_THREADS_MAX: u64 = 1024;
/// Card time between two tellings of what was used so far.
const TELL_EVERY_NS: u64 = 50_000_000;

/// What a task has used of its card so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CardUse {
    pub busy_ns: u64,
    pub launches: u64,
    pub memory_bytes: u64,
}

/// Reads what a module declares, and holds every launch against it. The kernels' code is the driver's to judge.
///
/// # Errors
/// [`ModuleError::Bad`] with the step and what to change.
pub fn check(work: &ModuleWork, memory_bytes: u64) -> Result<Outline, ModuleError> {
    let bad = |text: String| Err(ModuleError::Bad(text));
    let outline =
        text::outline(&work.ptx).map_err(|error| ModuleError::Bad(format!("the module: {error}")))?;
    let own: u64 = outline.variable_bytes;
    check_buffers(work, own)?;
    let arena = offsets(work).1;
    if arena.saturating_add(own) > memory_bytes {
        return bad(format!(
            "buffers and variables take {} bytes of the card; gpu.memory_mib gives {memory_bytes}",
            arena.saturating_add(own)
        ));
    }
    for (index, step) in work.steps.iter().enumerate() {
        parameters(work, &outline, index, &|_| Some(0))?;
        let product = |sides: [u32; 3]| sides.iter().map(|side| u128::from(*side)).product::<u128>();
        let (blocks, threads) = (product(step.grid), product(step.block));
        if blocks == 0 || threads == 0 || threads > u128::from(BLOCK_THREADS_MAX) || step.block[2] > 64 {
            return bad(format!(
                "step {index}: a block has 1 to {BLOCK_THREADS_MAX} threads, at most 64 deep, and a grid at least one block"
            ));
        }
        if step.repeat == 0 {
            return bad(format!("step {index} is repeated 0 times"));
        }
    }
    Ok(outline)
}

/// Where each buffer lies in the arena, and how large that is.
fn offsets(work: &ModuleWork) -> (Vec<u64>, u64) {
    let mut end = 0_u64;
    let starts = work.buffers.iter().map(|buffer| {
        let start = end;
        end = end.saturating_add(buffer.bytes).div_ceil(ALIGN).saturating_mul(ALIGN);
        start
    });
    let starts = starts.collect();
    (starts, end)
}

/// What a task's buffers take of a card.
#[must_use]
pub fn arena_bytes(work: &ModuleWork) -> u64 {
    offsets(work).1
}

/// The first step's arguments, with the buffers one behind the other from `arena` on.
///
/// # Errors
/// [`ModuleError::Bad`] with what does not fit.
pub fn laid_out(work: &ModuleWork, outline: &Outline, arena: u64) -> Result<Vec<u8>, ModuleError> {
    let starts = offsets(work).0;
    parameters(work, outline, 0, &|buffer| starts.get(buffer).map(|start| arena + start))
}

fn parameters(
    work: &ModuleWork,
    outline: &Outline,
    index: usize,
    address: &dyn Fn(usize) -> Option<u64>,
) -> Result<Vec<u8>, ModuleError> {
    let step = &work.steps[index];
    let Some((_, declared)) = outline.kernels.iter().find(|(name, _)| *name == step.kernel) else {
        let names: Vec<_> = outline.kernels.iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(", ");
        return Err(ModuleError::Bad(format!("the module has no kernel {:?}; it has {names}", step.kernel)));
    };
    let mut laid_out = Vec::new();
    let mut offset = 0_u64;
    for parameter in declared {
        offset = offset.div_ceil(parameter.align.max(1)).saturating_mul(parameter.align.max(1));
        laid_out.push((kind_of(parameter), u32::try_from(offset).unwrap_or(u32::MAX), parameter.bytes));
        offset = offset.saturating_add(parameter.bytes);
    }
    launch_parameters(work, index, &laid_out, address)
}

fn of_card(error: CardError) -> ModuleError {
    match error.blame {
        Blame::Module => ModuleError::Bad(error.to_string()),
        Blame::Kernel => ModuleError::Fault(error.to_string()),
        Blame::Memory | Blame::Card => ModuleError::Card(error.to_string()),
    }
}

/// Runs a task on a card. `memory_bytes`: what its slice holds. `tell` hears now and then what it has used so far.
///
/// # Errors
/// As [`ModuleError`]; outputs are written only when every launch ended well.
pub fn run(
    work: &ModuleWork,
    memory_bytes: u64,
    input: &Path,
    output: &Path,
    card: &mut dyn GpuContext,
    pace: &mut dyn Pace,
    tell: &mut dyn FnMut(&CardUse),
) -> Result<CardUse, ModuleError> {
    let outline = check(work, memory_bytes)?;
    let (starts, bytes) = offsets(work);
    let whole_pages = bytes.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES);
    let own = outline.variable_bytes;
    let arena_bytes = if whole_pages.saturating_add(own) <= memory_bytes { whole_pages } else { bytes };
    card.load(&work.ptx).map_err(of_card)?;
    let mut used = CardUse { memory_bytes: arena_bytes.saturating_add(own), ..CardUse::default() };
    if arena_bytes == 0 {
        return launches(work, &outline, &|_| Some(0), card, pace, &mut used, tell).map(|()| used);
    }
    let arena = card.allocate(arena_bytes).map_err(of_card)?;
    card.clear(arena, arena_bytes).map_err(of_card)?;
    let address = |buffer: usize| starts.get(buffer).map(|start| arena + start);
    let done = (|| {
        for (buffer, start) in work.buffers.iter().zip(&starts) {
            fill(card, arena + start, &buffer.name, buffer.bytes, &buffer.fill, input)?;
        }
        launches(work, &outline, &address, card, pace, &mut used, tell)?;
        for (buffer, start) in work.buffers.iter().zip(&starts) {
            if let Some(file) = &buffer.output {
                plain_name(file)?;
                keep(card, arena + start, buffer.bytes, &output.join(file))?;
            }
        }
        Ok(())
    })();
    // After a fault the driver has given the context up, and with it the memory: whoever gets that next clears it first.
    let cleared = card.clear(arena, arena_bytes).and_then(|()| card.free(arena));
    tell(&used);
    done?;
    cleared.map_err(of_card)?;
    Ok(used)
}

/// A turn under way: which step, how many launches, and the marks around them.
struct Turn {
    ticket: u64,
    step: usize,
    count: u32,
    from: Mark,
    to: Mark,
}

/// What is left to be asked for.
struct Rest {
    step: usize,
    left: u32,
    /// Launches of one turn of each step, as a power of two.
    sizes: Vec<u32>,
}

impl Rest {
    fn next(&mut self, work: &ModuleWork) -> Option<(usize, u32)> {
        while self.left == 0 {
            self.step += 1;
            self.left = work.steps.get(self.step)?.repeat;
        }
        let most = self.sizes[self.step].min(self.left);
        // A turn is known by step and size, so that what was measured of it fits the next: powers of two alone.
        let count = 1 << (u32::BITS - 1 - most.leading_zeros());
        self.left -= count;
        Some((self.step, count))
    }
}

fn launches(
    work: &ModuleWork,
    outline: &Outline,
    address: &dyn Fn(usize) -> Option<u64>,
    card: &mut dyn GpuContext,
    pace: &mut dyn Pace,
    used: &mut CardUse,
    tell: &mut dyn FnMut(&CardUse),
) -> Result<(), ModuleError> {
    let mut functions: Vec<(&str, Function)> = Vec::new();
    let mut prepared = Vec::with_capacity(work.steps.len());
    for (index, step) in work.steps.iter().enumerate() {
        let known = functions.iter().find(|(name, _)| *name == step.kernel).map(|(_, function)| *function);
        let function = match known {
            Some(function) => function,
            None => {
                let function = card.function(&step.kernel).map_err(of_card)?;
                functions.push((&step.kernel, function));
                function
            }
        };
        prepared.push(CardLaunch {
            function,
            grid: step.grid,
            block: step.block,
            shared_bytes: step.shared_bytes,
            parameters: parameters(work, outline, index, address)?,
        });
    }
    let at_step = |index: usize, error: CardError| match of_card(error) {
        ModuleError::Fault(text) => {
            ModuleError::Fault(format!("step {index}: {}: {text}", work.steps[index].kernel))
        }
        other => other,
    };
    let mut rest = Rest {
        step: 0,
        left: work.steps.first().map_or(0, |step| step.repeat),
        sizes: vec![1; work.steps.len()],
    };
    let mut asked: VecDeque<(usize, u32)> = VecDeque::new();
    let mut on_card: VecDeque<Turn> = VecDeque::new();
    let mut told_ns = 0;
    loop {
        while asked.len() + on_card.len() < TURNS_AHEAD
            && let Some((step, count)) = rest.next(work)
        {
            pace.ask((step as u64) << 16 | u64::from(count.trailing_zeros()));
            asked.push_back((step, count));
        }
        while let Some(&(step, count)) = asked.front()
            && let Some(ticket) = pace.granted(on_card.is_empty())
        {
            asked.pop_front();
            let from = card.mark().map_err(|error| at_step(step, error))?;
            for _ in 0..count {
                card.launch(&prepared[step]).map_err(|error| at_step(step, error))?;
            }
            let to = card.mark().map_err(|error| at_step(step, error))?;
            on_card.push_back(Turn { ticket, step, count, from, to });
        }
        let Some(turn) = on_card.pop_front() else { break };
        card.wait(turn.to).map_err(|error| at_step(turn.step, error))?;
        let took_ns = card.between_ns(turn.from, turn.to).map_err(|error| at_step(turn.step, error))?;
        pace.done(turn.ticket, took_ns);
        used.busy_ns = used.busy_ns.saturating_add(took_ns);
        used.launches += u64::from(turn.count);
        let each_ns = (took_ns / u64::from(turn.count)).max(1);
        rest.sizes[turn.step] =
            u32::try_from(TURN_NS / each_ns).unwrap_or(u32::MAX).clamp(1, TURN_LAUNCHES_MAX);
        if used.busy_ns.saturating_sub(told_ns) >= TELL_EVERY_NS {
            told_ns = used.busy_ns;
            tell(used);
        }
    }
    Ok(())
}

fn fill(
    card: &mut dyn GpuContext,
    address: u64,
    name: &str,
    bytes: u64,
    fill: &Fill,
    input: &Path,
) -> Result<(), ModuleError> {
    match fill {
        Fill::Zero => Ok(()),
        Fill::Inline { bytes } if bytes.is_empty() => Ok(()),
        Fill::Inline { bytes } => card.upload(address, bytes).map_err(of_card),
        Fill::Input { file, offset } => {
            let mut source = super::input_file(input, file, name, *offset, bytes)?;
            let reading = |source| ModuleError::Io { doing: format!("read the input {file:?}"), source };
            source.seek(SeekFrom::Start(*offset)).map_err(reading)?;
            let mut piece = vec![0; COPY_BYTES];
            let mut at = 0;
            while at < bytes {
                let part = &mut piece[..usize::try_from(bytes - at).unwrap_or(COPY_BYTES).min(COPY_BYTES)];
                source.read_exact(part).map_err(reading)?;
                card.upload(address + at, part).map_err(of_card)?;
                at += part.len() as u64;
            }
            Ok(())
        }
    }
}

fn keep(card: &mut dyn GpuContext, address: u64, bytes: u64, path: &Path) -> Result<(), ModuleError> {
    let writing = |source| ModuleError::Io { doing: format!("write the output {path:?}"), source };
    let mut file = File::create(path).map_err(writing)?;
    let mut piece = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < bytes {
        let part = &mut piece[..usize::try_from(bytes - at).unwrap_or(COPY_BYTES).min(COPY_BYTES)];
        card.download(address + at, part).map_err(of_card)?;
        file.write_all(part).map_err(writing)?;
        at += part.len() as u64;
    }
    Ok(())
}
