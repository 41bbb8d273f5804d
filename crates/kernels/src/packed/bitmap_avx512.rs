//! The product with floats whose zeros are left out: the values of a column are loaded side by side,
//! and spread over the lanes that its mask names.

use std::arch::x86_64::{
    __m512, _mm256_loadu_si256, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_maskz_expand_epi32,
    _mm512_maskz_expand_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use half::{bf16, f16};

use super::dense::Column;
use super::dense_avx512::WAYS;

/// A type that floats are stored in.
pub(super) trait Stored: Sized {
    /// The lanes of the mask, from the first values there; 0 in the others.
    ///
    /// # Safety
    /// Sixteen values can be read; the processor has AVX-512 F.
    unsafe fn expand(values: *const Self, mask: u16) -> __m512;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn expand(values: *const Self, mask: u16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_maskz_expand_ps(mask, _mm512_loadu_ps(values)) }
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn expand(values: *const Self, mask: u16) -> __m512 {
        // SAFETY: as the caller promises; sixteen halves are 32 bytes.
        unsafe { _mm512_maskz_expand_ps(mask, _mm512_cvtph_ps(_mm256_loadu_si256(values.cast()))) }
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn expand(values: *const Self, mask: u16) -> __m512 {
        // SAFETY: as the caller promises; sixteen halves are 32 bytes.
        unsafe {
            let widened = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.cast()));
            let spread = _mm512_maskz_expand_epi32(mask, widened);
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(spread))
        }
    }
}

/// Adds the columns that masks and values make.
///
/// # Safety
/// The processor has AVX-512 F; there are as many values as the masks name and sixteen more.
#[target_feature(enable = "avx512f,popcnt")]
pub(super) unsafe fn add_columns<T: Stored>(masks: &[u16], values: &[T], out: &mut [Column]) {
    let mut values = values.as_ptr();
    for (mask, column) in masks.iter().zip(out) {
        // SAFETY: as the caller promises; a column has sixteen values.
        unsafe {
            let sum = _mm512_add_ps(_mm512_loadu_ps(column.as_ptr()), T::expand(values, *mask));
            _mm512_storeu_ps(column.as_mut_ptr(), sum);
            values = values.add(mask.count_ones() as usize);
        }
    }
}

/// Adds the product of a strip with `tokens` tokens, `x` being `[column][token]`.
/// The order of sums is the same for any number of tokens.
///
/// # Safety
/// As of [`add_columns`]; `x` has the columns of the masks, `sums` the tokens.
pub(super) unsafe fn add<T: Stored>(
    masks: &[u16],
    values: &[T],
    x: &[f32],
    tokens: usize,
    sums: &mut [Column],
) {
    let mut first = 0;
    while first < tokens {
        let sums = &mut sums[first..];
        // SAFETY: as the caller promises.
        first += unsafe {
            match tokens - first {
                12.. => kernel::<T, 12>(masks, values, x, tokens, first, sums),
                8.. => kernel::<T, 8>(masks, values, x, tokens, first, sums),
                4.. => kernel::<T, 4>(masks, values, x, tokens, first, sums),
                2.. => kernel::<T, 2>(masks, values, x, tokens, first, sums),
                _ => kernel::<T, 1>(masks, values, x, tokens, first, sums),
            }
        };
    }
}

/// Multiplies `TOKENS` tokens from the first on, and returns their number.
///
/// # Safety
/// As of [`add`].
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn kernel<T: Stored, const TOKENS: usize>(
    masks: &[u16],
    values: &[T],
    x: &[f32],
    stride: usize,
    first: usize,
    sums: &mut [Column],
) -> usize {
    let mut own = [[_mm512_setzero_ps(); TOKENS]; WAYS];
    let mut values = values.as_ptr();
    let mut x = x.as_ptr().wrapping_add(first);
    let mut column = |mask: u16, own: &mut [__m512; TOKENS]| {
        // SAFETY: as the caller promises; the tokens of each column are within `x`.
        unsafe {
            let weights = T::expand(values, mask);
            for (token, own) in own.iter_mut().enumerate() {
                *own = _mm512_fmadd_ps(weights, _mm512_set1_ps(*x.add(token)), *own);
            }
        }
        values = values.wrapping_add(mask.count_ones() as usize);
        x = x.wrapping_add(stride);
    };
    let (whole, rest) = masks.as_chunks::<WAYS>();
    for masks in whole {
        for way in 0..WAYS {
            column(masks[way], &mut own[way]);
        }
    }
    for (way, own) in own.iter_mut().enumerate() {
        if let Some(mask) = rest.get(way) {
            column(*mask, own);
        }
    }
    for token in 0..TOKENS {
        let mut sum = own[0][token];
        for own in &own[1..] {
            sum = _mm512_add_ps(sum, own[token]);
        }
        let column = sums[token].as_mut_ptr();
        // SAFETY: a column has sixteen values.
        unsafe { _mm512_storeu_ps(column, _mm512_add_ps(_mm512_loadu_ps(column), sum)) };
    }
    TOKENS
}
