//! Which elements of a matrix share one scale.

use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// Which elements of a matrix share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grouping {
    /// The whole matrix.
    Tensor,
    /// Each row (output feature).
    Row,
    /// Runs of this many columns within a row; the last run of a row may be shorter.
    Columns(NonZeroUsize),
    /// Rectangles; those at the lower and the right edge may be smaller.
    Blocks {
        /// Rows of a full block.
        rows: NonZeroUsize,
        /// Columns of a full block.
        columns: NonZeroUsize,
    },
}

impl Grouping {
    /// Columns of a full group in a matrix of `cols` columns.
    pub fn width(self, cols: usize) -> usize {
        match self {
            Self::Tensor | Self::Row => cols.max(1),
            Self::Columns(width) => width.get(),
            Self::Blocks { columns, .. } => columns.get(),
        }
    }

    /// Groups along one row.
    pub fn per_row(self, cols: usize) -> usize {
        cols.div_ceil(self.width(cols))
    }

    /// Groups of the whole matrix, the length of its scales.
    pub fn count(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => usize::from(rows * cols > 0),
            Self::Row | Self::Columns(_) => rows * self.per_row(cols),
            Self::Blocks { rows: height, .. } => rows.div_ceil(height.get()) * self.per_row(cols),
        }
    }

    /// Index of the first group of `row`; the groups of a row follow each other.
    pub fn row_start(self, row: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => 0,
            Self::Row | Self::Columns(_) => row * self.per_row(cols),
            Self::Blocks { rows: height, .. } => row / height.get() * self.per_row(cols),
        }
    }

    /// Shape of the array of scales.
    pub fn scale_shape(self, rows: usize, cols: usize) -> Vec<usize> {
        match self {
            Self::Tensor => vec![1],
            Self::Row | Self::Columns(_) => vec![rows, self.per_row(cols)],
            Self::Blocks { rows: height, .. } => {
                vec![rows.div_ceil(height.get()), self.per_row(cols)]
            }
        }
    }
}
