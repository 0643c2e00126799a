//! Proof of Training: does a chain of checkpoints come from the training that was asked for?
//!
//! ```text
//! checkpoints, committed as they are made ─> six conditions on the whole chain
//!                                         ─> the first is the one that the seed assigned gives, bit for bit
//!                                         ─> segments drawn by a later beacon, trained again, compared
//! ```
//!
//! The six conditions come from the literature on proofs of learning and stop careless forgeries; read literally they refuse
//! honest training, whose accuracy falls now and then, so that each has a tolerance. What a skilled forger cannot get past are
//! the last two: a chain that interpolates between the true beginning and a model that was bought passes all six, and fails in
//! every segment that is trained again. Of a share a of forged segments, m drawn ones miss all with (1 − a)^m.
//!
//! Verifiers decide this, each for itself, with floating point: it never enters the state machine, only its verdict does.
//!
//! Sources: Jia et al., *Proof-of-Learning*, 2021; Zhang et al., *"Adversarial Examples" for Proof-of-Learning*, 2022; Choi et
//! al., *Tools for Verifying Neural Models' Training Data*, 2023.

use makai_raft::facts::accounts::Hash;

/// How a checkpoint's file begins; then layers (4 bytes), and of each the count of its weights (8) and these (4 each), all
/// little-endian.
const FIRST_BYTES: &[u8] = b"makai-checkpoint 1\n";

/// Weights of a model, layer by layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub layers: Vec<Vec<f32>>,
}

impl Checkpoint {
    /// Reads a file's bytes; `None`: they are none of a checkpoint. Any may be given.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(FIRST_BYTES)?;
        let (count, mut rest) = rest.split_first_chunk()?;
        let mut layers = Vec::new();
        for _ in 0..u32::from_le_bytes(*count) {
            let (count, more) = rest.split_first_chunk()?;
            let len = usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(4)?;
            let (weights, more) = more.split_at_checked(len)?;
            layers.push(weights.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect());
            rest = more;
        }
        rest.is_empty().then_some(Self { layers })
    }

    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = FIRST_BYTES.to_vec();
        bytes.extend_from_slice(&(self.layers.len() as u32).to_le_bytes());
        for layer in &self.layers {
            bytes.extend_from_slice(&(layer.len() as u64).to_le_bytes());
            layer.iter().for_each(|weight| bytes.extend_from_slice(&weight.to_le_bytes()));
        }
        bytes
    }

    #[must_use]
    pub fn weights(&self) -> u64 {
        self.layers.iter().map(|layer| layer.len() as u64).sum()
    }

    /// What is committed of it when it is made: BLAKE3 of its weights, little-endian.
    #[must_use]
    pub fn commitment(&self) -> Hash {
        let mut hasher = blake3::Hasher::new_derive_key("makai checkpoint 1");
        for layer in &self.layers {
            hasher.update(&(layer.len() as u64).to_be_bytes());
            layer.iter().for_each(|weight| {
                hasher.update(&weight.to_le_bytes());
            });
        }
        Hash(*hasher.finalize().as_bytes())
    }

    fn is_like(&self, other: &Self) -> bool {
        let lengths = |one: &Self| one.layers.iter().map(Vec::len).collect::<Vec<_>>();
        lengths(self) == lengths(other)
    }

    fn is_finite(&self) -> bool {
        self.layers.iter().flatten().all(|weight| weight.is_finite())
    }

    fn distance(&self, other: &Self) -> f64 {
        self.layers.iter().zip(&other.layers).map(|(a, b)| squares(a, b)).sum::<f64>().sqrt()
    }
}

