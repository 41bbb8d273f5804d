//! Codes of 1 to 8 bits with a scale a group: affine grids, lookups of up to 4 bits, blocks of ggml.
//!
//! Per strip: the codes block by block, as [`codes`](super::codes) lays them out; the scales group by
//! group, one a row; zeros or minima likewise. A group is 16 columns or a multiple of 32.

use half::f16;
use rayon::prelude::*;

use super::codes::{Register, pack_block, unpack_block};
use super::dense::Column;
use super::float::widen;
use super::source::{Source, Zeros};
use super::{BLOCK, Precision, STEPS, STRIP};
use crate::ggml::{self, BlockKind};
use crate::isa::Isa;
use crate::simd::vectorized;

/// Bits of codes that are looked up, shorter ones included.
const LEVEL_BITS: u8 = 4;

/// Packed codes and scales of a matrix.
pub(super) struct Grid {
    pub(super) bits: u8,
    /// Blocks of a strip.
    pub(super) blocks: usize,
    /// Columns of a group.
    pub(super) group: usize,
    /// Groups of a strip.
    pub(super) groups: usize,
    /// `[strip][block][register]`.
    pub(super) codes: Vec<Register>,
    pub(super) scales: Scales,
    pub(super) zeros: GridZeros,
    /// What the codes stand for, if not for themselves.
    pub(super) book: Option<Book>,
}

/// `[strip][group][row]`.
pub(super) enum Scales {
    Float(Vec<Column>),
    /// To be multiplied by a number a strip.
    Half(Vec<Halves>, Vec<f32>),
}

/// Half-precision numbers of the rows of a strip.
pub(super) type Halves = [u16; STRIP];

/// What a grid counts from.
pub(super) enum GridZeros {
    /// The middle code; with a book, nothing.
    Middle,
    /// Numbers of each group, to be subtracted from the codes.
    Steps(Numbers),
    /// Numbers of each group, to be subtracted from `scale · code`; in halves in units of the strip.
    Minima(Numbers),
}

/// `[strip][group][row]`.
pub(super) enum Numbers {
    Float(Vec<Column>),
    Half(Vec<Halves>),
}

/// Levels that codes of up to 4 bits stand for, as integers around a middle, to be multiplied by the
/// scales, which hold the unit.
pub(super) struct Book {
    /// As they are, for products in f32; the scales do not hold the unit there.
    float: [f32; 16],
    /// Level + 128, or the upper byte of level + 32768.
    pub(super) high: [u8; 16],
    /// The lower byte, where 8 bits are not enough.
    pub(super) low: Option<[u8; 16]>,
    unit: f32,
}

/// Rows of codes with their scales and zeros, read one at a time.
trait Rows: Sync {
    fn read(&self, row: usize, codes: &mut [u8], scales: &mut [f32], zeros: &mut [f32]);
}

impl Grid {
    /// Packs a source that this layout holds, or nothing.
    pub(super) fn new(
        rows: usize,
        cols: usize,
        precision: Precision,
        source: &Source<'_>,
    ) -> Option<Self> {
        match *source {
            Source::Affine { bits, codes, group, scales, zeros } => {
                let kind = match zeros {
                    Zeros::Constant(zero) if zero == 1 << (bits - 1) => Kind::Middle,
                    Zeros::Minima(_) => Kind::Minima,
                    _ => Kind::Steps,
                };
                let rows_of = Affine { cols, group, codes, scales: Some(scales), zeros };
                Self::pack((rows, cols), precision, (bits, group, kind), None, &rows_of)
            }
            Source::Lookup { bits, codes, books, group, scales } => {
                if bits > LEVEL_BITS || books.len() != 1 << bits {
                    return None;
                }
                let zeros = Zeros::Constant(0);
                let rows_of = Affine { cols, group, codes, scales, zeros };
                let spec = (LEVEL_BITS, group, Kind::Middle);
                Self::pack((rows, cols), precision, spec, Some(Book::new(books)), &rows_of)
            }
            Source::Blocks { kind, bytes } => {
                let ggml::GridKind { bits, group, meaning } = ggml::grid(kind)?;
                let (zeros, book) = match meaning {
                    ggml::Meaning::Around(zero) if zero == 1 << (bits - 1) => (Kind::Middle, None),
                    ggml::Meaning::Around(_) => (Kind::Steps, None),
                    ggml::Meaning::Above => (Kind::Minima, None),
                    ggml::Meaning::Level(levels) => {
                        (Kind::Middle, Some(Book::new(&levels.map(f32::from))))
                    }
                };
                let zero = match meaning {
                    ggml::Meaning::Around(zero) => f32::from(zero),
                    _ => 0.0,
                };
                let rows_of = Blocks { kind, bytes, row_bytes: bytes.len() / rows.max(1), zero };
                Self::pack((rows, cols), precision, (bits, group, zeros), book, &rows_of)
            }
            _ => None,
        }
    }

