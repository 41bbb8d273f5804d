//! A checkpoint of which a part stays: some tensors are gone, some have other names, of some only rows
//! and columns are left.

use super::logical::Storage;
use super::{LogicalTensor, Source};
use crate::FormatError;
use lapidary_weight::Edit;
use serde_json::Value;
use std::sync::Arc;

/// A tensor of the smaller model.
#[derive(Debug, Clone)]
pub struct Selected {
    /// Its name there.
    pub name: String,
    /// The tensor it is, or is a part of.
    pub of: String,
    /// The rows that stay, or elements of a vector; all where nothing is said.
    pub rows: Option<Vec<u32>>,
    /// The columns that stay.
    pub columns: Option<Vec<u32>>,
}

/// A part of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) of: Box<LogicalTensor>,
    /// What the tensor was edited by before it was cut.
    pub(super) edits: Vec<Edit>,
    pub(super) rows: Option<Arc<[u32]>>,
    pub(super) columns: Option<Arc<[u32]>>,
}

impl Part {
    fn shape(&self) -> Vec<usize> {
        let kept = [&self.rows, &self.columns].map(|kept| kept.as_ref().map(|kept| kept.len()));
        let sizes = self.of.shape.iter().enumerate();
        sizes.map(|(axis, size)| kept.get(axis).copied().flatten().unwrap_or(*size)).collect()
    }

    /// Whether a row of it is a row of the tensor, to be had without the others.
    pub(super) fn is_of_rows(&self) -> bool {
        self.rows.is_none() && self.edits.is_empty() && !self.of.is_transposed()
    }

    /// What stays of rows of the whole tensor's width.
    pub(super) fn columns_of(&self, values: Vec<f32>) -> Vec<f32> {
        let (Some(columns), Some(width)) = (&self.columns, self.of.shape.get(1)) else {
            return values;
        };
        let row =
            |row: &[f32]| columns.iter().map(|column| row[*column as usize]).collect::<Vec<_>>();
        values.chunks_exact((*width).max(1)).flat_map(row).collect()
    }

    /// What stays of all values of the tensor.
    pub(super) fn values_of(&self, values: Vec<f32>) -> Vec<f32> {
        let width: usize = self.of.shape.iter().skip(1).product();
        let values = match &self.rows {
            Some(rows) => {
                let row = |row: &u32| values[*row as usize * width..][..width].to_vec();
                rows.iter().flat_map(row).collect()
            }
            None => values,
        };
        self.columns_of(values)
    }
}

impl Source {
    /// The same checkpoint with another configuration, of which these tensors stay; those that are
    /// `removed`, with the reason, are told with the ones that stood for nothing before. Edits it has
    /// are kept within the tensors that stay.
    ///
    /// # Errors
    /// When there is no tensor of a name, or it is no matrix or vector of which a part could stay.
    pub fn cut(
        &self,
        config: Value,
        selected: Vec<Selected>,
        removed: Vec<(String, String)>,
    ) -> Result<Self, FormatError> {
        let mut tensors = Vec::with_capacity(selected.len());
        for Selected { name, of, rows, columns } in selected {
            let tensor = self.require(&of)?.clone();
            let edits = self.edits.get(&of).cloned().unwrap_or_default();
            if rows.is_none() && columns.is_none() && edits.is_empty() {
                tensors.push(LogicalTensor { name, ..tensor });
                continue;
            }
            let fits = |kept: &Option<Vec<u32>>, axis: usize| {
                let size = tensor.shape.get(axis).copied().unwrap_or(0);
                kept.iter().flatten().all(|index| (*index as usize) < size)
            };
            if !(fits(&rows, 0) && fits(&columns, 1)) || tensor.shape.len() > 2 {
                let what = format!("has shape {:?}, of which no such part can stay", tensor.shape);
                return Err(FormatError::malformed(of, what));
            }
            let (rows, columns) = (rows.map(Arc::from), columns.map(Arc::from));
            let part = Part { of: Box::new(tensor), edits, rows, columns };
            tensors.push(LogicalTensor { name, shape: part.shape(), storage: Storage::Part(part) });
        }
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let mut consumed = self.consumed.clone();
        consumed.extend(removed);
        let edits = Arc::default();
        Ok(Self { config, tensors, by_name, consumed, edits, is_cut: true, ..self.again() })
    }

    /// Whether a part of it was left away.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }
}
