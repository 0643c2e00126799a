//! How fast this machine runs modules: kernels of three kinds, each a task of some million instructions; and the same work as
//! plain C, to hold them against.

use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

use super::{Engine, ModuleError, Ran};
use crate::runner::{Argument, Fill, ModuleBuffer, ModuleStep, ModuleWork};

const PTX: &str = include_str!("bench.ptx");
/// A program that does the same work in one thread and prints each kernel's name and the nanoseconds of its fastest run.
pub const PLAIN_C: &str = include_str!("bench.c");
const MEMORY_BYTES: u64 = 64 << 20;
/// Threads of the kernel of integers, elements of the one of memory, and the side of the matrices.
const THREADS: u32 = 1 << 12;
const ELEMENTS: u32 = 1 << 18;
const SIDE: u32 = 128;

/// What a kernel mostly does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Integers,
    Floats,
    Memory,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Integers, Self::Floats, Self::Memory];

    /// The kernel's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Integers => "mix",
            Self::Floats => "gemm",
            Self::Memory => "saxpy",
        }
    }
}

/// A task of this kind.
#[must_use]
pub fn work(kind: Kind) -> ModuleWork {
    let buffer =
        |name: &str, bytes: u64| ModuleBuffer { name: name.into(), bytes, fill: Fill::Zero, output: None };
    let at = |name: &str| Argument::Buffer { name: name.into() };
    let int = |value: u32| Argument::Integer { value: value.into() };
    let square = u64::from(SIDE) * u64::from(SIDE) * 4;
    let line = u64::from(ELEMENTS) * 4;
    let (buffers, grid, block, arguments) = match kind {
        Kind::Integers => {
            let buffers = vec![buffer("out", u64::from(THREADS) * 4)];
            (buffers, [THREADS / 128, 1, 1], [128, 1, 1], vec![at("out")])
        }
        Kind::Floats => {
            let buffers = vec![buffer("a", square), buffer("b", square), buffer("c", square)];
            let arguments = vec![at("a"), at("b"), at("c"), int(SIDE)];
            (buffers, [SIDE / 16, SIDE / 16, 1], [16, 16, 1], arguments)
        }
        Kind::Memory => {
            let arguments = vec![int(ELEMENTS), Argument::Real { value: 2.0 }, at("x"), at("y")];
            (vec![buffer("x", line), buffer("y", line)], [ELEMENTS / 256, 1, 1], [256, 1, 1], arguments)
        }
    };
    let kernel = kind.name().to_owned();
    let step = ModuleStep { kernel, grid, block, shared_bytes: 0, arguments, repeat: 1 };
    ModuleWork { ptx: PTX.into(), buffers, steps: vec![step] }
}

/// Runs one task of this kind in this thread, its launch made `repeat` times.
///
/// # Errors
/// As [`super::run`].
pub fn run(kind: Kind, engine: Engine, repeat: u32) -> Result<Ran, ModuleError> {
    let nowhere = Path::new("/nonexistent");
    let mut work = work(kind);
    work.steps[0].repeat = repeat;
    super::run_by(engine, &work, MEMORY_BYTES, nowhere, nowhere, &mut || false)
}

/// How fast one kind runs.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    /// Instructions of all threads of one launch.
    pub instructions: u64,
    /// Processor time of a launch, the least that was seen; what compiling takes is spread over [`LAUNCHES`].
    pub least_ns: u64,
}

impl Speed {
    /// Millions of instructions in a second.
    #[must_use]
    pub fn mips(self) -> f64 {
        self.instructions as f64 * 1e3 / self.least_ns.max(1) as f64
    }
}

/// Launches of one task that is measured.
pub const LAUNCHES: u32 = 16;
const RUNS: usize = 5;

/// Measures one kind in this thread, by this thread's processor time.
///
/// # Errors
/// As [`super::run`].
pub fn measure(kind: Kind, engine: Engine) -> Result<Speed, ModuleError> {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    };
    let mut best = Speed { instructions: 0, least_ns: u64::MAX };
    for _ in 0..RUNS {
        let begun = now();
        let ran = run(kind, engine, LAUNCHES)?;
        let took = (now() - begun) / u64::from(LAUNCHES);
        best =
            Speed { instructions: ran.instructions / u64::from(LAUNCHES), least_ns: best.least_ns.min(took) };
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_runs_its_million_instructions() {
        for kind in Kind::ALL {
            let ran = run(kind, Engine::Interpreter, 1).unwrap();
            assert!(ran.instructions > 1_000_000, "{kind:?}: {ran:?}");
            let compiled = run(kind, Engine::Compiler, 1).unwrap();
            assert_eq!((compiled.instructions, compiled.compiled), (ran.instructions, 1), "{kind:?}");
        }
    }
}
