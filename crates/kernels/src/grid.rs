//! Uniform integer grids: `value = scale · (code − zero)`, codes from 0 to `2^bits − 1`.
//!
//! A grid is fitted to the numbers that will share it, either to their range or by a search over
//! shrunken ranges that minimises a weighted error. Scales are rounded to their storage type
//! *before* anything is rounded onto the grid, so that what is measured is what is stored.

mod search;

pub use search::Search;

use crate::isa::Isa;
use crate::math::{TO_INTEGER, nearest_integer};
use crate::simd::{LANES, add_lanes, larger, reduce, smaller, vectorized};

/// Which grids a fit may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Zero point fixed at `2^(bits−1)`; otherwise each grid has its own.
    pub symmetric: bool,
    /// Leave out the most negative code of a symmetric grid, so that it is `±(2^(bits−1) − 1)`.
    pub restricted: bool,
}

/// A grid: one scale and one zero point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Distance between neighbouring values.
    pub scale: f32,
    /// The code of zero.
    pub zero: u8,
    lowest: u8,
    highest: u8,
}

impl Levels {
    /// The largest code.
    #[inline]
    pub fn highest(self) -> u8 {
        u8::MAX >> (8 - self.bits.clamp(1, 8))
    }

    /// The smallest code in use.
    fn lowest(self) -> u8 {
        u8::from(self.symmetric && self.restricted && self.bits > 1)
    }

    /// A grid with this scale and zero point.
    pub fn grid(self, scale: f32, zero: u8) -> Grid {
        Grid { scale, zero, lowest: self.lowest(), highest: self.highest() }
    }

    /// The grid whose range is `[low, high]`, with the scale rounded by `store`.
    fn spanning(self, low: f32, high: f32, store: impl Fn(f32) -> f32) -> Grid {
        let scale = self.scale_spanning(low, high);
        let scale = if scale > 0.0 { store(scale) } else { 1.0 };
        self.grid(scale, self.zero_spanning(low, scale) as u8)
    }

    /// The scale with which `[low, high]` is spanned; 0 where there is nothing to span.
    ///
    /// Symmetric grids span the larger of `|low|` and `|high|` in `(2^bits − 1) / 2` steps, as
    /// compressed-tensors does (or in `2^(bits−1) − 1` when restricted); asymmetric grids include 0.
    #[inline(always)]
    fn scale_spanning(self, low: f32, high: f32) -> f32 {
        let steps = f32::from(self.highest());
        if self.symmetric {
            let half = if self.lowest() > 0 { (steps - 1.0) / 2.0 } else { steps / 2.0 };
            larger(low.abs(), high.abs()) / half
        } else {
            (larger(0.0, high) - smaller(0.0, low)) / steps
        }
    }

    /// The zero point of a grid from `low` on.
    #[inline(always)]
    fn zero_spanning(self, low: f32, scale: f32) -> f32 {
        if self.symmetric {
            return f32::from(1_u8 << (self.bits - 1));
        }
        let zero = smaller(f32::from(self.highest()), larger(0.0, -low / scale));
        nearest_integer(zero)
    }

    /// The grid that spans the values from least to greatest. `store` rounds a positive scale to
    /// its storage type and keeps it positive.
    pub fn fit_range(self, values: &[f32], store: impl Fn(f32) -> f32) -> Grid {
        let (low, high) = range(values);
        self.spanning(low, high, store)
    }
}

impl Grid {
    /// The code nearest to `value`, ties to even, saturating at the ends; of NaN the least.
    #[inline]
    pub fn code(&self, value: f32) -> u8 {
        let [low, high] = self.ends();
        let steps = smaller(high, larger(low, value / self.scale));
        // The integer is in the low bits, of which a byte is enough for the sum.
        ((steps + TO_INTEGER).to_bits() as u8).wrapping_add(self.zero)
    }

    /// [`code`](Self::code) of each value.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn codes(&self, values: &[f32], codes: &mut [u8]) {
        assert_eq!(values.len(), codes.len(), "a code a value");
        round_all(Isa::detect(), *self, values, codes);
    }

    /// The least and the largest number of steps from zero.
    fn ends(&self) -> [f32; 2] {
        [self.lowest, self.highest].map(|end| f32::from(end) - f32::from(self.zero))
    }

    /// The value of a code.
    pub fn value(&self, code: u8) -> f32 {
        self.scale * (i32::from(code) - i32::from(self.zero)) as f32
    }

    /// `value` rounded onto the grid.
    pub fn round(&self, value: f32) -> f32 {
        self.value(self.code(value))
    }

    /// `Σ weight · (value − rounded)²`.
    pub fn squared_error(&self, values: &[f32], weights: Option<&[f32]>) -> f32 {
        squared_error(Isa::detect(), values, weights.unwrap_or(&[]), self.scale, self.ends())
    }
}

/// Least and greatest of finite values; zeros when there are none.
fn range(values: &[f32]) -> (f32, f32) {
    if values.is_empty() { (0.0, 0.0) } else { least_and_greatest(Isa::detect(), values) }
}

