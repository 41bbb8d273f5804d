//! The grid of least squared error among those that span a shrunken range.
//!
//! Candidates lie in the lanes of a register, so that a value is read once for sixteen of them and no
//! sum runs across lanes: some nine operations a value for all sixteen.

use super::{Grid, Levels, range, weighted_sum};
use crate::isa::Isa;
use crate::math::nearest_integer;
use crate::simd::{LANES, larger, reduce, smaller, vectorized};

/// How finely and how far [`Levels::fit_search`] shrinks a range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Search {
    /// Candidates if the range were shrunk to nothing.
    pub steps: usize,
    /// Least ratio tried.
    pub floor: f32,
}

impl Levels {
    /// The grid, among those that span the range shrunk to `k / steps` for `k = steps, steps − 1, …`
    /// down to `floor`, with the least `Σ weight · (value − rounded)²` (all weights 1 when `None`).
    ///
    /// The error is not convex in the scale, so every candidate is tried; the full range is one. What
    /// values outside the range lose does grow as it shrinks: candidates end where that alone is more
    /// than the least error.
    pub fn fit_search(
        self,
        values: &[f32],
        weights: Option<&[f32]>,
        search: Search,
        store: impl Fn(f32) -> f32,
    ) -> Grid {
        let isa = Isa::detect();
        let (low, high) = range(values);
        let weights = weights.unwrap_or(&[]);
        let steps = search.steps.max(1);
        let (mut best, mut least) = (self.spanning(low, high, &store), f32::INFINITY);
        let mut grids = Candidates::default();
        let mut next = steps;
        while next > 0 && least > 0.0 {
            shrink(isa, next, Search { steps, ..search }, &mut grids.ratios);
            let reach = grids.ratios[0];
            if next < steps && reach < search.floor {
                break;
            }
            span(isa, self, [low, high], &mut grids);
            for scale in &mut grids.scales {
                *scale = if *scale > 0.0 { store(*scale) } else { 1.0 };
            }
            place(isa, self, low, &mut grids);
            if next < steps {
                let ends = self.covered(low * reach, high * reach, grids.scales[0]);
                if clipped(isa, values, weights, ends) > least {
                    break;
                }
            }
            let errors = squared_errors(isa, values, weights, &grids);
            if reduce(errors, smaller) < least {
                for (lane, error) in errors.into_iter().enumerate() {
                    if error < least {
                        least = error;
                        best = self.grid(grids.scales[lane], grids.zeros[lane] as u8);
                    }
                }
            }
            next = next.saturating_sub(LANES);
        }
        best
    }

    /// What a grid that spans a range, or a narrower one, cannot reach beyond: the rounding of its
    /// zero point and of its scale move its ends by less than a step.
    fn covered(self, low: f32, high: f32, step: f32) -> [f32; 2] {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let (low, high) =
            if self.symmetric { (low.min(-high), high.max(-low)) } else { (low, high) };
        [low - step, high + step]
    }
}

/// Grids, one a lane.
#[derive(Default)]
struct Candidates {
    /// Of the range.
    ratios: [f32; LANES],
    scales: [f32; LANES],
    zeros: [f32; LANES],
    inverses: [f32; LANES],
    /// The least and the largest number of steps from zero.
    lows: [f32; LANES],
    highs: [f32; LANES],
}

vectorized! {
    /// The ratios from `next / steps` on. Where fewer are left than lanes, the rest are the first again.
    fn shrink(next: usize, search: Search, ratios: &mut [f32; LANES]) {
        let (next, steps) = (next as f32, search.steps as f32);
        for (lane, slot) in ratios.iter_mut().enumerate() {
            let step = next - lane as f32;
            let ratio = step / steps;
            let is_tried = step > 0.0 && (ratio >= search.floor || step == steps);
            *slot = if is_tried { ratio } else { next / steps };
        }
    }
}

vectorized! {
    /// The scales of grids that span parts of a range, before they are stored.
    fn span(levels: Levels, ends: [f32; 2], grids: &mut Candidates) {
        for lane in 0..LANES {
            let [low, high] = ends.map(|end| end * grids.ratios[lane]);
            grids.scales[lane] = levels.scale_spanning(low, high);
        }
    }
}

vectorized! {
    /// What follows from the scales as they are stored.
    fn place(levels: Levels, low: f32, grids: &mut Candidates) {
        let (lowest, highest) = (f32::from(levels.lowest()), f32::from(levels.highest()));
        for lane in 0..LANES {
            let zero = levels.zero_spanning(low * grids.ratios[lane], grids.scales[lane]);
            grids.zeros[lane] = zero;
            grids.inverses[lane] = 1.0 / grids.scales[lane];
            grids.lows[lane] = lowest - zero;
            grids.highs[lane] = highest - zero;
        }
    }
}

