//! Codes as the floats that they stand for, in AVX-512 registers: a column of a strip is a register.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_loadu_ps,
    _mm512_mul_ps, _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::STEPS;
use super::codes::Register;
use super::dense::Column;
use super::grid::Line;
use super::vnni::Weights;

/// Adds the columns of a block of codes of `bits` bits; with `levels`, these times the scales. To the
/// same bits as the loops for other processors.
///
/// # Safety
/// The processor has AVX-512 F and BW.
///
/// # Panics
/// If the block does not have `bits` registers.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn add_block(
    bits: u8,
    block: &[Register],
    halves: &[Line; 2],
    levels: Option<&[f32; 16]>,
    out: &mut [Column],
) {
    assert_eq!(block.len(), usize::from(bits), "a block of codes of other bits");
    macro_rules! of_bits {
        ($($bits:literal)*) => {
            match bits {
                // SAFETY: the processor has the instructions; the block has so many registers.
                $($bits => unsafe { add_block_of::<$bits>(block, halves, levels, out) },)*
                _ => {}
            }
        };
    }
    of_bits!(1 2 3 4 5 6 7 8);
}

/// # Safety
/// As of [`add_block`]; the block has `BITS` registers.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn add_block_of<const BITS: usize>(
    block: &[Register],
    halves: &[Line; 2],
    levels: Option<&[f32; 16]>,
    out: &mut [Column],
) {
    let tables = [_mm512_setzero_si512(); 2];
    let weights = Weights::<BITS, 0> { registers: block.as_ptr(), tables };
    let halves = halves.each_ref().map(|line| Registers::load(line));
    // SAFETY: sixteen levels are 64 bytes.
    let levels = levels.map(|levels| unsafe { _mm512_loadu_ps(levels.as_ptr()) });
    let mut out = out.iter_mut();
    macro_rules! step {
        ($($step:literal)*) => {$(
            let line = &halves[$step / (STEPS / 2)];
            // SAFETY: as the caller promises.
            let codes = unsafe { weights.step(0, $step) };
            add_column(byte::<0>(codes), line, levels, out.next());
            add_column(byte::<8>(codes), line, levels, out.next());
            add_column(byte::<16>(codes), line, levels, out.next());
            add_column(byte::<24>(codes), line, levels, out.next());
        )*};
    }
    step!(0 1 2 3 4 5 6 7);
}

/// A [`Line`] in registers.
struct Registers {
    scale: __m512,
    zero: __m512,
    minimum: __m512,
}

impl Registers {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(line: &Line) -> Self {
        // SAFETY: a column has sixteen values.
        let load = |column: &Column| unsafe { _mm512_loadu_ps(column.as_ptr()) };
        Self { scale: load(&line.scale), zero: load(&line.zero), minimum: load(&line.minimum) }
    }
}

/// The byte of each lane that begins at this bit.
#[inline]
#[target_feature(enable = "avx512f")]
fn byte<const SHIFT: u32>(codes: __m512i) -> __m512i {
    _mm512_and_si512(_mm512_srli_epi32::<SHIFT>(codes), _mm512_set1_epi32(0xff))
}

/// Adds a column of codes, where it is one of the matrix.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_column(codes: __m512i, line: &Registers, levels: Option<__m512>, out: Option<&mut Column>) {
    let Some(out) = out else { return };
    let value = match levels {
        Some(levels) => _mm512_mul_ps(line.scale, _mm512_permutexvar_ps(codes, levels)),
        None => {
            let steps = _mm512_sub_ps(_mm512_cvtepi32_ps(codes), line.zero);
            _mm512_sub_ps(_mm512_mul_ps(line.scale, steps), line.minimum)
        }
    };
    // SAFETY: a column has sixteen values.
    unsafe {
        _mm512_storeu_ps(out.as_mut_ptr(), _mm512_add_ps(_mm512_loadu_ps(out.as_ptr()), value))
    };
}
