//! What the unused part of a card is worth: a cutting-stock problem over the shares that are likely to come.
//!
//! Shares that are expected (a size and a count) have to be cut from cards: from the gaps that are open already, which cost
//! nothing more, and from untouched cards. The linear programme that needs the fewest untouched cards has a price for each size;
//! a gap is worth the dearest set of sizes that fits into it. So a gap of 530 is worth much where tasks of 470 are
//! common and gaps of 530 are not, and one of 190 nothing where all are larger.
//!
//! Solved by column generation (Gilmore and Gomory, 1961): a revised simplex with a dense inverse, and one unbounded knapsack
//! over the sizes that prices all gaps at once. Solving again as gaps and expectations change is what makes an online
//! packer follow the best offline plan. Work is bounded by [`SIZES_MAX`], [`GAPS_MAX`] and [`PIVOTS_MAX`].

use std::collections::BTreeMap;

use crate::scheduler::model::GPU_MILLI;

/// Sizes that are told apart; more are merged upwards.
const SIZES_MAX: usize = 32;
/// Sizes of gaps that are told apart; more are merged downwards.
const GAPS_MAX: usize = 48;
/// Steps of the simplex, far above what any mix of [`SIZES_MAX`] sizes was seen to need. Prices are usable after any number.
const PIVOTS_MAX: usize = 600;
/// Smaller improvements are rounding.
const EPSILON: f64 = 1e-7;

const WHOLE: usize = GPU_MILLI as usize;

/// Worth of what is left of a card, by its free thousandths; 1 is an untouched card.
#[derive(Debug, Clone, PartialEq)]
pub struct Worth(Vec<f64>);

impl Worth {
    /// Where nothing is known: every thousandth is worth the same.
    #[must_use]
    pub fn linear() -> Self {
        Self((0..=WHOLE).map(|milli| milli as f64 / WHOLE as f64).collect())
    }

    #[must_use]
    pub fn of(&self, free_milli: u32) -> f64 {
        self.0[(free_milli as usize).min(WHOLE)]
    }
}

/// Prices gaps for `shares` that are expected (thousandths to count), given the gaps that are open (thousandths to
/// count). Returns the worth of gaps, and how many untouched cards the shares need.
#[must_use]
pub fn price(shares: &BTreeMap<u32, f64>, gaps: &BTreeMap<u32, u64>) -> (Worth, f64) {
    let sizes = merge_sizes(shares);
    if sizes.is_empty() {
        return (Worth::linear(), 0.0);
    }
    let gaps = merge_gaps(gaps, sizes[0].0);
    let mut simplex = Simplex::start(&sizes, &gaps);
    for _ in 0..PIVOTS_MAX {
        simplex.price();
        match simplex.entering() {
            Some(entering) => {
                if !simplex.pivot(&entering) {
                    break;
                }
            }
            None => break,
        }
    }
    simplex.price();
    let cards = simplex.cards();
    (Worth(simplex.worth()), cards)
}

/// At most [`SIZES_MAX`] sizes, ascending: neighbours whose merging wastes least become the larger of them.
fn merge_sizes(shares: &BTreeMap<u32, f64>) -> Vec<(usize, f64)> {
    let mut sizes: Vec<(usize, f64)> = shares
        .iter()
        .filter(|&(&milli, &count)| milli > 0 && milli < GPU_MILLI && count > 0.0)
        .map(|(&milli, &count)| (milli as usize, count))
        .collect();
    while sizes.len() > SIZES_MAX {
        let waste = |at: usize| (sizes[at + 1].0 - sizes[at].0) as f64 * sizes[at].1;
        let least = (0..sizes.len() - 1).min_by(|&a, &b| waste(a).total_cmp(&waste(b))).unwrap_or(0);
        let (_, count) = sizes.remove(least);
        sizes[least].1 += count;
    }
    sizes
}

/// At most [`GAPS_MAX`] gaps that can take anything, ascending.
fn merge_gaps(gaps: &BTreeMap<u32, u64>, smallest: usize) -> Vec<(usize, f64)> {
    let mut step = 1;
    loop {
        let mut merged: BTreeMap<usize, f64> = BTreeMap::new();
        for (&milli, &count) in gaps.range(smallest as u32..GPU_MILLI) {
            *merged.entry((milli as usize / step * step).max(smallest)).or_default() += count as f64;
        }
        if merged.len() <= GAPS_MAX {
            return merged.into_iter().collect();
        }
        step = if step == 1 { 5 } else { step * 2 };
    }
}

/// A column that improves the plan.
enum Entering {
    /// More of a size than was asked for.
    Surplus(usize),
    /// A gap left as it is.
    Unused(usize),
    /// A way to cut a gap.
    CutGap(usize),
    /// A way to cut an untouched card.
    CutCard,
}

