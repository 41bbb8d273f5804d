//! The product with codes in AVX-512 registers: a lane is a row of the strip, `vpdpbusd` adds the
//! products of four unsigned bytes of weights and four signed bytes of activations to each.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm_loadu_si128, _mm256_loadu_si256, _mm512_add_epi8, _mm512_add_ps,
    _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_fmadd_ps,
    _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_or_si512,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_epi8, _mm512_slli_epi32, _mm512_sllv_epi32, _mm512_srav_epi32,
    _mm512_srlv_epi32, _mm512_storeu_ps, _mm512_storeu_si512,
};
use std::sync::OnceLock;

use super::activations::{BlockSums, TileOf};
use super::codes::Register;
use super::dense::Column;
use super::grid::Halves;
use super::int8::{Codes, Strip, StripZeros};
use super::{BLOCK, STEPS, TILE};
use crate::isa::Isa;
use crate::simd::prefetch;

/// Bytes ahead of the codes being multiplied that are asked for: the best of 2, 4, 8 and 16 KiB on a
/// Zen 5, by the example `packed`.
const AHEAD: usize = 8192;
/// The same of scales and zeros, of which there are fewer.
const SCALES_AHEAD: usize = 1024;

/// Whether this level has the instructions: those of AVX-512 VNNI, which is no level of its own.
pub(super) fn supported(isa: Isa) -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    isa >= Isa::Avx512
        && *FOUND.get_or_init(|| {
            std::arch::is_x86_feature_detected!("avx512vnni")
                && std::arch::is_x86_feature_detected!("avx512bw")
        })
}

/// Adds the product of a strip with a tile of tokens. The slices of both have the lengths of the
/// strip's blocks, which the caller has checked.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI.
pub(super) unsafe fn add(strip: &Strip<'_>, tile: &TileOf<'_>, sums: &mut [Column; TILE]) {
    let mut first = 0;
    while first < tile.tokens {
        let part = Part { registers: strip.codes.registers(), tile, first };
        let sums = &mut sums[first..];
        // SAFETY: as the caller promises.
        first += unsafe { add_part(strip, &part, tile.tokens - first, sums) };
    }
}

/// Cuts a packed strip into bytes: codes around the middle one as bytes around 128 where groups are whole
/// blocks, others as they are, levels looked up, wide ones as a block of upper and a block of lower bytes.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI; `out` has the registers.
pub(super) unsafe fn cut(strip: &Strip<'_>, out: &mut [Register]) {
    const NONE: [&[u8; 16]; 2] = [&[0; 16]; 2];
    // SAFETY: as the caller promises.
    unsafe {
        match strip.codes {
            Codes::Packed(1, _) => cut_as::<1, 0>(strip, NONE, out),
            Codes::Packed(2, _) => cut_as::<2, 0>(strip, NONE, out),
            Codes::Packed(3, _) => cut_as::<3, 0>(strip, NONE, out),
            Codes::Packed(4, _) => cut_as::<4, 0>(strip, NONE, out),
            Codes::Packed(5, _) => cut_as::<5, 0>(strip, NONE, out),
            Codes::Packed(6, _) => cut_as::<6, 0>(strip, NONE, out),
            Codes::Packed(7, _) => cut_as::<7, 0>(strip, NONE, out),
            Codes::Packed(..) | Codes::Bytes(_) | Codes::WideBytes(_) => {
                cut_as::<8, 0>(strip, NONE, out);
            }
            Codes::Levels(_, table) => cut_as::<4, 1>(strip, [table; 2], out),
            Codes::WideLevels(_, tables) => cut_as::<4, 2>(strip, tables, out),
        }
    }
}

