//! Strips of codes decoded into tiles of bfloat16 pairs: lane is row, as in the strip.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtne2ps_pbh, _mm512_fmsub_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_or_si512, _mm512_permutexvar_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_slli_epi32, _mm512_srlv_epi32, _mm512_storeu_si512,
};

use super::int8::{Codes, Strip};
use super::vnni::{Scales, Weights, broadcast_table};
use super::{BLOCK, STEPS};
use crate::tile::Tile;

/// Decodes a packed strip, multiplied by its scales and rounded to bfloat16. Columns beyond the last
/// are anything finite: the activations are zero there.
///
/// # Panics
/// When the panel does not have a tile a block, or the strip's slices do not have its lengths.
pub(super) fn decode(strip: &Strip<'_>, panel: &mut [Tile]) {
    const NONE: [&[u8; 16]; 2] = [&[0; 16]; 2];
    strip.check();
    assert_eq!(panel.len(), strip.blocks, "a panel of another length");
    // SAFETY: pairs are the lanes only where the processor has AVX-512 BF16, which includes all that
    // is needed here; the lengths were checked.
    unsafe {
        match strip.codes {
            Codes::Packed(1, _) => decode_as::<1, 0>(strip, NONE, panel),
            Codes::Packed(2, _) => decode_as::<2, 0>(strip, NONE, panel),
            Codes::Packed(3, _) => decode_as::<3, 0>(strip, NONE, panel),
            Codes::Packed(4, _) => decode_as::<4, 0>(strip, NONE, panel),
            Codes::Packed(5, _) => decode_as::<5, 0>(strip, NONE, panel),
            Codes::Packed(6, _) => decode_as::<6, 0>(strip, NONE, panel),
            Codes::Packed(7, _) => decode_as::<7, 0>(strip, NONE, panel),
            Codes::Packed(..) | Codes::Bytes(_) | Codes::WideBytes(_) => {
                decode_as::<8, 0>(strip, NONE, panel);
            }
            Codes::Levels(_, table) => decode_as::<4, 1>(strip, [table; 2], panel),
            Codes::WideLevels(_, tables) => decode_as::<4, 2>(strip, tables, panel),
        }
    }
}

/// # Safety
/// The processor has AVX-512 F, BW, VNNI and BF16; the slices have the lengths of the strip's blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16")]
unsafe fn decode_as<const BITS: usize, const LEVELS: usize>(
    strip: &Strip<'_>,
    tables: [&[u8; 16]; 2],
    panel: &mut [Tile],
) {
    let tables = tables.map(|table| broadcast_table(table));
    let unit = _mm512_set1_ps(strip.unit);
    let all = strip.codes.registers();
    for (block, tile) in panel.iter_mut().enumerate() {
        let registers = all[block * BITS..].as_ptr();
        let weights = Weights::<BITS, LEVELS> { registers, tables };
        let at = |half: usize| (block * BLOCK + half * BLOCK / 2) / strip.group;
        // SAFETY: the strip has these groups.
        let [first, second] = [0, 1].map(|half| unsafe {
            let scales = Scales::load(strip, at(half));
            [_mm512_mul_ps(scales.scale, unit), _mm512_mul_ps(scales.below, unit)]
        });
        macro_rules! step {
            ($($step:literal)*) => {$(
                let scales = if $step < STEPS / 2 { first } else { second };
                // SAFETY: there are `BITS` registers a block.
                let codes = unsafe { weights.step(0, $step) };
                // SAFETY: as above.
                let lower = if LEVELS == 2 { unsafe { weights.step(1, $step) } } else { codes };
                for pair in 0..2 {
                    let values = [
                        value::<LEVELS>(codes, lower, 16 * pair, scales),
                        value::<LEVELS>(codes, lower, 16 * pair + 8, scales),
                    ];
                    write(&mut tile.0[2 * $step + pair as usize], values);
                }
            )*};
        }
        step!(0 1 2 3 4 5 6 7);
    }
}

/// The weights of the bytes from bit `shift` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn value<const LEVELS: usize>(
    codes: __m512i,
    lower: __m512i,
    shift: i32,
    [scale, below]: [__m512; 2],
) -> __m512 {
    let byte = |bytes: __m512i| {
        let shifted = _mm512_srlv_epi32(bytes, _mm512_set1_epi32(shift));
        _mm512_and_si512(shifted, _mm512_set1_epi32(0xff))
    };
    let code = match LEVELS {
        2 => _mm512_or_si512(_mm512_slli_epi32::<8>(byte(codes)), byte(lower)),
        _ => byte(codes),
    };
    _mm512_fmsub_ps(_mm512_cvtepi32_ps(code), scale, below)
}

/// Writes two columns as pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn write(lanes: &mut [u32; 16], [lower, upper]: [__m512; 2]) {
    const INTERLEAVE: [u16; 32] = {
        let mut order = [0; 32];
        let mut lane = 0;
        while lane < 16 {
            order[2 * lane] = lane as u16;
            order[2 * lane + 1] = lane as u16 + 16;
            lane += 1;
        }
        order
    };
    // SAFETY: the array is 64 bytes, and so are the lanes; both types are 512 bits without invalid
    // values.
    unsafe {
        let order = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
        let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(upper, lower));
        let pairs = _mm512_permutexvar_epi16(order, rounded);
        _mm512_storeu_si512(lanes.as_mut_ptr().cast(), pairs);
    }
}
