//! Rounding of activations to 8 bits in AVX-512 registers: a block of 32 is two of them.

use std::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_cvtsi128_si32, _mm_extract_epi16, _mm_sad_epu8, _mm_set1_epi8,
    _mm_setzero_si128, _mm_storeu_si128, _mm_xor_si128, _mm512_and_si512, _mm512_castps_si512,
    _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_cvtps_epi32, _mm512_maskz_loadu_ps,
    _mm512_max_epu32, _mm512_mul_ps, _mm512_reduce_max_epu32, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_sub_ps,
};

use super::activations::{BlockSums, DigitPart, steps_of};
use super::{BLOCK, STEPS};

/// What [`quantize`](super::activations::quantize) does, to the same bits.
///
/// # Safety
/// The processor has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn quantize(
    row: &[f32],
    token: usize,
    tokens: usize,
    digit: DigitPart<'_>,
    mut rest: Option<DigitPart<'_>>,
) {
    for (index, values) in row.chunks(BLOCK).enumerate() {
        let mask = u32::MAX >> (BLOCK - values.len());
        let from = values.as_ptr();
        // SAFETY: only the values that there are are read.
        let mut block = unsafe {
            [
                _mm512_maskz_loadu_ps(mask as u16, from),
                _mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(BLOCK / 2)),
            ]
        };
        let first = index * STEPS * tokens + token;
        let (codes, bytes, of) = quantize_block(block);
        digit.sums[index * tokens + token] = of;
        steps_of(&bytes, &mut digit.codes[first..], tokens);
        if let Some(rest) = &mut rest {
            let scale = _mm512_set1_ps(of.scale);
            for (values, codes) in block.iter_mut().zip(codes) {
                let taken = _mm512_mul_ps(_mm512_cvtepi32_ps(codes), scale);
                *values = _mm512_sub_ps(*values, taken);
            }
            let (_, bytes, of) = quantize_block(block);
            rest.sums[index * tokens + token] = of;
            steps_of(&bytes, &mut rest.codes[first..], tokens);
        }
    }
}

/// The codes of a block, in 32 bits and in 8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn quantize_block(values: [__m512; 2]) -> ([__m512i; 2], [u8; BLOCK], BlockSums) {
    // As integers magnitudes are ordered as they are as numbers, with NaN above all.
    let magnitude = |values: __m512| {
        _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(0x7fff_ffff))
    };
    let greatest = _mm512_max_epu32(magnitude(values[0]), magnitude(values[1]));
    let greatest = f32::from_bits(_mm512_reduce_max_epu32(greatest));
    let (scale, inverse) = BlockSums::scales(greatest);
    let inverse = _mm512_set1_ps(inverse);
    let codes = values.map(|values| _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse)));
    let halves = codes.map(|codes| _mm512_cvtepi32_epi8(codes));
    let mut bytes = [0; BLOCK];
    for (bytes, half) in bytes.as_chunks_mut::<{ BLOCK / 2 }>().0.iter_mut().zip(halves) {
        // SAFETY: sixteen bytes are written.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), half) };
    }
    let [first, second] = halves.map(|half| sum(half));
    let (sum, first) = ((first + second) as f32, first as f32);
    (codes, bytes, BlockSums::new(scale, sum, first))
}

/// The sum of signed bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn sum(bytes: __m128i) -> i32 {
    let moved = _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN));
    let sums = _mm_sad_epu8(moved, _mm_setzero_si128());
    _mm_cvtsi128_si32(sums) + _mm_extract_epi16::<4>(sums) - 128 * BLOCK as i32 / 2
}
