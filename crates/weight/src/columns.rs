//! Some whole columns in plain floats: inputs too important for a few bits.

use crate::part::Parts;
use crate::term::{check_finite, check_length};
use crate::{FloatType, Part, TermOutline, WeightError};

const TERM: &str = "columns";

/// `W[r, columns[i]] = values[r, i]`, zero elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    /// The columns, each below the width of the matrix.
    pub columns: Vec<u32>,
    /// Row-major `[rows, columns.len()]`, representable in `dtype`.
    pub values: Vec<f32>,
    /// Storage type of the values.
    pub dtype: FloatType,
}

impl Columns {
    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Columns { count: self.columns.len(), values: self.dtype }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        check_length(TERM, "values", self.values.len(), rows * self.columns.len())?;
        check_finite(TERM, "values", &self.values)?;
        match self.columns.iter().map(|column| u64::from(*column)).max() {
            Some(value) if value >= cols as u64 => {
                Err(WeightError::Range { term: TERM, part: "columns", value, limit: cols as u64 })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let count = self.columns.len();
        for (column, value) in self.columns.iter().zip(&self.values[row * count..]) {
            out[*column as usize] += value;
        }
    }

    pub(crate) fn parts(&self, rows: usize, _cols: usize) -> Vec<Part> {
        let shape = vec![rows, self.columns.len()];
        vec![
            Part::indices("columns", &self.columns),
            Part::floats("values", self.dtype, shape, &self.values),
        ]
    }

    pub(crate) fn from_parts(
        count: usize,
        dtype: FloatType,
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let columns = parts.indices("columns")?;
        check_length(TERM, "columns", columns.len(), count)?;
        Ok(Self { columns, values: parts.floats("values", dtype)?, dtype })
    }
}
