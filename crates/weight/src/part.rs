//! The stored pieces of a term: named little-endian arrays that any container can hold.

use crate::{FloatType, WeightError};

/// Element type of a [`Part`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartType {
    /// Unsigned bytes: codes (one a byte, or a packed bit stream) and zero points.
    U8,
    /// Unsigned 32-bit indices.
    U32,
    /// Floats of a storage type.
    Float(FloatType),
}

/// One named array of a term.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What it is, for instance `scales`.
    pub name: &'static str,
    /// Element type.
    pub dtype: PartType,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Little-endian bytes.
    pub bytes: Vec<u8>,
}

impl Part {
    /// A float array.
    pub(crate) fn floats(
        name: &'static str,
        dtype: FloatType,
        shape: Vec<usize>,
        values: &[f32],
    ) -> Self {
        Self {
            name,
            dtype: PartType::Float(dtype),
            shape,
            bytes: dtype.encode(values),
        }
    }

    /// An index array.
    pub(crate) fn indices(name: &'static str, values: &[u32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self {
            name,
            dtype: PartType::U32,
            shape: vec![values.len()],
            bytes,
        }
    }

    /// A byte array.
    pub(crate) fn bytes(name: &'static str, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        Self {
            name,
            dtype: PartType::U8,
            shape,
            bytes,
        }
    }
}

/// Looks a part up by name, as a term's `from_parts` does.
pub(crate) struct Parts<'a> {
    pub(crate) term: &'static str,
    pub(crate) get: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

impl Parts<'_> {
    pub(crate) fn bytes(&self, part: &'static str) -> Result<Vec<u8>, WeightError> {
        (self.get)(part).ok_or(WeightError::MissingPart {
            term: self.term,
            part,
        })
    }

    pub(crate) fn floats(
        &self,
        part: &'static str,
        dtype: FloatType,
    ) -> Result<Vec<f32>, WeightError> {
        Ok(dtype.decode(&self.bytes(part)?))
    }

    pub(crate) fn indices(&self, part: &'static str) -> Result<Vec<u32>, WeightError> {
        let bytes = self.bytes(part)?;
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
            .collect())
    }
}
