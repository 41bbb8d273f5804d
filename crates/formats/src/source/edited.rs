//! A checkpoint seen through linear edits of its tensors: another model of the same function.

use super::{LogicalTensor, Source, check_finite};
use crate::FormatError;
use lapidary_weight::{Edit, Edits, InputRounding, TensorError, Tensors, edit, edit_rows};
use std::sync::Arc;

impl Source {
    /// The same checkpoint with these edits; edits it had before are forgotten.
    #[must_use]
    pub fn edited(&self, edits: Edits) -> Self {
        Self { edits: Arc::new(edits), ..self.again() }
    }

    /// Whether a tensor is edited.
    pub fn is_edited(&self, name: &str) -> bool {
        self.edits.contains_key(name)
    }

    /// Whether any tensor is.
    pub fn has_edits(&self) -> bool {
        !self.edits.is_empty()
    }

    /// All values of a tensor, which must be finite.
    pub(super) fn values(&self, logical: &LogicalTensor) -> Result<Vec<f32>, FormatError> {
        let mut values = self.unedited_values(logical)?;
        if let Some(edits) = self.edits.get(&logical.name) {
            self.edit(logical, edits, &mut values)?;
        }
        Ok(values)
    }

    /// Edits all values of a tensor.
    pub(super) fn edit(
        &self,
        logical: &LogicalTensor,
        edits: &[Edit],
        values: &mut [f32],
    ) -> Result<(), FormatError> {
        edit(edits, &logical.shape, values, &Unedited(self)).map_err(refused(logical))?;
        check_finite(&logical.name, values)
    }

    /// Rows of a matrix.
    pub(super) fn rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, FormatError> {
        let (Some(edits), logical) = (self.edits.get(name), self.require(name)?) else {
            return self.unedited_rows(name, rows);
        };
        let width = logical.shape.get(1).copied().unwrap_or(1);
        if self.is_read_by_rows(name) {
            let mut values = self.unedited_rows(name, rows)?;
            edit_rows(edits, rows, width, &mut values, &Unedited(self))
                .map_err(refused(logical))?;
            check_finite(name, &values)?;
            return Ok(values);
        }
        let whole = self.values(logical)?;
        Ok(rows.iter().flat_map(|row| &whole[*row as usize * width..][..width]).copied().collect())
    }

    /// Whether rows of a matrix can be had without the others.
    pub(super) fn is_read_by_rows(&self, name: &str) -> bool {
        self.edits.get(name).is_none_or(|edits| edits.iter().all(Edit::is_of_rows))
    }
}

fn refused(logical: &LogicalTensor) -> impl Fn(TensorError) -> FormatError {
    |error| FormatError::malformed(&logical.name, error.to_string())
}

/// A checkpoint without its edits: what they are made from.
struct Unedited<'a>(&'a Source);

impl Tensors for Unedited<'_> {
    fn input_rounding(&self, weight: &str) -> Option<InputRounding> {
        self.0.input_rounding(weight)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        let values = self.0.require(name).and_then(|tensor| self.0.unedited_values(tensor));
        values.map_err(|error| TensorError(Box::new(error)))
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        self.0.unedited_rows(name, rows).map_err(|error| TensorError(Box::new(error)))
    }
}
