//! How long will it run, how much memory will it need, how much GPU time: from what its like did, always with an interval.
//!
//! ```text
//! groups of its like, narrow to wide ─ medians, shrunk towards the wider ─> base ─ regression on its size ─> median
//! spread of the narrowest well-known group ─ scaled so that nine of ten outcomes lay below ─> p90
//! ```
//!
//! - **Groups** are the tenant's work on that card model, the tenant's work, the work, the tenant, everything. Each keeps a sketch
//!   of what was seen, by eighths of a doubling; medians and percentiles do not care about one absurd outcome.
//! - **Regression**: a ridge over the logarithms of inputs, CPU and GPU explains what is left; it is used while it errs less than the groups
//!   alone.
//! - **Calibration**: the factor on the spread follows the outcomes (each one above the predicted percentile widens it by nine
//!   steps, each one below narrows it by one), so that the promised nine of ten hold whatever the distribution.
//!
//! The history is a fold over agreed outcomes: a new leader folds the same ones and predicts the same.

use std::collections::BTreeMap;

use super::model::Estimate;

/// Sketch cells for each doubling.
const CELLS_PER_DOUBLING: f64 = 8.0;
/// Outcomes of one group after which all count half: it follows change.
const SKETCH_COUNT_MAX: u32 = 4096;
/// Groups that are remembered; the longest unheard-of are forgotten.
const GROUPS_MAX: usize = 20_000;
/// Outcomes of the wider group that weigh like one of its own.
const SHRINK_COUNT: f64 = 2.0;
/// Outcomes from which a group's own spread is trusted.
const SPREAD_COUNT_MIN: u32 = 12;
/// Least spread from median to ninetieth percentile, in doublings.
const SPREAD_MIN: f64 = 0.05;
/// Spread where nothing is known.
const SPREAD_UNKNOWN: f64 = 2.0;
/// A step of the calibration, in parts of the spread.
const CALIBRATION_STEP: f64 = 0.02;
const COVERAGE: f64 = 0.9;
const FEATURES: usize = 4;
const RIDGE: f64 = 4.0;
/// Weight that an outcome keeps with each later one.
const FORGET: f64 = 0.999;
/// The regression moves no prediction by more doublings.
const CORRECTION_MAX: f64 = 4.0;

/// What is known of a task before it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub tenant: u64,
    /// Same program, same number: a hash of the module or the image with its command.
    pub work: u64,
    /// A number for the model of the card; 0: none.
    pub card: u64,
    pub input_bytes: u64,
    pub cpu_milli: u64,
    pub gpu_milli: u64,
}

/// What it turned out to need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needed {
    pub runtime_ms: u64,
    pub memory_peak_mib: u64,
    pub gpu_ms: u64,
}

/// Half of the outcomes lie below `median`, nine of ten below `p90`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interval {
    pub median: u64,
    pub p90: u64,
    /// Outcomes of the narrowest group that was used.
    pub seen: u32,
}

impl From<Interval> for Estimate {
    fn from(interval: Interval) -> Self {
        Self { median_ms: interval.median, p90_ms: interval.p90 }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prediction {
    pub runtime_ms: Interval,
    pub memory_peak_mib: Interval,
    pub gpu_ms: Interval,
}

/// How often predictions, made before the outcome was known, were right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calibration {
    pub count: u64,
    pub below_median: u64,
    /// Should be nine tenths of `count`.
    pub below_p90: u64,
}

/// Everything that was learnt.
#[derive(Debug, Clone, Default)]
pub struct History {
    runtime: Quantity,
    memory: Quantity,
    gpu: Quantity,
}

impl History {
    /// Learns an outcome. Only successes teach: a failure says nothing about need.
    pub fn observe(&mut self, subject: &Subject, needed: &Needed) {
        self.runtime.observe(subject, needed.runtime_ms);
        self.memory.observe(subject, needed.memory_peak_mib);
        self.gpu.observe(subject, needed.gpu_ms);
    }

    /// `None` until the first outcome.
    #[must_use]
    pub fn predict(&self, subject: &Subject) -> Option<Prediction> {
        Some(Prediction {
            runtime_ms: self.runtime.predict(subject)?,
            memory_peak_mib: self.memory.predict(subject)?,
            gpu_ms: self.gpu.predict(subject)?,
        })
    }

