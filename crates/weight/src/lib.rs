//! A weight is a sum of terms: `W = Σ term`, `W` of shape `[rows, cols]` (output × input features).
//!
//! Methods emit terms, formats say which sums they can store, kernels say which sums they can
//! multiply, and [`Weight::decode`] is the oracle of all three. An [`Outline`] is a weight without
//! its data: what a method promises before it runs, so that a plan can check a format and add up
//! sizes before any work is done.

mod affine;
mod columns;
mod dense;
mod edit;
mod float;
mod group_floats;
mod grouping;
mod inputs;
mod lookup;
mod low_rank;
mod outline;
mod part;
mod planes;
mod restate;
mod small_float;
mod sparse;
mod table;
mod tensors;
mod term;
mod trellis;

pub use affine::{Affine, Zeros};
pub use columns::Columns;
pub use dense::Dense;
pub use edit::{Edit, Edited, Edits, edit, edit_rows};
pub use float::FloatType;
pub use group_floats::{
    GroupFloats, GroupNames, GroupType, Levels, Origin, Runs, SmallCodes, TwoLevel,
};
pub use grouping::Grouping;
pub use inputs::{InputNumbers, InputRounding, InputScales};
pub use lookup::{BookType, Lookup};
pub use low_rank::LowRank;
pub use outline::{Outline, TermOutline, ZeroType};
pub use part::{Part, PartType};
pub use planes::Planes;
pub use restate::{Restatement, restatements};
pub use small_float::SmallFloat;
pub use sparse::{Places, Sparse};
pub use table::Table;
pub use tensors::{TensorError, Tensors};
pub use term::Term;
pub use trellis::Trellis;

/// What can be wrong with a weight; `Display` names the term and the numbers that disagree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// A part of a term does not have the length its shape asks for.
    #[error("{term} term: {part} has {have} elements where {need} are needed")]
    Length {
        /// Kind of the term.
        term: &'static str,
        /// Name of the part.
        part: &'static str,
        /// Elements found.
        have: usize,
        /// Elements needed.
        need: usize,
    },
    /// A code is outside the range of its bit width, or an index outside the matrix.
    #[error("{term} term: {part} holds {value}, which is not below {limit}")]
    Range {
        /// Kind of the term.
        term: &'static str,
        /// Name of the part.
        part: &'static str,
        /// The offending value.
        value: u64,
        /// The exclusive upper bound.
        limit: u64,
    },
    /// A scale, value or factor is NaN or infinite.
    #[error("{term} term: {part} is not finite at element {index}")]
    NotFinite {
        /// Kind of the term.
        term: &'static str,
        /// Name of the part.
        part: &'static str,
        /// Index of the first such element.
        index: usize,
    },
    /// A part that the outline of a term asks for is absent.
    #[error("{term} term: part {part} is missing")]
    MissingPart {
        /// Kind of the term.
        term: &'static str,
        /// Name of the part.
        part: &'static str,
    },
    /// A field of an outline is outside what the term can hold.
    #[error("{term} term: {what}")]
    Outline {
        /// Kind of the term.
        term: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// The weight of one linear layer, `[rows, cols]`, as a sum of terms.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    rows: usize,
    cols: usize,
    terms: Vec<Term>,
}

impl Weight {
    /// Checks every term against the shape.
    ///
    /// # Errors
    /// When a term's parts do not fit the shape, a code is out of range, or a number is not finite.
    pub fn new(rows: usize, cols: usize, terms: Vec<Term>) -> Result<Self, WeightError> {
        for term in &terms {
            term.validate(rows, cols)?;
        }
        Ok(Self { rows, cols, terms })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The terms, in the order they are added.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The whole matrix, row-major `[rows, cols]`.
    pub fn decode(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        if self.cols > 0 {
            for (row, out) in values.chunks_exact_mut(self.cols).enumerate() {
                self.add_row(row, out);
            }
        }
        values
    }

    /// Adds row `row` of the sum onto `out`, which has `cols` elements.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        for term in &self.terms {
            term.add_row(row, out);
        }
    }

    /// The same weight without its data.
    pub fn outline(&self) -> Outline {
        Outline {
            rows: self.rows,
            cols: self.cols,
            terms: self.terms.iter().map(Term::outline).collect(),
        }
    }

    /// Exact size of everything stored, in bits: codes, scales, zero points, indices, codebooks.
    pub fn bits(&self) -> u64 {
        self.outline().bits()
    }
}

#[cfg(test)]
mod tests;
