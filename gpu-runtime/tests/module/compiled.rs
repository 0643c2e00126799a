//! Kernels that NVIDIA's compiler made of `cuda/kernels.cu`, against references computed another way.

use makai_gpu_runtime::module;
use makai_gpu_runtime::runner::{Argument, ModuleBuffer, ModuleStep};
use ring::digest::{SHA256, digest};

use super::{MEMORY, at, buffer, bytes, numbers, output, run, step, work};

const KERNELS: &str = include_str!("ptx/kernels.ptx");

fn int(value: i64) -> Argument {
    Argument::Integer { value }
}

/// Floats with few digits: sums of products of them are exact, so that any order gives the same.
fn floats(count: usize, seed: u32) -> Vec<f32> {
    numbers(count, seed).into_iter().map(|word| (word % 2048) as f32 / 64.0 - 16.0).collect()
}

fn float_bytes(values: &[f32]) -> Vec<u8> {
    bytes(values.iter().map(|value| value.to_bits()))
}

fn result(buffers: Vec<ModuleBuffer>, steps: Vec<ModuleStep>, name: &str) -> Vec<u32> {
    run(&work(KERNELS, buffers, steps), name).unwrap()
}

#[test]
fn every_kernel_is_taken_and_the_exact_ones_are_known() {
    let module = module::ptx::load(KERNELS).unwrap();
    assert_eq!(module.kernels.len(), 10);
    for kernel in &module.kernels {
        assert!(kernel.inexact.is_empty(), "{}: {:?}", kernel.name, kernel.inexact);
    }
}

#[test]
fn vectors_are_added() {
    let (a, b) = (floats(1000, 1), floats(1000, 2));
    let buffers = vec![buffer("a", float_bytes(&a)), buffer("b", float_bytes(&b)), output("c", 4000)];
    let found =
        result(buffers, vec![step("vector_add", 8, 128, vec![at("a"), at("b"), at("c"), int(1000)])], "c");
    for (at, found) in found.into_iter().enumerate() {
        assert_eq!(found, (a[at] + b[at]).to_bits(), "{at}");
    }
}

/// A loop over the grid, for a count that nothing divides.
#[test]
fn saxpy_strides_over_its_grid() {
    let (x, y) = (floats(777, 1), floats(777, 2));
    let mut target = buffer("y", float_bytes(&y));
    target.output = Some("y".into());
    let arguments = vec![int(777), Argument::Real { value: 0.5 }, at("x"), at("y")];
    let found =
        result(vec![buffer("x", float_bytes(&x)), target], vec![step("saxpy", 2, 96, arguments)], "y");
    for (at, found) in found.into_iter().enumerate() {
        assert_eq!(found, (0.5 * x[at] + y[at]).to_bits(), "{at}");
    }
}

#[test]
fn blocks_sum_through_shared_memory_and_exchanges() {
    let values = numbers(5000, 3);
    let buffers = vec![buffer("in", bytes(values.iter().copied())), output("sums", 40)];
    let found =
        result(buffers, vec![step("block_sum", 10, 256, vec![at("in"), at("sums"), int(5000)])], "sums");
    for (block, found) in found.into_iter().enumerate() {
        let own = values.iter().skip(block * 512).take(512);
        assert_eq!(found, own.fold(0u32, |sum, value| sum.wrapping_add(*value)), "block {block}");
    }
}

fn tiles(kernel: &str, n: u32) -> ModuleStep {
    let mut launch = step(kernel, 1, 1, vec![at("a"), at("b"), at("c"), int(n.into())]);
    (launch.grid, launch.block) = ([n / 16, n / 16, 1], [16, 16, 1]);
    launch
}

#[test]
fn matrices_of_floats_are_multiplied() {
    let n = 64usize;
    let (a, b) = (floats(n * n, 4), floats(n * n, 5));
    let buffers =
        vec![buffer("a", float_bytes(&a)), buffer("b", float_bytes(&b)), output("c", (n * n * 4) as u64)];
    let found = result(buffers, vec![tiles("gemm_f32", n as u32)], "c");
    for row in 0..n {
        for column in 0..n {
            let exact: f64 = (0..n).map(|k| f64::from(a[row * n + k]) * f64::from(b[k * n + column])).sum();
            assert_eq!(f64::from(f32::from_bits(found[row * n + column])), exact, "{row},{column}");
        }
    }
}

#[test]
fn matrices_of_integers_are_multiplied() {
    let n = 32usize;
    let (a, b) = (numbers(n * n, 4), numbers(n * n, 5));
    let buffers = vec![
        buffer("a", bytes(a.iter().copied())),
        buffer("b", bytes(b.iter().copied())),
        output("c", (n * n * 4) as u64),
    ];
    let found = result(buffers, vec![tiles("gemm_i32", n as u32)], "c");
    for row in 0..n {
        for column in 0..n {
            let exact: u128 =
                (0..n).map(|k| u128::from(a[row * n + k]) * u128::from(b[k * n + column])).sum();
            assert_eq!(found[row * n + column], exact as u32, "{row},{column}");
        }
    }
}

