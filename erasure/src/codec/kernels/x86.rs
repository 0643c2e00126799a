//! The kernels of x86-64.
//!
//! | family       | a product is                                | CPUs                                      |
//! |--------------|---------------------------------------------|-------------------------------------------|
//! | `avx512gfni` | one `vgf2p8affineqb` of 64 bytes            | Ice Lake and Zen 4 servers, and later     |
//! | `avx2gfni`   | one of 32 bytes                             | Alder Lake and later desktops             |
//! | `avx2`       | two `vpshufb` of 32 bytes                   | Haswell and Zen, and later                |
//! | `ssse3`      | two `pshufb` of 16 bytes                    | all since 2006, Celeron and Atom included |

use super::{Family, Kernel};

/// `None` where the CPU lacks it.
pub(super) fn family(kernel: Kernel) -> Option<&'static Family> {
    match kernel {
        Kernel::Avx512Gfni => (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("gfni"))
        .then_some(&avx512gfni::FAMILY),
        Kernel::Avx2Gfni => (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("gfni"))
            .then_some(&avx2gfni::FAMILY),
        Kernel::Avx2 => is_x86_feature_detected!("avx2").then_some(&avx2::FAMILY),
        Kernel::Ssse3 => is_x86_feature_detected!("ssse3").then_some(&ssse3::FAMILY),
        Kernel::Neon | Kernel::Portable => None,
    }
}

fn store_fence() {
    // SAFETY: every x86-64 CPU has SSE, and the instruction touches nothing but the order of stores.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

/// Zero, loads, stores and prefetches of 32 bytes.
macro_rules! ymm_memory {
    ($features:literal) => {
        #[inline]
        #[target_feature(enable = $features)]
        fn zero() -> Vector {
            _mm256_setzero_si256()
        }

        /// # Safety
        /// 32 bytes at `at` are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load(at: *const u8) -> Vector {
            // SAFETY: the caller's promise; the load needs no alignment.
            unsafe { _mm256_loadu_si256(at.cast()) }
        }

        /// # Safety
        /// 32 bytes at `at` are writable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn store(at: *mut u8, vector: Vector) {
            // SAFETY: the caller's promise; the store needs no alignment.
            unsafe { _mm256_storeu_si256(at.cast(), vector) }
        }

        /// # Safety
        /// 32 bytes at `at` are writable, and `at` is a multiple of 32.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn store_past_caches(at: *mut u8, vector: Vector) {
            // SAFETY: the caller's promise.
            unsafe { _mm256_stream_si256(at.cast(), vector) }
        }

        #[inline]
        #[target_feature(enable = $features)]
        /// A hint: it may name any address and never faults.
        fn prefetch(at: *const u8) {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn settle(mut sum: Vector) -> Vector {
            // SAFETY: no instruction at all.
            unsafe {
                asm!("/* {0} */", inout(ymm_reg) sum, options(pure, nomem, nostack, preserves_flags));
            }
            sum
        }
    };
}

mod avx512gfni {
    use std::arch::{asm, x86_64::*};

    use super::super::{Block, COLUMNS_MAX, Call, Family, PREFETCH_BYTES, STEP_BYTES, Table};

    pub static FAMILY: Family = Family {
        table: TABLE,
        rows_max: ROWS_MAX,
        align_bytes: Some(VECTOR_BYTES),
        cached,
        streaming,
        fence: super::store_fence,
    };

    type Vector = __m512i;
    const VECTOR_BYTES: usize = 64;
    const TABLE: Table = Table::Affine;
    /// Two, since one instruction adds two products to a sum.
    const COLUMNS_PER_SUM: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    fn zero() -> Vector {
        _mm512_setzero_si512()
    }

