//! What is known of a tensor before its bytes are read.

use crate::checked::Span;
use crate::dtype::{Dtype, SizeError};

/// A tensor of a checkpoint: where its bytes are and what they mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, unique within the checkpoint.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first (`[out_features, in_features]` for a linear layer), whatever
    /// order the file has.
    pub shape: Vec<usize>,
    /// The bytes of its file that hold it.
    pub span: Span,
    /// Which file: an index into [`crate::Checkpoint::files`]; 0 when read from a single file.
    pub file: usize,
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of this name, type and shape.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// How many bytes it takes.
    ///
    /// # Errors
    /// When the shape overflows 64 bits, or a row is not a whole number of blocks.
    pub fn byte_len(&self) -> Result<u64, SizeError> {
        self.dtype.byte_len(&self.shape)
    }
}
