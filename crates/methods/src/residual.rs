//! A group of weights as a sum of several grids: OMSE's multiple low-bit tensors.

use crate::least_squares::solve;
use lapidary_kernels::grid::{Grid, Levels, Search};
use lapidary_weight::FloatType;

/// How groups are fitted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fitter {
    pub(crate) levels: Levels,
    pub(crate) search: Search,
    /// Grids that are added up.
    pub(crate) count: usize,
    pub(crate) float: FloatType,
}

/// A sum of grids and, for each weight, its code in each: `[count, weights]`.
#[derive(Debug, Clone)]
pub(crate) struct Sum {
    pub(crate) grids: Vec<Grid>,
    pub(crate) codes: Vec<Vec<u8>>,
    error: f64,
}

/// Rounds of refinement, and the share of the error that one must save to be followed by another.
const ROUNDS: usize = 20;
const WORTHWHILE: f64 = 1e-3;

/// Up to this width, pairs of codes are tried one by one.
const MOST_BITS_OF_PAIRS: u8 = 4;

impl Fitter {
    /// The better of the refined starts.
    pub(crate) fn fit(&self, values: &[f32]) -> Sum {
        let greedy = self.refine(values, self.greedy(values));
        match self.split(values) {
            Some(split) => {
                let split = self.refine(values, split);
                if split.error < greedy.error { split } else { greedy }
            }
            None => greedy,
        }
    }

    fn best_grid(&self, levels: Levels, values: &[f32]) -> Grid {
        levels.fit_search(values, None, self.search, |scale| self.float.round_scale(scale))
    }

    /// Each grid the best for what those before it leave.
    fn greedy(&self, values: &[f32]) -> Sum {
        let (mut grids, mut codes, mut left) = (vec![], vec![], values.to_vec());
        for _ in 0..self.count {
            let grid = self.best_grid(self.levels, &left);
            let of_grid: Vec<u8> = left.iter().map(|value| grid.code(*value)).collect();
            left.iter_mut().zip(&of_grid).for_each(|(left, code)| *left -= grid.value(*code));
            grids.push(grid);
            codes.push(of_grid);
        }
        self.sum(values, grids, codes)
    }

    /// Whether pairs of codes are tried.
    fn has_pairs(&self) -> bool {
        self.count == 2 && self.levels.bits <= MOST_BITS_OF_PAIRS
    }

    /// The best symmetric grid of twice the bits: its codes are those of one grid of steps `2^bits`
    /// wider and one for the rest.
    fn split(&self, values: &[f32]) -> Option<Sum> {
        if !self.has_pairs() || !self.levels.symmetric {
            return None;
        }
        let bits = self.levels.bits;
        let whole = self.best_grid(Levels { bits: 2 * bits, ..self.levels }, values);
        let grids = |scale: f32| -> Vec<Grid> {
            let coarse = self.float.round_scale(scale * f32::from(1_u16 << bits));
            let fine = self.float.round_scale(scale);
            [coarse, fine].map(|scale| self.levels.grid(scale, 1 << (bits - 1))).into()
        };
        // The largest sum of two codes is a little less than the largest code of twice the bits.
        let highest = f32::from(self.levels.highest());
        let wider = whole.scale * highest * (highest + 2.0) / (highest * (highest + 1.0) - 2.0);
        let of = |scale| self.with_pairs(values, grids(scale));
        let (exact, wide) = (of(whole.scale), of(wider));
        Some(if wide.error < exact.error { wide } else { exact })
    }

    fn with_pairs(&self, values: &[f32], grids: Vec<Grid>) -> Sum {
        let codes = self.pairs(values, &grids);
        self.sum(values, grids, codes)
    }

    fn sum(&self, values: &[f32], grids: Vec<Grid>, codes: Vec<Vec<u8>>) -> Sum {
        let error = |(place, value): (usize, &f32)| {
            let parts = grids.iter().zip(&codes);
            let sum = parts.fold(0.0, |sum, (grid, codes)| sum + grid.value(codes[place]));
            (f64::from(*value) - f64::from(sum)).powi(2)
        };
        let error = values.iter().enumerate().map(error).sum();
        Sum { grids, codes, error }
    }

    /// Least-squares scales and best codes in turn, while that pays.
    fn refine(&self, values: &[f32], start: Sum) -> Sum {
        let mut best = start;
        for _ in 0..ROUNDS {
            let Some(grids) = self.least_squares(values, &best) else { break };
            let codes = if self.has_pairs() {
                self.pairs(values, &grids)
            } else {
                self.in_turn(values, &grids, &best.codes)
            };
            let next = self.sum(values, grids, codes);
            let pays = next.error < best.error * (1.0 - WORTHWHILE);
            if next.error < best.error {
                best = next;
            }
            if !pays {
                break;
            }
        }
        if self.has_pairs() { self.polish(values, best) } else { best }
    }

