//! The way into ggml's blocks and back: codes, scales and minima laid out in bytes. How the numbers
//! are chosen is no concern of it.

use super::legacy::five_bits;
use super::{BlockKind, f16_at, field, i_quants, k_quants, ternary};
use half::f16;

/// What one block stores. Codes and scale codes count from zero: a signed number is stored with
/// half its range added (a value of `Q4_0` by 8, of `Q8_0` by 128, a scale of `Q6_K` by 128, of
/// `Q3_K` and `IQ4_XS` by 32, a ternary value by 1). Codes of other types are their indices.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// A code for each value.
    pub codes: &'a [u8],
    /// A code for each group's scale: the exponent of `MXFP4`; none in other blocks of 32 values.
    pub scales: &'a [u8],
    /// A code for each group's minimum; none where the type has no minima.
    pub minima: &'a [u8],
    /// Scale of the block, representable in f16.
    pub scale: f32,
    /// What the type subtracts from every value, in units of the minima's codes; representable in
    /// f16. Types of 32 values store its negative.
    pub minimum: f32,
}

/// Kinds of blocks that [`pack`] lays out.
pub const PACKED: [BlockKind; 15] = [
    BlockKind::Q4_0,
    BlockKind::Q4_1,
    BlockKind::Q5_0,
    BlockKind::Q5_1,
    BlockKind::Q8_0,
    BlockKind::Q2_K,
    BlockKind::Q3_K,
    BlockKind::Q4_K,
    BlockKind::Q5_K,
    BlockKind::Q6_K,
    BlockKind::IQ4_NL,
    BlockKind::IQ4_XS,
    BlockKind::TQ1_0,
    BlockKind::TQ2_0,
    BlockKind::MXFP4,
];

/// Appends the bytes of a block of `kind`, one of [`PACKED`]; `None` when `kind` is another, or the
/// block does not have its numbers of codes. Codes must be in their range.
pub fn pack(kind: BlockKind, block: &Block<'_>, out: &mut Vec<u8>) -> Option<()> {
    let (groups, minima) = match kind {
        BlockKind::Q2_K => (16, 16),
        BlockKind::Q3_K | BlockKind::Q6_K => (16, 0),
        BlockKind::Q4_K | BlockKind::Q5_K => (8, 8),
        BlockKind::IQ4_XS => (8, 0),
        BlockKind::MXFP4 => (1, 0),
        _ => (0, 0),
    };
    let counts = [block.codes.len(), block.scales.len(), block.minima.len()];
    if counts != [kind.elements(), groups, minima] {
        return None;
    }
    let codes = block.codes;
    let half = |value: f32| f16::from_f32(value).to_le_bytes();
    let (scale, minimum, least) = (half(block.scale), half(block.minimum), half(-block.minimum));
    let fifth = |k: usize, l: usize| codes[32 * k + l] >> 4 & 1;
    match kind {
        BlockKind::Q4_0 | BlockKind::IQ4_NL => {
            out.extend(scale.into_iter().chain(halves(codes, 32)));
        }
        BlockKind::MXFP4 => out.extend(block.scales.iter().copied().chain(halves(codes, 32))),
        BlockKind::IQ4_XS => {
            let (high, low) = eight_scales(block.scales);
            out.extend(scale.into_iter().chain(high).chain(low).chain(halves(codes, 32)));
        }
        BlockKind::TQ1_0 => {
            out.extend(trits(&codes[..160], 32).chain(trits(&codes[160..240], 16)));
            out.extend(trits(&codes[240..], 4).chain(scale));
        }
        BlockKind::TQ2_0 => out.extend(pairs(codes, 0).chain(scale)),
        BlockKind::Q4_1 => {
            out.extend(scale.into_iter().chain(least).chain(halves(codes, 32)));
        }
        BlockKind::Q5_0 | BlockKind::Q5_1 => {
            let high = (0..32).fold(0, |bits, l| bits | u32::from(fifth(0, l)) << l);
            out.extend(scale);
            out.extend(least.into_iter().filter(|_| kind == BlockKind::Q5_1));
            out.extend(high.to_le_bytes().into_iter().chain(halves(codes, 32)));
        }
        BlockKind::Q8_0 => {
            out.extend(scale);
            out.extend(codes.iter().map(|code| code.wrapping_sub(128)));
        }
        BlockKind::Q2_K => {
            out.extend(block.scales.iter().zip(block.minima).map(|(s, m)| s & 15 | m << 4));
            out.extend(pairs(codes, 0));
            out.extend(scale.into_iter().chain(minimum));
        }
        BlockKind::Q3_K => {
            let third =
                |l: usize| (0..8).fold(0, |bits, k| bits | (codes[32 * k + l] >> 2 & 1) << k);
            out.extend((0..32).map(third));
            out.extend(pairs(codes, 0));
            out.extend(sixteen_scales(block.scales));
            out.extend(scale);
        }
        BlockKind::Q4_K | BlockKind::Q5_K => {
            out.extend(scale.into_iter().chain(minimum));
            out.extend(eight_pairs(block.scales, block.minima));
            if kind == BlockKind::Q5_K {
                let high = |l: usize| (0..8).fold(0, |bits, k| bits | fifth(k, l) << k);
                out.extend((0..32).map(high));
            }
            out.extend(halves(codes, 64));
        }
        BlockKind::Q6_K => {
            out.extend(halves(codes, 128));
            out.extend(pairs(codes, 4));
            out.extend(block.scales.iter().map(|code| code.wrapping_sub(128)));
            out.extend(scale);
        }
        _ => return None,
    }
    Some(())
}

