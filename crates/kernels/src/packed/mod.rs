//! Products of low-bit matrices with activations: what a linear layer of a compressed model is.
//!
//! A matrix is packed once, into *strips* of [`STRIP`] rows, laid out in the order in which the
//! kernels read. In all of them a lane of a register is a row of the strip: sums run down the columns
//! and nothing is added across lanes. A strip is also the unit of work: it writes rows of the output
//! that no other strip writes, each sum has one fixed order, and so the result is the same bits on
//! any number of threads.
//!
//! In [`Precision::Float`] weights are multiplied as they decode, in f32: the oracle of the rest. In
//! [`Precision::Int8`] activations are rounded to 8 bits in blocks of 32 columns, or to bfloat16
//! where that is the faster way for many tokens; in [`Precision::Int16`] what that leaves is rounded to 8
//! bits once more and multiplied too, while the weights are still in the cache.

mod activations;
#[cfg(target_arch = "x86_64")]
mod activations_avx512;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod bitmap;
#[cfg(target_arch = "x86_64")]
mod bitmap_avx512;
mod brain;
mod codes;
mod dense;
#[cfg(target_arch = "x86_64")]
mod dense_avx512;
mod float;
mod grid;
#[cfg(target_arch = "x86_64")]
mod grid_avx512;
mod int8;
#[cfg(target_arch = "aarch64")]
mod neon;
mod output;
pub mod planes;
mod row;
mod source;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod vnni_pair;

pub use activations::{Activations, Forms, Preparing};
pub use output::Output;
pub use source::{Source, Zeros};

use std::ops::Range;

use crate::ggml::{self, BlockKind};
use crate::isa::Isa;
use crate::pool::Pool;
use bitmap::Bitmap;
use dense::{Column, Dense};
use grid::Grid;

/// Rows of a strip.
pub const STRIP: usize = 16;
/// Tokens of a tile of activations.
const TILE: usize = 12;
/// Columns that share a scale of the activations.
const BLOCK: usize = 32;
/// Steps of four columns in a block.
const STEPS: usize = BLOCK / 4;

/// Shares of the elements that a sparse matrix may have: with fewer than the first, single values with
/// their columns are faster; with more than the second, so are floats for all elements. Estimates from the
/// bytes and instructions of each; the example `sparse` measures where they lie.
const BITMAP: Range<f64> = 0.05..0.75;

/// What a product may round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Nothing but sums in f32.
    Float,
    /// Activations to about 15 bits, two digits of 8; scales to 12 bits.
    Int16,
    /// Activations to 8 bits (or to bfloat16, and weights with them); scales to 12 bits.
    Int8,
}

/// A source whose slices do not fit the matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part} of a matrix of {rows} x {cols} has {have} elements where {need} are needed")]
pub struct PackError {
    /// Which slice.
    pub part: &'static str,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements given.
    pub have: usize,
    /// Elements needed.
    pub need: usize,
}

/// A matrix `[rows, cols]`, ready to multiply: the sum of what it was packed from.
pub struct Packed {
    rows: usize,
    cols: usize,
    precision: Precision,
    terms: Vec<Term>,
    /// The right factor of low-rank terms.
    inner: Option<Box<Packed>>,
    /// The left one.
    outer: Option<Dense>,
}

enum Term {
    Grid(Grid),
    Dense(Dense),
    Bitmap(Bitmap),
    Columns { columns: Vec<u32>, values: Dense },
    Sparse { row_starts: Vec<u32>, columns: Vec<u32>, values: Vec<f32> },
}