    /// Scales a little wider and narrower, in ever smaller steps, where that pays: the least squares
    /// of fixed codes do not see what other codes would gain.
    fn polish(&self, values: &[f32], start: Sum) -> Sum {
        let mut best = start;
        for change in [0.04, 0.02, 0.01, 0.005, 0.0025] {
            for (index, ratio) in
                [(0, 1.0 + change), (0, 1.0 - change), (1, 1.0 + change), (1, 1.0 - change)]
            {
                let mut grids = best.grids.clone();
                grids[index] = self
                    .levels
                    .grid(self.float.round_scale(grids[index].scale * ratio), grids[index].zero);
                let next = self.with_pairs(values, grids);
                if next.error < best.error {
                    best = next;
                }
            }
        }
        best
    }

    /// Grids with the scales of least squared error for these codes, as they are stored.
    fn least_squares(&self, values: &[f32], sum: &Sum) -> Option<Vec<Grid>> {
        let steps: Vec<Vec<f64>> = (sum.grids.iter().zip(&sum.codes))
            .map(|(grid, codes)| {
                codes.iter().map(|code| f64::from(*code) - f64::from(grid.zero)).collect()
            })
            .collect();
        let dot = |a: &[f64], b: &mut dyn Iterator<Item = f64>| -> f64 {
            a.iter().zip(b).map(|(a, b)| a * b).sum()
        };
        let row = |a: &Vec<f64>| {
            let mut row: Vec<f64> = steps.iter().map(|b| dot(a, &mut b.iter().copied())).collect();
            row.push(dot(a, &mut values.iter().map(|value| f64::from(*value))));
            row
        };
        let scales = solve(steps.iter().map(row).collect())?;
        let stored = |(scale, grid): (&f64, &Grid)| {
            let scale = *scale as f32;
            let is_usable = scale > 0.0 && scale.is_finite();
            is_usable.then(|| self.levels.grid(self.float.round_scale(scale), grid.zero))
        };
        scales.iter().zip(&sum.grids).map(stored).collect()
    }

    /// The best pair of codes for each value: the first grid's that leave what the second reaches, and
    /// their neighbours, each with the nearest of the second.
    fn pairs(&self, values: &[f32], grids: &[Grid]) -> Vec<Vec<u8>> {
        let (first, second) = (grids[0], grids[1]);
        let highest = self.levels.highest();
        let (low, high) = (second.value(0), second.value(highest));
        let pair = |value: &f32| {
            let from = first.code(value - high).saturating_sub(1);
            let to = first.code(value - low).saturating_add(1).min(highest);
            let with = |code: u8| {
                let left = value - first.value(code);
                let other = second.code(left);
                ((left - second.value(other)).abs(), code, other)
            };
            let mut best = with(from);
            for code in from + 1..=to {
                let next = with(code);
                if next.0 < best.0 {
                    best = next;
                }
            }
            (best.1, best.2)
        };
        let (first, second) = values.iter().map(pair).unzip();
        vec![first, second]
    }

    /// The nearest codes of each grid in turn, given the others'; twice around.
    fn in_turn(&self, values: &[f32], grids: &[Grid], codes: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut codes = codes.to_vec();
        for turn in 0..2 * grids.len() {
            let turn = turn % grids.len();
            for (place, value) in values.iter().enumerate() {
                let others = (0..grids.len()).filter(|other| *other != turn);
                let sum: f32 = others.map(|other| grids[other].value(codes[other][place])).sum();
                codes[turn][place] = grids[turn].code(value - sum);
            }
        }
        codes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Card of OMSE, must show 4: the pairs are those that trying all finds.
        #[test]
        fn pairs_are_the_best_of_all(
            values in prop::collection::vec(-2.0_f32..2.0, 1..9), bits in 2_u8..=4,
            scales in (0.01_f32..1.0, 0.01_f32..1.0), symmetric: bool, zeros in (0_u8..4, 0_u8..4),
        ) {
            let levels = Levels { bits, symmetric, restricted: false };
            let search = Search { steps: 10, floor: 0.0 };
            let fitter = Fitter { levels, search, count: 2, float: FloatType::F32 };
            let grids = [levels.grid(scales.0, zeros.0), levels.grid(scales.1, zeros.1)];
            let codes = fitter.pairs(&values, &grids);
            for (place, value) in values.iter().enumerate() {
                let error = |a: u8, b: u8| (value - grids[0].value(a) - grids[1].value(b)).abs();
                let all = (0..=levels.highest()).flat_map(|a| (0..=levels.highest()).map(move |b| (a, b)));
                let least = all.map(|(a, b)| error(a, b)).fold(f32::INFINITY, f32::min);
                prop_assert!(error(codes[0][place], codes[1][place]) <= least + 1e-6);
            }
        }
    }
}
