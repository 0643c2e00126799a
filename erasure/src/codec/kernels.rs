//! Applying a constant matrix to slices of bytes, as fast as this CPU can.
//!
//! ```text
//! output[row][byte] = sum over columns of matrix[row][column] * input[column][byte]
//! ```
//!
//! [`LinearMap`] holds a matrix, prepared for one [`Kernel`]: cut into blocks of as many rows and columns as the
//! kernel keeps in registers, the multiplication tables of a block side by side in the order of their use.
//! [`LinearMap::apply`] is the gate between safe code and the vector kernels: it checks all that they rely on.
//!
//! Two ways through memory. A stripe of at most [`CACHED_BYTES_MAX`] is taken to be in cache, and to be read
//! soon again: several vectors per step, plain stores. A larger one streams: one cache line of every input per
//! step, prefetched, and outputs stored past the caches. In both every input has its own load instruction, since
//! the prefetchers of CPUs tell streams apart by the address of the instruction.

use std::{ops::Range, sync::OnceLock};

use super::gf;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[macro_use]
mod blocks;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Inputs of at most this many bytes in all are taken to be in cache.
const CACHED_BYTES_MAX: usize = 1 << 20;

/// Every kernel works on multiples of this many bytes; the rest of a slice goes through a padded copy.
const STEP_BYTES: usize = 128;

/// Where a matrix takes several blocks, they are all applied to this many bytes of every slice before the next,
/// so that what they share stays in the first cache.
const CHUNK_BYTES: usize = 2048;

/// How far ahead of its loads a streaming kernel prefetches.
#[cfg(target_arch = "x86_64")]
const PREFETCH_BYTES: usize = 1024;

/// Shards a matrix may name: as many as a stripe has at most.
pub(super) const SLICES_MAX: usize = 64;

/// The instructions that a codec computes with, the fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// x86-64: one 8x8 bit matrix per product, 64 bytes at once.
    Avx512Gfni,
    /// x86-64: the same, 32 bytes at once.
    Avx2Gfni,
    /// x86-64: two look-ups of four bits per product, 32 bytes at once.
    Avx2,
    /// x86-64: the same, 16 bytes at once.
    Ssse3,
    /// aarch64: the same, 16 bytes at once.
    Neon,
    /// Any CPU: one look-up per product and byte. What the others are checked against.
    Portable,
}