vectorized! {
    fn least_and_greatest(values: &[f32]) -> (f32, f32) {
        let (mut least, mut greatest) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        let (values, rest) = values.as_chunks::<LANES>();
        for values in values {
            for lane in 0..LANES {
                least[lane] = smaller(least[lane], values[lane]);
                greatest[lane] = larger(greatest[lane], values[lane]);
            }
        }
        let ends = (reduce(least, f32::min), reduce(greatest, f32::max));
        rest.iter().fold(ends, |(low, high), value| (low.min(*value), high.max(*value)))
    }
}

vectorized! {
    fn round_all(grid: Grid, values: &[f32], codes: &mut [u8]) {
        for (code, value) in codes.iter_mut().zip(values) {
            *code = grid.code(*value);
        }
    }
}

vectorized! {
    /// Values are clamped to `ends` in units of the scale and rounded. It divides by multiplying with
    /// the inverse, which may move a value that lies midway between two codes; such a value's error is
    /// the same either way.
    fn squared_error(values: &[f32], weights: &[f32], scale: f32, ends: [f32; 2]) -> f32 {
        let inverse = 1.0 / scale;
        let term = |value: f32| {
            let steps = nearest_integer(smaller(larger(value * inverse, ends[0]), ends[1]));
            let error = value - scale * steps;
            error * error
        };
        weighted_sum(values, weights, term)
    }
}

/// `Σ weight · term(value)`; without weights all are 1.
#[inline(always)]
fn weighted_sum(values: &[f32], weights: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (values, values_rest) = values.as_chunks::<LANES>();
    let (weights, weights_rest) = weights.as_chunks::<LANES>();
    let mut tail = 0.0;
    if weights.is_empty() && weights_rest.is_empty() {
        for values in values {
            for lane in 0..LANES {
                sums[lane] += term(values[lane]);
            }
        }
        values_rest.iter().for_each(|value| tail += term(*value));
    } else {
        for (values, weights) in values.iter().zip(weights) {
            for lane in 0..LANES {
                sums[lane] += weights[lane] * term(values[lane]);
            }
        }
        values_rest.iter().zip(weights_rest).for_each(|(v, w)| tail += w * term(*v));
    }
    add_lanes(sums) + tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn levels() -> impl Strategy<Value = Levels> {
        (1_u8..=8, any::<bool>(), any::<bool>()).prop_map(|(bits, symmetric, restricted)| Levels {
            bits,
            symmetric,
            restricted,
        })
    }

    pub(super) fn exact(value: f32) -> f32 {
        value
    }

    /// All codes tried: the oracle of `Grid::code`.
    fn nearest(grid: &Grid, value: f32) -> f32 {
        (grid.lowest..=grid.highest)
            .map(|code| grid.value(code))
            .min_by(|a, b| (a - value).abs().total_cmp(&(b - value).abs()))
            .unwrap()
    }

    proptest! {
        #[test]
        fn a_code_is_the_nearest_of_all(
            levels in levels(), values in prop::collection::vec(-8.0_f32..8.0, 1..70), by in 0.2_f32..1.5,
        ) {
            let fitted = levels.fit_range(&values, exact);
            let grid = levels.grid(fitted.scale * by, fitted.zero);
            for value in &values {
                let (rounded, best) = (grid.round(*value), nearest(&grid, *value));
                let slack = 1e-5 * grid.scale.max(value.abs());
                prop_assert!((rounded - value).abs() <= (best - value).abs() + slack);
            }
        }

        #[test]
        fn codes_of_a_slice_are_those_of_its_values(
            levels in levels(), values in prop::collection::vec(-8.0_f32..8.0, 1..70), by in 0.2_f32..1.5,
        ) {
            let fitted = levels.fit_range(&values, exact);
            let grid = levels.grid(fitted.scale * by, fitted.zero);
            for isa in Isa::available() {
                let mut codes = vec![0; values.len()];
                round_all(isa, grid, &values, &mut codes);
                for (value, code) in values.iter().zip(codes) {
                    let steps = (value / grid.scale).round_ties_even() + f32::from(grid.zero);
                    let want = steps.clamp(f32::from(grid.lowest), f32::from(grid.highest)) as u8;
                    prop_assert_eq!((code, grid.code(*value)), (want, want));
                }
            }
        }

        #[test]
        fn zero_is_exact_on_every_grid(levels in levels(), values in prop::collection::vec(-9.0_f32..9.0, 0..20)) {
            prop_assert_eq!(levels.fit_range(&values, exact).round(0.0), 0.0);
        }
    }

    #[test]
    fn a_symmetric_range_is_that_of_compressed_tensors() {
        let levels = Levels { bits: 4, symmetric: true, restricted: false };
        let grid = levels.fit_range(&[-1.0, 0.5, 1.5], exact);
        assert_eq!((grid.scale, grid.zero), (1.5 / 7.5, 8));
        assert_eq!(grid.code(1.5), 15, "7.5 steps saturate at 7");
        assert_eq!(grid.code(-9.0), 0);
        let restricted = Levels { restricted: true, ..levels }.fit_range(&[-1.0, 0.5, 1.5], exact);
        assert_eq!((restricted.scale, restricted.code(-9.0)), (1.5 / 7.0, 1));
    }
}
