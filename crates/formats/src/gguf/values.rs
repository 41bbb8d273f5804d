//! The values of a tensor, whatever its type.

use lapidary_kernels::ggml::{self, BlockKind};
use lapidary_store::{Dtype, GgmlType};

use super::GgufError;

/// Decodes `bytes`, a tensor (or whole rows of one) of a GGUF file, into `out`.
///
/// # Errors
/// When the type is not supported, or the bytes are not those of as many values.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), GgufError> {
    let ggml = match dtype {
        Dtype::Ggml(ggml) => Some(ggml),
        // The store gives plain numbers its own types.
        plain => GgmlType::ALL.iter().copied().find(|&ggml| Dtype::from_ggml(ggml) == plain),
    };
    let kind = ggml.and_then(|ggml| BlockKind::from_id(ggml.id()));
    let kind = kind.ok_or(GgufError::UnsupportedType(dtype))?;
    Ok(ggml::dequantize(kind, bytes, out)?)
}
