//! Ternary blocks of 256 values: -1, 0 or 1 times one scale.

use super::k_quants::two_bits;
use super::{f16_at, field};

/// 64 bytes of two-bit codes ([`two_bits`]); `d`: f16. `x = d·(q − 1)`; the code 3 is not written,
/// and read as 2.
#[inline(always)]
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 64);
    for (out, q) in out.iter_mut().zip(two_bits(field(block, 0))) {
        *out = d * f32::from(q as i8 - 1);
    }
}

/// Base-3 fractions: a byte `b` stands for `b/256`, and multiplying it by 3 brings its first digit
/// before the point. 32 bytes hold values 0 to 159 (byte `m`, digit `n`: value `32n + m`), 16 bytes
/// 160 to 239 (`160 + 16n + m`), 4 bytes of four digits the rest (`240 + 4n + m`). `d`: f16.
/// `x = d·(digit − 1)`.
#[inline(always)]
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = f16_at(block, 52);
    let mut codes = [0; 256];
    tq1_0_codes(block, &mut codes);
    for (out, code) in out.iter_mut().zip(codes) {
        *out = d * (f32::from(code) - 1.0);
    }
}

/// The digits of a block of `TQ1_0`.
#[inline(always)]
pub(super) fn tq1_0_codes(block: &[u8; 54], codes: &mut [u8]) {
    let (first, rest) = codes.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    digits(field::<32>(block, 0), first);
    digits(field::<16>(block, 32), second);
    digits(field::<4>(block, 48), third);
}

/// The leading base-3 digits of `N` fractions: `out` is `[digits, N]`.
#[inline(always)]
fn digits<const N: usize>(bytes: &[u8; N], out: &mut [u8]) {
    let mut fractions = *bytes;
    for out in out.as_chunks_mut::<N>().0 {
        for (out, fraction) in out.iter_mut().zip(&mut fractions) {
            *out = ((u16::from(*fraction) * 3) >> 8) as u8;
            *fraction = fraction.wrapping_mul(3);
        }
    }
}