fn squares(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// Why a verifier could not train: nothing follows of that for whom it verifies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the trainer failed: {0}")]
pub struct TrainerFault(pub String);

/// The training that a job asked for, as a verifier can do it.
pub trait Training {
    /// The beginning that a seed gives.
    ///
    /// # Errors
    /// It cannot be made here; so for all below.
    fn initial(&self, seed: &[u8; 32]) -> Result<Checkpoint, TrainerFault>;
    /// Of each layer: the standard deviation of its normal initial distribution.
    fn initial_deviations(&self) -> Vec<f64>;
    /// On the validation set: a share.
    ///
    /// # Errors
    /// As [`Self::initial`].
    fn accuracy(&self, of: &Checkpoint) -> Result<f64, TrainerFault>;
    /// Trains one segment, with the data in the order that was committed to.
    ///
    /// # Errors
    /// As [`Self::initial`].
    fn segment(&self, from: &Checkpoint, segment: usize) -> Result<Checkpoint, TrainerFault>;
}

/// What is tolerated.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// By how much accuracy may fall from one checkpoint to the next, and must rise in all.
    pub accuracy_falls_max: f64,
    pub accuracy_gain_min: f64,
    /// How far each layer may go in one segment: steps · learning rate · the largest step.
    pub step_max: Vec<f64>,
    /// Error of the first kind of the test of the initial distribution, over all layers.
    pub significance: f64,
    /// By how much the distance to the end may grow.
    pub distance_grows_max: f64,
    /// The largest distance from beginning to end, as a share of the mean distance from random beginnings to that end.
    pub distance_ratio_max: f64,
    /// Random beginnings that it is compared with, and segments trained again.
    pub random_beginnings: u32,
    pub segments_rerun: usize,
    /// How far two runs of one segment may lie apart; 0 where kernels are deterministic.
    pub rerun_differs_max: f64,
}

/// What a chain does not fulfil.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Condition {
    #[error("the chain has too few checkpoints, of other shapes, or numbers that are none")]
    Shape,
    #[error("a checkpoint is not the one that was committed to when it was made")]
    Commitment,
    #[error("accuracy falls, or has not risen")]
    Accuracy,
    #[error("a layer went further in one segment than its steps can carry it")]
    Continuity,
    #[error("the beginning is not distributed as declared")]
    InitialDistribution,
    #[error("weights of the beginning depend on each other")]
    Independence,
    #[error("the chain does not come nearer to its end")]
    Distance,
    #[error("the beginning is no nearer to the end than random ones would be: it was made for another model")]
    Ratio,
    #[error("the beginning is not the one that the assigned seed gives")]
    AssignedSeed,
    #[error("a segment that was trained again ends elsewhere")]
    Rerun,
}

/// Checks a chain. `commitments` were agreed as its checkpoints were made; `seed` was assigned before; `later` is a beacon
/// that came after the last commitment. Returns what does not hold, all of it, in order.
///
/// # Errors
/// The verifier itself could not train.
pub fn verify(
    training: &dyn Training,
    rules: &Rules,
    chain: &[Checkpoint],
    commitments: &[Hash],
    seed: &[u8; 32],
    later: &Hash,
) -> Result<Vec<Condition>, TrainerFault> {
    let assigned = training.initial(seed)?;
    let is_sound = chain.len() >= 2
        && chain.iter().all(|one| one.is_like(&assigned) && one.is_finite())
        && rules.step_max.len() == assigned.layers.len();
    let (true, Some(first), Some(last)) = (is_sound, chain.first(), chain.last()) else {
        return Ok(vec![Condition::Shape]);
    };
    let holds = [
        (Condition::Commitment, chain.iter().map(Checkpoint::commitment).eq(commitments.iter().copied())),
        (Condition::Accuracy, is_accuracy_rising(training, rules, chain)?),
        (Condition::Continuity, chain.windows(2).all(|pair| is_continuous(rules, &pair[0], &pair[1]))),
        (Condition::InitialDistribution, is_distributed(training, rules, first)),
        (Condition::Independence, is_independent(first)),
        (Condition::Distance, is_coming_nearer(rules, chain, last)),
        (Condition::Ratio, is_near(training, rules, first, last, later)?),
        (Condition::AssignedSeed, *first == assigned),
        (Condition::Rerun, is_repeatable(training, rules, chain, later)?),
    ];
    Ok(holds.into_iter().filter(|(_, holds)| !holds).map(|(condition, _)| condition).collect())
}

