//! A few values at explicit places, in compressed rows: SpQR's outliers, pruned matrices.

use crate::part::Parts;
use crate::term::{check_finite, check_length};
use crate::{FloatType, Part, TermOutline, WeightError};

const TERM: &str = "sparse";

/// `W[r, columns[i]] = values[i]` for `i` in `row_starts[r]..row_starts[r + 1]`, zero elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Sparse {
    /// `rows + 1` offsets into `columns` and `values`, from 0, not decreasing.
    pub row_starts: Vec<u32>,
    /// Column of each value.
    pub columns: Vec<u32>,
    /// The values, representable in `dtype`.
    pub values: Vec<f32>,
    /// Storage type of the values.
    pub dtype: FloatType,
}

impl Sparse {
    pub(crate) fn outline(&self) -> TermOutline {
        TermOutline::Sparse { nonzeros: self.values.len(), values: self.dtype }
    }

    pub(crate) fn validate(&self, rows: usize, cols: usize) -> Result<(), WeightError> {
        check_length(TERM, "row_starts", self.row_starts.len(), rows + 1)?;
        check_length(TERM, "columns", self.columns.len(), self.values.len())?;
        check_finite(TERM, "values", &self.values)?;
        let limit = self.values.len() as u64 + 1;
        let last = self.row_starts.last().map_or(0, |last| *last as usize);
        check_length(TERM, "values", self.values.len(), last)?;
        let mut before = 0;
        for start in &self.row_starts {
            if *start < before || u64::from(*start) >= limit {
                let value = u64::from(*start);
                return Err(WeightError::Range { term: TERM, part: "row_starts", value, limit });
            }
            before = *start;
        }
        match self.columns.iter().map(|c| u64::from(*c)).max() {
            Some(value) if value >= cols as u64 => {
                Err(WeightError::Range { term: TERM, part: "columns", value, limit: cols as u64 })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let range = self.row_starts[row] as usize..self.row_starts[row + 1] as usize;
        for (column, value) in self.columns[range.clone()].iter().zip(&self.values[range]) {
            out[*column as usize] += value;
        }
    }

    /// Whether a row is stored with each value: with few of them that is less than where each row
    /// starts.
    pub fn stores_rows(nonzeros: usize, rows: usize) -> bool {
        nonzeros < rows + 1
    }

    pub(crate) fn parts(&self, rows: usize, _cols: usize) -> Vec<Part> {
        let places = match Self::stores_rows(self.values.len(), rows) {
            true => Part::indices("rows", &self.row_of_each()),
            false => Part::indices("row_starts", &self.row_starts),
        };
        vec![
            places,
            Part::indices("columns", &self.columns),
            Part::floats("values", self.dtype, vec![self.values.len()], &self.values),
        ]
    }

    fn row_of_each(&self) -> Vec<u32> {
        let counts = self.row_starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
        let row = |(row, count)| std::iter::repeat_n(row as u32, count);
        counts.enumerate().flat_map(row).collect()
    }

    pub(crate) fn from_parts(
        nonzeros: usize,
        rows: usize,
        dtype: FloatType,
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        let row_starts = match Self::stores_rows(nonzeros, rows) {
            true => row_starts(&parts.indices("rows")?, rows)?,
            false => parts.indices("row_starts")?,
        };
        let (columns, values) = (parts.indices("columns")?, parts.floats("values", dtype)?);
        check_length(TERM, "values", values.len(), nonzeros)?;
        Ok(Self { row_starts, columns, values, dtype })
    }
}

/// Where each row starts, from the row of each value.
fn row_starts(of_each: &[u32], rows: usize) -> Result<Vec<u32>, WeightError> {
    let wrong = |row: u32, limit: u64| {
        let value = u64::from(row);
        Err(WeightError::Range { term: TERM, part: "rows", value, limit })
    };
    if let Some(row) = of_each.iter().find(|row| **row as usize >= rows) {
        return wrong(*row, rows as u64);
    }
    if let Some(pair) = of_each.windows(2).find(|pair| pair[0] > pair[1]) {
        return wrong(pair[0], u64::from(pair[1]) + 1);
    }
    let start = |row: usize| of_each.partition_point(|of| (*of as usize) < row) as u32;
    Ok((0..=rows).map(start).collect())
}