    /// # Safety
    /// 64 bytes at `at` are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    unsafe fn load(at: *const u8) -> Vector {
        // SAFETY: the caller's promise; the load needs no alignment.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    /// # Safety
    /// 64 bytes at `at` are writable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    unsafe fn store(at: *mut u8, vector: Vector) {
        // SAFETY: the caller's promise; the store needs no alignment.
        unsafe { _mm512_storeu_si512(at.cast(), vector) }
    }

    /// # Safety
    /// 64 bytes at `at` are writable, and `at` is a multiple of 64.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    unsafe fn store_past_caches(at: *mut u8, vector: Vector) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_stream_si512(at.cast(), vector) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    /// A hint: it may name any address and never faults.
    fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    fn input(vector: Vector) -> Vector {
        vector
    }

    /// # Safety
    /// 8 bytes at `at` are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    unsafe fn coefficient(at: *const u8) -> Vector {
        // SAFETY: the caller's promise; the read needs no alignment.
        _mm512_set1_epi64(unsafe { at.cast::<i64>().read_unaligned() })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    fn add_product(sum: Vector, input: Vector, factor: Vector) -> Vector {
        _mm512_xor_si512(sum, _mm512_gf2p8affine_epi64_epi8::<0>(input, factor))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    fn settle(mut sum: Vector) -> Vector {
        // SAFETY: no instruction at all.
        unsafe {
            asm!("/* {0} */", inout(zmm_reg) sum, options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }

    blocks!("avx512f,avx512bw,gfni", 8, 2, 1, 1 2 3 4 5 6 7 8);
}

mod avx2gfni {
    use std::arch::{asm, x86_64::*};

    use super::super::{Block, COLUMNS_MAX, Call, Family, PREFETCH_BYTES, STEP_BYTES, Table};

    pub static FAMILY: Family = Family {
        table: TABLE,
        rows_max: ROWS_MAX,
        align_bytes: Some(VECTOR_BYTES),
        cached,
        streaming,
        fence: super::store_fence,
    };

    type Vector = __m256i;
    const VECTOR_BYTES: usize = 32;
    const TABLE: Table = Table::Affine;
    const COLUMNS_PER_SUM: usize = 1;

    ymm_memory!("avx2,gfni");

    #[inline]
    #[target_feature(enable = "avx2,gfni")]
    fn input(vector: Vector) -> Vector {
        vector
    }

    /// # Safety
    /// 8 bytes at `at` are readable.
    #[inline]
    #[target_feature(enable = "avx2,gfni")]
    unsafe fn coefficient(at: *const u8) -> Vector {
        // SAFETY: the caller's promise; the read needs no alignment.
        _mm256_set1_epi64x(unsafe { at.cast::<i64>().read_unaligned() })
    }

    #[inline]
    #[target_feature(enable = "avx2,gfni")]
    fn add_product(sum: Vector, input: Vector, factor: Vector) -> Vector {
        _mm256_xor_si256(sum, _mm256_gf2p8affine_epi64_epi8::<0>(input, factor))
    }

    blocks!("avx2,gfni", 4, 2, 2, 1 2 3 4);
}

mod avx2 {
    use std::arch::{asm, x86_64::*};

    use super::super::{Block, COLUMNS_MAX, Call, Family, PREFETCH_BYTES, STEP_BYTES, Table};

    pub static FAMILY: Family = Family {
        table: TABLE,
        rows_max: ROWS_MAX,
        align_bytes: Some(VECTOR_BYTES),
        cached,
        streaming,
        fence: super::store_fence,
    };

    type Vector = __m256i;
    const VECTOR_BYTES: usize = 32;
    const TABLE: Table = Table::Nibbles;
    const COLUMNS_PER_SUM: usize = 1;

    ymm_memory!("avx2");

    /// The low and the high four bits of every byte.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn input(vector: Vector) -> (Vector, Vector) {
        let low_bits = _mm256_set1_epi8(0x0F);
        (_mm256_and_si256(vector, low_bits), _mm256_and_si256(_mm256_srli_epi64::<4>(vector), low_bits))
    }

    /// The products of the low and of the high four bits.
    ///
    /// # Safety
    /// 32 bytes at `at` are readable.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn coefficient(at: *const u8) -> (Vector, Vector) {
        // SAFETY: the caller's promise; the loads need no alignment.
        unsafe {
            (
                _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast())),
                _mm256_broadcastsi128_si256(_mm_loadu_si128(at.add(16).cast())),
            )
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_product(sum: Vector, input: (Vector, Vector), factor: (Vector, Vector)) -> Vector {
        let (low, high) = (_mm256_shuffle_epi8(factor.0, input.0), _mm256_shuffle_epi8(factor.1, input.1));
        _mm256_xor_si256(_mm256_xor_si256(sum, low), high)
    }

    blocks!("avx2", 4, 2, 2, 1 2 3 4);
}

