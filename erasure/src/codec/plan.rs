//! How lost shards follow from k that are left, and the cache of such plans.
//!
//! Let R be the parity shards among the k, and E the data shards missing from them: as many as R. Each parity of
//! R is a sum over data shards, so the square that R's rows and E's columns cut from the generator, inverted,
//! gives E from R and the data shards present. Only this square is inverted, never all k columns. Every wanted
//! shard is then a sum over the data shards, those of E put in terms of the k.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::{
    gf::{self, Matrix},
    kernels::{Kernel, LinearMap},
};

/// Which shards there are, and which are wanted: bit i for shard i.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pattern {
    pub present: u64,
    pub wanted: u64,
}

/// Where the bits are set, ascending.
pub(super) fn members(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let member = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(member)
    })
}

/// The matrix that takes the present shards, ascending, to the wanted ones, ascending. Exactly k are present.
pub(super) fn decode_matrix(generator: &Matrix, pattern: Pattern) -> Matrix {
    let data = generator.columns;
    let missing: Vec<usize> = (0..data).filter(|shard| pattern.present >> shard & 1 == 0).collect();
    let parity: Vec<usize> = members(pattern.present).filter(|shard| *shard >= data).collect();
    debug_assert_eq!(missing.len(), parity.len());
    let square = Matrix::from_fn(missing.len(), missing.len(), |row, column| {
        generator.at(parity[row], missing[column])
    });
    let Some(inverse) = square.inverse() else {
        unreachable!("any k rows of the generator are independent");
    };

    // What each present shard adds to the parities of R once the data among it is taken away (in this field
    // taking away is adding): a data shard its coefficients in them, a parity shard of R itself.
    let mut remainder = Matrix::from_fn(parity.len(), data, |_, _| 0);
    let mut next_parity = 0;
    for (column, shard) in members(pattern.present).enumerate() {
        if shard < data {
            for (row, parity) in parity.iter().enumerate() {
                remainder.row_mut(row)[column] = generator.at(*parity, shard);
            }
        } else {
            remainder.row_mut(next_parity)[column] = 1;
            next_parity += 1;
        }
    }
    let of_missing = inverse.times(&remainder);

    let mut matrix = Matrix::from_fn(pattern.wanted.count_ones() as usize, data, |_, _| 0);
    for (row, wanted) in members(pattern.wanted).enumerate() {
        let sums = matrix.row_mut(row);
        let weights = generator.row(wanted);
        for (column, shard) in members(pattern.present).enumerate() {
            if shard < data {
                sums[column] = weights[shard];
            }
        }
        for (row, shard) in missing.iter().enumerate() {
            gf::add_scaled(sums, weights[*shard], of_missing.row(row));
        }
    }
    matrix
}

/// A plan and what it is for.
struct Plan {
    pattern: Pattern,
    map: LinearMap,
}

/// Places of the cache: more patterns than a node meets at once, each a few KiB.
const PLACES: usize = 256;
/// Places where one pattern may lie.
const WAYS: usize = 4;

/// The latest plans. Readers and writers never wait for each other; a lost race costs one plan made twice.
pub(super) struct Plans {
    places: Box<[ArcSwapOption<Plan>]>,
}

impl Plans {
    pub fn new() -> Self {
        Self { places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect() }
    }

    /// Lends the map for `pattern` to `act`. `None` where the CPU lacks `kernel`.
    pub fn with<T>(
        &self,
        kernel: Kernel,
        generator: &Matrix,
        pattern: Pattern,
        act: impl FnOnce(&LinearMap) -> T,
    ) -> Option<T> {
        let hash = hash(pattern);
        let set = hash as usize % (PLACES / WAYS) * WAYS;
        let set = &self.places[set..set + WAYS];
        for place in set {
            let plan = place.load();
            if let Some(plan) = plan.as_ref().filter(|plan| plan.pattern == pattern) {
                return Some(act(&plan.map));
            }
        }
        let plan =
            Arc::new(Plan { pattern, map: LinearMap::new(kernel, &decode_matrix(generator, pattern))? });
        let empty = set.iter().find(|place| place.load().is_none());
        empty.unwrap_or(&set[(hash >> 32) as usize % WAYS]).store(Some(Arc::clone(&plan)));
        Some(act(&plan.map))
    }
}

/// Spreads patterns over the cache: multiplications by odd constants, their high halves folded in.
fn hash(pattern: Pattern) -> u64 {
    let mixed = (pattern.present ^ pattern.wanted.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ (mixed >> 32)
}
