//! The values of a tensor, whatever its type.

use lapidary_kernels::ggml::{self, BlockKind};
use lapidary_store::Dtype;

use super::GgufError;

/// Decodes `bytes`, a tensor (or whole rows of one) of a GGUF file, into `out`.
///
/// # Errors
/// When the type is not supported, or the bytes are not those of as many values.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), GgufError> {
    let kind = block_kind(dtype).ok_or(GgufError::UnsupportedType(dtype))?;
    Ok(ggml::dequantize(kind, bytes, out)?)
}

/// The kind of blocks that a type is, plain numbers being blocks of one.
pub fn block_kind(dtype: Dtype) -> Option<BlockKind> {
    dtype.to_ggml().and_then(|ggml| BlockKind::from_id(ggml.id()))
}