/// Low nibbles of the codes: in each run, those of its first half with those of its second above.
fn halves(codes: &[u8], run: usize) -> impl Iterator<Item = u8> + '_ {
    codes.chunks_exact(run).flat_map(|run| {
        let (low, high) = run.split_at(run.len() / 2);
        low.iter().zip(high).map(|(low, high)| low & 15 | high << 4)
    })
}

/// Two bits of each of 256 codes, from bit `from`: byte `32h + l` has those of values
/// `128h + 32s + l` at bits `2s`.
fn pairs(codes: &[u8], from: u32) -> impl Iterator<Item = u8> + '_ {
    codes.chunks_exact(128).flat_map(move |half| {
        let byte = move |l: usize| {
            (0..4).fold(0, |bits, s| bits | (half[32 * s + l] >> from & 3) << (2 * s))
        };
        (0..32).map(byte)
    })
}

/// Sixteen codes of 6 bits in 12 bytes, as `Q3_K` has them.
fn sixteen_scales(scales: &[u8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (j, scale) in scales.iter().enumerate() {
        packed[j % 8] |= (scale & 15) << (4 * (j / 8));
        packed[8 + j % 4] |= (scale >> 4 & 3) << (2 * (j / 4));
    }
    packed
}

/// Eight pairs of codes of 6 bits in 12 bytes, as `Q4_K` and `Q5_K` have them.
fn eight_pairs(scales: &[u8], minima: &[u8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for j in 0..4 {
        packed[j] = scales[j] & 63 | (scales[j + 4] >> 4 & 3) << 6;
        packed[j + 4] = minima[j] & 63 | (minima[j + 4] >> 4 & 3) << 6;
        packed[j + 8] = scales[j + 4] & 15 | (minima[j + 4] & 15) << 4;
    }
    packed
}

/// Eight codes of 6 bits as `IQ4_XS` has them: their upper two bits, their nibbles.
fn eight_scales(scales: &[u8]) -> ([u8; 2], [u8; 4]) {
    let high = (0..8).fold(0_u16, |bits, j| bits | u16::from(scales[j] >> 4 & 3) << (2 * j));
    let low = std::array::from_fn(|j| scales[2 * j] & 15 | scales[2 * j + 1] << 4);
    (high.to_le_bytes(), low)
}

/// Codes of 0 to 2 in `width` fractions: byte `m` has codes `m`, `m + width`, … as base-3 digits of
/// `byte / 256`, five places, and is rounded up so that no digit is lost.
fn trits(codes: &[u8], width: usize) -> impl Iterator<Item = u8> + '_ {
    let digit = move |m: usize, n: usize| u16::from(*codes.get(width * n + m).unwrap_or(&0));
    let number = move |m| (0..5).fold(0, |all, n| 3 * all + digit(m, n));
    (0..width).map(move |m| ((number(m) * 256).div_ceil(243)) as u8)
}

/// What one block stores, as [`Block`] has it, owned.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Unpacked {
    /// A code for each value.
    pub codes: Vec<u8>,
    /// A code for each group's scale.
    pub scales: Vec<u8>,
    /// A code for each group's minimum.
    pub minima: Vec<u8>,
    /// Scale of the block.
    pub scale: f32,
    /// What is subtracted, in units of the minima's codes.
    pub minimum: f32,
}

