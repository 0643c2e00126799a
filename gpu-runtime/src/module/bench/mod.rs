//! How fast this machine runs modules: kernels of three kinds, each a task of some million instructions.

use std::path::Path;

use super::{ModuleError, Ran};
use crate::runner::{Argument, Fill, ModuleBuffer, ModuleStep, ModuleWork};

const PTX: &str = include_str!("bench.ptx");
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

/// Runs one task of this kind in this thread.
///
/// # Errors
/// As [`super::run`].
pub fn run(kind: Kind) -> Result<Ran, ModuleError> {
    let nowhere = Path::new("/nonexistent");
    super::run(&work(kind), MEMORY_BYTES, nowhere, nowhere, &mut || false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_runs_its_million_instructions() {
        for kind in Kind::ALL {
            let ran = run(kind).unwrap();
            assert!(ran.instructions > 1_000_000, "{kind:?}: {ran:?}");
        }
    }
}
