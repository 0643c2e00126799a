//! Drills: chains of products of matrices of small integers, which fill idle time and measure what a machine can do.
//!
//! ```text
//! A0, B0, B1, ..   bytes of BLAKE3 over beacon, node, number, step
//! C(i) = A(i) · B(i)             n × n, 32-bit sums of products of signed bytes
//! A(i+1)[r] = fold(C(i)[p(r)])   each sum folded to a byte, rows in an order that the seed gives
//! told:       BLAKE3 of C(0), C(1), .. one after the other, 32 bits little-endian, row by row
//! asked for:  some rows, drawn by a later beacon; each with the row that it was made of and paths to what was told
//! ```
//!
//! Checking a row costs n² of the chain's steps · n³: one part in n · steps. Who computed a share f of its tasks is found
//! unless all that are asked for are among them; then nothing counts, so that leaving work out always pays less than doing
//! it (f⁴ < f with four tasks asked for). Sums of products of integers have one result whatever their order: processors and
//! cards of every make agree to the bit.

use makai_erasure::NodeId;
use makai_erasure::stripe::{Root, blob_root};
use makai_raft::facts::accounts::Hash;
use serde::{Deserialize, Serialize};

use crate::audit::draw::Lots;
use crate::audit::proof::{self, AuditAnswer, LEAF_BYTES, Outline, ProofError, leaf_range};

const CONTEXT: &str = "makai drill 1";
/// Rows of a matrix: a row divides a leaf, and a leaf a row's matrix.
const ROWS: [u32; 3] = [256, 512, 1024];
/// Bytes of one task's results: what a node keeps in memory while it works on it.
const TASK_BYTES_MAX: u64 = 64 << 20;
/// Tasks of one node in one epoch.
pub const TASKS_MAX: usize = 256;
/// Tasks asked for, and rows of each.
pub const TASKS_ASKED: usize = 4;
pub const ROWS_ASKED: usize = 4;
/// Operations in a thousandth of a ut, which is 1/200 of a day of a machine of 10^9 a second.
pub const OPERATIONS_PER_MUT: u128 = 432_000_000;

const CELL_BYTES: u64 = 4;

/// How large tasks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Of each matrix, and its columns.
    pub rows: u32,
    /// Products in a chain.
    pub steps: u32,
}

impl Size {
    /// The smallest task that is worth a whole thousandth of a ut.
    pub const SMALLEST: Self = Self { rows: 256, steps: 13 };

    /// Sizes that are allowed, ascending by what they cost.
    pub fn all() -> impl Iterator<Item = Self> {
        let steps = [(256, 13), (256, 64), (512, 32), (512, 64), (1024, 16)];
        steps.into_iter().map(|(rows, steps)| Self { rows, steps })
    }

    /// Whether this is a size of a task. Any numbers may be given.
    #[must_use]
    pub fn is_valid(self) -> bool {
        ROWS.contains(&self.rows) && self.steps > 0 && self.bytes() <= TASK_BYTES_MAX
    }

    /// Of all results of a task.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.steps) * u64::from(self.rows) * u64::from(self.rows) * CELL_BYTES
    }

    /// Multiplications and additions of a task.
    #[must_use]
    pub fn operations(self) -> u128 {
        2 * u128::from(self.rows).pow(3) * u128::from(self.steps)
    }

    fn row_bytes(self) -> u64 {
        u64::from(self.rows) * CELL_BYTES
    }

    /// Where a row of results lies.
    fn offset(self, place: Place) -> u64 {
        (u64::from(place.step) * u64::from(self.rows) + u64::from(place.row)) * self.row_bytes()
    }
}

/// What tasks of this size are worth together.
#[must_use]
pub fn work_mut(size: Size, tasks: usize) -> u64 {
    u64::try_from(size.operations() * tasks as u128 / OPERATIONS_PER_MUT).unwrap_or(u64::MAX)
}

/// A row of one step's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub step: u32,
    pub row: u32,
}