/// # Safety
/// As of [`cut`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn cut_as<const BITS: usize, const LEVELS: usize>(
    strip: &Strip<'_>,
    tables: [&[u8; 16]; 2],
    out: &mut [Register],
) {
    let tables = tables.map(|table| broadcast_table(table));
    let moved = match (LEVELS, strip.zeros) {
        (0, StripZeros::Middle(middle)) if strip.group >= BLOCK => 128 - middle,
        _ => 0,
    };
    let moved = _mm512_set1_epi8(moved as i8);
    let (blocks, _) = strip.codes.registers().as_chunks::<BITS>();
    let passes = if LEVELS == 2 { 2 } else { 1 };
    for (block, out) in blocks.iter().zip(out.chunks_exact_mut(passes * STEPS)) {
        let weights = Weights::<BITS, LEVELS> { registers: block.as_ptr(), tables };
        for (pass, out) in out.chunks_exact_mut(STEPS).enumerate() {
            macro_rules! step {
                ($($step:literal)*) => {$(
                    // SAFETY: a block has `BITS` registers; a register is written.
                    unsafe {
                        let bytes = _mm512_add_epi8(weights.step(pass, $step), moved);
                        _mm512_storeu_si512(out[$step].0.as_mut_ptr().cast(), bytes);
                    }
                )*};
            }
            step!(0 1 2 3 4 5 6 7);
        }
    }
}

/// Tokens of a tile from `first` on, and the codes they are multiplied with.
struct Part<'a> {
    registers: &'a [Register],
    tile: &'a TileOf<'a>,
    first: usize,
}

/// Takes as many of the `left` tokens as a kernel holds, and returns their number.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI; the slices have the lengths of the strip's blocks.
unsafe fn add_part(strip: &Strip<'_>, part: &Part<'_>, left: usize, sums: &mut [Column]) -> usize {
    macro_rules! kernel {
        ($bits:literal, $levels:literal, $tables:expr, $tokens:literal) => {{
            // SAFETY: as the caller promises.
            unsafe {
                match (strip.group < BLOCK, strip.zeros) {
                    (true, _) => {
                        kernel::<$bits, $levels, true, true, $tokens>(strip, part, $tables, sums)
                    }
                    (false, StripZeros::Middle(_)) => {
                        kernel::<$bits, $levels, false, false, $tokens>(strip, part, $tables, sums)
                    }
                    (false, _) => {
                        kernel::<$bits, $levels, false, true, $tokens>(strip, part, $tables, sums)
                    }
                }
            }
            $tokens
        }};
    }
    macro_rules! few {
        ($bits:literal, $levels:literal, $tables:expr) => {
            match left {
                4.. => kernel!($bits, $levels, $tables, 4),
                2..=3 => kernel!($bits, $levels, $tables, 2),
                _ => kernel!($bits, $levels, $tables, 1),
            }
        };
    }
    const NONE: [&[u8; 16]; 2] = [&[0; 16]; 2];
    match strip.codes {
        Codes::Packed(1, _) => few!(1, 0, NONE),
        Codes::Packed(2, _) => few!(2, 0, NONE),
        Codes::Packed(3, _) => few!(3, 0, NONE),
        Codes::Packed(4, _) => few!(4, 0, NONE),
        Codes::Packed(5, _) => few!(5, 0, NONE),
        Codes::Packed(6, _) => few!(6, 0, NONE),
        Codes::Packed(7, _) => few!(7, 0, NONE),
        Codes::Packed(_, _) | Codes::Bytes(_) => few!(8, 0, NONE),
        Codes::WideBytes(_) => few!(16, 0, NONE),
        Codes::Levels(_, table) => few!(4, 1, [table; 2]),
        Codes::WideLevels(_, tables) => few!(4, 2, tables),
    }
}

/// Weights are `BITS` bits of packed codes, looked up in so many tables (`LEVELS`); 8 and 16 bits are
/// bytes, in the latter case a block of upper ones before a block of lower ones. `HALF`: groups are
/// 16 columns, else whole blocks. `BELOW`: what the codes are counted from is subtracted at the end
/// of a block; else it is what the sum begins with.
///
/// # Safety
/// As of [`add_part`]; `sums` has `TOKENS` columns, and the tile as many tokens from the first on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn kernel<
    const BITS: usize,
    const LEVELS: usize,
    const HALF: bool,
    const BELOW: bool,
    const TOKENS: usize,
