//! Conversion between f32 and the two 16-bit floating formats, slice to slice.
//!
//! Narrowing rounds to nearest, ties to even; a value too large for f16 becomes infinite, and NaN
//! stays NaN. The 16-bit values are [`half`] types; their bits are what the files hold.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Widens bf16 to f32. Exact.
///
/// # Panics
/// If the lengths differ.
pub fn bf16_to_f32(source: &[bf16], target: &mut [f32]) {
    assert_eq!(source.len(), target.len(), "the slices differ in length");
    for (target, source) in target.iter_mut().zip(source) {
        *target = f32::from_bits(u32::from(source.to_bits()) << 16);
    }
}

/// Rounds f32 to bf16.
///
/// # Panics
/// If the lengths differ.
pub fn f32_to_bf16(source: &[f32], target: &mut [bf16]) {
    assert_eq!(source.len(), target.len(), "the slices differ in length");
    for (target, source) in target.iter_mut().zip(source) {
        *target = bf16::from_bits((round_to_bf16(*source).to_bits() >> 16) as u16);
    }
}

/// Widens f16 to f32. Exact.
///
/// # Panics
/// If the lengths differ.
pub fn f16_to_f32(source: &[f16], target: &mut [f32]) {
    assert_eq!(source.len(), target.len(), "the slices differ in length");
    source.convert_to_f32_slice(target);
}

/// Rounds f32 to f16.
///
/// # Panics
/// If the lengths differ.
pub fn f32_to_f16(source: &[f32], target: &mut [f16]) {
    assert_eq!(source.len(), target.len(), "the slices differ in length");
    target.convert_from_f32_slice(source);
}

/// The nearest bf16, ties to even, as an f32. NaN stays NaN.
#[inline(always)]
pub fn round_to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // A NaN could carry over into the sign, or lose all its bits and become an infinity.
    let quiet = bits & 0xffff_0000 | 0x0040_0000;
    f32::from_bits(if value.is_nan() { quiet } else { rounded })
}

/// The nearest f16, ties to even, as an f32; beyond the largest an infinity. NaN stays NaN.
#[inline(always)]
pub fn round_to_f16(value: f32) -> f32 {
    /// The smallest normal number, and the least magnitude that rounds to an infinity.
    const NORMAL: f32 = 1.0 / 16_384.0;
    const TOO_LARGE: f32 = 65_520.0;
    let magnitude = value.abs();
    let bits = magnitude.to_bits();
    let rounded = f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff);
    // Next to 0.75 the steps of f32 are 2^-24, as those of the subnormal numbers are.
    let small = (magnitude + 0.75) - 0.75;
    let rounded = if magnitude < NORMAL { small } else { rounded };
    let rounded = if magnitude < TOO_LARGE { rounded } else { magnitude + f32::INFINITY };
    rounded.copysign(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All numbers of f16, what lies midway between two, and what lies next to that.
    #[test]
    fn f16_is_rounded_to_as_by_the_processor() {
        let same = |value: f32| {
            let (have, want) = (round_to_f16(value), f16::from_f32(value).to_f32());
            assert!(have.to_bits() == want.to_bits() || have.is_nan() && want.is_nan(), "{value}");
        };
        for code in 0..=u16::MAX {
            let (here, next) = (f16::from_bits(code).to_f32(), f16::from_bits(code ^ 1).to_f32());
            let midway = (here + next) / 2.0;
            for value in [here, midway, midway.next_up(), midway.next_down()] {
                same(value);
            }
        }
        [65_519.996, 65_520.0, 1e30, f32::MIN_POSITIVE, 1e-45, -1e-45].into_iter().for_each(same);
    }
}