    fn pack(
        (rows, cols): (usize, usize),
        precision: Precision,
        (bits, given, kind): (u8, usize, Kind),
        book: Option<Book>,
        source: &dyn Rows,
    ) -> Option<Self> {
        let (blocks, strips) = (cols.div_ceil(BLOCK), rows.div_ceil(STRIP));
        // One group a row, or groups of whole blocks, or of halves of blocks.
        let group = match given {
            given if given >= cols => blocks * BLOCK,
            given if given.is_multiple_of(BLOCK) => given,
            given if given.is_multiple_of(BLOCK / 2) => BLOCK / 2,
            _ => return None,
        };
        let (groups, given_groups) = ((blocks * BLOCK).div_ceil(group), cols.div_ceil(given));
        let registers = blocks * usize::from(bits);
        let mut codes = vec![Register::ZERO; strips * registers];
        let mut scales = vec![[0.0; STRIP]; strips * groups];
        let mut zeros = scales.clone();
        let numbers = scales.par_chunks_mut(groups.max(1)).zip(zeros.par_chunks_mut(groups.max(1)));
        let parts = codes.par_chunks_mut(registers.max(1)).zip(numbers);
        parts.enumerate().for_each(|(strip, (codes, (scales, zeros)))| {
            let mut rows_codes = vec![0; STRIP * cols];
            let mut numbers = vec![0.0; 2 * given_groups];
            let (row_scales, row_zeros) = numbers.split_at_mut(given_groups);
            for row in 0..STRIP.min(rows - strip * STRIP) {
                let codes = &mut rows_codes[row * cols..][..cols];
                source.read(strip * STRIP + row, codes, row_scales, row_zeros);
                for (index, (scales, zeros)) in scales.iter_mut().zip(&mut *zeros).enumerate() {
                    scales[row] = row_scales.get(index * group / given).map_or(0.0, |s| *s);
                    zeros[row] = row_zeros.get(index * group / given).map_or(0.0, |z| *z);
                }
            }
            for (block, codes) in codes.chunks_exact_mut(bits.into()).enumerate() {
                let columns = block * BLOCK..cols.min((block + 1) * BLOCK);
                let rows = std::array::from_fn(|row| &rows_codes[row * cols..][columns.clone()]);
                pack_block(bits, rows, codes);
            }
        });
        let unit = book.as_ref().map_or(1.0, |book| book.unit);
        let (scales, zeros) = store(precision, kind, groups, unit, scales, zeros)?;
        Some(Self { bits, blocks, group, groups, codes, scales, zeros, book })
    }

    /// Bytes read by a product.
    pub(super) fn bytes(&self) -> usize {
        let zeros = match &self.zeros {
            GridZeros::Middle => 0,
            GridZeros::Steps(numbers) | GridZeros::Minima(numbers) => numbers.bytes(),
        };
        let scales = match &self.scales {
            Scales::Float(values) => size_of_val(values.as_slice()),
            Scales::Half(values, _) => size_of_val(values.as_slice()),
        };
        size_of_val(self.codes.as_slice()) + scales + zeros
    }

