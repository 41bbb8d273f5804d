//! The I-quants of 1 to 3 bits: points of a codebook stand for 4 or 8 values together, 256 values a
//! block.
//!
//! The codebooks are ggml's: `codebooks.bin` has 16 bits a point (little endian), each value as the
//! number of its level, from the lowest bits on: 8 values of 2 bits or 4 of 4. Its books follow each
//! other as the constants below do. Points of 2 and 3 bits are magnitudes; their signs are stored
//! beside them, a bit a value, and where seven bits have to do the eighth makes their number even.

use super::{f16_at, f16_to_f32, field};

/// All points.
static POINTS: &[u8; 2 * 4608] = include_bytes!("codebooks.bin");

/// A run of points.
#[derive(Clone, Copy)]
struct Book {
    start: usize,
    len: usize,
}

const IQ2_XXS: Book = Book { start: 0, len: 256 };
const IQ2_XS: Book = Book { start: 256, len: 512 };
const IQ2_S: Book = Book { start: 768, len: 1024 };
const IQ3_XXS: Book = Book { start: 1792, len: 256 };
const IQ3_S: Book = Book { start: 2048, len: 512 };
const IQ1_S: Book = Book { start: 2560, len: 2048 };

/// Magnitudes of 2 bits; no point has the fourth.
const TWO_BITS: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
const TERNARY: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
const IQ3_XXS_LEVELS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const IQ3_S_LEVELS: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

/// What `IQ1_S` and `IQ1_M` add to every value, in steps, or take off.
const SHIFT: f32 = 0.125;

impl Book {
    #[inline(always)]
    fn point(self, index: usize) -> usize {
        debug_assert!(index < self.len);
        usize::from(u16::from_le_bytes(*field(POINTS, 2 * (self.start + index))))
    }

    /// The 8 values of a point.
    #[inline(always)]
    fn eight(self, index: usize, levels: &[f32; 4]) -> [f32; 8] {
        let point = self.point(index);
        std::array::from_fn(|i| levels[point >> (2 * i) & 3])
    }

    /// The 4 values of each of two points.
    #[inline(always)]
    fn four_and_four(self, first: usize, second: usize, levels: &[f32; 8]) -> [f32; 8] {
        let points = [self.point(first), self.point(second)];
        std::array::from_fn(|i| levels[points[i / 4] >> (4 * (i % 4)) & 7])
    }
}

/// `scale · magnitude`, negated where the bit of `signs` is set.
#[inline(always)]
fn signed(out: &mut [f32; 8], scale: f32, magnitudes: [f32; 8], signs: u8) {
    for (i, (out, magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let product = scale * magnitude;
        *out = if signs >> i & 1 == 1 { -product } else { product };
    }
}

/// Seven signs and the one that makes their number even.
#[inline(always)]
fn even(signs: u32) -> u8 {
    let seven = signs as u8 & 127;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// A nibble of a run of nibbles, low first.
#[inline(always)]
fn nibble(bytes: &[u8], index: usize) -> u8 {
    bytes[index / 2] >> (4 * (index % 2)) & 15
}

/// The u32 at byte `at`.
#[inline(always)]
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*field(block, at))
}

/// `d`: f16; for each 32 values four indices of 8 bits, four times seven signs, a scale of 4 bits.
/// `x = d·(scale + ½)/4 · ±point`.
#[inline(always)]
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let at = 2 + 8 * (i / 4);
        let signs = word(block, at + 4);
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.25;
        let point = IQ2_XXS.eight(block[at + i % 4].into(), &TWO_BITS);
        signed(out, scale, point, even(signs >> (7 * (i % 4))));
    }
}

/// `d`: f16; for each 8 values an index of 9 bits and seven signs; scales of 4 bits.
/// `x = d·(scale + ½)/4 · ±point`.
#[inline(always)]
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let code = u16::from_le_bytes(*field(block, 2 + 2 * i));
        let scale = d * (0.5 + f32::from(nibble(&block[66..], i / 2))) * 0.25;
        let point = IQ2_XS.eight(usize::from(code & 511), &TWO_BITS);
        signed(out, scale, point, even(u32::from(code >> 9)));
    }
}

/// `d`: f16; for each 8 values the lower 8 bits of an index; a byte of signs; the upper 2 bits;
/// scales of 4 bits. `x = d·(scale + ½)/4 · ±point`.
#[inline(always)]
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let high = block[66 + i / 4] >> (2 * (i % 4)) & 3;
        let scale = d * (0.5 + f32::from(nibble(&block[74..], i / 2))) * 0.25;
        let index = usize::from(block[2 + i]) | usize::from(high) << 8;
        signed(out, scale, IQ2_S.eight(index, &TWO_BITS), block[34 + i]);
    }
}

/// `d`: f16; for each 4 values an index of 8 bits; for each 32 four times seven signs and a scale of
/// 4 bits. `x = d·(scale + ½)/2 · ±point`.
#[inline(always)]
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let signs = word(block, 66 + 4 * (i / 4));
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.5;
        let [first, second] = [block[2 + 2 * i], block[3 + 2 * i]].map(usize::from);
        let points = IQ3_XXS.four_and_four(first, second, &IQ3_XXS_LEVELS);
        signed(out, scale, points, even(signs >> (7 * (i % 4))));
    }
}

/// `d`: f16; for each 4 values the lower 8 bits of an index; their ninth bits; signs; scales of 4
/// bits. `x = d·(2·scale + 1) · ±point`.
#[inline(always)]
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let index = |j: usize| {
            usize::from(block[2 + j]) | usize::from(block[66 + j / 8] >> (j % 8) & 1) << 8
        };
        let scale = d * f32::from(1 + 2 * nibble(&block[106..], i / 4));
        let points = IQ3_S.four_and_four(index(2 * i), index(2 * i + 1), &IQ3_S_LEVELS);
        signed(out, scale, points, block[74 + i]);
    }
}

/// `d`: f16; for each 8 values the lower 8 bits of an index; for each 32 values a u16: four times
/// the upper 3 bits, a scale of 3 bits, whether the shift is negative.
/// `x = d·(2·scale + 1)·(point ± ⅛)`.
#[inline(always)]
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = u16::from_le_bytes(*field(block, 34 + 2 * (i / 4)));
        let index = usize::from(block[2 + i]) | usize::from(high >> (3 * (i % 4)) & 7) << 8;
        let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
        let shift = if high >> 15 == 1 { -SHIFT } else { SHIFT };
        *out = IQ1_S.eight(index, &TERNARY).map(|value| scale * (value + shift));
    }
}

/// For each 8 values the lower 8 bits of an index; nibbles of its upper 3 bits and whether the shift
/// is negative; four u16 of four scales of 3 bits each, whose upper nibbles together are `d`: f16.
/// `x = d·(2·scale + 1)·(point ± ⅛)`.
#[inline(always)]
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let scales: [u16; 4] = std::array::from_fn(|j| u16::from_le_bytes(*field(block, 48 + 2 * j)));
    let d = scales.iter().enumerate().fold(0, |bits, (j, word)| bits | word >> 12 << (4 * j));
    let d = f16_to_f32(d);
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = nibble(&block[32..48], i);
        let index = usize::from(block[i]) | usize::from(high & 7) << 8;
        let scale = d * f32::from(2 * (scales[i / 8] >> (3 * (i / 2 % 4)) & 7) + 1);
        let shift = if high & 8 != 0 { -SHIFT } else { SHIFT };
        *out = IQ1_S.eight(index, &TERNARY).map(|value| scale * (value + shift));
    }
}