fn is_accuracy_rising(
    training: &dyn Training,
    rules: &Rules,
    chain: &[Checkpoint],
) -> Result<bool, TrainerFault> {
    let accuracy = chain.iter().map(|one| training.accuracy(one)).collect::<Result<Vec<f64>, _>>()?;
    let gain = accuracy.last().zip(accuracy.first()).map_or(0.0, |(last, first)| last - first);
    Ok(gain >= rules.accuracy_gain_min
        && accuracy.windows(2).all(|pair| pair[1] >= pair[0] - rules.accuracy_falls_max))
}

fn is_continuous(rules: &Rules, from: &Checkpoint, to: &Checkpoint) -> bool {
    let layers = from.layers.iter().zip(&to.layers).zip(&rules.step_max);
    layers.into_iter().all(|((from, to), most)| squares(from, to).sqrt() <= *most)
}

/// Kolmogorov and Smirnov's test of each layer against its normal distribution, with Bonferroni's correction.
fn is_distributed(training: &dyn Training, rules: &Rules, first: &Checkpoint) -> bool {
    let deviations = training.initial_deviations();
    let significance = rules.significance / first.layers.len().max(1) as f64;
    let critical = (-(significance / 2.0).ln() / 2.0).sqrt();
    deviations.len() == first.layers.len()
        && first.layers.iter().zip(deviations).all(|(layer, deviation)| {
            let mut sorted: Vec<f64> = layer.iter().map(|weight| f64::from(*weight)).collect();
            sorted.sort_unstable_by(f64::total_cmp);
            let count = sorted.len() as f64;
            let farthest = sorted.iter().enumerate().fold(0.0f64, |farthest, (at, weight)| {
                let expected = normal(*weight / deviation);
                let (below, above) = (at as f64 / count, (at + 1) as f64 / count);
                farthest.max((expected - below).abs()).max((above - expected).abs())
            });
            farthest <= critical / count.sqrt()
        })
}

/// The normal distribution's share below `x`. Source: Abramowitz and Stegun, 26.2.17; off by at most 7.5e-8.
fn normal(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let tail = series.iter().rev().fold(0.0, |sum, term| (sum + term) * t) * (-x * x / 2.0).exp()
        / (2.0 * std::f64::consts::PI).sqrt();
    if x >= 0.0 { 1.0 - tail } else { tail }
}

/// Weights against those next to them, and against those of the layer's other half: uncorrelated up to four deviations.
fn is_independent(first: &Checkpoint) -> bool {
    const DEVIATIONS: f64 = 4.0;
    first.layers.iter().all(|layer| {
        let shifts = [1, 2, 3, layer.len() / 2];
        shifts.into_iter().filter(|shift| *shift > 0 && layer.len() > shift + 2).all(|shift| {
            let pairs = layer.len() - shift;
            correlation(&layer[..pairs], &layer[shift..]).abs() <= DEVIATIONS / (pairs as f64).sqrt()
        })
    })
}

fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let mean = |of: &[f32]| of.iter().map(|x| f64::from(*x)).sum::<f64>() / of.len().max(1) as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut own_a, mut own_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
        both += a * b;
        own_a += a * a;
        own_b += b * b;
    }
    if own_a * own_b > 0.0 { both / (own_a * own_b).sqrt() } else { 1.0 }
}

fn is_coming_nearer(rules: &Rules, chain: &[Checkpoint], last: &Checkpoint) -> bool {
    let distances: Vec<f64> = chain.iter().map(|one| one.distance(last)).collect();
    distances.windows(2).all(|pair| pair[1] <= (1.0 + rules.distance_grows_max) * pair[0])
}

fn is_near(
    training: &dyn Training,
    rules: &Rules,
    first: &Checkpoint,
    last: &Checkpoint,
    later: &Hash,
) -> Result<bool, TrainerFault> {
    let mut sum = 0.0;
    for at in 0..rules.random_beginnings {
        let seed = blake3::keyed_hash(&later.0, &at.to_be_bytes());
        sum += training.initial(seed.as_bytes())?.distance(last);
    }
    let mean = sum / f64::from(rules.random_beginnings.max(1));
    Ok(first.distance(last) < rules.distance_ratio_max * mean)
}

