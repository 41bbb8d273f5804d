//! Codebooks from −1 to 1 scaled by the largest magnitude of each block: NF4, FP4, k-bit types.
//!
//! A block is a group of columns of one row; it ends at the end of a row, where bitsandbytes blocks
//! the flattened tensor (the two are one where the block divides the width). Scales are rounded to
//! what is stored before the weights are coded.

use crate::codebook::Codebook;
use crate::{Encoded, GroupSize, MethodError, Site};
use lapidary_weight::{
    Columns, FloatType, GroupFloats, GroupType, Grouping, Lookup, Origin, Outline, Runs, Term,
    TermOutline, TwoLevel, Weight,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::num::NonZeroUsize;

/// Parameters of a fixed data type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BlockParams {
    /// Columns that share a scale: a number, "row" (or -1) for one scale a row, "tensor" for one.
    pub group_size: GroupSize,
    /// Store scales in 8 bits: a code each, one float for 256 of them, their mean for all.
    pub double_quantization: bool,
}

impl Default for BlockParams {
    fn default() -> Self {
        Self { group_size: GroupSize::Columns(64), double_quantization: true }
    }
}

impl BlockParams {
    /// The same with another sharing of scales.
    pub(crate) fn regrouped(&self, grouping: Grouping) -> Self {
        Self { group_size: GroupSize::from(grouping), ..self.clone() }
    }

    pub(crate) fn blocks(&self, cols: usize, scales: FloatType) -> Blocks {
        let scales = match NonZeroUsize::new(256) {
            Some(run) if self.double_quantization => GroupType::TwoLevel(TwoLevel {
                bits: 8,
                runs: Runs::Flat(run),
                origin: Origin::Mean,
                coarse: FloatType::F32,
            }),
            _ => GroupType::Plain(scales),
        };
        Blocks { grouping: self.group_size.grouping(cols), scales }
    }
}

/// How a matrix is cut into blocks, and their scales stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Blocks {
    pub(crate) grouping: Grouping,
    pub(crate) scales: GroupType,
}

impl Blocks {
    /// The outline, with `kept` columns in 16 bits.
    pub(crate) fn outline(
        self,
        (rows, cols): (usize, usize),
        bits: u8,
        kept: usize,
        float: FloatType,
    ) -> Outline {
        let mut terms = vec![TermOutline::Lookup {
            bits,
            grouping: Some(self.grouping),
            book_per_row: false,
            books: FloatType::F32.into(),
            scales: self.scales,
        }];
        if kept > 0 {
            terms.push(TermOutline::Columns { count: kept, values: float });
        }
        Outline { rows, cols, terms }
    }

