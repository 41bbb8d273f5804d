//! The product with two strips of bytes at a time: each activation that is broadcast is multiplied
//! twice, so that the kernel waits for its multipliers and not for what it loads.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_mul_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32,
    _mm512_storeu_ps,
};
use std::mem::discriminant;

use super::activations::{BlockSums, TileOf};
use super::codes::Register;
use super::dense::Column;
use super::int8::{Codes, Strip, StripZeros};
use super::vnni::{Scales, load};
use super::{BLOCK, STEPS, TILE};

/// Whether two strips are bytes, and alike in all that the kernel asks of the first.
pub(super) fn supports([left, right]: [&Strip<'_>; 2]) -> bool {
    let is_of_bytes = matches!(left.codes, Codes::Bytes(_) | Codes::WideBytes(_));
    is_of_bytes
        && discriminant(&left.codes) == discriminant(&right.codes)
        && discriminant(&left.zeros) == discriminant(&right.zeros)
        && (left.blocks, left.group) == (right.blocks, right.group)
}

/// Adds the products of two strips of a matrix with a tile of tokens. The slices of all have the
/// lengths of the strips' blocks, which the caller has checked.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI; the strips are [supported](supports).
pub(super) unsafe fn add(
    strips: [&Strip<'_>; 2],
    tile: &TileOf<'_>,
    [left, right]: &mut [[Column; TILE]; 2],
) {
    let is_wide = matches!(strips[0].codes, Codes::WideBytes(_));
    let is_half = strips[0].group < BLOCK;
    // As the kernel of one strip does it: which strips make a pair depends on the threads.
    let is_below = is_half || !matches!(strips[0].zeros, StripZeros::Middle(_));
    let mut first = 0;
    while first < tile.tokens {
        let sums = [&mut left[first..], &mut right[first..]];
        macro_rules! kernel {
            ($tokens:literal) => {{
                // SAFETY: as the caller promises; so many tokens are left.
                unsafe {
                    match (is_wide, is_half, is_below) {
                        (false, false, false) => {
                            kernel::<false, false, false, $tokens>(strips, tile, first, sums);
                        }
                        (false, false, true) => {
                            kernel::<false, false, true, $tokens>(strips, tile, first, sums);
                        }
                        (false, true, _) => {
                            kernel::<false, true, true, $tokens>(strips, tile, first, sums);
                        }
                        (true, false, false) => {
                            kernel::<true, false, false, $tokens>(strips, tile, first, sums);
                        }
                        (true, false, true) => {
                            kernel::<true, false, true, $tokens>(strips, tile, first, sums);
                        }
                        (true, true, _) => {
                            kernel::<true, true, true, $tokens>(strips, tile, first, sums);
                        }
                    }
                }
                $tokens
            }};
        }
        first += match tile.tokens - first {
            6.. => kernel!(6),
            4..=5 => kernel!(4),
            2..=3 => kernel!(2),
            _ => kernel!(1),
        };
    }
}

/// `WIDE`: a block of weights is upper bytes, then lower ones. `HALF`: groups are 16 columns, else
/// whole blocks. `BELOW`: what the codes are counted from is subtracted at the end of a block; else it
/// is what the sum begins with.
///
/// # Safety
/// As of [`add`]; both sums have `TOKENS` columns, and the tile as many tokens from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn kernel<const WIDE: bool, const HALF: bool, const BELOW: bool, const TOKENS: usize>(
    strips: [&Strip<'_>; 2],
    tile: &TileOf<'_>,
    first: usize,
    sums: [&mut [Column]; 2],
) {
    let stride = tile.tokens;
    let mut own = [[_mm512_setzero_ps(); 2]; TOKENS];
    let blocks = strips[0].blocks;
    let blocks_per_group = if HALF { 1 } else { strips[0].group / BLOCK };
    let [left, right] = strips.map(|strip| strip.codes.registers().as_ptr());
    let (mut block, mut group) = (0, 0);
    // SAFETY: `block` stays below the strips' blocks, `group` below their groups; tokens from the first
    // on are within the stride.
    unsafe {
        while block < blocks {
            let last = blocks.min(block + blocks_per_group);
            // One after the other: in a closure the loads would be calls, with all sums in memory.
            let mut scales = [Scales::load(strips[0], group), Scales::load(strips[1], group)];
            while block < last {
                let at = block * if WIDE { 2 * STEPS } else { STEPS };
                let weights = [left.add(at), right.add(at)];
                let x = tile.codes.as_ptr().add(block * STEPS * stride + first);
                let of = tile.sums.as_ptr().add(block * stride + first);
                let mut dots = [[_mm512_setzero_si512(); 2]; TOKENS];
                if !BELOW {
                    for (token, dots) in dots.iter_mut().enumerate() {
                        *dots = [_mm512_set1_epi32((*of.add(token)).start); 2];
                    }
                }
                four_steps::<0, WIDE, TOKENS>(weights, x, stride, &mut dots, !HALF);
                for (token, own) in own.iter_mut().enumerate() {
                    let of = &*of.add(token);
                    let of_x = if HALF { of.first } else { of.sum };
                    add_block::<BELOW>(&scales, of, of_x, dots[token], own);
                }
                if HALF {
                    group += 1;
                    scales = [Scales::load(strips[0], group), Scales::load(strips[1], group)];
                    dots = [[_mm512_setzero_si512(); 2]; TOKENS];
                    four_steps::<4, WIDE, TOKENS>(weights, x, stride, &mut dots, false);
                    for (token, own) in own.iter_mut().enumerate() {
                        let of = &*of.add(token);
                        add_block::<BELOW>(&scales, of, of.sum - of.first, dots[token], own);
                    }
                }
                block += 1;
            }
            group += 1;
        }
        for (which, (strip, sums)) in strips.into_iter().zip(sums).enumerate() {
            let unit = _mm512_set1_ps(strip.unit);
            for (own, sum) in own.iter().zip(sums) {
                let sum = sum.as_mut_ptr();
                let scaled = _mm512_mul_ps(own[which], unit);
                _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), scaled));
            }
        }
    }
}