/// What the bytes of a block of `kind`, one of [`PACKED`], store: [`pack`] undone, bit for bit. (Of
/// `TQ1_0`, 13 of the 256 bytes are none that [`pack`] makes, and the fifth digit of four of its bytes
/// is nothing.)
/// `None` when `kind` is another, or there are not the bytes of one block.
pub fn unpack(kind: BlockKind, bytes: &[u8]) -> Option<Unpacked> {
    if bytes.len() != kind.bytes() {
        return None;
    }
    let half = |at: usize| f16_at(bytes, at);
    let plain = |codes: &[u8]| Unpacked { codes: codes.to_vec(), ..Unpacked::default() };
    Some(match kind {
        BlockKind::Q4_0 | BlockKind::IQ4_NL => {
            Unpacked { scale: half(0), ..plain(&run_of_nibbles(&bytes[2..])) }
        }
        BlockKind::MXFP4 => {
            Unpacked { scales: vec![bytes[0]], ..plain(&run_of_nibbles(&bytes[1..])) }
        }
        BlockKind::IQ4_XS => Unpacked {
            codes: bytes[8..].chunks(16).flat_map(run_of_nibbles).collect(),
            scales: (0..8).map(|j| i_quants::iq4_xs_scale_code(field(bytes, 0), j)).collect(),
            scale: half(0),
            ..Unpacked::default()
        },
        BlockKind::TQ1_0 => {
            let mut codes = [0; 256];
            ternary::tq1_0_codes(field(bytes, 0), &mut codes);
            Unpacked { scale: half(52), ..plain(&codes) }
        }
        BlockKind::TQ2_0 => {
            Unpacked { scale: half(64), ..plain(&k_quants::two_bits(field(bytes, 0))) }
        }
        BlockKind::Q4_1 => {
            Unpacked { scale: half(0), minimum: -half(2), ..plain(&run_of_nibbles(&bytes[4..])) }
        }
        BlockKind::Q5_0 => {
            Unpacked { scale: half(0), ..plain(&five_bits(*field(bytes, 2), field(bytes, 6))) }
        }
        BlockKind::Q5_1 => {
            let codes = five_bits(*field(bytes, 4), field(bytes, 8));
            Unpacked { scale: half(0), minimum: -half(2), ..plain(&codes) }
        }
        BlockKind::Q8_0 => {
            let codes = bytes[2..].iter().map(|code| code.wrapping_add(128)).collect();
            Unpacked { codes, scale: half(0), ..Unpacked::default() }
        }
        BlockKind::Q2_K => Unpacked {
            scales: bytes[..16].iter().map(|byte| byte & 15).collect(),
            minima: bytes[..16].iter().map(|byte| byte >> 4).collect(),
            scale: half(80),
            minimum: half(82),
            ..plain(&k_quants::two_bits(field(bytes, 16)))
        },
        BlockKind::Q3_K => {
            let scale = |j| (k_quants::q3_k_scale(field(bytes, 96), j) + 32).cast_unsigned();
            Unpacked {
                scales: (0..16).map(scale).collect(),
                scale: half(108),
                ..plain(&k_quants::q3_k_codes(field(bytes, 0)))
            }
        }
        BlockKind::Q4_K | BlockKind::Q5_K => {
            let pairs = (0..8).map(|j| k_quants::scale_and_minimum(field(bytes, 4), j));
            let (scales, minima) = pairs.unzip();
            let codes = match kind {
                BlockKind::Q4_K => k_quants::nibbles(field(bytes, 16)),
                _ => k_quants::q5_k_codes(field(bytes, 0)),
            };
            Unpacked { scales, minima, scale: half(0), minimum: half(2), ..plain(&codes) }
        }
        BlockKind::Q6_K => Unpacked {
            scales: bytes[192..208].iter().map(|code| code.wrapping_add(128)).collect(),
            scale: half(208),
            ..plain(&k_quants::q6_k_codes(field(bytes, 0)))
        },
        _ => return None,
    })
}

/// The codes of 16 bytes of nibbles, low ones first.
fn run_of_nibbles(bytes: &[u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    codes
}
