//! Reed-Solomon: k data shards become k + m, and any k of them become all again.
//!
//! ```text
//! encode    data ───────────────────────────> LinearMap (parity rows of the generator) ─> parity
//! rebuild   k shards ─ which, which lost? ─> LinearMap (decode plan, cached) ──────────> lost shards
//! ```
//!
//! | file        | holds                                                            |
//! |-------------|------------------------------------------------------------------|
//! | `gf`        | the field, the generator matrix: the format of stored shards     |
//! | `plan`      | which matrix rebuilds what from what; the lock-free cache of them |
//! | `kernels`   | a matrix times slices: dispatch, blocks, the only unsafe code    |
//!
//! What always holds: byte i of every output depends on byte i of the inputs alone, so any range of equal cells can
//! be coded by itself; the bytes are the same on every CPU and for every kernel; on an error nothing was
//! written; no lock is taken and only a new loss pattern allocates.

#![deny(unsafe_code)]

mod gf;
#[allow(unsafe_code)]
mod kernels;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::kernels::Kernel;
use self::{
    gf::Matrix,
    kernels::{Access, LinearMap, SLICES_MAX},
    plan::{Pattern, Plans},
};
use crate::layout::{Scheme, SchemeError};

/// Why nothing was coded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    #[error(transparent)]
    Scheme(#[from] SchemeError),
    #[error("{have} shards of {scheme}, which needs {need}: fetch {} more", need - have)]
    TooFewShards { scheme: Scheme, have: usize, need: usize },
    #[error("{got} {kind} slices for {scheme}, which has {expected}")]
    SliceCount { scheme: Scheme, kind: &'static str, got: usize, expected: usize },
    #[error("shard index {index} in {scheme}, whose shards are 0 to {}", scheme.shard_count() - 1)]
    NoSuchShard { scheme: Scheme, index: usize },
    #[error("shard {index} is given twice")]
    Repeated { index: usize },
    #[error("shard {index} has {got} bytes where the first slice has {expected}: all must be equally long")]
    UnequalLength { index: usize, got: usize, expected: usize },
    #[error("this CPU cannot run the kernel {}; pick one of `Kernel::available()`", kernel.name())]
    KernelUnavailable { kernel: Kernel },
    #[error(
        "kernel {kernel} computes wrong bytes for {scheme} at {len} bytes: this CPU or its memory is faulty, \
         take the machine out of service", kernel = kernel.name()
    )]
    WrongBytes { kernel: Kernel, scheme: Scheme, len: usize },
}

/// A code of k data and m parity shards. Cheap to clone; threads may share one.
#[derive(Clone)]
pub struct Codec {
    inner: Arc<Inner>,
}

struct Inner {
    scheme: Scheme,
    kernel: Kernel,
    generator: Matrix,
    parity: LinearMap,
    plans: Plans,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Codec({} by {})", self.inner.scheme, self.inner.kernel.name())
    }
}

impl Codec {
    /// With the fastest kernel of this CPU.
    ///
    /// # Errors
    /// No stripe can have `scheme`.
    pub fn new(scheme: Scheme) -> Result<Self, CodecError> {
        Self::with_kernel(scheme, Kernel::best())
    }