    /// The registers of a strip.
    pub(super) fn strip_codes(&self, strip: usize) -> &[Register] {
        let registers = self.blocks * usize::from(self.bits);
        &self.codes[strip * registers..][..registers]
    }

    /// Adds the columns from `first` on (a multiple of the block) of a strip.
    pub(super) fn add_columns(&self, isa: Isa, strip: usize, first: usize, out: &mut [Column]) {
        debug_assert!(first.is_multiple_of(BLOCK));
        let blocks = self.strip_codes(strip).chunks_exact(self.bits.into());
        let levels = self.levels();
        let columns = (first..).step_by(BLOCK);
        let (mut halves, mut known) = ([const { Line::ZERO }; 2], [usize::MAX; 2]);
        for ((block, column), out) in
            blocks.skip(first / BLOCK).zip(columns).zip(out.chunks_mut(BLOCK))
        {
            for (half, (line, known)) in halves.iter_mut().zip(&mut known).enumerate() {
                let at = strip * self.groups + (column + half * BLOCK / 2) / self.group;
                if *known != at {
                    self.read_line(strip, at, line);
                    *known = at;
                }
            }
            add_columns_of_block(isa, self.bits, block, &halves, levels.as_ref(), out);
        }
    }

    /// What the codes of a book stand for, without the scales.
    fn levels(&self) -> Option<[f32; 16]> {
        let book = self.book.as_ref()?;
        Some(match self.scales {
            Scales::Float(_) => book.float,
            Scales::Half(..) => book.float.map(|level| level / book.unit),
        })
    }

    /// How the codes of a strip's group become weights.
    fn read_line(&self, strip: usize, at: usize, line: &mut Line) {
        line.scale = self.scale(strip, at);
        match &self.zeros {
            GridZeros::Minima(_) => line.minimum = self.zero(strip, at),
            _ => line.zero = self.zero(strip, at),
        }
    }

    /// The scales of a strip's group.
    pub(super) fn scale(&self, strip: usize, at: usize) -> Column {
        match &self.scales {
            Scales::Float(scales) => scales[at],
            Scales::Half(scales, units) => widen(&scales[at]).map(|s| s * units[strip]),
        }
    }

    /// The zeros or minima of a strip's group.
    fn zero(&self, strip: usize, at: usize) -> Column {
        match (&self.zeros, &self.scales) {
            (GridZeros::Middle, _) => [f32::from(1_u8 << (self.bits - 1)); STRIP],
            (GridZeros::Steps(numbers), _) => numbers.at(at),
            (GridZeros::Minima(numbers), Scales::Half(_, units)) => {
                numbers.at(at).map(|minimum| minimum * units[strip])
            }
            (GridZeros::Minima(numbers), Scales::Float(_)) => numbers.at(at),
        }
    }
}

/// `scale · (code − zero) − minimum`, for each row of a strip.
pub(super) struct Line {
    pub(super) scale: Column,
    pub(super) zero: Column,
    pub(super) minimum: Column,
}

impl Line {
    const ZERO: Self = Self { scale: [0.0; STRIP], zero: [0.0; STRIP], minimum: [0.0; STRIP] };
}

/// Adds the columns of a block of codes, or of what `levels` say they stand for.
fn add_columns_of_block(
    isa: Isa,
    bits: u8,
    block: &[Register],
    halves: &[Line; 2],
    levels: Option<&[f32; 16]>,
    out: &mut [Column],
) {
    #[cfg(target_arch = "x86_64")]
    if super::vnni::supported(isa) {
        // SAFETY: the processor has the instructions, which are some of those for VNNI products.
        return unsafe { super::grid_avx512::add_block(bits, block, halves, levels, out) };
    }
    match levels {
        Some(levels) => add_levels(isa, bits, block, halves, levels, out),
        None => add_codes(isa, bits, block, halves, out),
    }
}

vectorized! {
    /// Adds the columns of a block of codes.
    fn add_codes(
        bits: u8,
        block: &[Register],
        halves: &[Line; 2],
        out: &mut [Column],
    ) {
        add_block(bits, block, halves, out, |code, line, row| {
            line.scale[row] * (code as f32 - line.zero[row]) - line.minimum[row]
        });
    }
}