impl Packed {
    /// Packs a sum.
    ///
    /// # Errors
    /// When a slice has another length than the shape asks for.
    pub fn new(
        rows: usize,
        cols: usize,
        precision: Precision,
        sources: &[Source<'_>],
    ) -> Result<Self, PackError> {
        let mut packed = Self { rows, cols, precision, terms: vec![], inner: None, outer: None };
        let (mut lefts, mut rights) = (vec![], vec![]);
        for source in sources {
            source.check(rows, cols)?;
            match *source {
                Source::LowRank { rank, left, right } => {
                    lefts.push((rank, left));
                    rights.extend_from_slice(right);
                }
                Source::Sparse { row_starts, columns, values }
                    if (values.len() as f64) < BITMAP.start * (rows * cols) as f64 =>
                {
                    packed.terms.push(Term::Sparse {
                        row_starts: row_starts.to_vec(),
                        columns: columns.to_vec(),
                        values: values.to_vec(),
                    });
                }
                Source::Sparse { values, .. }
                    if values.len() as f64 <= BITMAP.end * (rows * cols) as f64 =>
                {
                    let row = |row: usize, out: &mut [f32]| source.add_row(row, out);
                    let bitmap = Bitmap::new(rows, cols, precision, &row);
                    check_finite(bitmap.is_finite(), rows, cols)?;
                    packed.terms.push(Term::Bitmap(bitmap));
                }
                Source::Columns { columns, values } => {
                    let count = columns.len();
                    let row = |row: usize, out: &mut [f32]| {
                        out.copy_from_slice(&values[row * count..][..count]);
                    };
                    packed.terms.push(Term::Columns {
                        columns: columns.to_vec(),
                        values: Dense::new(rows, count, precision, &row),
                    });
                }
                source => {
                    if let Some(grid) = Grid::new(rows, cols, precision, &source) {
                        packed.terms.push(Term::Grid(grid));
                        continue;
                    }
                    let row = |row: usize, out: &mut [f32]| source.add_row(row, out);
                    let dense = Dense::new(rows, cols, precision, &row);
                    check_finite(dense.is_finite(), rows, cols)?;
                    packed.terms.push(Term::Dense(dense));
                }
            }
        }
        let rank = lefts.iter().map(|(rank, _)| rank).sum();
        if rank > 0 {
            let row = |row: usize, out: &mut [f32]| {
                let mut out = out.iter_mut();
                for (rank, left) in &lefts {
                    out.by_ref().zip(&left[row * rank..][..*rank]).for_each(|(o, l)| *o = *l);
                }
            };
            packed.outer = Some(Dense::new(rows, rank, precision, &row));
            let row = |row: usize, out: &mut [f32]| {
                out.copy_from_slice(&rights[row * cols..][..cols]);
            };
            let inner = Self::new(rank, cols, precision, &[Source::Rows(&row)])?;
            packed.inner = Some(Box::new(inner));
        }
        Ok(packed)
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of weights that a product with one token reads.
    pub fn bytes(&self) -> usize {
        let term = |term: &Term| match term {
            Term::Grid(grid) => grid.bytes(),
            Term::Dense(dense) => dense.bytes(),
            Term::Bitmap(bitmap) => bitmap.bytes(),
            Term::Columns { columns, values } => size_of_val(columns.as_slice()) + values.bytes(),
            Term::Sparse { columns, .. } => 8 * columns.len() + 4 * (self.rows + 1),
        };
        self.terms.iter().map(term).sum::<usize>()
            + self.outer.as_ref().map_or(0, Dense::bytes)
            + self.inner.as_ref().map_or(0, |inner| inner.bytes())
    }

    /// [Announces](Pool::announce) the codes of some strips.
    pub fn announce(&self, strips: Range<usize>, pool: &Pool) {
        if let Some(Term::Grid(grid)) = self.terms.first() {
            let each = grid.blocks * usize::from(grid.bits);
            pool.announce(&grid.codes[strips.start * each..strips.end * each]);
        }
    }

    /// The forms of the activations that a product with so many tokens reads.
    pub fn forms(&self, tokens: usize) -> Forms {
        self.forms_with(Isa::detect(), tokens)
    }

    /// [`forms`](Self::forms) at a level of instructions.
    pub fn forms_with(&self, isa: Isa, tokens: usize) -> Forms {
        let codes = |term: &Term| matches!(term, Term::Grid(_));
        if self.takes_tiles(isa.supported(), tokens) {
            return Forms { brain: true, ..Forms::default() };
        }
        match self.precision {
            Precision::Float => Forms { float: true, ..Forms::default() },
            Precision::Int16 | Precision::Int8 => Forms {
                float: !self.terms.iter().all(codes),
                int8: self.terms.iter().any(codes),
                rest: self.precision == Precision::Int16 && self.terms.iter().any(codes),
                brain: false,
            },
        }
    }

    fn takes_tiles(&self, isa: Isa, tokens: usize) -> bool {
        self.precision == Precision::Int8 && brain::pays(isa, self, tokens)
    }

    /// Units of work: strips of [`STRIP`] rows.
    pub fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP)
    }

    /// The product that a low-rank term begins with: its result, `[tokens, inner.rows()]`, is what
    /// [`multiply`](Self::multiply) takes as `inner`.
    pub fn inner(&self) -> Option<&Packed> {
        self.inner.as_deref()
    }

    /// Writes the rows of `strips` of `y[t] = W x[t]`, for all tokens. `inner` is the result of
    /// [`inner`](Self::inner) for the same activations; empty where there is none.
    ///
    /// # Panics
    /// If shapes differ, `x` lacks a form, or a strip is written twice.
    pub fn multiply(&self, x: &Activations, inner: &[f32], strips: Range<usize>, out: &Output<'_>) {
        self.multiply_with(Isa::detect(), x, inner, strips, out);
    }