mod ssse3 {
    use std::arch::{asm, x86_64::*};

    use super::super::{Block, COLUMNS_MAX, Call, Family, PREFETCH_BYTES, STEP_BYTES, Table};

    pub static FAMILY: Family = Family {
        table: TABLE,
        rows_max: ROWS_MAX,
        align_bytes: Some(VECTOR_BYTES),
        cached,
        streaming,
        fence: super::store_fence,
    };

    type Vector = __m128i;
    const VECTOR_BYTES: usize = 16;
    const TABLE: Table = Table::Nibbles;
    const COLUMNS_PER_SUM: usize = 1;

    #[inline]
    #[target_feature(enable = "ssse3")]
    fn zero() -> Vector {
        _mm_setzero_si128()
    }

    /// # Safety
    /// 16 bytes at `at` are readable.
    #[inline]
    #[target_feature(enable = "ssse3")]
    unsafe fn load(at: *const u8) -> Vector {
        // SAFETY: the caller's promise; the load needs no alignment.
        unsafe { _mm_loadu_si128(at.cast()) }
    }

    /// # Safety
    /// 16 bytes at `at` are writable.
    #[inline]
    #[target_feature(enable = "ssse3")]
    unsafe fn store(at: *mut u8, vector: Vector) {
        // SAFETY: the caller's promise; the store needs no alignment.
        unsafe { _mm_storeu_si128(at.cast(), vector) }
    }

    /// # Safety
    /// 16 bytes at `at` are writable, and `at` is a multiple of 16.
    #[inline]
    #[target_feature(enable = "ssse3")]
    unsafe fn store_past_caches(at: *mut u8, vector: Vector) {
        // SAFETY: the caller's promise.
        unsafe { _mm_stream_si128(at.cast(), vector) }
    }

    #[inline]
    #[target_feature(enable = "ssse3")]
    /// A hint: it may name any address and never faults.
    fn prefetch(at: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }

    /// The low and the high four bits of every byte.
    #[inline]
    #[target_feature(enable = "ssse3")]
    fn input(vector: Vector) -> (Vector, Vector) {
        let low_bits = _mm_set1_epi8(0x0F);
        (_mm_and_si128(vector, low_bits), _mm_and_si128(_mm_srli_epi64::<4>(vector), low_bits))
    }

    /// The products of the low and of the high four bits.
    ///
    /// # Safety
    /// 32 bytes at `at` are readable.
    #[inline]
    #[target_feature(enable = "ssse3")]
    unsafe fn coefficient(at: *const u8) -> (Vector, Vector) {
        // SAFETY: the caller's promise.
        unsafe { (load(at), load(at.add(16))) }
    }

    #[inline]
    #[target_feature(enable = "ssse3")]
    fn add_product(sum: Vector, input: (Vector, Vector), factor: (Vector, Vector)) -> Vector {
        let (low, high) = (_mm_shuffle_epi8(factor.0, input.0), _mm_shuffle_epi8(factor.1, input.1));
        _mm_xor_si128(_mm_xor_si128(sum, low), high)
    }

    #[inline]
    #[target_feature(enable = "ssse3")]
    fn settle(mut sum: Vector) -> Vector {
        // SAFETY: no instruction at all.
        unsafe {
            asm!("/* {0} */", inout(xmm_reg) sum, options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }

    blocks!("ssse3", 4, 2, 2, 1 2 3 4);
}
