//! Elementary functions of f32, written so that the compiler can vectorise the loops they stand in:
//! no branches, no tables, no calls.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

/// 1.5 · 2²³: from half of it on `f32` has no fractions, so that adding it rounds to an integer, which
/// is then in the low bits; taking it away again leaves that integer.
pub(crate) const TO_INTEGER: f32 = 12_582_912.0;

/// The nearest integer of a number of at most 2²² in magnitude, ties to even, without a call where the
/// instructions that are compiled for have none.
#[inline(always)]
pub(crate) fn nearest_integer(x: f32) -> f32 {
    (x + TO_INTEGER) - TO_INTEGER
}

/// eˣ to about one unit in the last place; results below the smallest normal number become zero, NaN
/// stays NaN.
///
/// `x = n ln 2 + r` with `|r| ≤ ln 2 / 2`; `e^r` by a polynomial (relative error 3e-9 before
/// rounding), then n is added to its exponent. Nothing on the way is subnormal unless `x` is:
/// processors take a hundred cycles over such numbers.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // ln 2 in two parts: `n` times the upper one is exact.
    const LN_2_UPPER: f32 = 355.0 / 512.0;
    const LN_2_LOWER: f32 = -2.121_944_4e-4;
    // The logarithms of the smallest normal and the largest number.
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.722_84;
    let rounded = x * LOG2_E + TO_INTEGER;
    let n = rounded - TO_INTEGER;
    let r = x - n * LN_2_UPPER - n * LN_2_LOWER;
    let q = 1.381_459_9e-3;
    let q = q * r + 8.368_717e-3;
    let q = q * r + 4.166_839e-2;
    let q = q * r + 0.166_665_21;
    let q = q * r + 0.499_999_94;
    let power = 1.0 + (r + r * r * q);
    let exponent = rounded.to_bits() << 23;
    let result = f32::from_bits(power.to_bits().wrapping_add(exponent));
    let result = if x < LOWEST { 0.0 } else { result };
    // Also for NaN, which is not below anything.
    if x <= HIGHEST { result } else { x + f32::INFINITY }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent, to a few units in the last place.
///
/// `1 - 2 / (1 + e^2x)` cancels near zero, where the series takes its place.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let series = -17.0 / 315.0;
    let series = series * square + 2.0 / 15.0;
    let series = series * square - 1.0 / 3.0;
    let series = x + x * square * series;
    let whole = 1.0 - 2.0 / (1.0 + exp(2.0 * x));
    if square < 0.04 { series } else { whole }
}

/// The distribution function of the standard normal, ½ erfc(-x / √2), to a relative error of 2e-7
/// near zero that grows with x² (the rounding of the exponent) where the value is tiny.
///
/// `erfc(u) = e^(-u²) t p(t)` with `t = 1 / (1 + 0.4 u)`, `u ≥ 0`, and a polynomial of degree 8.
#[inline(always)]
pub(crate) fn normal_cdf(x: f32) -> f32 {
    let u = x.abs() * FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.4 * u);
    let p = 4.125_333_3e-2;
    let p = p * t - 0.140_320_63;
    let p = p * t + 8.399_01e-2;
    let p = p * t + 8.796_12e-2;
    let p = p * t + 7.975_86e-2;
    let p = p * t + 0.193_392_34;
    let p = p * t + 0.201_887_8;
    let p = p * t + 0.226_443_08;
    let p = p * t + 0.225_634_23;
    let upper_tail = 0.5 * exp(-0.5 * x * x) * t * p;
    if x < 0.0 { upper_tail } else { 1.0 - upper_tail }
}