    /// [`multiply`](Self::multiply) at a level of instructions, or the machine's own where that is
    /// lower. The activations were prepared for the same level.
    ///
    /// # Panics
    /// As there.
    pub fn multiply_with(
        &self,
        isa: Isa,
        x: &Activations,
        inner: &[f32],
        strips: Range<usize>,
        out: &Output<'_>,
    ) {
        assert_eq!(x.cols(), self.cols, "the activations have another width");
        assert_eq!((out.tokens(), out.rows()), (x.tokens(), self.rows), "the output: other shape");
        let rank = self.inner.as_ref().map_or(0, |inner| inner.rows);
        assert_eq!(inner.len(), x.tokens() * rank, "the inner product has another shape");
        let isa = isa.supported();
        match self.precision {
            _ if self.takes_tiles(isa, x.tokens()) => brain::multiply(isa, self, x, strips, out),
            Precision::Float => float::multiply(isa, self, x, inner, strips, out),
            Precision::Int16 | Precision::Int8 => {
                int8::multiply(isa, self, x, inner, strips, out);
            }
        }
    }

    /// The whole matrix, row-major: what the products are held to.
    pub fn decode(&self) -> Vec<f32> {
        let isa = Isa::detect();
        let mut values = vec![0.0; self.rows * self.cols];
        let mut columns = vec![[0.0; STRIP]; self.cols];
        for strip in 0..self.strips() {
            columns.fill([0.0; STRIP]);
            self.add_columns(isa, strip, 0, &mut columns);
            for row in 0..STRIP.min(self.rows - strip * STRIP) {
                let out = &mut values[(strip * STRIP + row) * self.cols..][..self.cols];
                out.iter_mut().zip(&columns).for_each(|(out, column)| *out = column[row]);
            }
        }
        if let (Some(inner), Some(outer)) = (&self.inner, &self.outer) {
            let (right, mut left) = (inner.decode(), vec![[0.0; STRIP]; inner.rows]);
            for row in 0..self.rows {
                if row % STRIP == 0 {
                    left.fill([0.0; STRIP]);
                    outer.add_columns(isa, row / STRIP, 0, &mut left);
                }
                let out = &mut values[row * self.cols..][..self.cols];
                for (left, right) in left.iter().zip(right.chunks_exact(self.cols)) {
                    out.iter_mut().zip(right).for_each(|(o, r)| *o += left[row % STRIP] * r);
                }
            }
        }
        values
    }

