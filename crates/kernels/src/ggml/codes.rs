//! The codes and scales of blocks as they are stored, for products that multiply codes.

use super::k_quants::{scale_and_minimum, two_bits};
use super::legacy::five_bits;
use super::{BlockKind, f16_at, field, i_quants, k_quants, legacy, ternary};

/// What the codes of a kind stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meaning {
    /// `scale · (code − zero)`.
    Around(u8),
    /// `scale · code − minimum`.
    Above,
    /// `scale · level[code]`.
    Level(&'static [i8; 16]),
}

/// How the rows of a kind are read by [`read_row`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Bits of a code.
    pub(crate) bits: u8,
    /// Values that share a scale.
    pub(crate) group: usize,
    /// What a code stands for.
    pub(crate) meaning: Meaning,
}

/// The grid of a kind; `None` for plain numbers and what files do not hold.
pub(crate) fn grid(kind: BlockKind) -> Option<Grid> {
    use Meaning::{Above, Around, Level};
    let (bits, group, meaning) = match kind {
        BlockKind::Q4_0 => (4, 32, Around(8)),
        BlockKind::Q4_1 => (4, 32, Above),
        BlockKind::Q5_0 => (5, 32, Around(16)),
        BlockKind::Q5_1 => (5, 32, Above),
        BlockKind::Q8_0 => (8, 32, Around(128)),
        BlockKind::Q2_K => (2, 16, Above),
        BlockKind::Q3_K => (3, 16, Around(4)),
        BlockKind::Q4_K => (4, 32, Above),
        BlockKind::Q5_K => (5, 32, Above),
        BlockKind::Q6_K => (6, 16, Around(32)),
        BlockKind::IQ4_NL | BlockKind::IQ4_XS => (4, 32, Level(&i_quants::LEVELS)),
        BlockKind::MXFP4 => (4, 32, Level(&legacy::DOUBLED_E2M1)),
        BlockKind::TQ1_0 | BlockKind::TQ2_0 => (2, 256, Around(1)),
        _ => return None,
    };
    Some(Grid { bits, group, meaning })
}

/// Reads a row of blocks of a kind that has a [`grid`]: its codes, and for each group its scale and
/// (of the kinds that have them) its minimum.
pub(crate) fn read_row(
    kind: BlockKind,
    bytes: &[u8],
    codes: &mut [u8],
    scales: &mut [f32],
    minima: &mut [f32],
) {
    let Some(grid) = grid(kind) else { return };
    let groups = kind.elements() / grid.group;
    let blocks = bytes.chunks_exact(kind.bytes()).zip(codes.chunks_exact_mut(kind.elements()));
    let groups = scales.chunks_exact_mut(groups).zip(minima.chunks_exact_mut(groups));
    for ((block, codes), (scales, minima)) in blocks.zip(groups) {
        read_block(kind, block, codes, scales, minima);
    }
}