/// Values that are summed before their sum is added to that of the others, so that a long sum keeps
/// its small terms.
const STRETCH: usize = 256;

vectorized! {
    /// `Σ weight · (value − rounded)²` on each of the grids; without weights all are 1.
    fn squared_errors(values: &[f32], weights: &[f32], grids: &Candidates) -> [f32; LANES] {
        let mut sums = [0.0_f32; LANES];
        for (stretch, values) in values.chunks(STRETCH).enumerate() {
            let weights = weights.get(stretch * STRETCH..).unwrap_or(&[]);
            let mut own = [0.0_f32; LANES];
            let errors = |value: f32| -> [f32; LANES] {
                std::array::from_fn(|lane| {
                    let steps = larger(value * grids.inverses[lane], grids.lows[lane]);
                    let steps = nearest_integer(smaller(steps, grids.highs[lane]));
                    value - grids.scales[lane] * steps
                })
            };
            if weights.is_empty() {
                for value in values {
                    let errors = errors(*value);
                    for lane in 0..LANES {
                        own[lane] += errors[lane] * errors[lane];
                    }
                }
            } else {
                for (value, weight) in values.iter().zip(weights) {
                    let errors = errors(*value);
                    for lane in 0..LANES {
                        own[lane] += errors[lane] * errors[lane] * weight;
                    }
                }
            }
            for lane in 0..LANES {
                sums[lane] += own[lane];
            }
        }
        sums
    }
}

vectorized! {
    /// `Σ weight · (distance from the interval)²`: what any grid within `ends` loses at least.
    fn clipped(values: &[f32], weights: &[f32], ends: [f32; 2]) -> f32 {
        weighted_sum(values, weights, |value| {
            let outside = larger(larger(value - ends[1], ends[0] - value), 0.0);
            outside * outside
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{exact, levels};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_search_finds_the_least_error_of_its_candidates(
            levels in levels(), values in prop::collection::vec(-3.0_f32..5.0, 1..70), weighted: bool,
            steps in 2_usize..40,
        ) {
            let weights: Vec<f32> = (0..values.len()).map(|i| 0.1 + (i % 7) as f32).collect();
            let weights = weighted.then_some(weights.as_slice());
            let found = levels.fit_search(&values, weights, Search { steps, floor: 0.0 }, exact);
            let error = |grid: Grid| -> f64 {
                values.iter().enumerate().map(|(i, v)| {
                    let weight = weights.map_or(1.0, |w| f64::from(w[i]));
                    weight * (f64::from(*v) - f64::from(grid.round(*v))).powi(2)
                }).sum()
            };
            let (low, high) = range(&values);
            let least = (1..=steps)
                .map(|k| k as f32 / steps as f32)
                .map(|r| error(levels.spanning(low * r, high * r, exact)))
                .fold(f64::INFINITY, f64::min);
            prop_assert!(error(found) <= least * (1.0 + 1e-4) + 1e-9);
            prop_assert!(error(found) <= error(levels.fit_range(&values, exact)) * (1.0 + 1e-4) + 1e-9);
        }

        #[test]
        fn all_levels_of_instructions_find_the_same(
            levels in levels(), values in prop::collection::vec(-3.0_f32..5.0, 1..600),
        ) {
            let on = |isa| {
                let mut grids = Candidates::default();
                shrink(isa, 30, Search { steps: 31, floor: 0.6 }, &mut grids.ratios);
                span(isa, levels, [-3.0, 5.0], &mut grids);
                place(isa, levels, -3.0, &mut grids);
                grids
            };
            let grids = on(Isa::Portable);
            for isa in Isa::available() {
                let same = on(isa);
                prop_assert_eq!((same.scales, same.inverses), (grids.scales, grids.inverses));
                prop_assert_eq!((same.zeros, same.lows, same.highs), (grids.zeros, grids.lows, grids.highs));
                let of = |isa| squared_errors(isa, &values, &[], &grids);
                prop_assert_eq!(of(isa), of(Isa::Portable));
                let of = |isa| clipped(isa, &values, &values, [-0.5, 0.5]);
                prop_assert_eq!(of(isa), of(Isa::Portable));
            }
        }
    }

    #[test]
    fn values_that_are_all_zero_get_a_scale_of_one() {
        for symmetric in [false, true] {
            let levels = Levels { bits: 3, symmetric, restricted: false };
            let grid = levels.fit_search(&[0.0; 5], None, Search { steps: 10, floor: 0.1 }, exact);
            assert_eq!((grid.scale, grid.round(0.0)), (1.0, 0.0));
        }
    }
}
