//! The right operand of products: rows of activations in the forms that the kernels read.
//!
//! Rows are handled in tiles of [`TILE`] tokens, whose values are interleaved: a kernel keeps one
//! sum a token and reads, step by step, one value (or four bytes) of each token side by side. Columns
//! are padded with zeros to whole blocks of [`BLOCK`].

use std::ops::Range;

use super::output::Claims;
use super::{BLOCK, STEPS, TILE};
use crate::isa::Isa;
use crate::math::TO_INTEGER;
use crate::shared::SharedSlice;
use crate::simd::{add_lanes, vectorized};
use crate::tile::{Arithmetic, PANEL, Precision, Tile};

#[cfg(target_arch = "x86_64")]
use super::activations_avx512 as avx512;

/// Tokens that are prepared together: whole tiles and whole panels.
const UNIT: usize = 48;

/// Which forms of the activations a product reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Forms {
    /// f32.
    pub float: bool,
    /// bfloat16, in the panels that tile products read.
    pub brain: bool,
    /// 8-bit codes with a scale a block of 32.
    pub int8: bool,
    /// What those leave, in the same form.
    pub rest: bool,
}

impl std::ops::BitOr for Forms {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            float: self.float | other.float,
            brain: self.brain | other.brain,
            int8: self.int8 | other.int8,
            rest: self.rest | other.rest,
        }
    }
}

/// Activations `[tokens, cols]`, in the forms they were prepared in. The buffers are kept.
#[derive(Default)]
pub struct Activations {
    isa: Option<Isa>,
    tokens: usize,
    cols: usize,
    forms: Forms,
    /// `[tile][column][token]`.
    float: Vec<f32>,
    /// Codes of 8 bits, and of what they leave.
    digits: [Digit; 2],
    /// Left panels of 16 tokens.
    brain: Vec<Tile>,
}

/// Codes of 8 bits.
#[derive(Default)]
struct Digit {
    /// `[tile][block][step][token]`, four codes each, the first lowest.
    codes: Vec<u32>,
    /// `[tile][block][token]`.
    sums: Vec<BlockSums>,
}

/// What there is to know of 32 codes of a token.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct BlockSums {
    /// What a code stands for.
    pub(super) scale: f32,
    /// The sum of the codes, times the scale.
    pub(super) sum: f32,
    /// The sum of the first half of them, times the scale.
    pub(super) first: f32,
    /// −128 times the sum of the codes: where a sum over weights of 8 bits around 128 begins.
    pub(super) start: i32,
}

impl BlockSums {
    /// What a code stands for where this is the greatest magnitude, and what values are multiplied by.
    #[inline(always)]
    pub(super) fn scales(greatest: f32) -> (f32, f32) {
        // Below, the quotient would overflow; such a block is zero.
        (greatest / 127.0, if greatest > 1e-30 { 127.0 / greatest } else { 0.0 })
    }

    /// Of the sum of all codes, and of the first half of them.
    #[inline(always)]
    pub(super) fn new(scale: f32, sum: f32, first: f32) -> Self {
        Self { scale, sum: sum * scale, first: first * scale, start: -128 * sum as i32 }
    }
}

/// The part of a [`Digit`] that belongs to a tile.
pub(super) struct DigitPart<'a> {
    pub(super) codes: &'a mut [u32],
    pub(super) sums: &'a mut [BlockSums],
}

impl DigitPart<'_> {
    /// The same for a while.
    fn again(&mut self) -> DigitPart<'_> {
        DigitPart { codes: self.codes, sums: self.sums }
    }
}

/// The activations of one tile of tokens.
#[derive(Clone, Copy)]
pub(super) struct TileOf<'a> {
    /// Tokens in it.
    pub(super) tokens: usize,
    /// `[column][token]`.
    pub(super) float: &'a [f32],
    /// `[block][step][token]`.
    pub(super) codes: &'a [u32],
    /// `[block][token]`.
    pub(super) sums: &'a [BlockSums],
}

impl Activations {
    /// Without any room yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The forms they are in.
    pub fn forms(&self) -> Forms {
        self.forms
    }

    /// Takes in `x`, `[tokens, cols]`, on this thread.
    ///
    /// # Panics
    /// If `x` has another shape.
    pub fn prepare(&mut self, x: &[f32], tokens: usize, cols: usize, forms: Forms) {
        let preparing = self.begin(tokens, cols, forms);
        preparing.fill(0..preparing.units(), x);
    }