fn read_block(
    kind: BlockKind,
    block: &[u8],
    codes: &mut [u8],
    scales: &mut [f32],
    minima: &mut [f32],
) {
    match kind {
        BlockKind::Q4_0 | BlockKind::IQ4_NL => {
            scales[0] = f16_at(block, 0);
            nibbles(&block[2..], codes);
        }
        BlockKind::Q4_1 => {
            (scales[0], minima[0]) = (f16_at(block, 0), -f16_at(block, 2));
            nibbles(&block[4..], codes);
        }
        BlockKind::Q5_0 => {
            scales[0] = f16_at(block, 0);
            codes.copy_from_slice(&five_bits(*field(block, 2), field(block, 6)));
        }
        BlockKind::Q5_1 => {
            (scales[0], minima[0]) = (f16_at(block, 0), -f16_at(block, 2));
            codes.copy_from_slice(&five_bits(*field(block, 4), field(block, 8)));
        }
        BlockKind::Q8_0 => {
            scales[0] = f16_at(block, 0);
            codes.iter_mut().zip(&block[2..]).for_each(|(code, b)| *code = b.wrapping_add(128));
        }
        BlockKind::Q2_K => {
            let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
            codes.copy_from_slice(&two_bits(field(block, 16)));
            for ((scale, minimum), byte) in scales.iter_mut().zip(minima).zip(&block[..16]) {
                (*scale, *minimum) = (d * f32::from(byte & 15), dmin * f32::from(byte >> 4));
            }
        }
        BlockKind::Q3_K => {
            let d = f16_at(block, 108);
            codes.copy_from_slice(&k_quants::q3_k_codes(field(block, 0)));
            for (j, scale) in scales.iter_mut().enumerate() {
                *scale = d * f32::from(k_quants::q3_k_scale(field(block, 96), j));
            }
        }
        BlockKind::Q4_K | BlockKind::Q5_K => {
            let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
            codes.copy_from_slice(&match kind {
                BlockKind::Q4_K => k_quants::nibbles(field(block, 16)),
                _ => k_quants::q5_k_codes(field(block, 0)),
            });
            for (j, (scale, minimum)) in scales.iter_mut().zip(minima).enumerate() {
                let (s, m) = scale_and_minimum(field(block, 4), j);
                (*scale, *minimum) = (d * f32::from(s), dmin * f32::from(m));
            }
        }
        BlockKind::Q6_K => {
            let d = f16_at(block, 208);
            codes.copy_from_slice(&k_quants::q6_k_codes(field(block, 0)));
            for (scale, byte) in scales.iter_mut().zip(&block[192..]) {
                *scale = d * f32::from(byte.cast_signed());
            }
        }
        BlockKind::IQ4_XS => {
            for (j, scale) in scales.iter_mut().enumerate() {
                *scale = i_quants::iq4_xs_scale(field(block, 0), j);
            }
            let parts = block[8..].chunks_exact(16).zip(codes.chunks_exact_mut(32));
            parts.for_each(|(bytes, codes)| nibbles(bytes, codes));
        }
        BlockKind::MXFP4 => {
            scales[0] = legacy::mxfp4_scale(block[0]);
            nibbles(&block[1..], codes);
        }
        BlockKind::TQ1_0 => {
            scales[0] = f16_at(block, 52);
            ternary::tq1_0_codes(field(block, 0), codes);
        }
        BlockKind::TQ2_0 => {
            scales[0] = f16_at(block, 64);
            codes.copy_from_slice(&two_bits(field(block, 0)));
        }
        _ => {}
    }
}

/// 32 nibbles, low ones first.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::dequantize;

    /// What the codes stand for is what the block decodes to, for blocks of any bytes.
    #[test]
    #[allow(clippy::unwrap_used, reason = "a test")]
    fn rows_are_what_they_decode_to() {
        let mut seed = 1_u64;
        let mut byte = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
            (seed >> 33) as u8
        };
        for &kind in BlockKind::ALL {
            let Some(grid) = grid(kind) else { continue };
            let blocks = 40;
            let count = blocks * kind.elements();
            let bytes: Vec<u8> = (0..blocks * kind.bytes()).map(|_| byte()).collect();
            let mut want = vec![0.0; count];
            dequantize(kind, &bytes, &mut want).unwrap();
            let mut codes = vec![0; count];
            let mut scales = vec![0.0; count / grid.group];
            let mut minima = scales.clone();
            read_row(kind, &bytes, &mut codes, &mut scales, &mut minima);
            for (index, (code, want)) in codes.iter().zip(&want).enumerate() {
                assert!(u32::from(*code) < 1 << grid.bits, "{kind:?}");
                let (scale, code) = (scales[index / grid.group], *code);
                let got = match grid.meaning {
                    Meaning::Around(zero) => scale * (f32::from(code) - f32::from(zero)),
                    Meaning::Above => scale * f32::from(code) - minima[index / grid.group],
                    Meaning::Level(levels) => scale * f32::from(levels[usize::from(code)]),
                };
                let same = got == *want || (got.is_nan() && want.is_nan());
                assert!(same, "{kind:?} {index}: {got} {want}");
            }
        }
    }
}