    /// Adds the columns from `first` on of all terms but the low-rank ones.
    fn add_columns(&self, isa: Isa, strip: usize, first: usize, out: &mut [Column]) {
        let columns = first..first + out.len();
        for term in &self.terms {
            match term {
                Term::Grid(grid) => grid.add_columns(isa, strip, first, out),
                Term::Dense(dense) => dense.add_columns(isa, strip, first, out),
                Term::Bitmap(bitmap) => bitmap.add_columns(isa, strip, first, out),
                Term::Columns { columns: places, values } => {
                    let mut all = vec![[0.0; STRIP]; places.len()];
                    values.add_columns(isa, strip, 0, &mut all);
                    for (place, values) in places.iter().zip(all) {
                        if columns.contains(&(*place as usize)) {
                            let out = &mut out[*place as usize - first];
                            out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
                        }
                    }
                }
                Term::Sparse { row_starts, columns: places, values } => {
                    for row in strip * STRIP..self.rows.min((strip + 1) * STRIP) {
                        let range = row_starts[row] as usize..row_starts[row + 1] as usize;
                        for (place, value) in places[range.clone()].iter().zip(&values[range]) {
                            if columns.contains(&(*place as usize)) {
                                out[*place as usize - first][row % STRIP] += value;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Refuses floats that the type they are stored in has no numbers for.
fn check_finite(are_finite: bool, rows: usize, cols: usize) -> Result<(), PackError> {
    let (part, need) = ("finite values", rows * cols);
    if are_finite { Ok(()) } else { Err(PackError { part, rows, cols, have: 0, need }) }
}

impl Source<'_> {
    /// Whether the slices are those of a matrix of this shape.
    fn check(&self, rows: usize, cols: usize) -> Result<(), PackError> {
        let check = |part, have: usize, need: Option<usize>| match need {
            Some(need) if need == have => Ok(()),
            _ => Err(PackError { part, rows, cols, have, need: need.unwrap_or(usize::MAX) }),
        };
        let area = rows.checked_mul(cols);
        let groups = |group: usize| rows.checked_mul(cols.div_ceil(group.max(1)));
        match *self {
            Self::Rows(_) => Ok(()),
            Self::Affine { bits, codes, group, scales, zeros } => {
                check("bits", usize::from((1..=8).contains(&bits)), Some(1))?;
                check("codes", codes.len(), area)?;
                check("scales", scales.len(), groups(group))?;
                match zeros {
                    Zeros::Constant(_) => Ok(()),
                    Zeros::Codes(zeros) => check("zeros", zeros.len(), groups(group)),
                    Zeros::Floats(zeros) => check("zeros", zeros.len(), groups(group)),
                    Zeros::Minima(minima) => check("minima", minima.len(), groups(group)),
                }
            }
            Self::Lookup { bits, codes, books, group, scales } => {
                check("bits", usize::from((1..=8).contains(&bits)), Some(1))?;
                check("codes", codes.len(), area)?;
                if books.len() != 1 << bits {
                    check("books", books.len(), rows.checked_mul(1 << bits))?;
                }
                scales.map_or(Ok(()), |scales| check("scales", scales.len(), groups(group)))
            }
            Self::Sparse { row_starts, columns, values } => {
                check("row starts", row_starts.len(), rows.checked_add(1))?;
                check("columns", columns.len(), Some(values.len()))?;
                let last = row_starts.last().map_or(0, |last| *last as usize);
                check("values", values.len(), Some(last))?;
                let (rising, first) = (row_starts.is_sorted(), row_starts.first() == Some(&0));
                check("ordered row starts", usize::from(rising && first), Some(1))?;
                let outside = columns.iter().filter(|column| **column as usize >= cols).count();
                check("columns outside", outside, Some(0))
            }
            Self::Columns { columns, values } => {
                check("values", values.len(), rows.checked_mul(columns.len()))?;
                let outside = columns.iter().filter(|column| **column as usize >= cols).count();
                check("columns outside", outside, Some(0))
            }
            Self::LowRank { rank, left, right } => {
                check("left factor", left.len(), rows.checked_mul(rank))?;
                check("right factor", right.len(), cols.checked_mul(rank))
            }
            Self::Blocks { kind, bytes } => {
                let whole = cols.is_multiple_of(kind.elements());
                let row = (cols / kind.elements()).checked_mul(kind.bytes());
                let need = row.filter(|_| whole).and_then(|row| row.checked_mul(rows));
                check("blocks", bytes.len(), need)
            }
        }
    }

    /// Adds row `row` as it decodes.
    fn add_row(&self, row: usize, out: &mut [f32]) {
        let cols = out.len();
        match *self {
            Self::Rows(rows) => rows(row, out),
            Self::Affine { codes, group, scales, zeros, .. } => {
                let first = row * cols.div_ceil(group);
                let codes = codes[row * cols..][..cols].chunks(group);
                for (group, (out, codes)) in (first..).zip(out.chunks_mut(group).zip(codes)) {
                    let scale = scales[group];
                    for (out, code) in out.iter_mut().zip(codes) {
                        let code = f32::from(*code);
                        *out += match zeros {
                            Zeros::Constant(zero) => scale * (code - f32::from(zero)),
                            Zeros::Codes(zeros) => scale * (code - f32::from(zeros[group])),
                            Zeros::Floats(zeros) => scale * (code - zeros[group]),
                            Zeros::Minima(minima) => scale * code - minima[group],
                        };
                    }
                }
            }
            Self::Lookup { bits, codes, books, group, scales } => {
                let book = if books.len() == 1 << bits { books } else { &books[row << bits..] };
                let first = row * cols.div_ceil(group);
                let codes = codes[row * cols..][..cols].chunks(group);
                for (group, (out, codes)) in (first..).zip(out.chunks_mut(group).zip(codes)) {
                    let scale = scales.map_or(1.0, |scales| scales[group]);
                    for (out, code) in out.iter_mut().zip(codes) {
                        *out += scale * book[usize::from(*code)];
                    }
                }
            }
            Self::Sparse { row_starts, columns, values } => {
                let range = row_starts[row] as usize..row_starts[row + 1] as usize;
                for (column, value) in columns[range.clone()].iter().zip(&values[range]) {
                    out[*column as usize] += value;
                }
            }
            Self::Columns { columns, values } => {
                let values = &values[row * columns.len()..];
                columns.iter().zip(values).for_each(|(c, v)| out[*c as usize] += v);
            }
            Self::LowRank { rank, left, right } => {
                for (left, right) in left[row * rank..][..rank].iter().zip(right.chunks_exact(cols))
                {
                    out.iter_mut().zip(right).for_each(|(o, r)| *o += left * r);
                }
            }
            Self::Blocks { kind, bytes } => {
                let length = cols / kind.elements() * kind.bytes();
                let mut values = vec![0.0; cols];
                add_blocks(kind, &bytes[row * length..][..length], &mut values);
                out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
            }
        }
    }
}

/// Dequantizes whole blocks; their number was checked when the matrix was packed.
fn add_blocks(kind: BlockKind, bytes: &[u8], out: &mut [f32]) {
    let done = ggml::dequantize(kind, bytes, out);
    debug_assert!(done.is_ok());
}