/// Segments that a beacon draws: all different.
#[must_use]
pub fn drawn_segments(later: &Hash, segments: usize, count: usize) -> Vec<usize> {
    let mut hasher = blake3::Hasher::new_derive_key("makai training segments 1");
    hasher.update(&later.0);
    let mut stream = hasher.finalize_xof();
    let mut left: Vec<usize> = (0..segments).collect();
    let mut drawn = Vec::new();
    while drawn.len() < count && !left.is_empty() {
        let mut bytes = [0; 16];
        stream.fill(&mut bytes);
        drawn.push(left.swap_remove((u128::from_be_bytes(bytes) % left.len() as u128) as usize));
    }
    drawn
}

fn is_repeatable(
    training: &dyn Training,
    rules: &Rules,
    chain: &[Checkpoint],
    later: &Hash,
) -> Result<bool, TrainerFault> {
    for segment in drawn_segments(later, chain.len() - 1, rules.segments_rerun) {
        let (again, said) = (training.segment(&chain[segment], segment)?, &chain[segment + 1]);
        if !again.is_like(said) || again.distance(said) > rules.rerun_differs_max {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What training is worth: 6 operations for each weight and token of a dense transformer, or 3 for each of a forward pass;
/// in thousandths of a ut.
#[must_use]
pub fn work_mut(forward_operations: u128, samples: u128) -> u64 {
    let all = forward_operations.saturating_mul(3).saturating_mul(samples);
    u64::try_from(all / super::drill::OPERATIONS_PER_MUT).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUTS: usize = 12;
    const HIDDEN: usize = 24;
    const CHECKPOINTS: usize = 12;
    const STEPS: usize = 12;
    const RATE: f32 = 0.05;
    const DEVIATIONS: [f64; 2] = [0.3, 0.2];

    /// A net of two layers that learns a rule with noise, one sample a step.
    struct Toy {
        samples: Vec<([f32; INPUTS], f32)>,
    }

    fn numbers(seed: &[u8], count: usize) -> Vec<f64> {
        let mut stream = blake3::Hasher::new().update(seed).finalize_xof();
        let uniform = |bytes: [u8; 8]| (u64::from_be_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64;
        let mut next = || {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            uniform(bytes).max(1e-12)
        };
        // Box and Muller.
        let mut normal = || (-2.0 * next().ln()).sqrt() * (2.0 * std::f64::consts::PI * next()).cos();
        (0..count).map(|_| normal()).collect()
    }

    impl Toy {
        fn new() -> Self {
            let truth = numbers(b"truth", INPUTS);
            let samples = (0..240u32).map(|at| {
                let drawn = numbers(&at.to_be_bytes(), INPUTS + 1);
                let x: [f32; INPUTS] = std::array::from_fn(|i| drawn[i] as f32);
                let score: f64 = x.iter().zip(&truth).map(|(x, t)| f64::from(*x) * t).sum();
                (x, if score + 0.6 * drawn[INPUTS] > 0.0 { 1.0 } else { 0.0 })
            });
            Self { samples: samples.collect() }
        }

        fn forward(of: &Checkpoint, x: &[f32; INPUTS]) -> ([f32; HIDDEN], f32) {
            let hidden: [f32; HIDDEN] = std::array::from_fn(|unit| {
                let row = &of.layers[0][unit * INPUTS..(unit + 1) * INPUTS];
                row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>().max(0.0)
            });
            let score: f32 = hidden.iter().zip(&of.layers[1]).map(|(h, w)| h * w).sum();
            (hidden, 1.0 / (1.0 + (-score).exp()))
        }

        fn chain(&self, seed: &[u8; 32]) -> Vec<Checkpoint> {
            let mut chain = vec![self.initial(seed).unwrap()];
            for segment in 0..CHECKPOINTS - 1 {
                chain.push(self.segment(&chain[segment], segment).unwrap());
            }
            chain
        }
    }

    impl Training for Toy {
        fn initial(&self, seed: &[u8; 32]) -> Result<Checkpoint, TrainerFault> {
            let layer = |at: u8, count: usize| {
                let drawn = numbers(&[&seed[..], &[at]].concat(), count);
                drawn.into_iter().map(|x| (x * DEVIATIONS[usize::from(at)]) as f32).collect()
            };
            Ok(Checkpoint { layers: vec![layer(0, INPUTS * HIDDEN), layer(1, HIDDEN)] })
        }

        fn initial_deviations(&self) -> Vec<f64> {
            DEVIATIONS.to_vec()
        }

        fn accuracy(&self, of: &Checkpoint) -> Result<f64, TrainerFault> {
            let right = self.samples.iter().filter(|(x, y)| (Self::forward(of, x).1 > 0.5) == (*y > 0.5));
            Ok(right.count() as f64 / self.samples.len() as f64)
        }

        fn segment(&self, from: &Checkpoint, segment: usize) -> Result<Checkpoint, TrainerFault> {
            let mut now = from.clone();
            for step in 0..STEPS {
                let (x, y) = &self.samples[(segment * STEPS + step) % self.samples.len()];
                let (hidden, told) = Self::forward(&now, x);
                let error = told - y;
                for (unit, hidden) in hidden.iter().enumerate() {
                    let back = if *hidden > 0.0 { error * now.layers[1][unit] } else { 0.0 };
                    now.layers[1][unit] -= RATE * error * hidden;
                    for (input, x) in x.iter().enumerate() {
                        now.layers[0][unit * INPUTS + input] -= RATE * back * x;
                    }
                }
            }
            Ok(now)
        }
    }

    fn rules() -> Rules {
        Rules {
            accuracy_falls_max: 0.1,
            accuracy_gain_min: 0.05,
            step_max: vec![3.0, 3.0],
            significance: 1e-3,
            distance_grows_max: 0.05,
            distance_ratio_max: 0.35,
            random_beginnings: 20,
            segments_rerun: 3,
            rerun_differs_max: 0.0,
        }
    }

    fn straight(from: &Checkpoint, to: &Checkpoint) -> Vec<Checkpoint> {
        let at = |part: f32| Checkpoint {
            layers: from
                .layers
                .iter()
                .zip(&to.layers)
                .map(|(from, to)| from.iter().zip(to).map(|(a, b)| a + (b - a) * part).collect())
                .collect(),
        };
        (0..CHECKPOINTS).map(|step| at(step as f32 / (CHECKPOINTS - 1) as f32)).collect()
    }

    fn check(toy: &Toy, chain: &[Checkpoint], seed: &[u8; 32]) -> Vec<Condition> {
        let commitments: Vec<Hash> = chain.iter().map(Checkpoint::commitment).collect();
        verify(toy, &rules(), chain, &commitments, seed, &Hash([9; 32])).unwrap()
    }

    const SEED: [u8; 32] = [5; 32];

    /// Honest training passes; three forgeries fail, the best one by training segments again alone.
    #[test]
    fn honest_training_passes_and_forgeries_do_not() {
        let toy = Toy::new();
        let honest = toy.chain(&SEED);
        assert_eq!(check(&toy, &honest, &SEED), []);
        let stolen = honest.last().unwrap();

        // A straight line from somewhere else to a model that was stolen.
        let elsewhere = straight(&toy.initial(&[6; 32]).unwrap(), stolen);
        let found = check(&toy, &elsewhere, &SEED);
        for condition in [Condition::Ratio, Condition::AssignedSeed, Condition::Rerun] {
            assert!(found.contains(&condition), "{found:?}");
        }

        // From a beginning chosen near it.
        let near = Checkpoint {
            layers: stolen
                .layers
                .iter()
                .zip(&toy.initial(&[6; 32]).unwrap().layers)
                .map(|(end, random)| end.iter().zip(random).map(|(e, r)| 0.9 * e + 0.43 * r).collect())
                .collect(),
        };
        let found = check(&toy, &straight(&near, stolen), &SEED);
        assert!(found.contains(&Condition::AssignedSeed) && found.contains(&Condition::Rerun), "{found:?}");

        // From the true beginning: only training again tells.
        let bought = straight(&honest[0], stolen);
        assert_eq!(check(&toy, &bought, &SEED), [Condition::Rerun]);
    }

    #[test]
    fn each_condition_is_found_by_itself() {
        let toy = Toy::new();
        let honest = toy.chain(&SEED);
        let commitments: Vec<Hash> = honest.iter().map(Checkpoint::commitment).collect();
        let beacon = Hash([9; 32]);
        let found = |rules: &Rules, chain: &[Checkpoint], commitments: &[Hash]| {
            verify(&toy, rules, chain, commitments, &SEED, &beacon).unwrap()
        };
        let mut late = commitments.clone();
        late[3] = Hash([0; 32]);
        assert_eq!(found(&rules(), &honest, &late), [Condition::Commitment]);
        assert_eq!(
            found(&Rules { accuracy_gain_min: 0.9, ..rules() }, &honest, &commitments),
            [Condition::Accuracy]
        );
        let short = Rules { step_max: vec![1e-6, 3.0], ..rules() };
        assert_eq!(found(&short, &honest, &commitments), [Condition::Continuity]);
        assert_eq!(found(&rules(), &honest[..1], &commitments[..1]), [Condition::Shape]);
        let mut broken = honest.clone();
        broken[2].layers[0][0] = f32::NAN;
        assert_eq!(found(&rules(), &broken, &commitments), [Condition::Shape]);
        // A beginning of two values, and one in which neighbours are alike.
        let mut two = honest[0].clone();
        two.layers[0].iter_mut().for_each(|weight| *weight = if *weight > 0.0 { 0.3 } else { -0.3 });
        assert!(!is_distributed(&toy, &rules(), &two) && is_distributed(&toy, &rules(), &honest[0]));
        let mut alike = honest[0].clone();
        alike.layers[0].sort_unstable_by(f32::total_cmp);
        assert!(!is_independent(&alike) && is_independent(&honest[0]));
        let mut back = honest.clone();
        back.swap(2, 9);
        assert!(!is_coming_nearer(&rules(), &back, honest.last().unwrap()));
    }

    /// Of forged segments, the share that is missed is (1 − a)^m.
    #[test]
    fn forged_segments_are_found_as_often_as_computed() {
        const SEGMENTS: usize = 40;
        const WORLDS: u32 = 4000;
        for forged in [4, 10, 20] {
            let missed = (0..WORLDS).filter(|world| {
                let mut beacon = [0; 32];
                beacon[..4].copy_from_slice(&world.to_be_bytes());
                drawn_segments(&Hash(beacon), SEGMENTS, 3).iter().all(|segment| *segment >= forged)
            });
            let share = missed.count() as f64 / f64::from(WORLDS);
            let bound = (1.0 - forged as f64 / SEGMENTS as f64).powi(3);
            assert!(share <= bound + 0.03 && share >= bound - 0.08, "{forged}: {share} {bound}");
        }
    }

    #[test]
    fn checkpoints_are_read_as_they_are_written_and_nothing_else_is() {
        let made = Checkpoint { layers: vec![vec![1.5, -2.0], vec![], vec![f32::MIN_POSITIVE]] };
        let bytes = made.to_bytes();
        assert_eq!(Checkpoint::from_bytes(&bytes), Some(made));
        for len in 0..bytes.len() {
            assert_eq!(Checkpoint::from_bytes(&bytes[..len]), None, "{len}");
        }
        assert_eq!(Checkpoint::from_bytes(&[&bytes[..], &[0]].concat()), None);
        let mut long = bytes;
        long[FIRST_BYTES.len() + 4..][..8].fill(0xFF);
        assert_eq!(Checkpoint::from_bytes(&long), None);
    }

    #[test]
    fn the_normal_distribution_is_the_tables() {
        for (x, below) in [(0.0, 0.5), (1.0, 0.841_344_7), (-1.96, 0.024_997_9), (3.0, 0.998_650_1)] {
            assert!((normal(x) - below).abs() < 1e-6, "{x}");
        }
    }
}
