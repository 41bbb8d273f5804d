//! The product with floats in AVX-512 registers: a column of a strip is a register, widened to f32 and
//! multiplied with one value of each token.

use std::arch::x86_64::{
    __m512, _mm256_loadu_si256, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_storeu_ps,
};

use half::{bf16, f16};

use super::STRIP;
use super::dense::Column;
use crate::simd::prefetch;

/// Bytes ahead of the column being multiplied that are asked for.
const AHEAD: usize = 2048;
/// Columns side by side, each with sums of its own, so that sums do not wait for each other.
pub(super) const WAYS: usize = 2;

/// A type that floats are stored in.
pub(super) trait Stored: Sized {
    /// A column as f32.
    ///
    /// # Safety
    /// It points to sixteen values; the processor has AVX-512 F.
    unsafe fn load(column: *const Self) -> __m512;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load(column: *const Self) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_loadu_ps(column) }
    }
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load(column: *const Self) -> __m512 {
        // SAFETY: as the caller promises; sixteen halves are 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(column.cast())) }
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load(column: *const Self) -> __m512 {
        // SAFETY: as the caller promises; sixteen halves are 32 bytes.
        unsafe {
            let widened = _mm512_cvtepu16_epi32(_mm256_loadu_si256(column.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(widened))
        }
    }
}

/// Adds the product of a strip with `tokens` tokens, `x` being `[column][token]`.
/// The order of sums is the same for any number of tokens.
///
/// # Safety
/// The processor has AVX-512 F; `x` has the columns of the strip, `sums` the tokens.
pub(super) unsafe fn add<T: Stored>(strip: &[T], x: &[f32], tokens: usize, sums: &mut [Column]) {
    let mut first = 0;
    while first < tokens {
        let sums = &mut sums[first..];
        // SAFETY: as the caller promises.
        first += unsafe {
            match tokens - first {
                12.. => kernel::<T, 12>(strip, x, tokens, first, sums),
                8.. => kernel::<T, 8>(strip, x, tokens, first, sums),
                4.. => kernel::<T, 4>(strip, x, tokens, first, sums),
                2.. => kernel::<T, 2>(strip, x, tokens, first, sums),
                _ => kernel::<T, 1>(strip, x, tokens, first, sums),
            }
        };
    }
}

/// Multiplies `TOKENS` tokens from the first on, and returns their number.
///
/// # Safety
/// As of [`add`].
#[target_feature(enable = "avx512f")]
unsafe fn kernel<T: Stored, const TOKENS: usize>(
    strip: &[T],
    x: &[f32],
    stride: usize,
    first: usize,
    sums: &mut [Column],
) -> usize {
    let (columns, _) = strip.as_chunks::<STRIP>();
    let (whole, rest) = columns.as_chunks::<WAYS>();
    let mut own = [[_mm512_setzero_ps(); TOKENS]; WAYS];
    let mut x = x.as_ptr().wrapping_add(first);
    let mut multiply = |column: &[T; STRIP], own: &mut [__m512; TOKENS]| {
        // SAFETY: a column has sixteen values; the tokens of each column are within `x`.
        unsafe {
            let weights = T::load(column.as_ptr());
            for (token, own) in own.iter_mut().enumerate() {
                *own = _mm512_fmadd_ps(weights, _mm512_set1_ps(*x.add(token)), *own);
            }
        }
        x = x.wrapping_add(stride);
    };
    for columns in whole {
        prefetch(columns.as_ptr().wrapping_byte_add(AHEAD));
        // By numbers that are known to the compiler, or it would keep the sums in memory.
        for way in 0..WAYS {
            multiply(&columns[way], &mut own[way]);
        }
    }
    for (way, own) in own.iter_mut().enumerate() {
        if let Some(column) = rest.get(way) {
            multiply(column, own);
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
