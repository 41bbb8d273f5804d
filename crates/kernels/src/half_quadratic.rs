//! One step of half-quadratic quantization (HQQ): what a zero point costs, and a better one.
//!
//! Values are `scale · (code − zero)` with a real zero. With the codes of one zero, the error of each
//! value is split into a part that is believed to be an outlier's, `shrink(error)`, and the rest; the
//! next zero is the mean that makes the rest least. Errors are measured in steps of the scale.

use crate::isa::Isa;
use crate::math::{TO_INTEGER, exp, nearest_integer};
use crate::simd::{LANES, add_lanes, larger, smaller, vectorized};

/// A group's grid with a real zero point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RealGrid {
    /// Distance between neighbouring values, positive.
    pub scale: f32,
    /// The place of zero among the codes.
    pub zero: f32,
    /// The largest code.
    pub highest: u8,
}

impl RealGrid {
    /// The codes nearest to `values`, by the rule that [`step`] measures with.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn codes(self, values: &[f32], codes: &mut [u8]) {
        assert_eq!(values.len(), codes.len(), "a code a value");
        round_all(Isa::detect(), values, codes, self);
    }
}

/// `Σ |error|` in steps over `values` with this grid, and the next zero point: the mean of
/// `code − (value − shrink(error)) / scale`, where
/// `shrink(x) = sign(x) · max(0, |x| − |x|^power / beta)`.
pub fn step(values: &[f32], grid: RealGrid, power: f32, beta: f32) -> (f32, f32) {
    let (error, sum) = sums(Isa::detect(), values, grid, power, beta);
    (error, sum / values.len().max(1) as f32)
}

/// log₂ of a positive normal number to about 2e-5; of zero and smaller ones, a number below −126.
#[inline(always)]
fn log2(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    let mantissa = f32::from_bits(bits & 0x7f_ffff | 0x3f80_0000);
    // log₂ m = 2 / ln 2 · artanh((m − 1) / (m + 1)), of which four terms.
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let square = t * t;
    let series = t * (1.0 + square * (1.0 / 3.0 + square * (0.2 + square * (1.0 / 7.0))));
    exponent as f32 + 2.0 * std::f32::consts::LOG2_E * series
}

/// The code before it is made an integer of: clamped and rounded.
#[inline(always)]
fn code(value: f32, inverse: f32, grid: RealGrid) -> f32 {
    nearest_integer(smaller(larger(value * inverse + grid.zero, 0.0), f32::from(grid.highest)))
}

vectorized! {
    fn sums(values: &[f32], grid: RealGrid, power: f32, beta: f32) -> (f32, f32) {
        let (inverse, inverse_beta) = (1.0 / grid.scale, 1.0 / beta);
        let term = |value: f32| {
            let code = code(value, inverse, grid);
            let steps = value * inverse;
            let error = steps - (code - grid.zero);
            let magnitude = error.abs();
            let threshold = exp(power * std::f32::consts::LN_2 * log2(magnitude)) * inverse_beta;
            let shrunk = larger(magnitude - threshold, 0.0).copysign(error);
            (magnitude, code - (steps - shrunk))
        };
        let (mut errors, mut zeros) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        let (values, rest) = values.as_chunks::<LANES>();
        for values in values {
            for lane in 0..LANES {
                let (error, zero) = term(values[lane]);
                errors[lane] += error;
                zeros[lane] += zero;
            }
        }
        let (mut error, mut zero) = (add_lanes(errors), add_lanes(zeros));
        for value in rest {
            let (one_error, one_zero) = term(*value);
            error += one_error;
            zero += one_zero;
        }
        (error, zero)
    }
}

vectorized! {
    fn round_all(values: &[f32], codes: &mut [u8], grid: RealGrid) {
        let inverse = 1.0 / grid.scale;
        for (slot, value) in codes.iter_mut().zip(values) {
            // The integer is in the low bits.
            *slot = (code(*value, inverse, grid) + TO_INTEGER).to_bits() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the formulas in f64, with any raggedness.
        #[test]
        fn a_step_is_its_formula(
            values in prop::collection::vec(-3.0_f32..3.0, 1..90), scale in 0.05_f32..2.0,
            zero in -2.0_f32..20.0, bits in 1_u32..=8, p in 0.3_f32..1.0, beta in 1.0_f32..30.0,
        ) {
            let grid = RealGrid { scale, zero, highest: ((1_u32 << bits) - 1) as u8 };
            let (error, next) = step(&values, grid, p - 1.0, beta);
            let mut codes = vec![0; values.len()];
            grid.codes(&values, &mut codes);
            let (mut errors, mut zeros) = (0.0, 0.0);
            for (value, code) in values.iter().zip(&codes) {
                let steps = f64::from(*value) / f64::from(scale);
                let ideal = (steps + f64::from(zero)).clamp(0.0, f64::from(grid.highest));
                prop_assert!((f64::from(*code) - ideal).abs() <= 0.5 + 1e-4);
                let error = steps - (f64::from(*code) - f64::from(zero));
                let threshold = error.abs().powf(f64::from(p) - 1.0) / f64::from(beta);
                let shrunk = error.signum() * (error.abs() - threshold).max(0.0);
                errors += error.abs();
                zeros += f64::from(*code) - (steps - shrunk);
            }
            let count = values.len() as f64;
            prop_assert!((f64::from(error) - errors).abs() < 1e-3 * (1.0 + errors));
            prop_assert!((f64::from(next) - zeros / count).abs() < 2e-3 * (1.0 + f64::from(zero.abs())));
        }

        #[test]
        fn all_levels_of_instructions_agree(values in prop::collection::vec(-3.0_f32..3.0, 1..90)) {
            let grid = RealGrid { scale: 0.3, zero: 7.3, highest: 15 };
            let of = |isa| sums(isa, &values, grid, -0.3, 10.0);
            prop_assert_eq!(of(Isa::Portable), of(Isa::detect()));
        }
    }

    #[test]
    fn nothing_is_shrunk_where_there_is_no_error() {
        let grid = RealGrid { scale: 0.5, zero: 3.0, highest: 7 };
        let values: Vec<f32> = (0..8).map(|code| 0.5 * (code as f32 - 3.0)).collect();
        assert_eq!(step(&values, grid, -0.3, 10.0), (0.0, 3.0));
    }
}