/// Adds four steps of a block from `FIRST` on, or `all` eight.
///
/// # Safety
/// There are a block of weights at both pointers, and at `x` the codes of a block of `TOKENS` tokens.
#[inline(always)]
unsafe fn four_steps<const FIRST: usize, const WIDE: bool, const TOKENS: usize>(
    weights: [*const Register; 2],
    x: *const u32,
    stride: usize,
    dots: &mut [[__m512i; 2]; TOKENS],
    all: bool,
) {
    macro_rules! steps {
        ($pass:expr; $($step:expr),*) => {$(
            let at = $pass * STEPS + $step;
            // SAFETY: as the caller promises.
            unsafe {
                let pair = [load(weights[0].add(at)), load(weights[1].add(at))];
                multiply_step(pair, x.add($step * stride), dots);
            }
        )*};
    }
    steps!(0; FIRST, FIRST + 1, FIRST + 2, FIRST + 3);
    if all {
        steps!(0; 4, 5, 6, 7);
    }
    if WIDE {
        for dots in dots.iter_mut() {
            // SAFETY: the processor has AVX-512 F.
            *dots = unsafe { [_mm512_slli_epi32::<8>(dots[0]), _mm512_slli_epi32::<8>(dots[1])] };
        }
        steps!(1; FIRST, FIRST + 1, FIRST + 2, FIRST + 3);
        if all {
            steps!(1; 4, 5, 6, 7);
        }
    }
}

/// Adds a step of both strips' weights times each token's activations. In assembly, because the
/// compiler would broadcast all tokens first and have no registers left for the sums.
///
/// # Safety
/// At `x` there are codes of `TOKENS` tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply_step<const TOKENS: usize>(
    weights: [__m512i; 2],
    x: *const u32,
    dots: &mut [[__m512i; 2]; TOKENS],
) {
    macro_rules! tokens {
        ($($token:literal)*) => {$(
            if $token < TOKENS {
                // SAFETY: there are codes of so many tokens; registers only are written.
                unsafe {
                    asm!(
                        "vpbroadcastd {broadcast}, dword ptr [{x} + {offset}]",
                        "vpdpbusd {left}, {weights_left}, {broadcast}",
                        "vpdpbusd {right}, {weights_right}, {broadcast}",
                        broadcast = out(zmm_reg) _,
                        left = inout(zmm_reg) dots[$token][0],
                        right = inout(zmm_reg) dots[$token][1],
                        weights_left = in(zmm_reg) weights[0],
                        weights_right = in(zmm_reg) weights[1],
                        x = in(reg) x,
                        offset = const 4 * $token,
                        options(readonly, nostack, preserves_flags),
                    );
                }
            }
        )*};
    }
    tokens!(0 1 2 3 4 5);
}

/// Adds a block's products of a token with both strips. In assembly, because the compiler would
/// convert all tokens first, as above.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_block<const BELOW: bool>(
    scales: &[Scales; 2],
    of: &BlockSums,
    of_x: f32,
    dots: [__m512i; 2],
    own: &mut [__m512; 2],
) {
    let [left, right] = dots;
    // SAFETY: what is read is one of the block's numbers; registers only are written.
    unsafe {
        asm!(
            "vbroadcastss {factor}, dword ptr [{of} + {scale}]",
            "vmulps {factor_left}, {factor}, {scale_left}",
            "vmulps {factor}, {factor}, {scale_right}",
            "vcvtdq2ps {left}, {left}",
            "vcvtdq2ps {right}, {right}",
            "vfmadd231ps {own_left}, {left}, {factor_left}",
            "vfmadd231ps {own_right}, {right}, {factor}",
            factor = out(zmm_reg) _,
            factor_left = out(zmm_reg) _,
            left = inout(zmm_reg) left => _,
            right = inout(zmm_reg) right => _,
            own_left = inout(zmm_reg) own[0],
            own_right = inout(zmm_reg) own[1],
            scale_left = in(zmm_reg) scales[0].scale,
            scale_right = in(zmm_reg) scales[1].scale,
            of = in(reg) of,
            scale = const std::mem::offset_of!(BlockSums, scale),
            options(readonly, nostack, preserves_flags),
        );
    }
    if BELOW {
        let of_x = _mm512_set1_ps(of_x);
        own[0] = _mm512_fnmadd_ps(scales[0].below, of_x, own[0]);
        own[1] = _mm512_fnmadd_ps(scales[1].below, of_x, own[1]);
    }
}