/// Rows: one a size ("at least its count"), then one a gap ("at most its count").
struct Simplex<'a> {
    sizes: &'a [(usize, f64)],
    gaps: &'a [(usize, f64)],
    /// Every size and the card are multiples of it.
    unit: usize,
    rows: usize,
    /// Row by row.
    inverse: Vec<f64>,
    costs: Vec<f64>,
    amounts: Vec<f64>,
    prices: Vec<f64>,
    /// By units: the dearest filling, and the size that it takes last.
    fillings: Vec<(f64, Option<usize>)>,
}

impl<'a> Simplex<'a> {
    /// Each size is cut alone from untouched cards, and every gap stays.
    fn start(sizes: &'a [(usize, f64)], gaps: &'a [(usize, f64)]) -> Self {
        let rows = sizes.len() + gaps.len();
        let mut inverse = vec![0.0; rows * rows];
        let (mut costs, mut amounts) = (vec![0.0; rows], vec![0.0; rows]);
        for (row, &(milli, count)) in sizes.iter().enumerate() {
            let per_card = (WHOLE / milli) as f64;
            inverse[row * rows + row] = 1.0 / per_card;
            costs[row] = 1.0;
            // Slightly uneven counts keep the simplex from going round in a circle.
            amounts[row] = (count + 1e-6 * (row + 1) as f64) / per_card;
        }
        for (row, &(_, count)) in gaps.iter().enumerate() {
            let row = row + sizes.len();
            inverse[row * rows + row] = 1.0;
            amounts[row] = count + 1e-7 * (row + 1) as f64;
        }
        let unit = sizes.iter().fold(WHOLE, |unit, &(milli, _)| greatest_common_divisor(unit, milli));
        let fillings = vec![(0.0, None); WHOLE / unit + 1];
        Self { sizes, gaps, unit, rows, inverse, costs, amounts, prices: vec![0.0; rows], fillings }
    }

    /// Prices of all rows, and with those of the sizes the dearest filling of every gap.
    fn price(&mut self) {
        self.prices.fill(0.0);
        for (cost, row) in self.costs.iter().zip(self.inverse.chunks_exact(self.rows)) {
            if *cost != 0.0 {
                self.prices.iter_mut().zip(row).for_each(|(price, cell)| *price += cost * cell);
            }
        }
        for at in 1..self.fillings.len() {
            let mut best = (self.fillings[at - 1].0, None);
            for (size, &(milli, _)) in self.sizes.iter().enumerate() {
                let units = milli / self.unit;
                if units > at {
                    break;
                }
                let worth = self.fillings[at - units].0 + self.prices[size].max(0.0);
                if worth > best.0 + 1e-12 {
                    best = (worth, Some(size));
                }
            }
            self.fillings[at] = best;
        }
    }

    fn filling(&self, milli: usize) -> f64 {
        self.fillings[milli / self.unit].0
    }

    fn entering(&self) -> Option<Entering> {
        let first_gap = self.sizes.len();
        let mut best = (-EPSILON, None);
        let mut offer = |reduced: f64, column: Entering| {
            if reduced < best.0 {
                best = (reduced, Some(column));
            }
        };
        for size in 0..self.sizes.len() {
            offer(self.prices[size], Entering::Surplus(size));
        }
        offer(1.0 - self.filling(WHOLE), Entering::CutCard);
        for (gap, &(milli, _)) in self.gaps.iter().enumerate() {
            let price = self.prices[first_gap + gap];
            offer(-self.filling(milli) - price, Entering::CutGap(gap));
            offer(-price, Entering::Unused(gap));
        }
        best.1
    }

    /// False where nothing limits the column, which only rounding can bring about.
    fn pivot(&mut self, entering: &Entering) -> bool {
        let (rows, first_gap) = (self.rows, self.sizes.len());
        let mut column = vec![0.0; rows];
        let mut cost = 0.0;
        match *entering {
            Entering::Surplus(size) => column[size] = -1.0,
            Entering::Unused(gap) => column[first_gap + gap] = 1.0,
            Entering::CutGap(gap) => {
                self.cut(self.gaps[gap].0, &mut column);
                column[first_gap + gap] = 1.0;
            }
            Entering::CutCard => {
                self.cut(WHOLE, &mut column);
                cost = 1.0;
            }
        }
        let used: Vec<(usize, f64)> =
            column.into_iter().enumerate().filter(|&(_, amount)| amount != 0.0).collect();
        let changes: Vec<f64> = self
            .inverse
            .chunks_exact(rows)
            .map(|row| used.iter().map(|&(at, amount)| row[at] * amount).sum())
            .collect();
        let limit = |row: usize| self.amounts[row] / changes[row];
        let leaving = (0..rows)
            .filter(|&row| changes[row] > 1e-9)
            .min_by(|&a, &b| limit(a).total_cmp(&limit(b)).then(a.cmp(&b)));
        let Some(leaving) = leaving else { return false };
        let step = limit(leaving);
        let pivot_row: Vec<f64> = self.inverse[leaving * rows..(leaving + 1) * rows]
            .iter()
            .map(|cell| cell / changes[leaving])
            .collect();
        for (row, &change) in changes.iter().enumerate() {
            let cells = &mut self.inverse[row * rows..(row + 1) * rows];
            if row == leaving {
                cells.copy_from_slice(&pivot_row);
            } else if change.abs() > 1e-12 {
                cells.iter_mut().zip(&pivot_row).for_each(|(cell, pivot)| *cell -= change * pivot);
                self.amounts[row] -= change * step;
            }
        }
        self.amounts[leaving] = step;
        self.costs[leaving] = cost;
        true
    }

