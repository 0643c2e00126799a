//! Kernels as nvcc writes them, on the CPU executor, against references computed another way.

mod compiled;
mod engines;

use std::path::Path;

use makai_gpu_runtime::module::{self, Engine, ModuleError};
use makai_gpu_runtime::runner::{Argument, Fill, ModuleBuffer, ModuleStep, ModuleWork};

const SAXPY: &str = include_str!("ptx/saxpy.ptx");
const REDUCE: &str = include_str!("ptx/reduce.ptx");
const GEMM: &str = include_str!("ptx/gemm.ptx");
const HISTOGRAM: &str = include_str!("ptx/histogram.ptx");
const SHUFFLE: &str = include_str!("ptx/shuffle.ptx");
const HOSTILE: &str = include_str!("ptx/hostile.ptx");
const MEMORY: u64 = 64 << 20;

/// Numbers that repeat and look like none: a linear congruence.
fn numbers(count: usize, seed: u32) -> Vec<u32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        })
        .collect()
}

fn bytes(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn buffer(name: &str, bytes: Vec<u8>) -> ModuleBuffer {
    ModuleBuffer { name: name.into(), bytes: bytes.len() as u64, fill: Fill::Inline { bytes }, output: None }
}

fn output(name: &str, bytes: u64) -> ModuleBuffer {
    ModuleBuffer { name: name.into(), bytes, fill: Fill::Zero, output: Some(name.into()) }
}

fn at(name: &str) -> Argument {
    Argument::Buffer { name: name.into() }
}

fn step(kernel: &str, grid: u32, block: u32, arguments: Vec<Argument>) -> ModuleStep {
    ModuleStep {
        kernel: kernel.into(),
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        shared_bytes: 0,
        arguments,
        repeat: 1,
    }
}

fn work(ptx: &str, buffers: Vec<ModuleBuffer>, steps: Vec<ModuleStep>) -> ModuleWork {
    ModuleWork { ptx: ptx.into(), buffers, steps }
}

/// Runs on both engines and gives the words of one output, which is the same from either, as the count of instructions is.
fn run(work: &ModuleWork, name: &str) -> Result<Vec<u32>, ModuleError> {
    let by = |engine| {
        let folder = tempfile::tempdir().unwrap();
        let mut looks = 0;
        let ran = module::run_by(engine, work, MEMORY, Path::new("/nowhere"), folder.path(), &mut || {
            looks += 1;
            looks > 40
        })?;
        Ok((words(&std::fs::read(folder.path().join(name)).unwrap()), ran))
    };
    let (interpreted, compiled) = (by(Engine::Interpreter), by(Engine::Compiler));
    match (interpreted, compiled) {
        (Ok((found, slow)), Ok((other, fast))) => {
            assert!(found == other, "the engines differ");
            assert_eq!(slow.instructions, fast.instructions);
            assert_eq!((slow.compiled, fast.interpreted.as_slice()), (0, [].as_slice()));
            Ok(found)
        }
        (Err(slow), Err(fast)) => {
            // Where it was ended is where the clock was looked at, which differs.
            let is_end = matches!((&slow, &fast), (ModuleError::Stopped { .. }, ModuleError::Stopped { .. }));
            assert!(is_end || slow.to_string() == fast.to_string(), "{slow}, {fast}");
            Err(slow)
        }
        (slow, fast) => panic!("one fails: interpreted {:?}, compiled {:?}", slow.err(), fast.err()),
    }
}

/// y = a * x + y, fused, for a length that no block divides.
#[test]
fn saxpy_is_bit_equal() {
    let count = 1000;
    let float = |word: u32| word as f32 / 1000.0 - 3000.0;
    let (x, y): (Vec<f32>, Vec<f32>) = (
        numbers(count, 1).into_iter().map(float).collect(),
        numbers(count, 2).into_iter().map(float).collect(),
    );
    let mut target = buffer("y", bytes(y.iter().map(|value| value.to_bits())));
    target.output = Some("y".into());
    let task = work(
        SAXPY,
        vec![buffer("x", bytes(x.iter().map(|value| value.to_bits()))), target],
        vec![step(
            "saxpy",
            8,
            128,
            vec![Argument::U32 { value: 1000 }, Argument::F32 { value: 2.7 }, at("x"), at("y")],
        )],
    );
    let found = run(&task, "y").unwrap();
    for (index, found) in found.into_iter().enumerate() {
        // A fused multiply-add of singles, by exact arithmetic in double: 48 bits of product fit 53, and where the sum
        // does not, it is left out.
        let exact = f64::from(2.7f32) * f64::from(x[index]);
        let sum = exact + f64::from(y[index]);
        if sum - exact == f64::from(y[index]) && sum - f64::from(y[index]) == exact {
            assert_eq!(found, (sum as f32).to_bits(), "element {index}");
        }
    }
}

/// Sums by blocks through shared memory and barriers; the blocks' sums by one atomic each.
#[test]
fn a_reduction_sums() {
    let values = numbers(10_000, 3);
    let task = work(
        REDUCE,
        vec![buffer("in", bytes(values.iter().copied())), output("sum", 4)],
        vec![step("reduce", 40, 256, vec![at("in"), at("sum"), Argument::U32 { value: 10_000 }])],
    );
    let expected = values.iter().fold(0u32, |sum, value| sum.wrapping_add(*value));
    assert_eq!(run(&task, "sum").unwrap(), [expected]);
}

/// A matrix product in tiles of 16 by 16, two-dimensional blocks and shared memory, in integers and so exact.
#[test]
fn a_tiled_gemm_multiplies() {
    let n = 48usize;
    let (a, b) = (numbers(n * n, 4), numbers(n * n, 5));
    let mut launch = step("gemm", 3, 16, vec![at("a"), at("b"), at("c"), Argument::U32 { value: n as u32 }]);
    (launch.grid, launch.block) = ([3, 3, 1], [16, 16, 1]);
    let task = work(
        GEMM,
        vec![
            buffer("a", bytes(a.iter().copied())),
            buffer("b", bytes(b.iter().copied())),
            output("c", (n * n * 4) as u64),
        ],
        vec![launch],
    );
    let found = run(&task, "c").unwrap();
    for row in 0..n {
        for column in 0..n {
            let exact: u128 =
                (0..n).map(|k| u128::from(a[row * n + k]) * u128::from(b[k * n + column])).sum();
            assert_eq!(found[row * n + column], exact as u32, "{row},{column}");
        }
    }
}

#[test]
fn a_histogram_counts_with_atomics() {
    let data: Vec<u8> = numbers(5000, 6).into_iter().map(|word| word as u8).collect();
    let task = work(
        HISTOGRAM,
        vec![buffer("data", data.clone()), output("bins", 1024)],
        vec![step("histogram", 10, 64, vec![at("data"), at("bins"), Argument::U32 { value: 5000 }])],
    );
    let found = run(&task, "bins").unwrap();
    for (value, found) in found.iter().enumerate() {
        assert_eq!(
            *found as usize,
            data.iter().filter(|byte| usize::from(**byte) == value).count(),
            "value {value}"
        );
    }
}

/// A warp's sum by exchanges, and its ballot.
#[test]
fn a_warp_exchanges() {
    let values = numbers(32, 7);
    let task = work(
        SHUFFLE,
        vec![buffer("in", bytes(values.iter().copied())), output("out", 8)],
        vec![step("warp_sum", 1, 32, vec![at("in"), at("out")])],
    );
    let sum = values.iter().fold(0u32, |sum, value| sum.wrapping_add(*value));
    let odd = values.iter().enumerate().fold(0u32, |bits, (lane, value)| bits | (value & 1) << lane);
    assert_eq!(run(&task, "out").unwrap(), [sum, odd]);
}

fn hostile(kernel: &str, block: u32) -> Result<Vec<u32>, ModuleError> {
    run(&work(HOSTILE, vec![output("out", 64)], vec![step(kernel, 1, block, vec![at("out")])]), "out")
}

#[test]
fn a_loop_for_ever_is_ended() {
    assert!(matches!(hostile("forever", 1), Err(ModuleError::Stopped { steps }) if steps > 1 << 20));
}

#[test]
fn a_fault_names_place_and_address() {
    let fault = |kernel, block| match hostile(kernel, block) {
        Err(ModuleError::Fault(text)) => text,
        other => panic!("{kernel}: {other:?}"),
    };
    let text = fault("outside", 17);
    assert!(
        text.contains("thread [16, 0, 0]") && text.contains("at byte 64 of a buffer of 64 bytes"),
        "{text}"
    );
    assert!(fault("wild", 1).contains("where there is no buffer"));
    assert!(fault("crooked", 1).contains("not a multiple of 4"));
    assert!(fault("shared_outside", 1).contains("bytes of shared memory"));
    assert!(fault("trapped", 1).contains("it trapped"));
    assert!(fault("lonely", 32).contains("never come"));
}

/// What is wrong is said before anything runs, with the name or number to change.
#[test]
fn wrong_tasks_are_refused_with_a_reason() {
    let good = || work(HOSTILE, vec![output("out", 64)], vec![step("outside", 1, 1, vec![at("out")])]);
    type Change = fn(&mut ModuleWork);
    let wrong: [(Change, &str); 11] = [
        (|work| work.steps[0].kernel = "none".into(), "no kernel \"none\"; it has forever"),
        (|work| work.steps[0].arguments.clear(), "0 arguments; it takes 1"),
        (|work| work.steps[0].arguments = vec![Argument::F64 { value: 1.0 }], "takes 8 bytes"),
        (|work| work.steps[0].arguments = vec![Argument::Buffer { name: "x".into() }], "no buffer \"x\""),
        (|work| work.steps[0].grid = [1 << 20, 1 << 10, 1], "1099511627776 threads in all"),
        (|work| work.steps[0].block = [1025, 1, 1], "a block of 1025 threads"),
        (|work| work.steps[0].grid = [0, 1, 1], "at least one"),
        (|work| work.steps[0].shared_bytes = 1 << 20, "bytes of shared memory"),
        (|work| work.buffers[0].bytes = 1 << 60, "limits.memory_bytes"),
        (|work| work.buffers[0].output = Some("../harm".into()), "no plain file name"),
        (
            |work| work.ptx = work.ptx.replace("trap;", "wmma.load.a.sync.aligned.row.m16n16k16.f16 x;"),
            "wmma.load",
        ),
    ];
    for (change, expected) in wrong {
        let mut task = good();
        change(&mut task);
        if task.steps[0].grid[0] == 1 << 20 {
            task.steps[0].block = [1024, 1, 1];
        }
        let error = module::check(&task, MEMORY).unwrap_err();
        assert!(
            matches!(&error, ModuleError::Bad(text) if text.contains(expected)),
            "{error} is not {expected}"
        );
    }
}

/// Text that is cut, or changed in any byte, is refused or means something else; it never panics.
#[test]
fn damaged_text_never_panics() {
    for text in [SAXPY, REDUCE, SHUFFLE] {
        for at in (0..text.len()).step_by(11) {
            _ = module::ptx::load(&text[..at]);
            for other in ["", "0", "{", "-", ";", "%r9", ".v4"] {
                let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
                _ = module::ptx::load(&changed);
            }
        }
    }
}
