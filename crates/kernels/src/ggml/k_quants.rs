//! The K-quants: blocks of 256 values, a scale (and minimum) for 16 or 32 of them, itself in 4 to 8
//! bits under one f16 of the block.

use super::{f16_at, field};

/// 16 bytes `s`: scale in the low nibble, minimum in the high one; 64 bytes of two-bit codes
/// ([`two_bits`]); `d`, `dmin`: f16. `x = d·scale·q − dmin·minimum`.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    let codes = two_bits(field(block, 16));
    let scales = field::<16>(block, 0);
    for ((out, codes), &scale) in
        out.as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0).zip(scales)
    {
        let (scale, minimum) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        affine::<16>(codes, scale, minimum, out);
    }
}

/// 32 bytes of third bits (bit `k` of byte `l` is of value `32k + l`, and is clear where 4 is to be
/// subtracted); 64 bytes of two-bit codes ([`two_bits`]); 16 scales of 6 bits in 12 bytes; `d`: f16.
/// `x = d·(scale − 32)·q`.
///
/// The low nibbles of bytes 0 to 7 and then their high nibbles are the low parts of the scales; the
/// upper two bits of scale `j` are bits `2⌊j/4⌋` and the next of byte `8 + j mod 4`.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    let packed = field::<12>(block, 96);
    let codes = q3_k_codes(block);
    for (j, (out, codes)) in
        out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0).enumerate()
    {
        let scale = d * f32::from(q3_k_scale(packed, j));
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = scale * f32::from(code as i8 - 4);
        }
    }
}

/// The codes of a block of `Q3_K`.
#[inline(always)]
pub(super) fn q3_k_codes(block: &[u8; 110]) -> [u8; 256] {
    let high = field::<32>(block, 0);
    let mut codes = two_bits(field(block, 32));
    for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, high) in codes.iter_mut().zip(high) {
            *code |= (high >> k & 1) << 2;
        }
    }
    codes
}

/// Scale `j` of a block of `Q3_K`, from -32 to 31.
#[inline(always)]
pub(super) fn q3_k_scale(packed: &[u8; 12], j: usize) -> i8 {
    let low = packed[j % 8] >> (4 * (j / 8)) & 15;
    let scale = low | (packed[8 + j % 4] >> (2 * (j / 4)) & 3) << 4;
    scale as i8 - 32
}

/// `d`, `dmin`: f16; 12 bytes of scales and minima ([`scale_and_minimum`]); 128 bytes of nibbles,
/// low first in each 32 bytes. `x = d·scale·q − dmin·minimum`.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let codes = nibbles(field(block, 16));
    affine_of_eight(&codes, d, dmin, field(block, 4), out);
}

/// As [`q4_k`], with 32 bytes of fifth bits before the nibbles: bit `k` of byte `l` is of value
/// `32k + l`.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    affine_of_eight(&q5_k_codes(block), d, dmin, field(block, 4), out);
}

/// The codes of a block of `Q5_K`.
#[inline(always)]
pub(super) fn q5_k_codes(block: &[u8; 176]) -> [u8; 256] {
    let high = field::<32>(block, 16);
    let mut codes = nibbles(field(block, 48));
    for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, high) in codes.iter_mut().zip(high) {
            *code |= (high >> k & 1) << 4;
        }
    }
    codes
}

/// 128 bytes of low nibbles, low first in each 64 bytes; 64 bytes of upper two bits ([`two_bits`]);
/// 16 signed bytes of scales; `d`: f16. `x = d·scale·(q − 32)`.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    let scales = field::<16>(block, 192);
    let codes = q6_k_codes(block);
    for ((out, codes), &scale) in
        out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0).zip(scales)
    {
        let scale = d * f32::from(scale as i8);
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = scale * f32::from(code as i8 - 32);
        }
    }
}

/// The codes of a block of `Q6_K`.
#[inline(always)]
pub(super) fn q6_k_codes(block: &[u8; 210]) -> [u8; 256] {
    let mut codes = two_bits(field(block, 128));
    for (bytes, codes) in
        field::<128>(block, 0).as_chunks::<64>().0.iter().zip(codes.as_chunks_mut::<128>().0)
    {
        let (low, high) = codes.split_at_mut(64);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = *low << 4 | byte & 15;
            *high = *high << 4 | byte >> 4;
        }
    }
    codes
}

/// `d`: f32; 256 signed bytes; 16 sums of 16 codes: i16. `x = d·q`.
#[inline(always)]
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes(*field(block, 0));
    for (out, &q) in out.iter_mut().zip(field::<256>(block, 4)) {
        *out = d * f32::from(q as i8);
    }
}

/// 256 two-bit codes: bits `2s` and `2s + 1` of byte `32h + l` are value `128h + 32s + l`.
#[inline(always)]
pub(super) fn two_bits(bytes: &[u8; 64]) -> [u8; 256] {
    let mut codes = [0; 256];
    for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, byte) in codes.iter_mut().zip(&bytes[k / 4 * 32..]) {
            *code = byte >> (2 * (k % 4)) & 3;
        }
    }
    codes
}

/// 256 nibbles, low first in each 32 bytes.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8; 128]) -> [u8; 256] {
    let mut codes = [0; 256];
    for (bytes, codes) in bytes.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<64>().0) {
        let (low, high) = codes.split_at_mut(32);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = byte & 15;
            *high = byte >> 4;
        }
    }
    codes
}

/// `x = d·scale·q − dmin·minimum`, the pairs being for 32 values each.
#[inline(always)]
fn affine_of_eight(codes: &[u8; 256], d: f32, dmin: f32, packed: &[u8; 12], out: &mut [f32; 256]) {
    for (j, (out, codes)) in out.as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, j);
        affine::<32>(codes, d * f32::from(scale), dmin * f32::from(minimum), out);
    }
}

/// `x = scale·q − minimum`.
#[inline(always)]
fn affine<const N: usize>(codes: &[u8; N], scale: f32, minimum: f32, out: &mut [f32; N]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = scale * f32::from(code) - minimum;
    }
}

/// Pair `j` of the eight scales and minima of 6 bits in 12 bytes. The first four pairs are the low
/// six bits of bytes `j` and `j + 4`, whose upper two bits are the upper bits of pair `j + 4`; the
/// lower four of that pair are the nibbles of byte `j + 8`.
#[inline(always)]
pub(super) fn scale_and_minimum(packed: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let nibbles = packed[j + 4];
        (nibbles & 15 | packed[j - 4] >> 6 << 4, nibbles >> 4 | packed[j] >> 6 << 4)
    }
}
