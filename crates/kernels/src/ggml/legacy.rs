//! Blocks of 32 values with one scale: the first formats of ggml, and MXFP4.

use super::{f16_at, field};

/// `d`: f16; 16 bytes of nibbles, low first. `x = d·(q − 8)`.
#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    nibbles(field(block, 2), out, |q| d * f32::from(q as i8 - 8));
}

/// `d`, `m`: f16; 16 bytes of nibbles, low first. `x = d·q + m`.
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    nibbles(field(block, 4), out, |q| d * f32::from(q) + m);
}

/// `d`: f16; 32 fifth bits; 16 bytes of nibbles, low first. `x = d·(q − 16)`.
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let codes = five_bits(*field(block, 2), field(block, 6));
    for (out, q) in out.iter_mut().zip(codes) {
        *out = d * f32::from(q as i8 - 16);
    }
}

/// `d`, `m`: f16; 32 fifth bits; 16 bytes of nibbles, low first. `x = d·q + m`.
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let codes = five_bits(*field(block, 4), field(block, 8));
    for (out, q) in out.iter_mut().zip(codes) {
        *out = d * f32::from(q) + m;
    }
}

/// `d`: f16; 32 signed bytes. `x = d·q`.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(field::<32>(block, 2)) {
        *out = d * f32::from(q as i8);
    }
}

/// `d`: f16; the sum of the values: f16; 32 signed bytes. `x = d·q`.
#[inline(always)]
pub(super) fn q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(field::<32>(block, 4)) {
        *out = d * f32::from(q as i8);
    }
}

/// `e`: u8; 16 bytes of nibbles, low first. `x = 2^(e−128)·K[q]`, `K` being the values of E2M1
/// doubled, whence 128 in place of E8M0's bias 127.
#[inline(always)]
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = mxfp4_scale(block[0]);
    nibbles(field(block, 1), out, |q| d * f32::from(DOUBLED_E2M1[usize::from(q)]));
}

/// The values of E2M1, doubled.
pub(super) const DOUBLED_E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `2^(e−128)`.
#[inline(always)]
pub(super) fn mxfp4_scale(e: u8) -> f32 {
    let e = u32::from(e);
    // The two smallest powers are denormal.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

/// Maps the nibbles of 16 bytes, low ones first.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8; 16], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

/// The codes of nibbles (low ones first) and fifth bits.
#[inline(always)]
pub(super) fn five_bits(high: [u8; 4], bytes: &[u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(high);
    let mut codes = [0; 32];
    for (j, &byte) in bytes.iter().enumerate() {
        codes[j] = byte & 15 | ((high >> j) as u8 & 1) << 4;
        codes[j + 16] = byte >> 4 | ((high >> (j + 16)) as u8 & 1) << 4;
    }
    codes
}
