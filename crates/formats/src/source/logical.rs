//! A tensor as the model sees it, and what it is in the files.

use super::selected::Part;
use crate::Module;
use crate::gguf::RowOrder;
use lapidary_store::{Dtype, TensorInfo};
use lapidary_weight::{BookType, FloatType, TermOutline};

/// A tensor as the model sees it.
#[derive(Debug, Clone)]
pub struct LogicalTensor {
    /// Hugging Face name.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    pub(super) storage: Storage,
}

#[derive(Debug, Clone)]
pub(super) enum Storage {
    /// A tensor of the checkpoint, as it stands.
    Plain(TensorInfo),
    /// A compressed layer, and the type that its values are handed on as.
    Compressed(Module, FloatType),
    /// A matrix that stands in the checkpoint the other way round, columns as rows.
    Transposed(TensorInfo),
    /// Gains of a GGUF that have one added.
    Raised(TensorInfo),
    /// A tensor of a GGUF whose rows stand in another order.
    Reordered(TensorInfo, RowOrder),
    /// A matrix of a GGUF that a folder has the other way round.
    Turned(TensorInfo),
    /// What a cut has left of a tensor.
    Part(Part),
}

impl LogicalTensor {
    /// Whether it is a compressed layer.
    pub fn is_compressed(&self) -> bool {
        matches!(self.storage, Storage::Compressed(..))
    }

    /// Whether a folder of its family has it the other way round, columns as rows. So it is handed on as
    /// [bytes](Source::raw).
    pub fn is_transposed(&self) -> bool {
        match &self.storage {
            Storage::Part(part) => part.of.is_transposed(),
            storage => matches!(storage, Storage::Transposed(_) | Storage::Turned(_)),
        }
    }

    /// The shape of what [`Source::raw`] hands on.
    pub fn raw_shape(&self) -> Vec<usize> {
        match self.is_transposed() {
            true => self.shape.iter().rev().copied().collect(),
            false => self.shape.clone(),
        }
    }

    /// Names of the checkpoint's tensors it is made of.
    pub fn stored_as(&self) -> Vec<&str> {
        match &self.storage {
            Storage::Plain(info)
            | Storage::Reordered(info, _)
            | Storage::Turned(info)
            | Storage::Raised(info)
            | Storage::Transposed(info) => vec![&info.name],
            Storage::Compressed(module, _) => module.tensors.iter().map(String::as_str).collect(),
            Storage::Part(part) => part.of.stored_as(),
        }
    }

    /// Type in the file of a matrix of plain floats.
    pub(super) fn float_dtype_of_matrix(&self) -> Option<Dtype> {
        match &self.storage {
            Storage::Plain(info) | Storage::Reordered(info, _) if info.shape.len() == 2 => {
                Some(info.dtype)
            }
            _ => None,
        }
    }

    /// The float type it is handed on as.
    pub(super) fn float_type(&self) -> FloatType {
        match &self.storage {
            Storage::Plain(info)
            | Storage::Reordered(info, _)
            | Storage::Turned(info)
            | Storage::Raised(info)
            | Storage::Transposed(info) => float_type(info.dtype),
            Storage::Compressed(_, float) => *float,
            Storage::Part(part) => part.of.float_type(),
        }
    }
}

/// The float type that values of a type are handed on as.
pub(super) fn float_type(dtype: Dtype) -> FloatType {
    match dtype {
        Dtype::F32 | Dtype::F64 => FloatType::F32,
        Dtype::BF16 => FloatType::Bf16,
        _ => FloatType::F16,
    }
}

/// The float type of a compressed layer, where its scales tell: those of integers are of the model's
/// type, those of floats may be of any.
pub(super) fn module_float(module: &Module) -> Option<FloatType> {
    match module.outline.terms.first()? {
        TermOutline::Affine { scales, .. } => Some(scales.float()),
        TermOutline::Dense { values: float } => Some(*float),
        TermOutline::Lookup { books: BookType::Fixed(_), .. } => None,
        _ => Some(FloatType::F16),
    }
}

/// The type that most values are of.
pub(super) fn most_of(tensors: impl Iterator<Item = (FloatType, usize)>) -> FloatType {
    let mut counts = [(FloatType::F16, 0), (FloatType::Bf16, 0), (FloatType::F32, 0)];
    for (float, size) in tensors {
        if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == float) {
            *count += size;
        }
    }
    counts.iter().max_by_key(|(_, count)| *count).map_or(FloatType::F16, |(float, _)| *float)
}