    /// Scales and codes of the nearest levels of the codebook that `book` makes of a function that
    /// gives the weights divided by the largest magnitude of their block. The columns `kept` (in
    /// rising order) stay floats, and count as zeros for their blocks.
    pub(crate) fn encode(
        self,
        site: &Site<'_>,
        kept: &[usize],
        book: impl FnOnce(&Normalized<'_>) -> Codebook,
    ) -> Result<Encoded, MethodError> {
        use rayon::prelude::*;
        site.check_finite()?;
        let Site { rows, cols, .. } = *site;
        let weight = without(site, kept);
        let wrong = |error| MethodError::Weight { site: site.name.to_owned(), error };
        let (line, group, per_row) = lines(self.grouping, rows, cols);
        let magnitude = |group: &[f32]| group.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
        let of_line = |line: &[f32]| line.chunks(group).map(magnitude).collect::<Vec<_>>();
        let magnitudes: Vec<f32> = weight.par_chunks(line).flat_map_iter(of_line).collect();
        let book = book(&Normalized { weight: &weight, magnitudes: &magnitudes, line, group });
        let scales = match self.scales {
            // A scale must not become zero or infinite; a block of zeros has one of zero.
            GroupType::Plain(float) => {
                let round = |m: &f32| if *m > 0.0 { float.round_scale(*m) } else { 0.0 };
                GroupFloats::plain(magnitudes.iter().map(round).collect(), float)
            }
            two_level => GroupFloats::round(two_level, per_row, &magnitudes).map_err(wrong)?,
        };
        let mut codes = vec![0; weight.len()];
        let zero = book.code(0.0);
        let of_lines = weight.par_chunks(line).zip(codes.par_chunks_mut(line));
        of_lines.zip(scales.par_chunks(per_row)).for_each(|((weight, codes), scales)| {
            let groups = weight.chunks(group).zip(codes.chunks_mut(group));
            for ((weight, codes), scale) in groups.zip(scales) {
                if *scale > 0.0 {
                    book.codes(weight, *scale, codes);
                } else {
                    codes.fill(zero);
                }
            }
        });
        let mut terms = vec![Term::Lookup(Lookup {
            bits: book.bits(),
            codes,
            books: book.levels().to_vec(),
            book_per_row: false,
            scales: Some((self.grouping, scales)),
            book_type: FloatType::F32.into(),
        })];
        if !kept.is_empty() {
            terms.push(Term::Columns(columns(site, kept)));
        }
        let weight = Weight::new(rows, cols, terms).map_err(wrong)?;
        Ok(Encoded { weight, notes: vec![] })
    }
}

/// The weights of a site divided by the largest magnitude of their block.
#[derive(Debug)]
pub(crate) struct Normalized<'a> {
    weight: &'a [f32],
    magnitudes: &'a [f32],
    line: usize,
    group: usize,
}

impl Normalized<'_> {
    /// At most about `most` of them, evenly spread; those of blocks of zeros are zero.
    pub(crate) fn sample(&self, most: usize) -> Vec<f32> {
        let stride = self.weight.len().div_ceil(most.max(1)).max(1);
        // A stride that shares a factor with the width would meet the same columns in every row.
        let stride = (stride..).find(|s| *s == 1 || gcd(*s, self.line) == 1).unwrap_or(stride);
        let per_line = self.line.div_ceil(self.group);
        let places = (0..self.weight.len()).step_by(stride);
        let value = |place: usize| {
            let block = place / self.line * per_line + place % self.line / self.group;
            let magnitude = self.magnitudes[block];
            if magnitude > 0.0 { self.weight[place] / magnitude } else { 0.0 }
        };
        places.map(value).collect()
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Elements that are cut into groups together (a row, or the whole matrix), elements of a group, and
/// groups of such a line.
pub(crate) fn lines(grouping: Grouping, rows: usize, cols: usize) -> (usize, usize, usize) {
    match grouping {
        Grouping::Tensor => ((rows * cols).max(1), (rows * cols).max(1), 1),
        // Rectangles are no runs of elements; no method that cuts lines has them.
        Grouping::Row | Grouping::Columns(_) | Grouping::Blocks { .. } => {
            (cols.max(1), grouping.width(cols), grouping.per_row(cols).max(1))
        }
    }
}

/// The weight with zeros in some columns.
fn without<'a>(site: &Site<'a>, columns: &[usize]) -> Cow<'a, [f32]> {
    if columns.is_empty() {
        return Cow::Borrowed(site.weight);
    }
    let mut weight = site.weight.to_vec();
    for row in weight.chunks_exact_mut(site.cols.max(1)) {
        columns.iter().for_each(|column| row[*column] = 0.0);
    }
    Cow::Owned(weight)
}

/// Some columns of the weight, in the type of the scales.
fn columns(site: &Site<'_>, columns: &[usize]) -> Columns {
    let dtype = site.scale_type;
    let rows = site.weight.chunks_exact(site.cols.max(1));
    let values =
        rows.flat_map(|row| columns.iter().map(|column| dtype.round(row[*column]))).collect();
    Columns { columns: columns.iter().map(|column| *column as u32).collect(), values, dtype }
}