/// What one task is computed from: nobody else's, and known to nobody before the beacon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// `at`: the how-manyth task of the node in the epoch whose beacon this is.
    #[must_use]
    pub fn new(beacon: &Hash, node: &NodeId, at: u32) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&beacon.0).update(&node.0).update(&at.to_be_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    fn stream(&self, what: u8, step: u32) -> blake3::OutputReader {
        blake3::Hasher::new_keyed(&self.0).update(&[what]).update(&step.to_be_bytes()).finalize_xof()
    }

    /// A matrix of signed bytes, row by row.
    fn matrix(&self, what: u8, step: u32, rows: u32) -> Vec<i8> {
        let mut bytes = vec![0; rows as usize * rows as usize];
        self.stream(what, step).fill(&mut bytes);
        bytes.into_iter().map(|byte| byte as i8).collect()
    }

    /// The row of the result before a step that becomes row `row` of its first factor.
    fn origin(&self, step: u32, row: u32, rows: u32) -> u32 {
        let mut bytes = [0; 8];
        self.stream(b'P', step).fill(&mut bytes);
        let [factor, shift] = [&bytes[..4], &bytes[4..]]
            .map(|part| part.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)));
        // An odd factor modulo a power of two: every row once.
        row.wrapping_mul(factor | 1).wrapping_add(shift) % rows
    }

    /// A row of the first factor of step 0.
    fn first_row(&self, row: u32, rows: u32) -> Vec<i8> {
        let mut stream = self.stream(b'A', 0);
        stream.set_position(u64::from(row) * u64::from(rows));
        let mut bytes = vec![0; rows as usize];
        stream.fill(&mut bytes);
        bytes.into_iter().map(|byte| byte as i8).collect()
    }
}

fn fold(sum: i32) -> i8 {
    let [a, b, c, d] = sum.to_le_bytes();
    (a ^ b ^ c ^ d) as i8
}

/// One row times a matrix; adds to `sums`.
fn multiply(row: &[i8], matrix: &[i8], sums: &mut [i32]) {
    let columns = sums.len();
    for (factor, line) in row.iter().zip(matrix.chunks_exact(columns)) {
        let factor = i32::from(*factor);
        for (sum, cell) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(factor * i32::from(*cell));
        }
    }
}

/// All results of one task.
#[derive(Debug)]
pub struct Transcript {
    size: Size,
    seed: Seed,
    bytes: Vec<u8>,
}

impl Transcript {
    /// Computes a task; `None` where `is_stopped` said so meanwhile, which is asked once a row, or the size is none.
    #[must_use]
    pub fn compute(seed: Seed, size: Size, is_stopped: &dyn Fn() -> bool) -> Option<Self> {
        if !size.is_valid() {
            return None;
        }
        let (rows, count) = (size.rows, size.rows as usize);
        let mut bytes = Vec::with_capacity(usize::try_from(size.bytes()).ok()?);
        let mut factor = seed.matrix(b'A', 0, rows);
        let mut sums = vec![0i32; count];
        let mut result = vec![0i32; count * count];
        for step in 0..size.steps {
            let matrix = seed.matrix(b'B', step, rows);
            for (row, out) in factor.chunks_exact(count).zip(result.chunks_exact_mut(count)) {
                if is_stopped() {
                    return None;
                }
                sums.fill(0);
                multiply(row, &matrix, &mut sums);
                out.copy_from_slice(&sums);
                bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
            }
            for (row, line) in (0u32..).zip(factor.chunks_exact_mut(count)) {
                let from = seed.origin(step + 1, row, rows) as usize * count;
                let source = &result[from..from + count];
                line.iter_mut().zip(source).for_each(|(cell, sum)| *cell = fold(*sum));
            }
        }
        Some(Self { size, seed, bytes })
    }

    /// What is told of it.
    #[must_use]
    pub fn root(&self) -> Root {
        *blake3::hash(&self.bytes).as_bytes()
    }

    /// Rows with all that proves them, in the order asked for; `None` where there is no such row.
    #[must_use]
    pub fn open(&self, places: &[Place]) -> Option<Vec<Opening>> {
        let mut outline = Outline::default();
        self.bytes.chunks(LEAF_BYTES as usize).for_each(|leaf| outline.push(leaf));
        let root = self.root();
        let leaf_of = |place: Place| {
            let leaf = self.size.offset(place) / LEAF_BYTES;
            let (offset, len) = leaf_range(self.size.bytes(), leaf)?;
            let bytes = &self.bytes[offset as usize..(offset + len) as usize];
            let path = outline.path(leaf)?;
            Some(AuditAnswer { leaf: bytes::Bytes::copy_from_slice(bytes), path, roots: vec![root] })
        };
        let open = |place: &Place| {
            if place.step >= self.size.steps || place.row >= self.size.rows {
                return None;
            }
            let before = match place.step.checked_sub(1) {
                None => None,
                Some(step) => {
                    let row = self.seed.origin(place.step, place.row, self.size.rows);
                    Some(leaf_of(Place { step, row })?)
                }
            };
            Some(Opening { row: leaf_of(*place)?, before })
        };
        places.iter().map(open).collect()
    }
}

/// A row, proved, and the row that it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    pub row: AuditAnswer,
    /// `None` for a row of the first step.
    pub before: Option<AuditAnswer>,
}

