//! Plain floats.

use crate::part::Parts;
use crate::term::{check_finite, check_length};
use crate::{FloatType, Part, TermOutline, WeightError};

const TERM: &str = "dense";

/// `W[r, c] = values[r · cols + c]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Row-major values, representable in `dtype`.
    pub values: Vec<f32>,
    /// Storage type.
    pub dtype: FloatType,
}

impl Dense {
    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Dense { values: self.dtype }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        check_length(TERM, "values", self.values.len(), rows * cols)?;
        check_finite(TERM, "values", &self.values)
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let values = &self.values[row * out.len()..][..out.len()];
        out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
    }

    pub(crate) fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        vec![Part::floats("values", self.dtype, vec![rows, cols], &self.values)]
    }

    pub(crate) fn from_parts(dtype: FloatType, parts: &Parts<'_>) -> Result<Self, WeightError> {
        Ok(Self { values: parts.floats("values", dtype)?, dtype })
    }
}
