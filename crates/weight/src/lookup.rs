//! Codes into a codebook: k-means, NF4, FP8 and FP4, the tables of llama.cpp's types.

use crate::part::Parts;
use crate::term::{check_codes, check_finite, check_length};
use crate::{
    FloatType, GroupFloats, GroupNames, GroupType, Grouping, Part, SmallFloat, Table, TermOutline,
    WeightError,
};
use serde::{Deserialize, Serialize};

const TERM: &str = "lookup";

/// Where the values of a codebook come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BookType {
    /// They are stored, as floats of this type.
    Stored(FloatType),
    /// They are the numbers of this type, each under its own code; nothing is stored.
    Fixed(SmallFloat),
    /// They are those of this table; nothing is stored.
    Table(Table),
}

impl From<FloatType> for BookType {
    fn from(float: FloatType) -> Self {
        Self::Stored(float)
    }
}

impl From<SmallFloat> for BookType {
    fn from(float: SmallFloat) -> Self {
        Self::Fixed(float)
    }
}

impl From<Table> for BookType {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

impl BookType {
    /// The values, where they are not stored; zero in the place of a code that stands for none.
    pub fn fixed(self) -> Option<Vec<f32>> {
        match self {
            Self::Stored(_) => None,
            Self::Fixed(float) => Some(float.book()),
            Self::Table(table) => Some(table.book()),
        }
    }

    /// Whether a code of a fixed book stands for a number.
    fn is_number(self, code: u8) -> bool {
        match self {
            Self::Stored(_) => true,
            Self::Fixed(float) => float.is_number(code),
            Self::Table(table) => usize::from(code) < table.levels().len(),
        }
    }

    /// What is stored for a row of `cols` codes of so many bits: symbols, and the bits of each.
    pub fn symbols(self, bits: u8, grouping: Option<Grouping>, cols: usize) -> (usize, u8) {
        match self {
            Self::Table(table) => table.symbols(grouping, cols),
            Self::Stored(_) | Self::Fixed(_) => (cols, bits),
        }
    }

    /// Exact size of so many books of codes of so many bits.
    pub(crate) fn bits(self, books: usize, bits: u8) -> u64 {
        match self {
            Self::Stored(float) => ((books as u64) << bits) * float.bits(),
            Self::Fixed(_) | Self::Table(_) => 0,
        }
    }

    /// Type of the floats that are stored; of their values where none are.
    pub(crate) fn float(self) -> FloatType {
        match self {
            Self::Stored(float) => float,
            Self::Fixed(_) | Self::Table(_) => FloatType::F32,
        }
    }

    /// Refuses a fixed book that codes of so many bits do not look up.
    pub(crate) fn check(self, bits: u8, book_per_row: bool) -> Result<(), WeightError> {
        let (name, width) = match self {
            Self::Stored(_) => return Ok(()),
            Self::Fixed(float) => (format!("{float:?}"), float.bits()),
            Self::Table(table) => (format!("{table:?}"), table.bits()),
        };
        let what = match (self, book_per_row) {
            (Self::Fixed(SmallFloat::E8M0), _) => {
                "e8m0 is a type of scales, not of weights".to_owned()
            }
            (_, true) => format!("the numbers of {name} are one book, not one a row"),
            _ if width != bits => format!("{bits} bits a code, where {name} has {width}"),
            _ => return Ok(()),
        };
        Err(WeightError::Outline { term: TERM, what })
    }
}

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
    /// Storage of the books.
    pub book_type: BookType,
}

impl Lookup {
    /// Codes of a small float, in groups with a scale each.
    pub fn of_small_floats(
        float: SmallFloat,
        codes: Vec<u8>,
        grouping: Grouping,
        scales: GroupFloats,
    ) -> Self {
        Self {
            bits: float.bits(),
            codes,
            books: float.book(),
            book_per_row: false,
            scales: Some((grouping, scales)),
            book_type: BookType::Fixed(float),
        }
    }

    /// Codes of a table, in groups with a scale each.
    pub fn of_table(table: Table, codes: Vec<u8>, grouping: Grouping, scales: GroupFloats) -> Self {
        Self {
            bits: table.bits(),
            codes,
            books: table.book(),
            book_per_row: false,
            scales: Some((grouping, scales)),
            book_type: BookType::Table(table),
        }
    }

    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Lookup {
            bits: self.bits,
            grouping: self.scales.as_ref().map(|(grouping, _)| *grouping),
            book_per_row: self.book_per_row,
            books: self.book_type,
            scales: match &self.scales {
                Some((_, scales)) => scales.kind(),
                None => GroupType::Plain(self.book_type.float()),
            },
        }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        let books = if self.book_per_row { rows } else { 1 };
        check_length(TERM, "codes", self.codes.len(), rows * cols)?;
        check_length(TERM, "books", self.books.len(), books << self.bits)?;
        check_finite(TERM, "books", &self.books)?;
        check_codes(TERM, "codes", &self.codes, self.bits)?;
        if let Some(book) = self.book_type.fixed() {
            self.check_fixed(&book)?;
        }
        if let Some((grouping, scales)) = &self.scales {
            scales.validate(TERM, GroupNames::SCALES, *grouping, rows, cols)?;
        }
        Ok(())
    }

    /// The book is that of the type, and every code stands for a number.
    fn check_fixed(&self, book: &[f32]) -> Result<(), WeightError> {
        if let Some(code) = (0..book.len()).find(|code| self.books[*code] != book[*code]) {
            let what = format!("code {code} of the book is not that of {:?}", self.book_type);
            return Err(WeightError::Outline { term: TERM, what });
        }
        match self.codes.iter().position(|code| !self.book_type.is_number(*code)) {
            Some(index) => Err(WeightError::NotFinite { term: TERM, part: "codes", index }),
            None => Ok(()),
        }
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
        let grouping = self.scales.as_ref().map(|(grouping, _)| *grouping);
        let mut parts = vec![match self.book_type {
            BookType::Table(table) => {
                let (per_row, bits) = table.symbols(grouping, cols);
                Part::codes("codes", &table.pack(grouping, cols, &self.codes), per_row, bits)
            }
            _ => Part::codes("codes", &self.codes, cols, self.bits),
        }];
        if let BookType::Stored(float) = self.book_type {
            parts.push(Part::floats("books", float, vec![books, 1 << self.bits], &self.books));
        }
        if let Some((grouping, scales)) = &self.scales {
            parts.extend(scales.parts(GroupNames::SCALES, *grouping, rows, cols));
        }
        parts
    }

    pub(crate) fn from_parts(
        bits: u8,
        grouping: Option<Grouping>,
        book_per_row: bool,
        (books, scales): (BookType, GroupType),
        (rows, cols): (usize, usize),
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let read = |grouping| {
            let names = GroupNames::SCALES;
            GroupFloats::from_parts(scales, names, grouping, (rows, cols), parts)
        };
        let (per_row, symbol_bits) = books.symbols(bits, grouping, cols);
        let symbols = parts.codes("codes", per_row, symbol_bits)?;
        Ok(Self {
            bits,
            codes: match books {
                BookType::Table(table) => table.unpack(grouping, cols, &symbols),
                _ => symbols,
            },
            books: match books {
                BookType::Stored(float) => parts.floats("books", float)?,
                BookType::Fixed(float) => float.book(),
                BookType::Table(table) => table.book(),
            },
            book_per_row,
            scales: match grouping {
                None => None,
                Some(grouping) => Some((grouping, read(grouping)?)),
            },
            book_type: books,
        })
    }
}