>(
    strip: &Strip<'_>,
    part: &Part<'_>,
    tables: [&[u8; 16]; 2],
    sums: &mut [Column],
) {
    let wide = BITS == 16 || LEVELS == 2;
    let stride = part.tile.tokens;
    let tables = tables.map(|table| broadcast_table(table));
    let mut own = [_mm512_setzero_ps(); TOKENS];
    let blocks_per_group = if HALF { 1 } else { strip.group / BLOCK };
    let (mut block, mut group) = (0, 0);
    // SAFETY: `block` stays below the strip's blocks, `group` below its groups; tokens from the first
    // on are within the stride.
    unsafe {
        while block < strip.blocks {
            let last = strip.blocks.min(block + blocks_per_group);
            let mut scales = Scales::load(strip, group);
            while block < last {
                let registers = part.registers.as_ptr().add(block * BITS);
                for register in 0..BITS {
                    prefetch(registers.wrapping_add(register).wrapping_byte_add(AHEAD));
                }
                let x = part.tile.codes.as_ptr().add(block * STEPS * stride + part.first);
                let of = part.tile.sums.as_ptr().add(block * stride + part.first);
                let mut dots = [_mm512_setzero_si512(); TOKENS];
                if !BELOW {
                    for (token, dot) in dots.iter_mut().enumerate() {
                        let start = _mm512_set1_epi32((*of.add(token)).start);
                        let is_code = LEVELS == 0 && BITS < 8;
                        let down = if is_code { 8 - BITS as i32 } else { 0 };
                        *dot = _mm512_srav_epi32(start, _mm512_set1_epi32(down));
                    }
                }
                let weights = Weights::<BITS, LEVELS> { registers, tables };
                weights.four_steps::<0, TOKENS>(0, x, stride, &mut dots);
                if !HALF {
                    weights.four_steps::<4, TOKENS>(0, x, stride, &mut dots);
                }
                if wide {
                    dots.iter_mut().for_each(|dot| *dot = _mm512_slli_epi32::<8>(*dot));
                    weights.four_steps::<0, TOKENS>(1, x, stride, &mut dots);
                    if !HALF {
                        weights.four_steps::<4, TOKENS>(1, x, stride, &mut dots);
                    }
                }
                for (token, own) in own.iter_mut().enumerate() {
                    *own = scales.add::<HALF, BELOW, 0>(dots[token], &*of.add(token), *own);
                }
                if HALF {
                    group += 1;
                    scales = Scales::load(strip, group);
                    dots = [_mm512_setzero_si512(); TOKENS];
                    weights.four_steps::<4, TOKENS>(0, x, stride, &mut dots);
                    if wide {
                        dots.iter_mut().for_each(|dot| *dot = _mm512_slli_epi32::<8>(*dot));
                        weights.four_steps::<4, TOKENS>(1, x, stride, &mut dots);
                    }
                    for (token, own) in own.iter_mut().enumerate() {
                        *own = scales.add::<HALF, BELOW, 1>(dots[token], &*of.add(token), *own);
                    }
                }
                block += 1;
            }
            group += 1;
        }
        let unit = _mm512_set1_ps(strip.unit);
        for (own, sum) in own.into_iter().zip(sums) {
            let sum = sum.as_mut_ptr();
            let scaled = _mm512_mul_ps(own, unit);
            _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), scaled));
        }
    }
}

/// The scales of a group, and what the sum of the activations is multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub(super) scale: __m512,
    pub(super) below: __m512,
}

impl Scales {
    /// # Safety
    /// The strip has this group.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn load(strip: &Strip<'_>, group: usize) -> Self {
        // SAFETY: as the caller promises; what is loaded is 16 halves.
        unsafe {
            let read = |halves: *const Halves| {
                prefetch(halves.wrapping_byte_add(SCALES_AHEAD));
                widen(halves)
            };
            let scale = read(strip.scales.as_ptr().add(group));
            let below = match strip.zeros {
                StripZeros::Middle(middle) => _mm512_mul_ps(scale, _mm512_set1_ps(middle as f32)),
                StripZeros::Steps(zeros) => _mm512_mul_ps(scale, read(zeros.as_ptr().add(group))),
                StripZeros::Minima(minima) => read(minima.as_ptr().add(group)),
            };
            Self { scale, below }
        }
    }

    /// The sum of a token with the product of a block or of half of one added.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn add<const HALF: bool, const BELOW: bool, const SECOND: usize>(
        &self,
        dot: __m512i,
        of: &BlockSums,
        sum: __m512,
    ) -> __m512 {
        let scale = _mm512_mul_ps(self.scale, _mm512_set1_ps(of.scale));
        let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sum);
        if !BELOW {
            return sum;
        }
        let of_x = match (HALF, SECOND) {
            (false, _) => of.sum,
            (true, 0) => of.first,
            (true, _) => of.sum - of.first,
        };
        _mm512_fnmadd_ps(self.below, _mm512_set1_ps(of_x), sum)
    }
}