    /// Makes room for `[tokens, cols]`, to be filled by several threads.
    pub fn begin(&mut self, tokens: usize, cols: usize, forms: Forms) -> Preparing<'_> {
        self.begin_with(Isa::detect(), tokens, cols, forms)
    }

    /// [`begin`](Self::begin) for products at a level of instructions.
    pub fn begin_with(
        &mut self,
        isa: Isa,
        tokens: usize,
        cols: usize,
        forms: Forms,
    ) -> Preparing<'_> {
        let isa = isa.supported();
        let blocks = cols.div_ceil(BLOCK);
        let of = |wanted: bool, count: usize| if wanted { count } else { 0 };
        let panels = tokens.div_ceil(PANEL);
        let tiles = Arithmetic::new(isa, Precision::Bf16).tiles(cols);
        (self.isa, self.tokens, self.cols, self.forms) = (Some(isa), tokens, cols, forms);
        self.float.resize(of(forms.float, tokens * blocks * BLOCK), 0.0);
        for (digit, there) in self.digits.iter_mut().zip([forms.int8, forms.rest]) {
            digit.codes.resize(of(there, tokens * blocks * STEPS), 0);
            digit.sums.resize(of(there, tokens * blocks), BlockSums::default());
        }
        self.brain.resize(of(forms.brain, panels * tiles), Tile::ZERO);
        Preparing {
            isa,
            tokens,
            cols,
            forms,
            float: SharedSlice::new(&mut self.float),
            digits: self.digits.each_mut().map(|digit| SharedDigit {
                codes: SharedSlice::new(&mut digit.codes),
                sums: SharedSlice::new(&mut digit.sums),
            }),
            brain: SharedSlice::new(&mut self.brain),
            claimed: Claims::new(tokens.div_ceil(UNIT)),
        }
    }

    /// Tiles of tokens.
    pub(super) fn tiles(&self) -> usize {
        self.tokens.div_ceil(TILE)
    }

    pub(super) fn tile(&self, index: usize) -> TileOf<'_> {
        self.digit_of(index, &self.digits[0], self.forms.int8)
    }

    /// A tile of what the codes leave.
    pub(super) fn rest(&self, index: usize) -> TileOf<'_> {
        assert!(self.forms.rest, "activations were not prepared in 16 bits");
        self.digit_of(index, &self.digits[1], true)
    }

    fn digit_of<'a>(&'a self, index: usize, digit: &'a Digit, there: bool) -> TileOf<'a> {
        fn part<T>(all: &[T], there: bool, each: usize, first: usize, tokens: usize) -> &[T] {
            if there { &all[first * each..][..tokens * each] } else { &[] }
        }
        let first = index * TILE;
        let tokens = TILE.min(self.tokens - first);
        let blocks = self.cols.div_ceil(BLOCK);
        TileOf {
            tokens,
            float: part(&self.float, self.forms.float, blocks * BLOCK, first, tokens),
            codes: part(&digit.codes, there, blocks * STEPS, first, tokens),
            sums: part(&digit.sums, there, blocks, first, tokens),
        }
    }

    /// Panels of 16 tokens, of bf16, for products at this level.
    pub(super) fn panels(&self, isa: Isa) -> &[Tile] {
        assert_eq!(self.isa, Some(isa), "activations were prepared for another level");
        assert!(self.forms.brain, "activations were not prepared in bf16");
        &self.brain
    }
}

/// Activations that are being filled, unit by unit.
pub struct Preparing<'a> {
    isa: Isa,
    tokens: usize,
    cols: usize,
    forms: Forms,
    float: SharedSlice<'a, f32>,
    digits: [SharedDigit<'a>; 2],
    brain: SharedSlice<'a, Tile>,
    claimed: Claims,
}

/// A [`Digit`] that is being filled.
struct SharedDigit<'a> {
    codes: SharedSlice<'a, u32>,
    sums: SharedSlice<'a, BlockSums>,
}

impl SharedDigit<'_> {
    /// Parts of both, given by their starts and lengths.
    ///
    /// # Safety
    /// As of [`SharedSlice::slice_mut`], for both.
    unsafe fn part(&self, (codes, sums): ((usize, usize), (usize, usize))) -> DigitPart<'_> {
        // SAFETY: as the caller promises.
        unsafe {
            let codes = self.codes.slice_mut(codes.0, codes.1);
            DigitPart { codes, sums: self.sums.slice_mut(sums.0, sums.1) }
        }
    }
}

