//! The kernel of aarch64: two `tbl` of 16 bytes per product.

use std::arch::{aarch64::*, asm};

use super::{Block, COLUMNS_MAX, Call, Family, Kernel, STEP_BYTES, Table};

/// `None` where the CPU lacks it.
pub(super) fn family(kernel: Kernel) -> Option<&'static Family> {
    (kernel == Kernel::Neon && std::arch::is_aarch64_feature_detected!("neon")).then_some(&FAMILY)
}

static FAMILY: Family =
    Family { table: TABLE, rows_max: ROWS_MAX, align_bytes: None, cached, streaming, fence: || {} };

type Vector = uint8x16_t;
const VECTOR_BYTES: usize = 16;
const TABLE: Table = Table::Nibbles;
const COLUMNS_PER_SUM: usize = 1;
/// Of no use: the hardware follows the streams, and stable Rust has no prefetch for this architecture.
const PREFETCH_BYTES: usize = 0;

#[inline]
#[target_feature(enable = "neon")]
fn zero() -> Vector {
    vdupq_n_u8(0)
}

/// # Safety
/// 16 bytes at `at` are readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load(at: *const u8) -> Vector {
    // SAFETY: the caller's promise; the load needs no alignment.
    unsafe { vld1q_u8(at) }
}

/// # Safety
/// 16 bytes at `at` are writable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store(at: *mut u8, vector: Vector) {
    // SAFETY: the caller's promise; the store needs no alignment.
    unsafe { vst1q_u8(at, vector) }
}

/// A plain store: the family asks for no other.
///
/// # Safety
/// 16 bytes at `at` are writable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store_past_caches(at: *mut u8, vector: Vector) {
    // SAFETY: the caller's promise.
    unsafe { store(at, vector) }
}

#[inline]
#[target_feature(enable = "neon")]
fn prefetch(_: *const u8) {}

/// The low and the high four bits of every byte.
#[inline]
#[target_feature(enable = "neon")]
fn input(vector: Vector) -> (Vector, Vector) {
    (vandq_u8(vector, vdupq_n_u8(0x0F)), vshrq_n_u8::<4>(vector))
}

/// The products of the low and of the high four bits.
///
/// # Safety
/// 32 bytes at `at` are readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn coefficient(at: *const u8) -> (Vector, Vector) {
    // SAFETY: the caller's promise.
    unsafe { (load(at), load(at.add(16))) }
}

#[inline]
#[target_feature(enable = "neon")]
fn add_product(sum: Vector, input: (Vector, Vector), factor: (Vector, Vector)) -> Vector {
    veorq_u8(veorq_u8(sum, vqtbl1q_u8(factor.0, input.0)), vqtbl1q_u8(factor.1, input.1))
}

#[inline]
#[target_feature(enable = "neon")]
fn settle(mut sum: Vector) -> Vector {
    // SAFETY: no instruction at all.
    unsafe {
        asm!("/* {0:v} */", inout(vreg) sum, options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

blocks!("neon", 4, 4, 4, 1 2 3 4);