    /// Of run times.
    #[must_use]
    pub fn calibration(&self) -> Calibration {
        self.runtime.calibration
    }
}

/// Narrow to wide.
type Key = (u8, u64, u64, u64);

fn keys(subject: &Subject) -> [Key; 5] {
    [
        (0, subject.tenant, subject.work, subject.card),
        (1, subject.tenant, subject.work, 0),
        (2, 0, subject.work, 0),
        (3, subject.tenant, 0, 0),
        (4, 0, 0, 0),
    ]
}

fn doublings(value: u64) -> f64 {
    (value as f64 + 1.0).log2()
}

fn value(doublings: f64) -> u64 {
    (doublings.clamp(0.0, 63.0).exp2() - 1.0).round() as u64
}

/// Counts by eighths of a doubling.
#[derive(Debug, Clone, Default)]
struct Sketch {
    cells: BTreeMap<u16, u32>,
    count: u32,
    touched: u64,
}

impl Sketch {
    fn add(&mut self, doublings: f64) {
        *self.cells.entry((doublings * CELLS_PER_DOUBLING) as u16).or_default() += 1;
        self.count += 1;
        if self.count >= SKETCH_COUNT_MAX {
            self.cells.values_mut().for_each(|count| *count /= 2);
            self.cells.retain(|_, count| *count > 0);
            self.count = self.cells.values().sum();
        }
    }

    fn quantile(&self, part: f64) -> f64 {
        let rank = part * f64::from(self.count);
        let mut passed = 0.0;
        for (&cell, &count) in &self.cells {
            let within = (rank - passed) / f64::from(count);
            passed += f64::from(count);
            if passed >= rank {
                return (f64::from(cell) + within.clamp(0.0, 1.0)) / CELLS_PER_DOUBLING;
            }
        }
        self.cells.keys().next_back().map_or(0.0, |&cell| f64::from(cell) / CELLS_PER_DOUBLING)
    }
}

/// Ridge regression, learnt one outcome at a time (recursive least squares).
#[derive(Debug, Clone)]
struct Ridge {
    weights: [f64; FEATURES],
    covariance: [[f64; FEATURES]; FEATURES],
}

impl Default for Ridge {
    fn default() -> Self {
        let mut covariance = [[0.0; FEATURES]; FEATURES];
        covariance.iter_mut().enumerate().for_each(|(at, row)| row[at] = 1.0 / RIDGE);
        Self { weights: [0.0; FEATURES], covariance }
    }
}

impl Ridge {
    fn predict(&self, features: &[f64; FEATURES]) -> f64 {
        let sum: f64 = self.weights.iter().zip(features).map(|(weight, feature)| weight * feature).sum();
        sum.clamp(-CORRECTION_MAX, CORRECTION_MAX)
    }

    fn learn(&mut self, features: &[f64; FEATURES], target: f64) {
        let gain: [f64; FEATURES] =
            self.covariance.map(|row| row.iter().zip(features).map(|(a, b)| a * b).sum());
        let scale: f64 = FORGET + gain.iter().zip(features).map(|(a, b)| a * b).sum::<f64>();
        let sum: f64 = self.weights.iter().zip(features).map(|(weight, feature)| weight * feature).sum();
        let error = target - sum;
        for row in 0..FEATURES {
            self.weights[row] += gain[row] / scale * error;
            for column in 0..FEATURES {
                let cell = (self.covariance[row][column] - gain[row] * gain[column] / scale) / FORGET;
                // Where nothing new is seen, forgetting must not make it ever less sure.
                self.covariance[row][column] = cell.clamp(-1.0 / RIDGE, 1.0 / RIDGE);
            }
        }
    }
}

/// Sizes as doublings around what is common, so that one weight means one thing.
fn features(subject: &Subject) -> [f64; FEATURES] {
    [
        1.0,
        doublings(subject.input_bytes >> 20) / 10.0,
        doublings(subject.cpu_milli) / 10.0 - 1.0,
        doublings(subject.gpu_milli) / 10.0,
    ]
}

#[derive(Debug, Clone, Default)]
struct Quantity {
    groups: BTreeMap<Key, Sketch>,
    ridge: Ridge,
    /// Fading mean errors of the groups alone, and with the regression.
    errors: (f64, f64),
    /// Spreads above the median that nine of ten outcomes stay within, less one.
    stretch: f64,
    calibration: Calibration,
    clock: u64,
}

/// A prediction in doublings.
struct Forecast {
    base: f64,
    correction: f64,
    spread: f64,
    seen: u32,
}

impl Quantity {
    fn forecast(&self, subject: &Subject) -> Option<Forecast> {
        let known: Vec<&Sketch> = keys(subject).iter().filter_map(|key| self.groups.get(key)).collect();
        let (narrowest, widest) = (known.first()?, known.last()?);
        let base = known.iter().rev().fold(widest.quantile(0.5), |wider, group| {
            let count = f64::from(group.count);
            (group.quantile(0.5) * count + wider * SHRINK_COUNT) / (count + SHRINK_COUNT)
        });
        let well_known = known.iter().find(|group| group.count >= SPREAD_COUNT_MIN);
        let spread = well_known
            .map_or(SPREAD_UNKNOWN, |group| group.quantile(COVERAGE) - group.quantile(0.5))
            .max(SPREAD_MIN);
        let is_regression_better = self.errors.1 < self.errors.0;
        let correction = if is_regression_better { self.ridge.predict(&features(subject)) } else { 0.0 };
        Some(Forecast { base, correction, spread, seen: narrowest.count })
    }

