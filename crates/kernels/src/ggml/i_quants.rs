//! The I-quants of 4 bits: indices into one table of 16 levels, denser around zero.

use super::legacy::nibbles;
use super::{f16_at, field};

/// The levels.
pub(super) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// `d`: f16; 16 bytes of nibbles, low first. `x = d·level[q]`.
#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    nibbles(field(block, 2), out, |q| d * level(q));
}

/// `d`: f16; upper two bits of eight scales: u16; their low nibbles: 4 bytes; for each scale 16
/// bytes of nibbles, low first. `x = d·(scale − 32)·level[q]`.
#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let codes = field::<128>(block, 8);
    for (j, (out, codes)) in
        out.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks().0).enumerate()
    {
        let scale = iq4_xs_scale(block, j);
        nibbles(codes, out, |q| scale * level(q));
    }
}

/// Scale `j` of a block of `IQ4_XS`.
#[inline(always)]
pub(super) fn iq4_xs_scale(block: &[u8; 136], j: usize) -> f32 {
    f16_at(block, 0) * (f32::from(iq4_xs_scale_code(block, j)) - 32.0)
}

/// The six bits of scale `j` of a block of `IQ4_XS`.
#[inline(always)]
pub(super) fn iq4_xs_scale_code(block: &[u8; 136], j: usize) -> u8 {
    let high = u16::from_le_bytes(*field(block, 2));
    let low = u32::from_le_bytes(*field(block, 4));
    (low >> (4 * j) & 15) as u8 | ((high >> (2 * j) & 3) as u8) << 4
}

/// The level of a code below 16.
#[inline(always)]
fn level(code: u8) -> f32 {
    f32::from(LEVELS[usize::from(code)])
}
