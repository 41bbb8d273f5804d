//! The kinds of terms. A new kind is one file, one arm here, and one [`TermOutline`] variant.

use crate::part::Parts;
use crate::{
    Affine, Columns, Dense, Lookup, LowRank, Part, Planes, Sparse, TermOutline, Trellis,
    WeightError,
};

/// One addend of a [`Weight`](crate::Weight).
#[derive(Debug, Clone, PartialEq)]
pub enum Term {
    /// Plain floats.
    Dense(Dense),
    /// `scale · (code − zero)`.
    Affine(Affine),
    /// `scale · book[code]`.
    Lookup(Lookup),
    /// `Σ alpha · sign`.
    Planes(Planes),
    /// Values at explicit places.
    Sparse(Sparse),
    /// Some whole columns.
    Columns(Columns),
    /// `left · right`.
    LowRank(LowRank),
    /// Columns coded as sequences.
    Trellis(Trellis),
}

macro_rules! each {
    ($term:expr, $inner:ident => $result:expr) => {
        match $term {
            Term::Dense($inner) => $result,
            Term::Affine($inner) => $result,
            Term::Lookup($inner) => $result,
            Term::Planes($inner) => $result,
            Term::Sparse($inner) => $result,
            Term::Columns($inner) => $result,
            Term::LowRank($inner) => $result,
            Term::Trellis($inner) => $result,
        }
    };
}

impl Term {
    /// The term without its data.
    pub fn outline(&self) -> TermOutline {
        each!(self, term => term.outline())
    }

    /// The stored arrays, enough together with the outline to rebuild the term.
    pub fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        each!(self, term => term.parts(rows, cols))
    }

    /// Rebuilds a term of this outline from its parts; `get` finds a part's bytes by name.
    ///
    /// # Errors
    /// When a part is missing or does not fit the outline.
    pub fn from_parts(
        outline: &TermOutline,
        rows: usize,
        cols: usize,
        get: &dyn Fn(&str) -> Option<Vec<u8>>,
    ) -> Result<Self, WeightError> {
        outline.validate()?;
        let parts = Parts { term: outline.kind(), get };
        let shape = (rows, cols);
        let term = match *outline {
            TermOutline::Dense { values } => Self::Dense(Dense::from_parts(values, &parts)?),
            TermOutline::Affine { bits, grouping, zeros, scales } => {
                Self::Affine(Affine::from_parts(bits, grouping, zeros, scales, shape, &parts)?)
            }
            TermOutline::Lookup { bits, grouping, book_per_row, books, scales } => {
                let types = (books, scales);
                Self::Lookup(Lookup::from_parts(
                    bits,
                    grouping,
                    book_per_row,
                    types,
                    shape,
                    &parts,
                )?)
            }
            TermOutline::Planes { planes, grouping, offsets, scales } => {
                Self::Planes(Planes::from_parts(planes, grouping, offsets, scales, shape, &parts)?)
            }
            TermOutline::Sparse { nonzeros, values, places } => {
                Self::Sparse(Sparse::from_parts((nonzeros, values, places), shape, &parts)?)
            }
            TermOutline::Columns { count, values } => {
                Self::Columns(Columns::from_parts(count, values, &parts)?)
            }
            TermOutline::LowRank { rank, values } => {
                Self::LowRank(LowRank::from_parts(rank, values, &parts)?)
            }
            TermOutline::Trellis { row_bits, state_bits, strip } => {
                let shape = (row_bits, state_bits, strip);
                Self::Trellis(Trellis::from_parts(shape, rows, cols, &parts)?)
            }
        };
        term.validate(rows, cols)?;
        Ok(term)
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        self.outline().validate()?;
        each!(self, term => term.validate(rows, cols))
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        each!(self, term => term.add_row(row, out));
    }
}

/// Length check shared by the terms.
pub(crate) fn check_length(
    term: &'static str,
    part: &'static str,
    have: usize,
    need: usize,
) -> Result<(), WeightError> {
    if have == need { Ok(()) } else { Err(WeightError::Length { term, part, have, need }) }
}

/// Finiteness check shared by the terms.
pub(crate) fn check_finite(
    term: &'static str,
    part: &'static str,
    values: &[f32],
) -> Result<(), WeightError> {
    // Nearly always all are: a pass without branches first.
    let are_finite = values.iter().fold(true, |all, value| all & value.is_finite());
    match values.iter().position(|value| !are_finite && !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(WeightError::NotFinite { term, part, index }),
    }
}

/// Code range check shared by the terms that have codes.
pub(crate) fn check_codes(
    term: &'static str,
    part: &'static str,
    codes: &[u8],
    bits: u8,
) -> Result<(), WeightError> {
    let limit = 1_u64 << bits;
    match codes.iter().fold(0, |greatest: u8, code| greatest.max(*code)).into() {
        value if value >= limit => Err(WeightError::Range { term, part, value, limit }),
        _ => Ok(()),
    }
}