    fn p90(&self, forecast: &Forecast) -> f64 {
        forecast.base + forecast.correction + forecast.spread * (1.0 + self.stretch).max(0.0)
    }

    fn predict(&self, subject: &Subject) -> Option<Interval> {
        let forecast = self.forecast(subject)?;
        let median = value(forecast.base + forecast.correction);
        Some(Interval { median, p90: value(self.p90(&forecast)).max(median), seen: forecast.seen })
    }

    fn observe(&mut self, subject: &Subject, outcome: u64) {
        let outcome = doublings(outcome);
        if let Some(forecast) = self.forecast(subject) {
            self.judge(&forecast, subject, outcome);
        }
        self.clock += 1;
        for key in keys(subject) {
            let group = self.groups.entry(key).or_default();
            group.add(outcome);
            group.touched = self.clock;
        }
        if self.groups.len() > GROUPS_MAX {
            let mut touched: Vec<u64> = self.groups.values().map(|group| group.touched).collect();
            touched.sort_unstable();
            let oldest_kept = touched[touched.len() / 10];
            self.groups.retain(|_, group| group.touched > oldest_kept);
        }
    }

    /// Compares a forecast with its outcome, and learns from the difference.
    fn judge(&mut self, forecast: &Forecast, subject: &Subject, outcome: f64) {
        let is_below_p90 = outcome <= self.p90(forecast);
        self.calibration.count += 1;
        self.calibration.below_median += u64::from(outcome <= forecast.base + forecast.correction);
        self.calibration.below_p90 += u64::from(is_below_p90);
        let step = if is_below_p90 { COVERAGE - 1.0 } else { COVERAGE };
        self.stretch = (self.stretch + CALIBRATION_STEP * step).clamp(-1.0, 8.0);
        let (features, left) = (features(subject), outcome - forecast.base);
        let fade = |mean: f64, error: f64| mean + (error.abs() - mean) / 64.0;
        self.errors.0 = fade(self.errors.0, left);
        self.errors.1 = fade(self.errors.1, left - self.ridge.predict(&features));
        self.ridge.learn(&features, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1_u64 << 53) as f64
        }

        /// Sum of twelve: close enough to a normal distribution.
        fn normal(&mut self) -> f64 {
            (0..12).map(|_| self.next()).sum::<f64>() - 6.0
        }
    }

    fn subject(tenant: u64, work: u64) -> Subject {
        Subject { tenant, work, cpu_milli: 1000, ..Subject::default() }
    }

    fn needed(runtime_ms: u64) -> Needed {
        Needed { runtime_ms, ..Needed::default() }
    }

    /// Nine of ten outcomes lie below the ninetieth percentile, within two points, for wide, narrow and changing work alike.
    #[test]
    fn intervals_are_calibrated() {
        let mut random = Random(1);
        let mut history = History::default();
        for step in 0..20_000_u64 {
            let work = step % 40;
            let drift = if step > 10_000 { 2.0 } else { 0.0 };
            let spread = 0.1 + 0.05 * (work % 8) as f64;
            let doublings = 10.0 + (work % 7) as f64 + drift + spread * random.normal();
            history.observe(&subject(work % 5, work), &needed(doublings.exp2() as u64));
        }
        let calibration = history.calibration();
        let covered = calibration.below_p90 as f64 / calibration.count as f64;
        assert!((0.88..=0.92).contains(&covered), "{covered}");
    }

    /// A task is predicted by its own work; a new work of a known tenant by that tenant's; one absurd outcome changes little.
    #[test]
    fn the_narrowest_group_that_is_known_speaks() {
        let mut history = History::default();
        assert_eq!(history.predict(&subject(1, 1)), None);
        for _ in 0..50 {
            history.observe(&subject(1, 1), &needed(1_000));
            history.observe(&subject(2, 2), &needed(1_000_000));
        }
        history.observe(&subject(1, 1), &needed(u64::MAX));
        let median = |subject| history.predict(&subject).expect("something is known").runtime_ms.median;
        assert!((800..1300).contains(&median(subject(1, 1))), "{}", median(subject(1, 1)));
        assert!((800_000..1_300_000).contains(&median(subject(2, 99))), "{}", median(subject(2, 99)));
    }

    /// Where run time grows with the input, an input of a size never seen is predicted from its size.
    #[test]
    fn size_explains_what_groups_cannot() {
        let mut random = Random(7);
        let mut history = History::default();
        let sized = |mib: u64| Subject { input_bytes: mib << 20, ..subject(1, 1) };
        for _ in 0..3000 {
            let mib = (1.0 + 9.0 * random.next()).exp2() as u64;
            history.observe(&sized(mib), &needed(mib * 100));
        }
        let small = history.predict(&sized(4)).expect("known").runtime_ms;
        let large = history.predict(&sized(1000)).expect("known").runtime_ms;
        assert!((200..800).contains(&small.median), "{small:?}");
        assert!((50_000..200_000).contains(&large.median), "{large:?}");
        assert!(small.p90 >= small.median && large.p90 >= large.median);
    }
}