vectorized! {
    /// Adds the columns of a block of codes that are looked up.
    fn add_levels(
        bits: u8,
        block: &[Register],
        halves: &[Line; 2],
        levels: &[f32; 16],
        out: &mut [Column],
    ) {
        add_block(bits, block, halves, out, |code, line, row| {
            line.scale[row] * levels[(code & 15) as usize]
        });
    }
}

#[inline(always)]
fn add_block(
    bits: u8,
    block: &[Register],
    halves: &[Line; 2],
    out: &mut [Column],
    value: impl Fn(u32, &Line, usize) -> f32,
) {
    let steps = unpack_block(bits, block);
    for (index, (step, out)) in steps.iter().zip(out.chunks_mut(4)).enumerate() {
        let line = &halves[index / (STEPS / 2)];
        let (words, _) = step.0.as_chunks::<4>();
        let mut words: [u32; STRIP] = std::array::from_fn(|row| u32::from_le_bytes(words[row]));
        for out in out {
            let values: [f32; STRIP] =
                std::array::from_fn(|row| value(words[row] & 0xff, line, row));
            out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
            words = words.map(|word| word >> 8);
        }
    }
}

impl Numbers {
    pub(super) fn at(&self, index: usize) -> Column {
        match self {
            Self::Float(values) => values[index],
            Self::Half(values) => widen(&values[index]),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Float(values) => size_of_val(values.as_slice()),
            Self::Half(values) => size_of_val(values.as_slice()),
        }
    }
}

impl Book {
    /// The finest integers that the levels are multiples of: of 8 bits where that is exact, else of
    /// 16, which round them by 2⁻¹⁶ of the greatest.
    fn new(levels: &[f32]) -> Self {
        let mut float = [0.0; 16];
        float[..levels.len()].copy_from_slice(levels);
        let greatest = float.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let is_exact = |unit: &f32| {
            float.iter().all(|level| {
                let steps = level / unit;
                (steps - steps.round()).abs() < 1e-5
            })
        };
        let narrow = (1..=127).map(|steps| greatest / steps as f32).find(is_exact);
        let unit = narrow.unwrap_or(greatest / 32767.0);
        let unit = if unit > 0.0 { unit } else { 1.0 };
        let steps = float.map(|level| (level / unit).round_ties_even() as i32);
        match narrow {
            Some(_) => Self { float, high: steps.map(|s| (s + 128) as u8), low: None, unit },
            None => {
                let bytes = steps.map(|s| ((s + 32768) as u16).to_le_bytes());
                Self { float, high: bytes.map(|b| b[1]), low: Some(bytes.map(|b| b[0])), unit }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Middle,
    Steps,
    Minima,
}

/// The scales and zeros as a precision stores them; nothing where they are not finite.
fn store(
    precision: Precision,
    kind: Kind,
    groups: usize,
    unit: f32,
    scales: Vec<Column>,
    zeros: Vec<Column>,
) -> Option<(Scales, GridZeros)> {
    let zeros = if kind == Kind::Middle { vec![] } else { zeros };
    let finite = |values: &[Column]| values.as_flattened().iter().all(|v| v.is_finite());
    if !finite(&scales) || !finite(&zeros) {
        return None;
    }
    let wrap = |numbers| match kind {
        Kind::Middle => GridZeros::Middle,
        Kind::Steps => GridZeros::Steps(numbers),
        Kind::Minima => GridZeros::Minima(numbers),
    };
    if precision == Precision::Float {
        return Some((Scales::Float(scales), wrap(Numbers::Float(zeros))));
    }
    // A power of two a strip brings its greatest number to the top of what a half can hold, so that
    // nothing near it is denormal.
    let units: Vec<f32> = scales
        .chunks(groups)
        .enumerate()
        .map(|(strip, scales)| {
            let minima = match kind {
                Kind::Minima => &zeros[strip * groups..][..groups],
                _ => &[],
            };
            let all = scales.as_flattened().iter().map(|s| s * unit);
            let all = all.chain(minima.as_flattened().iter().copied());
            let greatest = all.fold(f32::MIN_POSITIVE, |a, b| a.max(b.abs()));
            let exponent = (greatest.to_bits() >> 23) as i32 - 127;
            2.0_f32.powi((exponent - 14).max(-126))
        })
        .collect();
    let halves = |values: &[Column], by: &dyn Fn(usize) -> f32| -> Vec<Halves> {
        let half = |(at, values): (usize, &Column)| {
            let by = by(at / groups);
            values.map(|value| f16::from_f32(value * by).to_bits())
        };
        values.iter().enumerate().map(half).collect()
    };
    let scales = halves(&scales, &|strip| unit / units[strip]);
    let zeros = match kind {
        Kind::Minima => halves(&zeros, &|strip| 1.0 / units[strip]),
        _ => halves(&zeros, &|_| 1.0),
    };
    Some((Scales::Half(scales, units), wrap(Numbers::Half(zeros))))
}

struct Affine<'a> {
    cols: usize,
    group: usize,
    codes: &'a [u8],
    scales: Option<&'a [f32]>,
    zeros: Zeros<'a>,
}

impl Rows for Affine<'_> {
    fn read(&self, row: usize, codes: &mut [u8], scales: &mut [f32], zeros: &mut [f32]) {
        let per_row = self.cols.div_ceil(self.group);
        let groups = row * per_row..(row + 1) * per_row;
        codes.copy_from_slice(&self.codes[row * self.cols..][..self.cols]);
        match self.scales {
            Some(all) => scales.copy_from_slice(&all[groups.clone()]),
            None => scales.fill(1.0),
        }
        match self.zeros {
            Zeros::Constant(zero) => zeros.fill(f32::from(zero)),
            Zeros::Codes(all) => {
                zeros.iter_mut().zip(&all[groups]).for_each(|(zero, code)| *zero = (*code).into());
            }
            Zeros::Floats(all) | Zeros::Minima(all) => zeros.copy_from_slice(&all[groups]),
        }
    }
}

struct Blocks<'a> {
    kind: BlockKind,
    bytes: &'a [u8],
    row_bytes: usize,
    zero: f32,
}