impl Preparing<'_> {
    /// Units of work.
    pub fn units(&self) -> usize {
        self.tokens.div_ceil(UNIT)
    }

    /// Fills the units `units` from `x`, the whole of `[tokens, cols]`. All units must be filled once
    /// before the activations are used.
    ///
    /// # Panics
    /// If `x` has another shape, or a unit is filled twice.
    pub fn fill(&self, units: Range<usize>, x: &[f32]) {
        assert_eq!(x.len(), self.tokens * self.cols, "the activations have another shape");
        for unit in units {
            assert!(self.claimed.claim(unit..unit + 1), "unit {unit} is filled twice");
            let last = self.tokens.min((unit + 1) * UNIT);
            if self.forms.float || self.forms.int8 {
                for first in (unit * UNIT..last).step_by(TILE) {
                    self.fill_tile(first..last.min(first + TILE), x);
                }
            }
            if self.forms.brain {
                for first in (unit * UNIT..last).step_by(PANEL) {
                    self.fill_panel(first..last.min(first + PANEL), x);
                }
            }
        }
    }

    fn fill_tile(&self, tokens: Range<usize>, x: &[f32]) {
        let (cols, count) = (self.cols, tokens.len());
        let blocks = cols.div_ceil(BLOCK);
        let part = |there: bool, each: usize| match there {
            true => (tokens.start * each, count * each),
            false => (0, 0),
        };
        let [first, rest] = &self.digits;
        let digit = |there| (part(there, blocks * STEPS), part(there, blocks));
        let (float, mut first, mut rest) = {
            let (at, length) = part(self.forms.float, blocks * BLOCK);
            // SAFETY: the unit that holds these tokens was claimed once, and what belongs to a tile is
            // contiguous: no other tile reaches it.
            unsafe {
                let float = self.float.slice_mut(at, length);
                (float, first.part(digit(self.forms.int8)), rest.part(digit(self.forms.rest)))
            }
        };
        for (token, row) in
            x[tokens.start * cols..tokens.end * cols].chunks_exact(cols.max(1)).enumerate()
        {
            if self.forms.float {
                interleave(row, token, count, float);
            }
            if self.forms.int8 {
                let rest = self.forms.rest.then(|| rest.again());
                quantize(self.isa, row, token, count, first.again(), rest);
            }
        }
    }

    fn fill_panel(&self, tokens: Range<usize>, x: &[f32]) {
        let arithmetic = Arithmetic::new(self.isa, Precision::Bf16);
        let tiles = arithmetic.tiles(self.cols);
        // SAFETY: the unit that holds these tokens was claimed once, and holds whole panels.
        let panel = unsafe { self.brain.slice_mut(tokens.start / PANEL * tiles, tiles) };
        let rows = &x[tokens.start * self.cols..];
        arithmetic.pack_rows(rows, self.cols, tokens.len(), self.cols, panel);
    }
}

/// Token `token` of `tokens` in a tile of floats.
fn interleave(row: &[f32], token: usize, tokens: usize, out: &mut [f32]) {
    if tokens == 1 {
        out[..row.len()].copy_from_slice(row);
        out[row.len()..].fill(0.0);
        return;
    }
    let padded = row.iter().copied().chain(std::iter::repeat(0.0));
    for (out, value) in out[token..].iter_mut().step_by(tokens).zip(padded) {
        *out = value;
    }
}

/// The codes of token `token` of `tokens` in a tile, rounded to nearest in steps of 1/127 of the
/// greatest magnitude of each block of 32; where `rest` is asked for, what they leave likewise. What
/// is not finite makes its block's scale so.
fn quantize(
    isa: Isa,
    row: &[f32],
    token: usize,
    tokens: usize,
    digit: DigitPart<'_>,
    rest: Option<DigitPart<'_>>,
) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        // SAFETY: the processor has the instructions.
        return unsafe { avx512::quantize(row, token, tokens, digit, rest) };
    }
    quantize_in_lanes(isa, row, token, tokens, digit, rest);
}

vectorized! {
    fn quantize_in_lanes(
        row: &[f32],
        token: usize,
        tokens: usize,
        digit: DigitPart<'_>,
        rest: Option<DigitPart<'_>>,
    ) {
        let mut rest = rest;
        for (index, values) in row.chunks(BLOCK).enumerate() {
            let mut block = [0.0; BLOCK];
            match values.first_chunk::<BLOCK>() {
                Some(whole) => block = *whole,
                None => block[..values.len()].copy_from_slice(values),
            }
            let first = index * STEPS * tokens + token;
            let (bytes, of) = quantize_block(&block);
            digit.sums[index * tokens + token] = of;
            steps_of(&bytes, &mut digit.codes[first..], tokens);
            if let Some(rest) = &mut rest {
                for (value, byte) in block.iter_mut().zip(bytes) {
                    *value -= f32::from(byte.cast_signed()) * of.scale;
                }
                let (bytes, of) = quantize_block(&block);
                rest.sums[index * tokens + token] = of;
                steps_of(&bytes, &mut rest.codes[first..], tokens);
            }
        }
    }
}

