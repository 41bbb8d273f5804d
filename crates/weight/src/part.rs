//! The stored pieces of a term: named little-endian arrays that any container can hold.

use crate::{FloatType, WeightError};
use lapidary_kernels::pack::{Layout, pack_rows, unpack_rows};

/// Element type of a [`Part`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartType {
    /// Unsigned 32-bit words: indices, or codes packed as one dense bit stream a row.
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
        Self { name, dtype: PartType::Float(dtype), shape, bytes: dtype.encode(values) }
    }

    /// An index array.
    pub(crate) fn indices(name: &'static str, values: &[u32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name, dtype: PartType::U32, shape: vec![values.len()], bytes }
    }

    /// Codes of `bits` bits, `columns` a row, each row a dense stream of words.
    pub(crate) fn codes(name: &'static str, codes: &[u8], columns: usize, bits: u8) -> Self {
        let rows = codes.len().checked_div(columns).unwrap_or(0);
        let width = Layout::Dense.words(columns, u32::from(bits));
        let mut words = vec![0; rows * width];
        // The codes of a validated term are complete rows of fitting codes: packing cannot fail.
        let packed = pack_rows(codes, columns, u32::from(bits), &mut words);
        debug_assert_eq!(packed, Ok(()));
        let bytes = words.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name, dtype: PartType::U32, shape: vec![rows, width], bytes }
    }

    /// All codes as one stream of words.
    pub(crate) fn stream(name: &'static str, codes: &[u8], bits: u8) -> Self {
        let shape = Self::stream_shape(codes.len(), bits);
        Self { shape, ..Self::codes(name, codes, codes.len(), bits) }
    }

    /// Shape of [`stream`](Self::stream).
    pub(crate) fn stream_shape(codes: usize, bits: u8) -> Vec<usize> {
        vec![Layout::Dense.words(codes, u32::from(bits))]
    }
}

/// Looks a part up by name, as a term's `from_parts` does.
pub(crate) struct Parts<'a> {
    pub(crate) term: &'static str,
    pub(crate) get: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

impl Parts<'_> {
    pub(crate) fn bytes(&self, part: &'static str) -> Result<Vec<u8>, WeightError> {
        (self.get)(part).ok_or(WeightError::MissingPart { term: self.term, part })
    }

    pub(crate) fn floats(
        &self,
        part: &'static str,
        dtype: FloatType,
    ) -> Result<Vec<f32>, WeightError> {
        Ok(dtype.decode(&self.bytes(part)?))
    }

    /// One F32.
    pub(crate) fn number(&self, part: &'static str) -> Result<f32, WeightError> {
        match self.floats(part, FloatType::F32)?[..] {
            [number] => Ok(number),
            ref other => {
                Err(WeightError::Length { term: self.term, part, have: other.len(), need: 1 })
            }
        }
    }

    pub(crate) fn codes(
        &self,
        part: &'static str,
        columns: usize,
        bits: u8,
    ) -> Result<Vec<u8>, WeightError> {
        let words = self.indices(part)?;
        let width = Layout::Dense.words(columns, u32::from(bits));
        let rows = words.len().checked_div(width).unwrap_or(0);
        let mut codes = vec![0; rows * columns];
        unpack_rows(&words, Layout::Dense, columns, u32::from(bits), &mut codes).map_err(|_| {
            WeightError::Length { term: self.term, part, have: words.len(), need: rows * width }
        })?;
        Ok(codes)
    }

    pub(crate) fn indices(&self, part: &'static str) -> Result<Vec<u32>, WeightError> {
        let bytes = self.bytes(part)?;
        Ok(bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }
}