impl Rows for Blocks<'_> {
    fn read(&self, row: usize, codes: &mut [u8], scales: &mut [f32], zeros: &mut [f32]) {
        zeros.fill(self.zero);
        let bytes = &self.bytes[row * self.row_bytes..][..self.row_bytes];
        ggml::read_row(self.kind, bytes, codes, scales, zeros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_levels_of_instructions_decode_the_same_bits(
            bits in 1_u8..=8,
            bytes in prop::collection::vec(any::<u8>(), 8 * 64),
            numbers in prop::collection::vec(-2.0_f32..2.0, 6 * STRIP),
            levels in prop::option::of(prop::array::uniform16(-1.0_f32..1.0)),
            columns in 0..=BLOCK,
        ) {
            // Levels are looked up by codes of four bits.
            let bits = if levels.is_some() { LEVEL_BITS } else { bits };
            let registers = bytes.as_chunks::<64>().0[..bits.into()].iter();
            let block: Vec<Register> = registers.map(|bytes| Register(*bytes)).collect();
            let column = |index: usize| std::array::from_fn(|row| numbers[index * STRIP + row]);
            let line = |half: usize| Line {
                scale: column(3 * half),
                zero: column(3 * half + 1),
                minimum: column(3 * half + 2),
            };
            let halves = [line(0), line(1)];
            let decoded = |isa: Isa| {
                let mut out = vec![[0.25; STRIP]; columns];
                add_columns_of_block(isa, bits, &block, &halves, levels.as_ref(), &mut out);
                out.as_flattened().iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            };
            let wanted = decoded(Isa::Portable);
            for isa in Isa::available() {
                prop_assert_eq!(&decoded(isa), &wanted, "{:?}", isa);
            }
        }
    }
}