    /// Adds the sizes of the dearest filling of `milli` to `column`.
    fn cut(&self, milli: usize, column: &mut [f64]) {
        let mut at = milli / self.unit;
        while at > 0 {
            match self.fillings[at].1 {
                Some(size) => {
                    column[size] += 1.0;
                    at -= self.sizes[size].0 / self.unit;
                }
                None => at -= 1,
            }
        }
    }

    /// Untouched cards that the plan cuts.
    fn cards(&self) -> f64 {
        self.costs.iter().zip(&self.amounts).map(|(cost, amount)| cost * amount).sum()
    }

    fn worth(&self) -> Vec<f64> {
        let mut worth: Vec<f64> = (0..=WHOLE).map(|milli| self.filling(milli).min(1.0)).collect();
        // A whole card can always be given away whole.
        worth[WHOLE] = 1.0;
        worth
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priced(shares: &[(u32, f64)], gaps: &[(u32, u64)]) -> (Worth, f64) {
        price(&shares.iter().copied().collect(), &gaps.iter().copied().collect())
    }

    /// Pairs that fill a card need half as many cards, and both halves of a gap's worth add up to the card.
    #[test]
    fn complements_share_cards() {
        let (worth, cards) = priced(&[(300, 100.0), (700, 100.0)], &[]);
        assert!((cards - 100.0).abs() < 0.01, "{cards}");
        assert!((worth.of(300) + worth.of(700) - 1.0).abs() < 1e-6);
        assert_eq!(worth.of(299), 0.0, "nothing fits");
    }

    /// By hand: 60 x 810 need 60 cards, whose gaps of 190 take the 10 x 160 for nothing.
    #[test]
    fn a_gap_that_is_everywhere_is_worth_nothing() {
        let (worth, cards) = priced(&[(810, 60.0), (160, 10.0)], &[]);
        assert!((cards - 60.0).abs() < 0.01, "{cards}");
        assert!(worth.of(190) < 1e-6);
    }

    /// A gap that stands open saves cutting a card; it stops being worth it when there are more gaps than shares.
    #[test]
    fn open_gaps_lose_their_worth_with_their_number() {
        let (few, cards) = priced(&[(470, 100.0)], &[(530, 20)]);
        assert!((cards - 40.0).abs() < 0.01, "80 remain, two a card: {cards}");
        assert!((few.of(530) - 0.5).abs() < 1e-6);
        let (many, cards) = priced(&[(470, 100.0)], &[(530, 200)]);
        assert!(cards < 0.01);
        assert!(many.of(530) < 1e-6);
    }

    /// The count of cards is a true lower bound, and first fit decreasing an upper one within the known 11/9.
    #[test]
    fn the_plan_lies_between_the_volume_and_first_fit() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..20 {
            let shares: BTreeMap<u32, f64> =
                (0..60).map(|_| (1 + random(999) as u32, (1 + random(40)) as f64)).collect();
            let volume: f64 = shares.iter().map(|(&milli, count)| f64::from(milli) * count / 1000.0).sum();
            let mut bins: Vec<u32> = Vec::new();
            for (&milli, &count) in shares.iter().rev() {
                for _ in 0..count as u32 {
                    match bins.iter_mut().find(|free| **free >= milli) {
                        Some(free) => *free -= milli,
                        None => bins.push(GPU_MILLI - milli),
                    }
                }
            }
            let (worth, cards) = price(&shares, &BTreeMap::new());
            assert!(cards >= volume - 1e-6);
            assert!(cards <= bins.len() as f64 * 1.1 + 1.0, "{cards} cards, first fit {}", bins.len());
            for milli in 1..=GPU_MILLI {
                assert!(worth.of(milli) >= worth.of(milli - 1) - 1e-9, "more room is never worth less");
            }
        }
    }
}
