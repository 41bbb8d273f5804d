//! The product of panels in AVX-512 registers: of bf16 pairs by their dot product, of f32 lanes by
//! fused multiply-add.
//!
//! Written with intrinsics: the compiler's own vectors of the arrays in `fused` are the wrong ones
//! at this width (it gathers across rows).

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::mem::transmute;

use super::{BLOCK, Block, PANEL, Tile};

/// Rows computed at once: with two vectors of columns each they fill half the registers, enough to
/// hide the latency of a multiplication.
const ROWS: usize = 8;

macro_rules! multiply {
    ($name:ident, $features:literal, $multiply_add:ident, $lanes:ty) => {
        /// See [`super::Session::multiply`]. All panels have the length of the first.
        #[target_feature(enable = $features)]
        pub(super) fn $name(
            left: [&[Tile]; 2],
            right: [&[Tile]; 2],
            add: bool,
            product: &mut Block,
        ) {
            let groups = product.0.as_chunks_mut::<ROWS>().0;
            for (index, rows) in groups.iter_mut().enumerate() {
                let left = left[index * ROWS / PANEL];
                let group = index % (PANEL / ROWS);
                let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
                if add {
                    load(&mut sums, rows);
                }
                for ((left, right0), right1) in left.iter().zip(right[0]).zip(right[1]) {
                    let factors = &left.0.as_chunks::<ROWS>().0[group];
                    for step in 0..PANEL {
                        // SAFETY: no type of 512 bits has invalid values.
                        let (columns0, columns1) = unsafe {
                            (
                                transmute::<__m512i, $lanes>(load_lanes(&right0.0[step])),
                                transmute::<__m512i, $lanes>(load_lanes(&right1.0[step])),
                            )
                        };
                        for (factors, sums) in factors.iter().zip(&mut sums) {
                            let lanes = _mm512_set1_epi32(factors[step].cast_signed());
                            // SAFETY: as above.
                            let factor = unsafe { transmute::<__m512i, $lanes>(lanes) };
                            $multiply_add!(sums[0], factor, columns0);
                            $multiply_add!(sums[1], factor, columns1);
                        }
                    }
                }
                store(&sums, rows);
            }
        }
    };
}

macro_rules! dot_product {
    ($sum:expr, $factor:expr, $columns:expr) => {
        $sum = _mm512_dpbf16_ps($sum, $factor, $columns)
    };
}

macro_rules! multiply_add {
    ($sum:expr, $factor:expr, $columns:expr) => {
        $sum = _mm512_fmadd_ps($factor, $columns, $sum)
    };
}

multiply!(multiply_pairs, "avx512f,avx512bf16", dot_product, __m512bh);
multiply!(multiply_f32, "avx512f", multiply_add, __m512);

#[inline]
#[target_feature(enable = "avx512f")]
fn load_lanes(lanes: &[u32; 16]) -> __m512i {
    // SAFETY: 16 lanes are 64 bytes.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(sums: &mut [[__m512; 2]; ROWS], rows: &[[f32; BLOCK]; ROWS]) {
    for (sums, row) in sums.iter_mut().zip(rows) {
        // SAFETY: each row has 32 values, 16 of them from either offset.
        *sums =
            unsafe { [_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row.as_ptr().add(PANEL))] };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(sums: &[[__m512; 2]; ROWS], rows: &mut [[f32; BLOCK]; ROWS]) {
    for (sums, row) in sums.iter().zip(rows) {
        // SAFETY: each row has 32 values, 16 of them from either offset.
        unsafe {
            _mm512_storeu_ps(row.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(row.as_mut_ptr().add(PANEL), sums[1]);
        }
    }
}
