//! The product with codes in NEON registers: a lane is a row of the strip, four at a time (a *quad*).
//! `sdot` adds the products of four signed bytes of weights and four of activations to each lane, and
//! takes the activations from a lane of its last operand: that of a token, of four that lie side by
//! side. Many tokens share the codes as they are cut, so that strips are not cut into bytes before.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, vaddq_s32, vandq_u8, vcvtq_f32_s32, vdupq_n_f32,
    vdupq_n_s32, vdupq_n_u8, vdupq_n_u32, veorq_u8, vfmaq_f32, vfmaq_n_f32, vfmsq_f32, vfmsq_n_f32,
    vld1_u16, vld1q_f32, vld1q_u8, vld1q_u32, vmulq_f32, vmulq_n_f32, vorrq_u8, vqtbl1q_u8,
    vreinterpretq_s8_u8, vreinterpretq_s8_u32, vreinterpretq_u8_u32, vreinterpretq_u32_u8,
    vshlq_n_s32, vshlq_u32, vst1q_f32, vsubq_f32,
};
use std::arch::asm;

use super::activations::TileOf;
use super::codes::Register;
use super::dense::Column;
use super::grid::Halves;
use super::int8::{Codes, Strip, StripZeros};
use super::{BLOCK, STEPS};

/// Quads of a strip.
const QUADS: usize = super::STRIP / 4;