/// Why a row proves nothing, or proves that it was not computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DrillError {
    #[error("what was told has no such size or row")]
    NoSuchRow,
    #[error("a row is not of what was told: {0}")]
    Proof(#[from] ProofError),
    #[error("the row that it was made of is missing")]
    NoOrigin,
    #[error("the row is not the product")]
    WrongProduct,
}

fn read_row(size: Size, root: &Root, place: Place, answer: &AuditAnswer) -> Result<Vec<i32>, DrillError> {
    let offset = size.offset(place);
    let leaf = offset / LEAF_BYTES;
    proof::check(&blob_root(&[*root]), 0, size.bytes(), leaf, answer)?;
    let start = (offset - leaf * LEAF_BYTES) as usize;
    let row = answer.leaf.get(start..start + size.row_bytes() as usize).ok_or(DrillError::NoSuchRow)?;
    Ok(row.as_chunks::<4>().0.iter().map(|cell| i32::from_le_bytes(*cell)).collect())
}

/// Checks one row of a task against what was told of it. Any bytes may be given. Costs n² products.
///
/// # Errors
/// [`DrillError`]
pub fn check(seed: Seed, size: Size, root: &Root, place: Place, opening: &Opening) -> Result<(), DrillError> {
    if !size.is_valid() || place.step >= size.steps || place.row >= size.rows {
        return Err(DrillError::NoSuchRow);
    }
    let told = read_row(size, root, place, &opening.row)?;
    let factor = match (place.step.checked_sub(1), &opening.before) {
        (None, _) => seed.first_row(place.row, size.rows),
        (Some(_), None) => return Err(DrillError::NoOrigin),
        (Some(step), Some(before)) => {
            let row = seed.origin(place.step, place.row, size.rows);
            let sums = read_row(size, root, Place { step, row }, before)?;
            sums.into_iter().map(fold).collect()
        }
    };
    let mut sums = vec![0; size.rows as usize];
    multiply(&factor, &seed.matrix(b'B', place.step, size.rows), &mut sums);
    if sums == told { Ok(()) } else { Err(DrillError::WrongProduct) }
}

/// What is asked for of `tasks` tasks, by the beacon that came after they were told: numbers of tasks, and rows of each.
#[must_use]
pub fn draw(later: &Hash, node: &NodeId, size: Size, tasks: usize) -> Vec<(u32, Vec<Place>)> {
    let mut numbers: Vec<u32> = (0..u32::try_from(tasks.min(TASKS_MAX)).unwrap_or(0)).collect();
    let mut lots = Lots::new(later, node, DRILL_LOTS);
    let mut asked = Vec::new();
    while asked.len() < TASKS_ASKED && !numbers.is_empty() {
        let number = numbers.swap_remove(lots.below(numbers.len() as u64) as usize);
        let mut place = |_| Place {
            step: lots.below(size.steps.into()) as u32,
            row: lots.below(size.rows.into()) as u32,
        };
        asked.push((number, (0..ROWS_ASKED).map(&mut place).collect()));
    }
    asked
}

