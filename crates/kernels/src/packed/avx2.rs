//! The product with codes in AVX2 registers: a lane is a row of the strip, eight at a time.
//! `vpmaddubsw` multiplies unsigned bytes of weights by signed ones of activations and adds pairs in
//! 16 bits, which codes of up to 7 bits cannot overflow; bytes become magnitudes, and their signs go
//! over to the activations.

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_add_ps, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_cvtepi32_ps,
    _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_sign_epi8, _mm256_slli_epi32, _mm256_sllv_epi32, _mm256_srlv_epi32,
    _mm256_storeu_ps, _mm256_sub_ps, _mm256_xor_si256,
};

use super::activations::TileOf;
use super::codes::Register;
use super::dense::Column;
use super::grid::Halves;
use super::int8::{Codes, Strip, StripZeros};
use super::{BLOCK, STEPS};

/// Adds the product of a strip that is packed (not cut into bytes) with a tile of tokens. The slices
/// of the strip and of the tile have the lengths of its blocks, which the caller has checked.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
pub(super) unsafe fn add(strip: &Strip<'_>, tile: &TileOf<'_>, sums: &mut [Column]) {
    const NONE: [&[u8; 16]; 2] = [&[0; 16]; 2];
    macro_rules! kernel {
        ($bits:literal, $levels:literal, $tables:expr, $registers:expr) => {{
            let mut first = 0;
            while first < tile.tokens {
                let part = Part { registers: $registers, tables: $tables, tile, first };
                // SAFETY: as the caller promises.
                first += unsafe {
                    match tile.tokens - first {
                        4.. => kernel::<$bits, $levels, 4>(strip, &part, &mut sums[first..]),
                        _ => kernel::<$bits, $levels, 1>(strip, &part, &mut sums[first..]),
                    }
                };
            }
        }};
    }
    match strip.codes {
        Codes::Packed(1, all) => kernel!(1, 0, NONE, all),
        Codes::Packed(2, all) => kernel!(2, 0, NONE, all),
        Codes::Packed(3, all) => kernel!(3, 0, NONE, all),
        Codes::Packed(4, all) => kernel!(4, 0, NONE, all),
        Codes::Packed(5, all) => kernel!(5, 0, NONE, all),
        Codes::Packed(6, all) => kernel!(6, 0, NONE, all),
        Codes::Packed(7, all) => kernel!(7, 0, NONE, all),
        Codes::Packed(_, all) | Codes::Bytes(all) | Codes::WideBytes(all) => {
            kernel!(8, 0, NONE, all);
        }
        Codes::Levels(all, table) => kernel!(4, 1, [table; 2], all),
        Codes::WideLevels(all, tables) => kernel!(4, 2, tables, all),
    }
}

/// Tokens of a tile from `first` on, and the codes they are multiplied with.
struct Part<'a> {
    registers: &'a [Register],
    tables: [&'a [u8; 16]; 2],
    tile: &'a TileOf<'a>,
    first: usize,
}

/// Weights are `BITS` bits of packed codes, looked up in so many tables (`LEVELS`). Returns the
/// number of tokens.
///
/// # Safety
/// As of [`add`]; `sums` has `TOKENS` columns, and the tile as many tokens from the first on.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kernel<const BITS: usize, const LEVELS: usize, const TOKENS: usize>(
    strip: &Strip<'_>,
    part: &Part<'_>,
    sums: &mut [Column],
) -> usize {
    let (stride, is_half) = (part.tile.tokens, strip.group < BLOCK);
    // SAFETY: a table has 16 bytes.
    let tables = part.tables.map(|table| unsafe {
        _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()))
    });
    for eight in 0..2 {
        let mut own = [_mm256_setzero_ps(); TOKENS];
        // SAFETY: blocks and groups are the strip's; tokens from the first on are within the stride.
        unsafe {
            for block in 0..strip.blocks {
                let registers = part.registers.as_ptr().add(block * BITS);
                let weights = Weights::<BITS, LEVELS> { registers, tables, eight };
                let x = part.tile.codes.as_ptr().add(block * STEPS * stride + part.first);
                let of = part.tile.sums.as_ptr().add(block * stride + part.first);
                let mut dots = [_mm256_setzero_si256(); TOKENS];
                weights.four_steps::<0, TOKENS>(x, stride, &mut dots);
                let at = block * BLOCK / strip.group;
                if is_half {
                    let scales = Scales::load::<BITS, LEVELS>(strip, at, eight);
                    for (token, own) in own.iter_mut().enumerate() {
                        let of = &*of.add(token);
                        *own = scales.add(dots[token], of.scale, of.first, *own);
                    }
                    dots = [_mm256_setzero_si256(); TOKENS];
                }
                weights.four_steps::<4, TOKENS>(x, stride, &mut dots);
                let at = if is_half { at + 1 } else { at };
                let scales = Scales::load::<BITS, LEVELS>(strip, at, eight);
                for (token, own) in own.iter_mut().enumerate() {
                    let of = &*of.add(token);
                    let sum = if is_half { of.sum - of.first } else { of.sum };
                    *own = scales.add(dots[token], of.scale, sum, *own);
                }
            }
        }
        let unit = _mm256_set1_ps(strip.unit);
        for (own, sum) in own.into_iter().zip(&mut *sums) {
            let sum = sum[8 * eight..].as_mut_ptr();
            let scaled = _mm256_mul_ps(own, unit);
            // SAFETY: eight of the column's sixteen values lie there.
            unsafe { _mm256_storeu_ps(sum, _mm256_add_ps(_mm256_loadu_ps(sum), scaled)) };
        }
    }
    TOKENS
}

/// The scales of a group, and what the sum of the activations is multiplied by.
struct Scales {
    scale: __m256,
    below: __m256,
}