impl Kernel {
    pub const ALL: [Self; 6] =
        [Self::Avx512Gfni, Self::Avx2Gfni, Self::Avx2, Self::Ssse3, Self::Neon, Self::Portable];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Gfni => "avx512-gfni",
            Self::Avx2Gfni => "avx2-gfni",
            Self::Avx2 => "avx2",
            Self::Ssse3 => "ssse3",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// The fastest that this CPU has.
    #[must_use]
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().next().unwrap_or(Self::Portable))
    }

    /// Those that this CPU has, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kernel| kernel.code().is_some())
    }

    fn code(self) -> Option<Code> {
        match self {
            Self::Portable => Some(Code::Portable),
            #[cfg(target_arch = "x86_64")]
            _ => x86::family(self).map(Code::Vector),
            #[cfg(target_arch = "aarch64")]
            _ => aarch64::family(self).map(Code::Vector),
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
enum Code {
    Portable,
    Vector(&'static Family),
}

/// The form in which a kernel takes a coefficient.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
enum Table {
    /// [`gf::affine`], 8 bytes.
    Affine,
    /// [`gf::nibbles`], 32 bytes.
    Nibbles,
}

impl Table {
    const fn bytes(self) -> usize {
        match self {
            Self::Affine => 8,
            Self::Nibbles => 32,
        }
    }
}

/// Most columns of one block.
const COLUMNS_MAX: usize = 16;

/// What one block is applied to.
///
/// # Safety
/// Who calls a [`Block`] made for `columns` x `rows` with it owes that
/// - `tables` is readable for `columns * rows` tables of the family's form,
/// - `inputs` is readable for `columns` pointers and `outputs` for `rows`,
/// - bytes `from..to` of every input are readable, and of every output readable and writable through that
///   pointer alone while the block runs,
/// - `to - from` is a multiple of [`STEP_BYTES`],
/// - the CPU has the features that the family was made for.
struct Call {
    tables: *const u8,
    inputs: *const *const u8,
    outputs: *const *mut u8,
    from: usize,
    to: usize,
    /// Add to the outputs instead of replacing them.
    is_sum: bool,
    /// Store past the caches. Every output's address at `from` is then a multiple of the family's `align_bytes`.
    is_past_caches: bool,
}

type Block = unsafe fn(&Call);

/// The blocks of one kernel. Lives only where the CPU has its features: `family` of each architecture sees to it.
struct Family {
    table: Table,
    rows_max: usize,
    /// The alignment of stores past the caches; `None` where the kernel has none.
    align_bytes: Option<usize>,
    /// The block of the given columns (1 to [`COLUMNS_MAX`]) and rows (1 to `rows_max`).
    cached: fn(usize, usize) -> Block,
    streaming: fn(usize, usize) -> Block,
    /// Waits for stores past the caches.
    fence: fn(),
}

/// How a stripe goes through memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Cached,
    Streaming,
}

impl Access {
    pub fn of(input_bytes: usize) -> Self {
        if input_bytes <= CACHED_BYTES_MAX { Self::Cached } else { Self::Streaming }
    }
}

/// A matrix, ready to be applied.
pub(super) struct LinearMap {
    code: Code,
    rows: usize,
    columns: usize,
    /// The coefficients in the kernel's form: block by block, the columns of a block one after the other.
    tables: Vec<u8>,
}

/// `count` things in as few parts of at most `most` as possible, as even as possible.
fn even_parts(count: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = count.div_ceil(most);
    (0..parts).map(move |part| part * count / parts..(part + 1) * count / parts)
}

impl LinearMap {
    /// `None` where the CPU lacks `kernel`. `matrix` has at most [`SLICES_MAX`] rows and columns.
    pub fn new(kernel: Kernel, matrix: &gf::Matrix) -> Option<Self> {
        let code = kernel.code()?;
        let (rows, columns) = (matrix.rows, matrix.columns);
        assert!(rows <= SLICES_MAX && columns <= SLICES_MAX);
        let Code::Vector(family) = code else {
            return Some(Self { code, rows, columns, tables: matrix.elements.clone() });
        };
        let mut tables = Vec::with_capacity(rows * columns * family.table.bytes());
        for row_block in even_parts(rows, family.rows_max) {
            for column_block in even_parts(columns, COLUMNS_MAX) {
                for column in column_block {
                    for row in row_block.clone() {
                        let coefficient = matrix.at(row, column);
                        match family.table {
                            Table::Affine => tables.extend(gf::affine(coefficient).to_le_bytes()),
                            Table::Nibbles => tables.extend(gf::nibbles(coefficient)),
                        }
                    }
                }
            }
        }
        Some(Self { code, rows, columns, tables })
    }

    /// Overwrites the outputs, one per row, with the matrix times the inputs, one per column.
    ///
    /// # Panics
    /// The slices are not one per row and column, or not all of one length.
    pub fn apply(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]], access: Access) {
        assert!(inputs.len() == self.columns && outputs.len() == self.rows);
        let Some(len) = outputs.first().map(|output| output.len()) else { return };
        assert!(inputs.iter().all(|input| input.len() == len));
        assert!(outputs.iter().all(|output| output.len() == len));
        match self.code {
            Code::Portable => portable(&self.tables, inputs, outputs),
            Code::Vector(family) => self.apply_vector(family, inputs, outputs, len, access),
        }
    }

    /// `apply`, its conditions checked.
    fn apply_vector(
        &self,
        family: &Family,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        len: usize,
        access: Access,
    ) {
        let mut sources = [std::ptr::null(); SLICES_MAX];
        let mut targets = [std::ptr::null_mut(); SLICES_MAX];
        for (source, input) in sources.iter_mut().zip(inputs) {
            *source = input.as_ptr();
        }
        for (target, output) in targets.iter_mut().zip(outputs.iter_mut()) {
            *target = output.as_mut_ptr();
        }
        let whole = len - len % STEP_BYTES;
        if whole > 0 {
            // SAFETY: every input and output is `len` bytes long, and `whole` is a multiple of STEP_BYTES and at
            // most `len`. The outputs are exclusive borrows, so they overlap neither each other nor an input.
            unsafe { self.run(family, &sources, &targets, whole, access) };
        }
        if whole == len {
            return;
        }

        // The last bytes, in copies that are one step long.
        let mut ends = [[0; STEP_BYTES]; SLICES_MAX];
        let mut results = [[0; STEP_BYTES]; SLICES_MAX];
        for ((source, end), input) in sources.iter_mut().zip(&mut ends).zip(inputs) {
            end[..len - whole].copy_from_slice(&input[whole..]);
            *source = end.as_ptr();
        }
        for (target, result) in targets.iter_mut().zip(&mut results).take(self.rows) {
            *target = result.as_mut_ptr();
        }
        // SAFETY: every source and target now points to an array of STEP_BYTES of its own.
        unsafe { self.run(family, &sources, &targets, STEP_BYTES, Access::Cached) };
        for (result, output) in results.iter().zip(outputs) {
            output[whole..].copy_from_slice(&result[..len - whole]);
        }
    }

    /// Applies all blocks to bytes 0 to `len`.
    ///
    /// # Safety
    /// The first `columns` sources are readable and the first `rows` targets readable and writable for `len`
    /// bytes, a multiple of [`STEP_BYTES`], no target overlapping another or a source.
    unsafe fn run(
        &self,
        family: &Family,
        sources: &[*const u8; SLICES_MAX],
        targets: &[*mut u8; SLICES_MAX],
        len: usize,
        access: Access,
    ) {
        let is_one_sum = self.columns <= COLUMNS_MAX;
        let is_past_caches = access == Access::Streaming
            && is_one_sum
            && family.align_bytes.is_some_and(|align| {
                targets[..self.rows].iter().all(|target| target.addr().is_multiple_of(align))
            });
        let block_of = match access {
            Access::Cached => family.cached,
            Access::Streaming => family.streaming,
        };
        let chunk_bytes = if is_one_sum && self.rows <= family.rows_max { len } else { CHUNK_BYTES };
        for from in (0..len).step_by(chunk_bytes) {
            let to = len.min(from + chunk_bytes);
            let mut tables = &self.tables[..];
            for rows in even_parts(self.rows, family.rows_max) {
                for columns in even_parts(self.columns, COLUMNS_MAX) {
                    let (block_tables, rest) =
                        tables.split_at(rows.len() * columns.len() * family.table.bytes());
                    tables = rest;
                    let call = Call {
                        tables: block_tables.as_ptr(),
                        inputs: sources[columns.clone()].as_ptr(),
                        outputs: targets[rows.clone()].as_ptr(),
                        from,
                        to,
                        is_sum: columns.start > 0,
                        is_past_caches,
                    };
                    // SAFETY: the tables and both slices of pointers were just cut to the block's size; the
                    // caller vouches for the bytes behind the pointers, and `from..to` lies in `0..len`; `len`,
                    // CHUNK_BYTES and so `to - from` are multiples of STEP_BYTES; `from` is one of the
                    // alignment too, so aligned targets stay aligned; the family exists only where the CPU has
                    // its features.
                    unsafe { block_of(columns.len(), rows.len())(&call) };
                }
            }
        }
        if is_past_caches {
            (family.fence)();
        }
    }
}

/// One look-up per product and byte.
fn portable(coefficients: &[u8], inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    for (row, output) in coefficients.chunks_exact(inputs.len()).zip(outputs) {
        for (column, (coefficient, input)) in row.iter().zip(inputs).enumerate() {
            let products = &gf::MUL[usize::from(*coefficient)];
            if column == 0 {
                for (sum, byte) in output.iter_mut().zip(*input) {
                    *sum = products[usize::from(*byte)];
                }
            } else {
                for (sum, byte) in output.iter_mut().zip(*input) {
                    *sum ^= products[usize::from(*byte)];
                }
            }
        }
    }
}