    /// With a kernel of one's choice, to compare them.
    ///
    /// # Errors
    /// No stripe can have `scheme`, or this CPU lacks `kernel`.
    pub fn with_kernel(scheme: Scheme, kernel: Kernel) -> Result<Self, CodecError> {
        let scheme = Scheme::new(scheme.data, scheme.parity)?;
        let (data, shards) = (usize::from(scheme.data), scheme.shard_count());
        let generator = Matrix::generator(data, shards);
        let parity = LinearMap::new(kernel, &generator.part(data..shards))
            .ok_or(CodecError::KernelUnavailable { kernel })?;
        Ok(Self { inner: Arc::new(Inner { scheme, kernel, generator, parity, plans: Plans::new() }) })
    }

    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.inner.scheme
    }

    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.inner.kernel
    }

    /// Computes the m parity slices from the k data slices, all of one length.
    ///
    /// # Errors
    /// A wrong number of slices, or one of another length than the first.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        self.encode_by(data, parity, None)
    }

    fn encode_by(
        &self,
        data: &[&[u8]],
        parity: &mut [&mut [u8]],
        access: Option<Access>,
    ) -> Result<(), CodecError> {
        let Inner { scheme, parity: map, .. } = &*self.inner;
        self.check_count("data", data.len(), scheme.data.into())?;
        self.check_count("parity", parity.len(), scheme.parity.into())?;
        let len = data[0].len();
        for (index, slice) in data.iter().enumerate() {
            check_len(index, slice.len(), len)?;
        }
        for (row, slice) in parity.iter().enumerate() {
            check_len(data.len() + row, slice.len(), len)?;
        }
        if let [only] = data {
            // Every row of a code with one data shard is the identity.
            parity.iter_mut().for_each(|copy| copy.copy_from_slice(only));
        } else {
            map.apply(data, parity, access.unwrap_or_else(|| Access::of(data.len() * len)));
        }
        Ok(())
    }

    /// Computes the shards `wanted`, data or parity, from the first k of `present`, in any order.
    ///
    /// # Errors
    /// Fewer than k present; an index that is no shard's or is given twice; a slice of another length than the
    /// first present.
    pub fn rebuild(
        &self,
        present: &[(usize, &[u8])],
        wanted: &mut [(usize, &mut [u8])],
    ) -> Result<(), CodecError> {
        self.rebuild_by(present, wanted, None)
    }

    fn rebuild_by(
        &self,
        present: &[(usize, &[u8])],
        wanted: &mut [(usize, &mut [u8])],
        access: Option<Access>,
    ) -> Result<(), CodecError> {
        let Inner { scheme, kernel, generator, plans, .. } = &*self.inner;
        let need = usize::from(scheme.data);
        let present = present.get(..need).ok_or(CodecError::TooFewShards {
            scheme: *scheme,
            have: present.len(),
            need,
        })?;
        let len = present[0].1.len();
        let mut pattern = Pattern { present: 0, wanted: 0 };
        for (index, slice) in present {
            self.add_to(&mut pattern.present, *index)?;
            check_len(*index, slice.len(), len)?;
        }
        for (index, slice) in &*wanted {
            self.add_to(&mut pattern.wanted, *index)?;
            check_len(*index, slice.len(), len)?;
        }
        if let [(_, only)] = present {
            wanted.iter_mut().for_each(|(_, copy)| copy.copy_from_slice(only));
            return Ok(());
        }

        // A plan takes the shards in the order of their indices, whatever order they came in.
        let mut inputs = [&[][..]; SLICES_MAX];
        for (index, slice) in present {
            inputs[rank(pattern.present, *index)] = slice;
        }
        let mut outputs: [&mut [u8]; SLICES_MAX] = std::array::from_fn(|_| Default::default());
        let output_count = wanted.len();
        for (index, slice) in wanted {
            outputs[rank(pattern.wanted, *index)] = slice;
        }
        let access = access.unwrap_or_else(|| Access::of(need * len));
        plans
            .with(*kernel, generator, pattern, |map| {
                map.apply(&inputs[..need], &mut outputs[..output_count], access);
            })
            .ok_or(CodecError::KernelUnavailable { kernel: *kernel })
    }

    fn check_count(&self, kind: &'static str, got: usize, expected: usize) -> Result<(), CodecError> {
        if got == expected {
            Ok(())
        } else {
            Err(CodecError::SliceCount { scheme: self.inner.scheme, kind, got, expected })
        }
    }

    fn add_to(&self, set: &mut u64, index: usize) -> Result<(), CodecError> {
        let scheme = self.inner.scheme;
        if index >= scheme.shard_count() {
            return Err(CodecError::NoSuchShard { scheme, index });
        }
        let member = 1 << index;
        if *set & member != 0 {
            return Err(CodecError::Repeated { index });
        }
        *set |= member;
        Ok(())
    }
}

/// How many members of `set` are below `index`.
fn rank(set: u64, index: usize) -> usize {
    (set & ((1 << index) - 1)).count_ones() as usize
}

fn check_len(index: usize, got: usize, expected: usize) -> Result<(), CodecError> {
    if got == expected { Ok(()) } else { Err(CodecError::UnequalLength { index, got, expected }) }
}

/// The kernel that [`Codec::new`] takes on this CPU, e.g. `avx512-gfni`.
#[must_use]
pub fn kernel_name() -> &'static str {
    Kernel::best().name()
}

/// Checks the kernel of this CPU against the portable one, in every size of block and both ways through memory:
/// a few milliseconds, for the start of a daemon.
///
/// # Errors
/// A byte differs.
pub fn self_test() -> Result<(), CodecError> {
    self_test_of(Kernel::best())
}

fn self_test_of(kernel: Kernel) -> Result<(), CodecError> {
    /// Whole steps and a rest.
    const LENS: [usize; 3] = [128, 333, 2048 + 128];
    let mut noise = 0x2545_F491_4F6C_DD1D_u64;
    for columns in 1..=20 {
        let rows = 1 + columns % 13;
        let scheme = Scheme::new(columns, rows)?;
        let (tested, reference) =
            (Codec::with_kernel(scheme, kernel)?, Codec::with_kernel(scheme, Kernel::Portable)?);
        for len in LENS {
            let data: Vec<Vec<u8>> = (0..columns)
                .map(|_| {
                    (0..len)
                        .map(|_| {
                            noise ^= noise << 13;
                            noise ^= noise >> 7;
                            noise ^= noise << 17;
                            (noise >> 24) as u8
                        })
                        .collect()
                })
                .collect();
            let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let parity_of = |codec: &Codec, access| {
                let mut parity = vec![vec![0; len]; rows.into()];
                let mut slices: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
                codec.encode_by(&data, &mut slices, Some(access)).map(|()| parity)
            };
            let expected = parity_of(&reference, Access::Cached)?;
            for access in [Access::Cached, Access::Streaming] {
                if parity_of(&tested, access)? != expected {
                    return Err(CodecError::WrongBytes { kernel, scheme, len });
                }
            }
        }
    }
    Ok(())
}