/// Adds the product of a strip that is packed (not cut into bytes) with a tile of tokens. The slices
/// of the strip and of the tile have the lengths of its blocks, which the caller has checked.
///
/// # Safety
/// The processor has NEON and its dot products, and stores the lowest byte first.
pub(super) unsafe fn add(strip: &Strip<'_>, tile: &TileOf<'_>, sums: &mut [Column]) {
    const NONE: [&[u8; 16]; 2] = [&[0; 16]; 2];
    macro_rules! kernel {
        ($bits:literal, $levels:literal, $tables:expr, $registers:expr) => {{
            let mut first = 0;
            while first < tile.tokens {
                let part = Part { registers: $registers, tables: $tables, tile, first };
                let sums = &mut sums[first..];
                // SAFETY: as the caller promises. Of wide levels there are two sums a quad and token.
                first += unsafe {
                    match tile.tokens - first {
                        12.. if $levels < 2 => kernel::<$bits, $levels, 12, 1>(strip, &part, sums),
                        4.. => kernel::<$bits, $levels, 4, 2>(strip, &part, sums),
                        _ => kernel::<$bits, $levels, 1, QUADS>(strip, &part, sums),
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

/// Sums of a token and of so many quads.
type Sums<const AT_ONCE: usize> = [int32x4_t; AT_ONCE];

/// Weights are `BITS` bits of packed codes, looked up in so many tables (`LEVELS`); `AT_ONCE` quads
/// stay in registers together. Returns the number of tokens.
///
/// # Safety
/// As of [`add`]; `sums` has `TOKENS` columns, and the tile as many tokens from the first on.
#[target_feature(enable = "neon,dotprod")]
unsafe fn kernel<
    const BITS: usize,
    const LEVELS: usize,
    const TOKENS: usize,
    const AT_ONCE: usize,
>(
    strip: &Strip<'_>,
    part: &Part<'_>,
    sums: &mut [Column],
) -> usize {
    let (stride, is_half) = (part.tile.tokens, strip.group < BLOCK);
    // SAFETY: a table has 16 bytes.
    let tables = part.tables.map(|table| unsafe { vld1q_u8(table.as_ptr()) });
    for quad in (0..QUADS).step_by(AT_ONCE) {
        let mut own = [[vdupq_n_f32(0.0); AT_ONCE]; TOKENS];
        // SAFETY: blocks and groups are the strip's; tokens from the first on are within the stride.
        unsafe {
            for block in 0..strip.blocks {
                let registers = part.registers.as_ptr().add(block * BITS);
                let weights = Weights::<BITS, LEVELS> { registers, tables, quad };
                let x = part.tile.codes.as_ptr().add(block * STEPS * stride + part.first);
                let of = part.tile.sums.as_ptr().add(block * stride + part.first);
                let at = block * BLOCK / strip.group;
                if is_half {
                    let first = weights.dots::<0, { STEPS / 2 }, TOKENS, AT_ONCE>(x, stride);
                    let scales = Scales::load::<BITS, LEVELS, AT_ONCE>(strip, at, quad);
                    for (token, own) in own.iter_mut().enumerate() {
                        let of = &*of.add(token);
                        add_scaled(&scales, &first[token], of.scale, of.first, own);
                    }
                    let second = weights.dots::<{ STEPS / 2 }, STEPS, TOKENS, AT_ONCE>(x, stride);
                    let scales = Scales::load::<BITS, LEVELS, AT_ONCE>(strip, at + 1, quad);
                    for (token, own) in own.iter_mut().enumerate() {
                        let of = &*of.add(token);
                        add_scaled(&scales, &second[token], of.scale, of.sum - of.first, own);
                    }
                    continue;
                }
                let dots = weights.dots::<0, STEPS, TOKENS, AT_ONCE>(x, stride);
                let scales = Scales::load::<BITS, LEVELS, AT_ONCE>(strip, at, quad);
                for (token, own) in own.iter_mut().enumerate() {
                    let of = &*of.add(token);
                    add_scaled(&scales, &dots[token], of.scale, of.sum, own);
                }
            }
        }
        for (own, sum) in own.into_iter().zip(&mut *sums) {
            for (own, sum) in own.into_iter().zip(sum[4 * quad..].as_chunks_mut::<4>().0) {
                // SAFETY: there are four values.
                unsafe {
                    let all = vfmaq_n_f32(vld1q_f32(sum.as_ptr()), own, strip.unit);
                    vst1q_f32(sum.as_mut_ptr(), all);
                }
            }
        }
    }
    TOKENS
}

/// The scales of a group for the rows of a quad, and what the sum of the activations is multiplied by.
#[derive(Clone, Copy)]
struct Scales {
    scale: float32x4_t,
    below: float32x4_t,
}

impl Scales {
    /// # Safety
    /// The strip has this group.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load<const BITS: usize, const LEVELS: usize, const AT_ONCE: usize>(
        strip: &Strip<'_>,
        group: usize,
        first: usize,
    ) -> [Self; AT_ONCE] {
        // What the signed weights are less than the codes.
        let moved = vdupq_n_f32(match (LEVELS, BITS) {
            (2, _) => 32896.0,
            (1, _) | (_, 8) => 128.0,
            _ => 0.0,
        });
        let mut all = [Self { scale: moved, below: moved }; AT_ONCE];
        for (quad, scales) in (first..).zip(&mut all) {
            // SAFETY: as the caller promises.
            unsafe {
                let scale = widen(strip.scales.as_ptr().add(group), quad);
                let below = match strip.zeros {
                    StripZeros::Middle(middle) => {
                        vmulq_f32(scale, vsubq_f32(vdupq_n_f32(middle as f32), moved))
                    }
                    StripZeros::Steps(zeros) => {
                        let zeros = widen(zeros.as_ptr().add(group), quad);
                        vmulq_f32(scale, vsubq_f32(zeros, moved))
                    }
                    StripZeros::Minima(minima) => {
                        vfmsq_f32(widen(minima.as_ptr().add(group), quad), scale, moved)
                    }
                };
                *scales = Self { scale, below };
            }
        }
        all
    }
}

/// Adds the products of a token with the quads of a block, or of half of one.
#[inline]
#[target_feature(enable = "neon")]
fn add_scaled<const AT_ONCE: usize>(
    scales: &[Scales; AT_ONCE],
    dots: &Sums<AT_ONCE>,
    scale: f32,
    sum_of_x: f32,
    own: &mut [float32x4_t; AT_ONCE],
) {
    for ((scales, dot), own) in scales.iter().zip(dots).zip(own) {
        *own = vfmaq_f32(*own, vcvtq_f32_s32(*dot), vmulq_n_f32(scales.scale, scale));
        *own = vfmsq_n_f32(*own, scales.below, sum_of_x);
    }
}

/// Quads of the weights of a block, from `quad` on.
#[derive(Clone, Copy)]
struct Weights<const BITS: usize, const LEVELS: usize> {
    registers: *const Register,
    tables: [uint8x16_t; 2],
    quad: usize,
}

impl<const BITS: usize, const LEVELS: usize> Weights<BITS, LEVELS> {
    /// The sums over the steps from `FIRST` to `END`.
    ///
    /// # Safety
    /// There are `BITS` registers, and at `x` the codes of a block of `TOKENS` tokens at least.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn dots<
        const FIRST: usize,
        const END: usize,
        const TOKENS: usize,
        const AT_ONCE: usize,
    >(
        self,
        x: *const u32,
        stride: usize,
    ) -> [Sums<AT_ONCE>; TOKENS] {
        let mut dots = [[vdupq_n_s32(0); AT_ONCE]; TOKENS];
        let mut lower = dots;
        for step in FIRST..END {
            // SAFETY: as the caller promises.
            let x = unsafe { load_tokens::<TOKENS>(x.add(step * stride)) };
            for place in 0..AT_ONCE {
                // SAFETY: as the caller promises.
                let code = unsafe { self.code(step, self.quad + place) };
                let byte = |table: usize| match (LEVELS, BITS) {
                    (0, 8) => signed(code),
                    (0, _) => vreinterpretq_s8_u8(code),
                    _ => signed(vqtbl1q_u8(self.tables[table], code)),
                };
                dot_tokens::<TOKENS, AT_ONCE>(&mut dots, place, byte(0), &x);
                if LEVELS == 2 {
                    dot_tokens::<TOKENS, AT_ONCE>(&mut lower, place, byte(1), &x);
                }
            }
        }
        if LEVELS == 2 {
            for (upper, lower) in dots.as_flattened_mut().iter_mut().zip(lower.as_flattened()) {
                *upper = vaddq_s32(vshlq_n_s32::<8>(*upper), *lower);
            }
        }
        dots
    }

    /// One step of packed codes of a quad. See [`codes`](super::codes) for their digits.
    ///
    /// # Safety
    /// There are `BITS` registers.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn code(self, step: usize, quad: usize) -> uint8x16_t {
        // SAFETY: as the caller promises; a register is four of 16 bytes.
        let load = |register: usize| unsafe {
            vld1q_u8(self.registers.add(register).cast::<u8>().add(16 * quad))
        };
        if BITS == 8 {
            return load(step);
        }
        let mut code = vdupq_n_u8(0);
        // The wider digits come first.
        for width in [4, 2, 1] {
            if BITS & width != 0 {
                let below = BITS & (8 - 2 * width);
                let each = 8 / width;
                let up = below as i32 - (step % each * width) as i32;
                let digits = vreinterpretq_u32_u8(load(below + step / each));
                let shifted = vreinterpretq_u8_u32(vshlq_u32(digits, vdupq_n_s32(up)));
                let mask = ((1_u32 << width) - 1) << below;
                code = vorrq_u8(code, vandq_u8(shifted, vdupq_n_u8(mask as u8)));
            }
        }
        code
    }
}

/// Bytes less 128.
#[inline]
#[target_feature(enable = "neon")]
fn signed(bytes: uint8x16_t) -> int8x16_t {
    vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80)))
}

/// Four bytes of each token: four tokens a register, or one in all lanes of the first.
///
/// # Safety
/// There are `TOKENS` tokens.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_tokens<const TOKENS: usize>(x: *const u32) -> [int8x16_t; 3] {
    let mut registers = [vreinterpretq_s8_u32(vdupq_n_u32(0)); 3];
    for (four, register) in registers[..TOKENS.div_ceil(4)].iter_mut().enumerate() {
        // SAFETY: as the caller promises.
        *register = vreinterpretq_s8_u32(match TOKENS {
            1 => vdupq_n_u32(unsafe { *x }),
            // SAFETY: as above.
            _ => unsafe { vld1q_u32(x.add(4 * four)) },
        });
    }
    registers
}

/// Adds the products of four columns of a quad with each token.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_tokens<const TOKENS: usize, const AT_ONCE: usize>(
    dots: &mut [Sums<AT_ONCE>; TOKENS],
    place: usize,
    weights: int8x16_t,
    x: &[int8x16_t; 3],
) {
    for (four, dots) in dots.chunks_mut(4).enumerate() {
        macro_rules! lanes {
            ($($lane:literal)*) => {$(
                if let Some(dots) = dots.get_mut($lane) {
                    dots[place] = dot::<$lane>(dots[place], weights, x[four]);
                }
            )*};
        }
        lanes!(0 1 2 3);
    }
}

/// Adds the products of four bytes of each lane with those of one lane of `x`. The intrinsic is not in
/// the compilers we support.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const LANE: usize>(mut sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers alone.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {x:v}.4b[{lane}]",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Half-precision numbers of the rows of a quad, as floats; for these there is no stable intrinsic
/// either.
///
/// # Safety
/// It points to the halves of a strip.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn widen(halves: *const Halves, quad: usize) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: as the caller promises; four halves are 8 bytes.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {narrow:v}.4h",
            narrow = in(vreg) vld1_u16(halves.cast::<u16>().add(4 * quad)),
            wide = lateout(vreg) wide,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    wide
}
