//! A product of two thin matrices: SVD, and corrections of a quantization error.

use crate::part::Parts;
use crate::term::{check_finite, check_length};
use crate::{FloatType, Part, TermOutline, WeightError};

const TERM: &str = "low-rank";

/// `W[r, c] = Σ_k left[r, k] · right[k, c]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Inner dimension.
    pub rank: usize,
    /// Row-major `[rows, rank]`.
    pub left: Vec<f32>,
    /// Row-major `[rank, cols]`.
    pub right: Vec<f32>,
    /// Storage type of both.
    pub dtype: FloatType,
}

impl LowRank {
    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::LowRank { rank: self.rank, values: self.dtype }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        check_length(TERM, "left", self.left.len(), rows * self.rank)?;
        check_length(TERM, "right", self.right.len(), self.rank * cols)?;
        check_finite(TERM, "left", &self.left)?;
        check_finite(TERM, "right", &self.right)
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let left = &self.left[row * self.rank..][..self.rank];
        for (factor, right) in left.iter().zip(self.right.chunks_exact(out.len().max(1))) {
            out.iter_mut().zip(right).for_each(|(o, v)| *o += factor * v);
        }
    }

    pub(crate) fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        vec![
            Part::floats("left", self.dtype, vec![rows, self.rank], &self.left),
            Part::floats("right", self.dtype, vec![self.rank, cols], &self.right),
        ]
    }

    pub(crate) fn from_parts(
        rank: usize,
        dtype: FloatType,
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        Ok(Self {
            rank,
            left: parts.floats("left", dtype)?,
            right: parts.floats("right", dtype)?,
            dtype,
        })
    }
}
