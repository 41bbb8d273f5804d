//! Where the numbers of a model come from, seen by those who compute with them.

use crate::InputRounding;
use std::error::Error;

/// Why a tensor could not be read: the error of whoever holds the bytes.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TensorError(#[from] pub Box<dyn Error + Send + Sync>);

/// A source of tensors by their Hugging Face names, decoded to `f32`.
///
/// A checkpoint of any format is one; so is a compressed folder, whose weights are decoded.
pub trait Tensors: Sync {
    /// Shape of a tensor, outermost dimension first, or `None` when there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// All values, row-major.
    ///
    /// # Errors
    /// When the tensor is absent, unreadable or holds a value that is not finite.
    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError>;

    /// The given rows of a matrix, one after another: how embeddings are looked up without ever
    /// holding the table.
    ///
    /// # Errors
    /// As [`read`](Self::read), and when a row is outside the matrix.
    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError>;

    /// How the inputs of the linear layer with this weight are rounded when the model is run; `None`
    /// where they are not.
    fn input_rounding(&self, _weight: &str) -> Option<InputRounding> {
        None
    }
}