impl Scales {
    /// # Safety
    /// The strip has this group.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load<const BITS: usize, const LEVELS: usize>(
        strip: &Strip<'_>,
        group: usize,
        eight: usize,
    ) -> Self {
        // What the signed weights are less than the codes.
        let moved = _mm256_set1_ps(match (LEVELS, BITS) {
            (2, _) => 32896.0,
            (1, _) | (_, 8) => 128.0,
            _ => 0.0,
        });
        // SAFETY: as the caller promises.
        unsafe {
            let scale = widen(strip.scales.as_ptr().add(group), eight);
            let below = match strip.zeros {
                StripZeros::Middle(middle) => {
                    _mm256_mul_ps(scale, _mm256_sub_ps(_mm256_set1_ps(middle as f32), moved))
                }
                StripZeros::Steps(zeros) => {
                    let zeros = widen(zeros.as_ptr().add(group), eight);
                    _mm256_mul_ps(scale, _mm256_sub_ps(zeros, moved))
                }
                StripZeros::Minima(minima) => {
                    _mm256_fnmadd_ps(scale, moved, widen(minima.as_ptr().add(group), eight))
                }
            };
            Self { scale, below }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn add(&self, dot: __m256i, scale: f32, sum_of_x: f32, sum: __m256) -> __m256 {
        let scale = _mm256_mul_ps(self.scale, _mm256_set1_ps(scale));
        let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, sum);
        _mm256_fnmadd_ps(self.below, _mm256_set1_ps(sum_of_x), sum)
    }
}

/// Eight rows of the weights of a block.
#[derive(Clone, Copy)]
struct Weights<const BITS: usize, const LEVELS: usize> {
    registers: *const Register,
    tables: [__m256i; 2],
    eight: usize,
}

impl<const BITS: usize, const LEVELS: usize> Weights<BITS, LEVELS> {
    /// Adds four steps from `FIRST` on.
    ///
    /// # Safety
    /// There are `BITS` registers, and at `x` the codes of a block of `TOKENS` tokens at least.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn four_steps<const FIRST: usize, const TOKENS: usize>(
        self,
        x: *const u32,
        stride: usize,
        dots: &mut [__m256i; TOKENS],
    ) {
        let ones = _mm256_set1_epi16(1);
        let mut pairs = [_mm256_setzero_si256(); TOKENS];
        macro_rules! step {
            ($step:expr) => {{
                // SAFETY: as the caller promises.
                let (code, x) = unsafe { (self.code($step), x.add($step * stride)) };
                for token in 0..TOKENS {
                    // SAFETY: as above.
                    let x = _mm256_set1_epi32(unsafe { *x.add(token) }.cast_signed());
                    if LEVELS == 0 && BITS < 8 {
                        let products = _mm256_maddubs_epi16(code, x);
                        pairs[token] = _mm256_add_epi16(pairs[token], products);
                        // Of so many steps the sums fit 16 bits.
                        let steps = [4, 4, 4, 4, 4, 4, 2, 1][BITS];
                        if ($step + 1) % steps == 0 {
                            let sums = _mm256_madd_epi16(pairs[token], ones);
                            dots[token] = _mm256_add_epi32(dots[token], sums);
                            pairs[token] = _mm256_setzero_si256();
                        }
                        continue;
                    }
                    let byte = |table: usize| match LEVELS {
                        0 => code,
                        _ => _mm256_shuffle_epi8(self.tables[table], code),
                    };
                    let sums = signed(byte(0), x);
                    dots[token] = match LEVELS {
                        2 => {
                            let upper = _mm256_slli_epi32::<8>(sums);
                            let both = _mm256_add_epi32(upper, signed(byte(1), x));
                            _mm256_add_epi32(dots[token], both)
                        }
                        _ => _mm256_add_epi32(dots[token], sums),
                    };
                }
            }};
        }
        step!(FIRST);
        step!(FIRST + 1);
        step!(FIRST + 2);
        step!(FIRST + 3);
    }

    /// One step of packed codes. See [`codes`](super::codes) for their digits.
    ///
    /// # Safety
    /// There are `BITS` registers.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn code(self, step: usize) -> __m256i {
        // SAFETY: as the caller promises; a register is two of 32 bytes.
        let load = |register: usize| unsafe {
            _mm256_loadu_si256(self.registers.add(register).cast::<__m256i>().add(self.eight))
        };
        if BITS == 8 {
            return load(step);
        }
        let mut code = _mm256_setzero_si256();
        macro_rules! digit {
            ($width:literal) => {
                if BITS & $width != 0 {
                    // The wider digits come first.
                    let below = BITS & (8 - 2 * $width);
                    let each = 8 / $width;
                    let digits = load(below + step / each);
                    let down = (step % each * $width) as i32 - below as i32;
                    let count = _mm256_set1_epi32(down.abs());
                    let shifted = match down >= 0 {
                        true => _mm256_srlv_epi32(digits, count),
                        false => _mm256_sllv_epi32(digits, count),
                    };
                    let mask = ((1_u32 << $width) - 1) << below;
                    let digit = _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8));
                    code = if below == 0 { digit } else { _mm256_or_si256(code, digit) };
                }
            };
        }
        digit!(4);
        digit!(2);
        digit!(1);
        code
    }
}

/// Sums of four products of bytes less 128 with signed bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn signed(bytes: __m256i, x: __m256i) -> __m256i {
    let weights = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// # Safety
/// It points to the halves.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn widen(halves: *const Halves, eight: usize) -> __m256 {
    // SAFETY: as the caller promises; eight halves are 16 bytes.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(halves.cast::<u16>().add(8 * eight).cast())) }
}