/// The weights of a block.
#[derive(Clone, Copy)]
pub(super) struct Weights<const BITS: usize, const LEVELS: usize> {
    pub(super) registers: *const Register,
    pub(super) tables: [__m512i; 2],
}

impl<const BITS: usize, const LEVELS: usize> Weights<BITS, LEVELS> {
    /// Adds four steps from `FIRST` on, of the upper bytes or the lower ones (`pass`).
    ///
    /// # Safety
    /// There are `BITS` registers, and at `x` the codes of a block of `TOKENS` tokens at least.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn four_steps<const FIRST: usize, const TOKENS: usize>(
        self,
        pass: usize,
        x: *const u32,
        stride: usize,
        dots: &mut [__m512i; TOKENS],
    ) {
        macro_rules! step {
            ($step:expr) => {{
                // SAFETY: as the caller promises.
                let (weights, x) = unsafe { (self.step(pass, $step), x.add($step * stride)) };
                tokens!(weights, x; 0 1 2 3);
            }};
        }
        // In assembly, because the compiler would multiply token by token: each a chain of steps that
        // wait for each other, and all weights of a block in registers that the sums need.
        macro_rules! tokens {
            ($weights:ident, $x:ident; $($token:literal)*) => {$(
                if $token < TOKENS {
                    // SAFETY: there are codes of so many tokens; registers only are written.
                    unsafe {
                        std::arch::asm!(
                            "vpdpbusd {dot}, {weights}, dword ptr [{x} + {offset}]{{1to16}}",
                            dot = inout(zmm_reg) dots[$token],
                            weights = in(zmm_reg) $weights,
                            x = in(reg) $x,
                            offset = const 4 * $token,
                            options(readonly, nostack, preserves_flags),
                        );
                    }
                }
            )*};
        }
        step!(FIRST);
        step!(FIRST + 1);
        step!(FIRST + 2);
        step!(FIRST + 3);
    }

    /// One step of weights, a byte each.
    ///
    /// # Safety
    /// There are `BITS` registers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn step(self, pass: usize, step: usize) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            match (LEVELS, BITS) {
                (0, 8) => load(self.registers.add(step)),
                (0, 16) => load(self.registers.add(pass * STEPS + step)),
                (0, _) => self.code(step),
                _ => _mm512_shuffle_epi8(self.tables[pass], self.code(step)),
            }
        }
    }

    /// One step of packed codes. See [`codes`](super::codes) for their digits.
    ///
    /// # Safety
    /// There are `BITS` registers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn code(self, step: usize) -> __m512i {
        let mut code = _mm512_setzero_si512();
        macro_rules! digit {
            ($width:literal) => {
                if BITS & $width != 0 {
                    // The wider digits come first.
                    let below = BITS & (8 - 2 * $width);
                    let each = 8 / $width;
                    // SAFETY: the digits below take `below` registers, this one `$width`.
                    let digits = unsafe { load(self.registers.add(below + step / each)) };
                    let down = (step % each * $width) as i32 - below as i32;
                    let count = _mm512_set1_epi32(down.abs());
                    let shifted = match down >= 0 {
                        true => _mm512_srlv_epi32(digits, count),
                        false => _mm512_sllv_epi32(digits, count),
                    };
                    let mask = ((1_u32 << $width) - 1) << below;
                    let digit = _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8));
                    code = if below == 0 { digit } else { _mm512_or_si512(code, digit) };
                }
            };
        }
        digit!(4);
        digit!(2);
        digit!(1);
        code
    }
}

/// A table in each 128 bits of a register.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn broadcast_table(table: &[u8; 16]) -> __m512i {
    // SAFETY: a table has 16 bytes.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}

/// # Safety
/// It points to a register.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load(register: *const Register) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe { _mm512_loadu_si512(register.cast()) }
}

/// # Safety
/// It points to the halves.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn widen(halves: *const Halves) -> __m512 {
    // SAFETY: as the caller promises; 16 halves are 32 bytes.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(halves.cast::<__m256i>())) }
}