/// Apart from the numbers of audits, which are drawn by the same beacon.
const DRILL_LOTS: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: Size = Size { rows: 256, steps: 2 };

    fn seed(node: u8, at: u32) -> Seed {
        Seed::new(&Hash([7; 32]), &NodeId([node; 32]), at)
    }

    fn computed(node: u8) -> Transcript {
        Transcript::compute(seed(node, 0), SIZE, &|| false).unwrap()
    }

    /// Cells against sums in 64 bits, taken from the definition.
    #[test]
    fn results_are_the_products_of_the_definition() {
        let (done, seed) = (computed(1), seed(1, 0));
        let cell = |step: u32, row: u32, column: u32| {
            let at = (SIZE.offset(Place { step, row }) + u64::from(column) * CELL_BYTES) as usize;
            i32::from_le_bytes(done.bytes[at..at + 4].try_into().unwrap())
        };
        let b = |step: u32| seed.matrix(b'B', step, SIZE.rows);
        let (a0, b0, b1) = (seed.matrix(b'A', 0, SIZE.rows), b(0), b(1));
        for (row, column) in [(0, 0), (255, 255), (17, 200), (128, 3)] {
            let dot = |left: &dyn Fn(u32) -> i64, right: &[i8]| -> i64 {
                (0..SIZE.rows).map(|k| left(k) * i64::from(right[(k * SIZE.rows + column) as usize])).sum()
            };
            let first = dot(&|k| a0[(row * SIZE.rows + k) as usize].into(), &b0);
            assert_eq!(i64::from(cell(0, row, column)), first);
            let from = seed.origin(1, row, SIZE.rows);
            let second = dot(&|k| fold(cell(0, from, k)).into(), &b1);
            assert_eq!(i64::from(cell(1, row, column)), second);
        }
    }

    #[test]
    fn what_was_computed_passes_and_nothing_else_does() {
        let done = computed(1);
        let root = done.root();
        let places = [
            Place { step: 0, row: 0 },
            Place { step: 0, row: 255 },
            Place { step: 1, row: 0 },
            Place { step: 1, row: 77 },
        ];
        let openings = done.open(&places).unwrap();
        for (place, opening) in places.iter().zip(&openings) {
            let verdict =
                |seed, root: &Root, place, opening: &Opening| check(seed, SIZE, root, place, opening);
            assert_eq!(verdict(seed(1, 0), &root, *place, opening), Ok(()));
            // Another node's, another task's, another row's; a size that was not told.
            assert!(verdict(seed(2, 0), &root, *place, opening).is_err());
            assert!(verdict(seed(1, 1), &root, *place, opening).is_err());
            // A leaf holds several rows: one of another leaf.
            let other = Place { row: place.row ^ 128, ..*place };
            assert!(verdict(seed(1, 0), &root, other, opening).is_err());
            let longer = Size { steps: 3, ..SIZE };
            assert!(check(seed(1, 0), longer, &root, *place, opening).is_err());
            // Bytes changed after they were told.
            let mut bad = opening.clone();
            let mut leaf = bad.row.leaf.to_vec();
            leaf[5] ^= 1;
            bad.row.leaf = leaf.into();
            assert!(matches!(verdict(seed(1, 0), &root, *place, &bad), Err(DrillError::Proof(_))));
        }
        let without = Opening { before: None, ..openings[2].clone() };
        assert_eq!(check(seed(1, 0), SIZE, &root, places[2], &without), Err(DrillError::NoOrigin));
        // Told and wrong: one cell of one row.
        let mut forged = computed(1);
        let at = SIZE.offset(Place { step: 1, row: 77 }) as usize;
        forged.bytes[at] ^= 1;
        let (root, openings) = (forged.root(), forged.open(&places).unwrap());
        assert_eq!(check(seed(1, 0), SIZE, &root, places[3], &openings[3]), Err(DrillError::WrongProduct));
        assert_eq!(check(seed(1, 0), SIZE, &root, places[2], &openings[2]), Ok(()));
        assert!(done.open(&[Place { step: 2, row: 0 }]).is_none());
    }

    #[test]
    fn work_stops_when_told_and_sizes_are_bounded() {
        assert!(Transcript::compute(seed(1, 0), SIZE, &|| true).is_none());
        for wrong in [(255, 1), (256, 0), (2048, 1), (1024, 17), (u32::MAX, u32::MAX), (0, 1)] {
            let size = Size { rows: wrong.0, steps: wrong.1 };
            assert!(!ROWS.contains(&size.rows) || !size.is_valid(), "{size:?}");
        }
        assert!(Size::all().all(Size::is_valid));
        assert_eq!(work_mut(Size::SMALLEST, 1), 1);
        // 1 ut is 1/200 of a day of 10^9 operations a second.
        assert_eq!(OPERATIONS_PER_MUT * 1000 * 200, 86_400 * 1_000_000_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Rows are permuted from step to step: none is lost, none used twice.
        #[test]
        fn every_row_goes_on(node: u8, step in 1u32..1000, rows in prop::sample::select(ROWS.to_vec())) {
            let seed = seed(node, 3);
            let mut from: Vec<u32> = (0..rows).map(|row| seed.origin(step, row, rows)).collect();
            from.sort_unstable();
            prop_assert_eq!(from, (0..rows).collect::<Vec<_>>());
        }

        /// Who computes a share of its tasks is paid, over many beacons, less than that share is worth.
        #[test]
        fn leaving_tasks_out_never_pays(tasks in 1usize..TASKS_MAX, left_out_pct in 1usize..100, world: u64) {
            const BEACONS: u32 = 400;
            let faked = (tasks * left_out_pct).div_ceil(100);
            let paid = (0..BEACONS).filter(|at| {
                let mut beacon = [0; 32];
                beacon[..8].copy_from_slice(&world.to_be_bytes());
                beacon[8..12].copy_from_slice(&at.to_be_bytes());
                draw(&Hash(beacon), &NodeId([1; 32]), SIZE, tasks).iter().all(|(number, _)| *number as usize >= faked)
            });
            // Mean pay of the liar, in tasks, against tasks that it did. Five standard deviations of room.
            let mean = paid.count() as f64 * tasks as f64 / f64::from(BEACONS);
            let honest = (tasks - faked) as f64;
            let room = 5.0 * tasks as f64 * 0.5 / f64::from(BEACONS).sqrt();
            prop_assert!(mean <= honest + room, "{} of {} faked: {} for {}", faked, tasks, mean, honest);
        }
    }
}
