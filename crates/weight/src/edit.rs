//! Linear edits of tensors, applied as they are read: how a model is rewritten without a copy of it.

use crate::{InputRounding, TensorError, Tensors};
use lapidary_kernels::hadamard::Rotation;
use lapidary_kernels::matrix::{PackedMatrix, Precision};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A linear change of one tensor: a matrix `W` of `[rows, cols]`, or a vector, which counts as a
/// matrix of one column.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// `W[·, j] ← W[·, j] · s_j`.
    ScaleColumns(Arc<[f32]>),
    /// `W[i, ·] ← W[i, ·] · s_i`.
    ScaleRows(Arc<[f32]>),
    /// `W[·, j] ← W[·, j] · (g_j + offset)`, with the vector of a name as it is without edits.
    FoldGain {
        /// The vector.
        gain: String,
        /// Added to its values.
        offset: f32,
    },
    /// `W ← W Q`, for each run of `Q`'s width along the columns.
    RotateColumns(Arc<Rotation>),
    /// `W ← Qᵀ W`, for each run of `Q`'s width along the rows.
    RotateRows(Arc<Rotation>),
    /// `W ← W Bᵀ`: each row in a basis whose vectors are the rows of `B`, square.
    TurnColumns(Arc<[f32]>),
    /// `W ← B W`: each column in that basis.
    TurnRows(Arc<[f32]>),
    /// `W ← value`, every element.
    Fill(f32),
    /// These values instead.
    Replace(Arc<[f32]>),
}

impl Edit {
    /// Whether a row of the result needs no other row.
    pub fn is_of_rows(&self) -> bool {
        !matches!(self, Self::RotateRows(_) | Self::TurnRows(_))
    }

    /// Changes some rows of a matrix, `numbers` in the whole.
    fn apply(
        &self,
        numbers: &mut dyn Iterator<Item = usize>,
        cols: usize,
        values: &mut [f32],
        tensors: &dyn Tensors,
    ) -> Result<(), TensorError> {
        let cols = cols.max(1);
        let scale = |values: &mut [f32], scales: &[f32]| {
            for row in values.chunks_exact_mut(cols) {
                row.iter_mut().zip(scales).for_each(|(value, scale)| *value *= scale);
            }
        };
        match self {
            Self::ScaleColumns(scales) => scale(values, scales),
            Self::FoldGain { gain, offset } => {
                let mut gains = tensors.read(gain)?;
                gains.iter_mut().for_each(|gain| *gain += offset);
                scale(values, &gains);
            }
            Self::ScaleRows(scales) => {
                for (row, number) in values.chunks_exact_mut(cols).zip(numbers) {
                    row.iter_mut().for_each(|value| *value *= scales[number]);
                }
            }
            Self::RotateColumns(rotation) => rotation.apply(values),
            Self::RotateRows(rotation) => {
                let mut columns = transposed(values, cols);
                rotation.apply(&mut columns);
                values.copy_from_slice(&transposed(&columns, values.len() / cols));
            }
            Self::TurnColumns(basis) => turn(values, basis),
            Self::TurnRows(basis) => {
                let mut columns = transposed(values, cols);
                turn(&mut columns, basis);
                values.copy_from_slice(&transposed(&columns, values.len() / cols));
            }
            Self::Fill(value) => values.fill(*value),
            Self::Replace(whole) => {
                for (row, number) in values.chunks_exact_mut(cols).zip(numbers) {
                    row.copy_from_slice(&whole[number * cols..][..cols]);
                }
            }
        }
        Ok(())
    }
}

/// Each row, of the basis' width, in the basis.
fn turn(values: &mut [f32], basis: &[f32]) {
    let width = basis.len().isqrt();
    let matrix = PackedMatrix::new(basis, width, width, Precision::F32);
    let rows = values.len() / width.max(1);
    let mut turned = vec![0.0; values.len()];
    matrix.multiply(values, rows, None, &mut turned);
    values.copy_from_slice(&turned);
}

/// Columns as rows.
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let column = |column: usize| values.iter().skip(column).step_by(cols.max(1)).copied();
    (0..cols).flat_map(column).collect()
}

/// Edits by tensor, each tensor's in the order they are applied.
pub type Edits = BTreeMap<String, Vec<Edit>>;

/// Applies all edits of a tensor to all its values.
///
/// # Errors
/// When a gain that is folded cannot be read.
pub fn edit(
    edits: &[Edit],
    shape: &[usize],
    values: &mut [f32],
    tensors: &dyn Tensors,
) -> Result<(), TensorError> {
    let (rows, cols) = sides(shape);
    edits.iter().try_for_each(|edit| edit.apply(&mut (0..rows), cols, values, tensors))
}

/// Applies edits that are each [of rows](Edit::is_of_rows) to some rows of a matrix.
///
/// # Errors
/// When a gain that is folded cannot be read.
pub fn edit_rows(
    edits: &[Edit],
    rows: &[u32],
    cols: usize,
    values: &mut [f32],
    tensors: &dyn Tensors,
) -> Result<(), TensorError> {
    let numbers = || rows.iter().map(|row| *row as usize);
    edits.iter().try_for_each(|edit| edit.apply(&mut numbers(), cols, values, tensors))
}

/// Rows and columns of a matrix or a vector.
fn sides(shape: &[usize]) -> (usize, usize) {
    match shape {
        [rows, rest @ ..] if !rest.is_empty() => (*rows, rest.iter().product()),
        [rows] => (*rows, 1),
        _ => (1, 1),
    }
}

/// Tensors seen through edits.
pub struct Edited<'a> {
    tensors: &'a dyn Tensors,
    edits: Edits,
}

impl<'a> Edited<'a> {
    /// These tensors with these edits; no tensor is added.
    pub fn new(tensors: &'a dyn Tensors, edits: Edits) -> Self {
        Self { tensors, edits }
    }

    /// The edits.
    pub fn edits(&self) -> &Edits {
        &self.edits
    }
}

impl Tensors for Edited<'_> {
    fn input_rounding(&self, weight: &str) -> Option<InputRounding> {
        self.tensors.input_rounding(weight)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.shape(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        let mut values = self.tensors.read(name)?;
        if let (Some(edits), Some(shape)) = (self.edits.get(name), self.shape(name)) {
            edit(edits, &shape, &mut values, self.tensors)?;
        }
        Ok(values)
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        let (Some(edits), Some(&[_, cols])) = (self.edits.get(name), self.shape(name).as_deref())
        else {
            return self.tensors.read_rows(name, rows);
        };
        if edits.iter().all(Edit::is_of_rows) {
            let mut values = self.tensors.read_rows(name, rows)?;
            edit_rows(edits, rows, cols, &mut values, self.tensors)?;
            return Ok(values);
        }
        let whole = self.read(name)?;
        Ok(rows.iter().flat_map(|row| &whole[*row as usize * cols..][..cols]).copied().collect())
    }
}