#[test]
fn bytes_are_counted_in_shared_memory() {
    let data: Vec<u8> = numbers(5000, 6).into_iter().map(|word| word as u8).collect();
    let buffers = vec![buffer("data", data.clone()), output("bins", 1024)];
    let found =
        result(buffers, vec![step("histogram", 4, 96, vec![at("data"), at("bins"), int(5000)])], "bins");
    for (value, found) in found.iter().enumerate() {
        let count = data.iter().filter(|byte| usize::from(**byte) == value).count();
        assert_eq!(*found as usize, count, "value {value}");
    }
}

/// Two levels of prefix sums, then the sums of blocks added: four launches on the same buffers.
#[test]
fn prefixes_are_summed() {
    let (block, blocks) = (128u32, 20u32);
    let count = (block * blocks) as usize - 37;
    let values = numbers(count, 7);
    let buffers = vec![
        buffer("in", bytes(values.iter().copied())),
        output("out", count as u64 * 4),
        output("sums", u64::from(blocks) * 4),
        output("all", u64::from(blocks) * 4),
        output("top", 4),
    ];
    let mut scan =
        step("scan_block", blocks, block, vec![at("in"), at("out"), at("sums"), int(count as i64)]);
    scan.shared_bytes = block * 4;
    let mut above = step("scan_block", 1, 32, vec![at("sums"), at("all"), at("top"), int(blocks.into())]);
    above.shared_bytes = 32 * 4;
    let add = step("scan_add", blocks, block, vec![at("out"), at("all"), int(count as i64)]);
    let found = result(buffers, vec![scan, above, add], "out");
    let mut sum = 0u32;
    for (at, value) in values.into_iter().enumerate() {
        sum = sum.wrapping_add(value);
        assert_eq!(found[at], sum, "{at}");
    }
}

/// Forces between bodies, with exact roots and divisions: bit for bit what the same operations give here.
#[test]
fn bodies_attract() {
    let n = 96usize;
    let places = floats(n * 4, 8);
    let buffers = vec![buffer("at", float_bytes(&places)), output("force", n as u64 * 16)];
    let found =
        result(buffers, vec![step("nbody", 3, 64, vec![at("at"), at("force"), int(n as i64)])], "force");
    for i in 0..n {
        let (mut x, mut y, mut z) = (0f32, 0f32, 0f32);
        let own = &places[i * 4..];
        for other in places.chunks_exact(4) {
            let (dx, dy, dz) = (other[0] - own[0], other[1] - own[1], other[2] - own[2]);
            let square = dx.mul_add(dx, dy.mul_add(dy, dz.mul_add(dz, 0.01)));
            let weight = other[3] / (square * square.sqrt());
            (x, y, z) = (dx.mul_add(weight, x), dy.mul_add(weight, y), dz.mul_add(weight, z));
        }
        assert_eq!(found[i * 4..][..3], [x.to_bits(), y.to_bits(), z.to_bits()], "body {i}");
    }
}

/// The least nonce whose hash begins with ten zero bits, as another implementation finds it.
#[test]
fn a_hash_is_searched_for() {
    let (prefix, zeros) = (0x6D616B61u32, 10u32);
    let leading = |nonce: u32| {
        let hash = digest(&SHA256, &[prefix.to_be_bytes(), nonce.to_be_bytes()].concat());
        u32::from_be_bytes(hash.as_ref()[..4].try_into().unwrap()).leading_zeros()
    };
    let expected = (0..4096).find(|nonce| leading(*nonce) >= zeros).unwrap();
    let mut best = buffer("found", vec![0xFF; 4]);
    best.output = Some("found".into());
    let arguments = vec![int(prefix.into()), int(0), int(zeros.into()), at("found")];
    assert_eq!(result(vec![best], vec![step("sha256_search", 32, 128, arguments)], "found"), [expected]);
}

/// An argument is refused where the kernel's parameter cannot hold it.
#[test]
fn numbers_take_the_width_that_the_kernel_declares() {
    let task = |argument: Argument| {
        let arguments = vec![argument, Argument::Real { value: 0.5 }, at("x"), at("x")];
        work(KERNELS, vec![output("x", 64)], vec![step("saxpy", 1, 1, arguments)])
    };
    for fits in [int(-1), int(u32::MAX.into()), Argument::Unsigned { value: 7 }] {
        module::check(&task(fits), MEMORY).unwrap();
    }
    let wrong = [int(1 << 32), int(-(1 << 31) - 1), Argument::Real { value: 1.0 }, at("x")];
    for argument in wrong {
        let error = module::check(&task(argument), MEMORY).unwrap_err().to_string();
        assert!(error.contains("argument 0 is") && error.contains("takes 4 bytes"), "{error}");
    }
}