/// Writes a block's codes, one of so many tokens' that stand side by side.
#[inline(always)]
pub(super) fn steps_of(bytes: &[u8; BLOCK], codes: &mut [u32], tokens: usize) {
    let steps = bytes.as_chunks::<4>().0;
    for (code, bytes) in codes.iter_mut().step_by(tokens).zip(steps) {
        *code = u32::from_le_bytes(*bytes);
    }
}

/// The codes of a block, as bytes.
#[inline(always)]
fn quantize_block(values: &[f32; BLOCK]) -> ([u8; BLOCK], BlockSums) {
    // As integers magnitudes are ordered as they are as numbers, with NaN above all.
    let mut greatest = [0_u32; 16];
    for half in values.as_chunks::<16>().0 {
        for (greatest, value) in greatest.iter_mut().zip(half) {
            *greatest = (*greatest).max(value.to_bits() & 0x7fff_ffff);
        }
    }
    let greatest = f32::from_bits(greatest.iter().fold(0, |a, b| a.max(*b)));
    let (scale, inverse) = BlockSums::scales(greatest);
    // Codes as numbers, in which sums are exact too: of integers cut to bytes the compiler would take
    // one at a time.
    let (mut bytes, mut codes) = ([0_u8; BLOCK], [[0.0; BLOCK / 2]; 2]);
    for ((byte, code), value) in bytes.iter_mut().zip(codes.as_flattened_mut()).zip(values) {
        let rounded = value * inverse + TO_INTEGER;
        (*byte, *code) = (rounded.to_bits() as u8, rounded - TO_INTEGER);
    }
    let (first, second) = (add_lanes(codes[0]), add_lanes(codes[1]));
    (bytes, BlockSums::new(scale, first + second, first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The forms of one token among `tokens`, at a level.
    fn digits(isa: Isa, row: &[f32], tokens: usize) -> (Vec<u32>, Vec<[f32; 3]>, Vec<i32>) {
        let blocks = row.len().div_ceil(BLOCK);
        let mut codes = [(); 2].map(|()| vec![0; blocks * STEPS * tokens]);
        let mut sums = [(); 2].map(|()| vec![BlockSums::default(); blocks * tokens]);
        let parts = codes.iter_mut().zip(&mut sums);
        let mut parts = parts.map(|(codes, sums)| DigitPart { codes, sums });
        let first = parts.next().unwrap();
        quantize(isa, row, tokens / 2, tokens, first, parts.next());
        let of = sums.concat();
        let numbers = of.iter().map(|of| [of.scale, of.sum, of.first]).collect();
        (codes.concat(), numbers, of.iter().map(|of| of.start).collect())
    }

    proptest! {
        #[test]
        fn all_levels_of_instructions_agree(
            row in prop::collection::vec(-3.0_f32..3.0, 1..150), tokens in 1_usize..13,
        ) {
            let wanted = digits(Isa::Portable, &row, tokens);
            for isa in Isa::available() {
                prop_assert_eq!(&digits(isa, &row, tokens), &wanted);
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_hidden_at_any_level() {
        for isa in Isa::available() {
            for (value, is_shown) in
                [(f32::NAN, f32::is_nan as fn(f32) -> bool), (f32::NEG_INFINITY, f32::is_infinite)]
            {
                let mut row = [1.0; 40];
                row[35] = value;
                let (_, sums, _) = digits(isa, &row, 1);
                assert!(sums[0][0].is_finite() && is_shown(sums[1][0]), "{isa:?}");
            }
        }
    }

    #[test]
    fn codes_are_the_nearest_and_what_is_not_finite_is_not_hidden() {
        let mut values: [f32; BLOCK] = std::array::from_fn(|i| (i as f32 - 13.3) * 0.37);
        let (bytes, sums) = quantize_block(&values);
        for (value, byte) in values.iter().zip(bytes) {
            let near = f32::from(byte.cast_signed()) * sums.scale;
            assert!((near - value).abs() <= 0.5001 * sums.scale);
        }
        let all: i32 = bytes.iter().map(|byte| i32::from(byte.cast_signed())).sum();
        assert_eq!(sums.start, -128 * all);
        assert_eq!(sums.sum, all as f32 * sums.scale);
        values[5] = f32::NAN;
        assert!(quantize_block(&values).1.scale.is_nan());
        values[5] = f32::NEG_INFINITY;
        assert_eq!(quantize_block(&values).1.scale, f32::INFINITY);
        let (bytes, sums) = quantize_block(&[1e-40; BLOCK]);
        assert!(bytes == [0; BLOCK] && sums.scale.is_finite());
    }
}
