//! Codes into a codebook: k-means, NF4 and every 4-bit float.

use crate::part::Parts;
use crate::term::{check_codes, check_finite, check_length};
use crate::{
    FloatType, GroupFloats, GroupNames, GroupType, Grouping, Part, TermOutline, WeightError,
};

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
    pub scales: Option<(Grouping, GroupFloats)>,
    /// Storage type of the books.
    pub book_type: FloatType,
}

impl Lookup {
    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Lookup {
            bits: self.bits,
            grouping: self.scales.as_ref().map(|(grouping, _)| *grouping),
            book_per_row: self.book_per_row,
            books: self.book_type,
            scales: match &self.scales {
                Some((_, scales)) => scales.kind(),
                None => GroupType::Plain(self.book_type),
            },
        }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        let books = if self.book_per_row { rows } else { 1 };
        check_length(TERM, "codes", self.codes.len(), rows * cols)?;
        check_length(TERM, "books", self.books.len(), books << self.bits)?;
        check_finite(TERM, "books", &self.books)?;
        check_codes(TERM, "codes", &self.codes, self.bits)?;
        if let Some((grouping, scales)) = &self.scales {
            scales.validate(TERM, GroupNames::SCALES, *grouping, rows, cols)?;
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
            Part::floats("books", self.book_type, vec![books, 1 << self.bits], &self.books),
        ];
        if let Some((grouping, scales)) = &self.scales {
            parts.extend(scales.parts(GroupNames::SCALES, *grouping, rows, cols));
        }
        parts
    }

    pub(crate) fn from_parts(
        bits: u8,
        grouping: Option<Grouping>,
        book_per_row: bool,
        (books, scales): (FloatType, GroupType),
        (rows, cols): (usize, usize),
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let read = |grouping| {
            let names = GroupNames::SCALES;
            GroupFloats::from_parts(scales, names, grouping, (rows, cols), parts)
        };
        Ok(Self {
            bits,
            codes: parts.codes("codes", cols, bits)?,
            books: parts.floats("books", books)?,
            book_per_row,
            scales: match grouping {
                None => None,
                Some(grouping) => Some((grouping, read(grouping)?)),
            },
            book_type: books,
        })
    }
}
