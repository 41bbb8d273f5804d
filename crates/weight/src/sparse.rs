//! Values at explicit places: a few outliers beside a grid, or what pruning has left of a matrix.

use crate::part::Parts;
use crate::term::{check_finite, check_length};
use crate::{FloatType, Part, TermOutline, WeightError};
use lapidary_kernels::pack::Layout;
use serde::{Deserialize, Serialize};

const TERM: &str = "sparse";

/// `W[r, columns[i]] = values[i]` for `i` in `row_starts[r]..row_starts[r + 1]`, zero elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Sparse {
    /// `rows + 1` offsets into `columns` and `values`, from 0, not decreasing.
    pub row_starts: Vec<u32>,
    /// Column of each value; rising within a row, unless the places are [listed](Places::Listed).
    pub columns: Vec<u32>,
    /// The values, representable in `dtype`.
    pub values: Vec<f32>,
    /// Storage type of the values.
    pub dtype: FloatType,
    /// How the places are stored.
    pub places: Places,
}

/// How the places of the values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Places {
    /// The column of each value in 32 bits, and where each row starts.
    #[default]
    Listed,
    /// A bit for each element of the matrix.
    Bitmap,
    /// As many values in each run of columns, each with its index in the run: N:M sparsity.
    Groups {
        /// Columns of a run, from 2 to 64; they divide the columns of the matrix.
        width: u8,
        /// Values in each.
        kept: u8,
    },
}

impl Places {
    pub(crate) fn is_listed(&self) -> bool {
        *self == Self::Listed
    }

    /// The storage of fewest bits for so many values, `groups` (width and values) among them where
    /// they have that pattern. Of equals, the pattern, then the bitmap.
    pub fn smallest(rows: usize, cols: usize, nonzeros: usize, groups: Option<(u8, u8)>) -> Self {
        let groups = groups.map(|(width, kept)| Self::Groups { width, kept });
        let all = groups.into_iter().chain([Self::Bitmap, Self::Listed]);
        let smallest = all.min_by_key(|places| places.bits(rows, cols, nonzeros));
        smallest.unwrap_or_default()
    }

    /// Exact size of the places alone, in bits.
    pub fn bits(self, rows: usize, cols: usize, nonzeros: usize) -> u64 {
        let words = match self {
            Self::Listed => nonzeros + listed_rows(nonzeros, rows),
            Self::Bitmap => Layout::Dense.words(rows * cols, 1),
            Self::Groups { width, .. } => Layout::Dense.words(nonzeros, index_bits(width).into()),
        };
        32 * words as u64
    }

    /// The arrays of 32-bit words that hold the places, and their lengths.
    pub fn parts(self, rows: usize, cols: usize, nonzeros: usize) -> Vec<(&'static str, usize)> {
        match self {
            Self::Listed => {
                let name = if stores_rows(nonzeros, rows) { "rows" } else { "row_starts" };
                vec![(name, listed_rows(nonzeros, rows)), ("columns", nonzeros)]
            }
            Self::Bitmap => vec![("bitmap", Layout::Dense.words(rows * cols, 1))],
            Self::Groups { width, .. } => {
                vec![("indices", Layout::Dense.words(nonzeros, index_bits(width).into()))]
            }
        }
    }

    /// Refuses runs that are none, or not of this matrix.
    pub(crate) fn check(
        self,
        rows: usize,
        cols: usize,
        nonzeros: usize,
    ) -> Result<(), WeightError> {
        let Self::Groups { width, kept } = self else { return Ok(()) };
        let (wide, many) = (usize::from(width), usize::from(kept));
        let fits = (2..=64).contains(&width) && many < wide && many > 0;
        if fits && cols.is_multiple_of(wide) && nonzeros == rows * (cols / wide) * many {
            return Ok(());
        }
        let what = format!(
            "{nonzeros} values are not {kept} of every {width} columns of [{rows}, {cols}]"
        );
        Err(WeightError::Outline { term: TERM, what })
    }
}

/// Bits of an index within a run.
fn index_bits(width: u8) -> u8 {
    (u8::BITS - width.saturating_sub(1).leading_zeros()) as u8
}

/// Whether a row is stored with each value: with few of them that is less than where each row starts.
fn stores_rows(nonzeros: usize, rows: usize) -> bool {
    nonzeros < rows + 1
}

/// Words that say the rows of listed places.
fn listed_rows(nonzeros: usize, rows: usize) -> usize {
    if stores_rows(nonzeros, rows) { nonzeros } else { rows + 1 }
}

impl Sparse {
    /// What is left of a row-major matrix `[rows, cols]` where `kept` says so, each rounded to
    /// `dtype`. A kept zero is stored as one.
    pub fn of_kept(
        values: &[f32],
        kept: &[bool],
        cols: usize,
        dtype: FloatType,
        places: Places,
    ) -> Self {
        let mut sparse =
            Self { row_starts: vec![0], columns: vec![], values: vec![], dtype, places };
        let rows = values.chunks_exact(cols.max(1)).zip(kept.chunks_exact(cols.max(1)));
        for (values, kept) in rows {
            for (column, value) in values.iter().enumerate().filter(|(column, _)| kept[*column]) {
                sparse.columns.push(column as u32);
                sparse.values.push(dtype.round(*value));
            }
            sparse.row_starts.push(sparse.values.len() as u32);
        }
        sparse
    }

