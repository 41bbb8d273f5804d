//! Codes into a codebook: k-means, NF4 and every 4-bit float.

use crate::part::Parts;
use crate::term::{check_codes, check_finite, check_length};
use crate::{FloatType, Grouping, Part, TermOutline, WeightError};

const TERM: &str = "lookup";

/// `W[r, c] = scale · book[code[r, c]]`, with the scale of the group of `(r, c)`, or 1 without groups.
#[derive(Debug, Clone, PartialEq)]
pub struct Lookup {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Row-major codes, one a byte.
    pub codes: Vec<u8>,
    /// `2^bits` values for the whole matrix, or as many for each row.
    pub books: Vec<f32>,
    /// Whether each row has a book of its own.
    pub book_per_row: bool,
    /// Which elements share a scale, and the scales.
    pub scales: Option<(Grouping, Vec<f32>)>,
    /// Storage type of books and scales.
    pub scale_type: FloatType,
}

impl Lookup {
    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Lookup {
            bits: self.bits,
            grouping: self.scales.as_ref().map(|(grouping, _)| *grouping),
            book_per_row: self.book_per_row,
            scales: self.scale_type,
        }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        let books = if self.book_per_row { rows } else { 1 };
        check_length(TERM, "codes", self.codes.len(), rows * cols)?;
        check_length(TERM, "books", self.books.len(), books << self.bits)?;
        check_finite(TERM, "books", &self.books)?;
        check_codes(TERM, "codes", &self.codes, self.bits)?;
        if let Some((grouping, scales)) = &self.scales {
            check_length(TERM, "scales", scales.len(), grouping.count(rows, cols))?;
            check_finite(TERM, "scales", scales)?;
        }
        Ok(())
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let cols = out.len();
        let size = 1_usize << self.bits;
        let book = &self.books[if self.book_per_row { row * size } else { 0 }..][..size];
        let grouping = self.scales.as_ref().map_or(Grouping::Row, |(grouping, _)| *grouping);
        let (first, width) = (grouping.row_start(row, cols), grouping.width(cols));
        let codes = &self.codes[row * cols..][..cols];
        for (index, (out, codes)) in out.chunks_mut(width).zip(codes.chunks(width)).enumerate() {
            let scale = self.scales.as_ref().map_or(1.0, |(_, scales)| scales[first + index]);
            for (out, code) in out.iter_mut().zip(codes) {
                *out += scale * book[usize::from(*code)];
            }
        }
    }

    pub(crate) fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        let books = if self.book_per_row { rows } else { 1 };
        let mut parts = vec![
            Part::codes("codes", &self.codes, cols, self.bits),
            Part::floats("books", self.scale_type, vec![books, 1 << self.bits], &self.books),
        ];
        if let Some((grouping, scales)) = &self.scales {
            let shape = grouping.scale_shape(rows, cols);
            parts.push(Part::floats("scales", self.scale_type, shape, scales));
        }
        parts
    }

    pub(crate) fn from_parts(
        bits: u8,
        grouping: Option<Grouping>,
        book_per_row: bool,
        scale_type: FloatType,
        cols: usize,
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let scales = match grouping {
            None => None,
            Some(grouping) => Some((grouping, parts.floats("scales", scale_type)?)),
        };
        Ok(Self {
            bits,
            codes: parts.codes("codes", cols, bits)?,
            books: parts.floats("books", scale_type)?,
            book_per_row,
            scales,
            scale_type,
        })
    }
}
