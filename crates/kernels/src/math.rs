//! Elementary functions of f32, written so that the compiler can vectorise the loops they stand in:
//! no branches, no tables, no calls.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

/// eˣ to about one unit in the last place, subnormal results included; NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| ≤ ln 2 / 2`; `e^r` by a polynomial (relative error 3e-9 before
/// rounding), then two multiplications by powers of two, since 2ⁿ alone may overflow.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 × 2²³: adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: `n` times the upper one is exact.
    const LN_2_UPPER: f32 = 0.693_359_375;
    const LN_2_LOWER: f32 = -2.121_944_4e-4;
    // Written as comparisons, which let NaN through.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let rounded = x * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_UPPER - n * LN_2_LOWER;
    let q = 1.381_459_9e-3;
    let q = q * r + 8.368_717e-3;
    let q = q * r + 4.166_839e-2;
    let q = q * r + 0.166_665_21;
    let q = q * r + 0.499_999_94;
    let power = 1.0 + (r + r * r * q);
    let exponent = (rounded.to_bits().wrapping_sub(ROUND.to_bits())).cast_signed();
    let half = exponent >> 1;
    power * power_of_two(half) * power_of_two(exponent - half)
}

/// 2ⁿ for n from -126 to 127; any value for other n.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127).cast_unsigned()) << 23)
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
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