    pub(crate) fn outline(&self) -> TermOutline {
        let (nonzeros, places) = (self.values.len(), self.places);
        TermOutline::Sparse { nonzeros, values: self.dtype, places }
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
        let range = |value: u64, limit: u64| {
            Err(WeightError::Range { term: TERM, part: "columns", value, limit })
        };
        if let Some(value) = self.columns.iter().map(|c| u64::from(*c)).max()
            && value >= cols as u64
        {
            return range(value, cols as u64);
        }
        self.places.check(rows, cols, self.values.len())?;
        if self.places.is_listed() {
            return Ok(());
        }
        for columns in self.rows() {
            if let Some(pair) = columns.windows(2).find(|pair| pair[0] >= pair[1]) {
                return range(u64::from(pair[0]), u64::from(pair[1]));
            }
        }
        self.check_groups(cols)
    }

    /// Each run of columns must have its number of values.
    fn check_groups(&self, cols: usize) -> Result<(), WeightError> {
        let Places::Groups { width, kept } = self.places else { return Ok(()) };
        let (width, kept) = (usize::from(width), usize::from(kept));
        for columns in self.rows() {
            check_length(TERM, "columns", columns.len(), cols / width * kept)?;
            for (group, columns) in columns.chunks_exact(kept).enumerate() {
                let own = group * width..(group + 1) * width;
                if let Some(column) = columns.iter().find(|c| !own.contains(&(**c as usize))) {
                    let (value, limit) = (u64::from(*column), own.end as u64);
                    return Err(WeightError::Range { term: TERM, part: "columns", value, limit });
                }
            }
        }
        Ok(())
    }

    /// The columns of each row.
    fn rows(&self) -> impl Iterator<Item = &[u32]> {
        let ends = self.row_starts.windows(2);
        ends.map(|pair| &self.columns[pair[0] as usize..pair[1] as usize])
    }

    pub(crate) fn add_row(&self, row: usize, out: &mut [f32]) {
        let range = self.row_starts[row] as usize..self.row_starts[row + 1] as usize;
        for (column, value) in self.columns[range.clone()].iter().zip(&self.values[range]) {
            out[*column as usize] += value;
        }
    }

    pub(crate) fn parts(&self, rows: usize, cols: usize) -> Vec<Part> {
        let mut parts = match self.places {
            Places::Listed => {
                let of_rows = match stores_rows(self.values.len(), rows) {
                    true => Part::indices("rows", &self.row_of_each()),
                    false => Part::indices("row_starts", &self.row_starts),
                };
                vec![of_rows, Part::indices("columns", &self.columns)]
            }
            Places::Bitmap => {
                let mut bits = vec![0; rows * cols];
                for (bits, columns) in bits.chunks_exact_mut(cols.max(1)).zip(self.rows()) {
                    columns.iter().for_each(|column| bits[*column as usize] = 1);
                }
                vec![Part::stream("bitmap", &bits, 1)]
            }
            Places::Groups { width, .. } => {
                let index = |column: &u32| (column % u32::from(width)) as u8;
                let indices: Vec<u8> = self.columns.iter().map(index).collect();
                vec![Part::stream("indices", &indices, index_bits(width))]
            }
        };
        let shape = vec![self.values.len()];
        parts.push(Part::floats("values", self.dtype, shape, &self.values));
        parts
    }

    fn row_of_each(&self) -> Vec<u32> {
        let counts = self.row_starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize);
        let row = |(row, count)| std::iter::repeat_n(row as u32, count);
        counts.enumerate().flat_map(row).collect()
    }

    pub(crate) fn from_parts(
        (nonzeros, dtype, places): (usize, FloatType, Places),
        (rows, cols): (usize, usize),
        parts: &Parts<'_>,
    ) -> Result<Self, WeightError> {
        places.check(rows, cols, nonzeros)?;
        let (row_starts, columns) = match places {
            Places::Listed => {
                let row_starts = match stores_rows(nonzeros, rows) {
                    true => row_starts(&parts.indices("rows")?, rows)?,
                    false => parts.indices("row_starts")?,
                };
                (row_starts, parts.indices("columns")?)
            }
            Places::Bitmap => {
                let bits = parts.codes("bitmap", rows * cols, 1)?;
                check_length(TERM, "bitmap", bits.len(), rows * cols)?;
                of_bitmap(&bits, rows, cols)
            }
            Places::Groups { width, kept } => {
                let indices = parts.codes("indices", nonzeros, index_bits(width))?;
                check_length(TERM, "indices", indices.len(), nonzeros)?;
                let per_row = cols / usize::from(width) * usize::from(kept);
                let column = |(place, index): (usize, &u8)| {
                    (place % per_row / usize::from(kept) * usize::from(width)) as u32
                        + u32::from(*index)
                };
                let starts = (0..=rows).map(|row| (row * per_row) as u32).collect();
                (starts, indices.iter().enumerate().map(column).collect())
            }
        };
        let values = parts.floats("values", dtype)?;
        check_length(TERM, "values", values.len(), nonzeros)?;
        Ok(Self { row_starts, columns, values, dtype, places })
    }
}

/// Where rows start and the columns of their ones.
fn of_bitmap(bits: &[u8], rows: usize, cols: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut row_starts, mut columns) = (vec![0], vec![]);
    for row in 0..rows {
        let bits = &bits[row * cols..][..cols];
        let set = bits.iter().enumerate().filter(|(_, bit)| **bit == 1);
        columns.extend(set.map(|(column, _)| column as u32));
        row_starts.push(columns.len() as u32);
    }
    (row_starts, columns)
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
