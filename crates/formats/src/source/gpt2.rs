//! What is particular to the checkpoints of GPT-2: the weights of linear layers stand as
//! `[in_features, out_features]` (transformers' `Conv1D`), and in the original ones the prefix that
//! everything has is left out. In a GGUF they stand as those of every other family, and are turned where
//! they are handed on as a folder's.

use super::{LogicalTensor, Source, Storage};
use crate::FormatError;
use lapidary_store::Dtype;
use lapidary_weight::FloatType;
use serde_json::Value;

const PREFIX: &str = "transformer.";

fn is_gpt2(config: &Value) -> bool {
    config.get("model_type").and_then(Value::as_str) == Some("gpt2")
}

/// Whether a tensor is the weight of a linear layer.
fn is_linear(name: &str) -> bool {
    let layers = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"];
    let module = name.strip_suffix(".weight").unwrap_or_default();
    layers.iter().any(|layer| module.ends_with(layer))
}

/// Has the tensors of a GGUF handed on as a folder has them.
pub(super) fn turn(config: &Value, tensors: &mut [LogicalTensor]) {
    for tensor in tensors.iter_mut().filter(|tensor| is_gpt2(config) && is_linear(&tensor.name)) {
        if let (Storage::Plain(info), 2) = (&tensor.storage, tensor.shape.len()) {
            tensor.storage = Storage::Turned(info.clone());
        }
    }
}

/// Gives the tensors the names and shapes of every other family.
pub(super) fn undo(config: &Value, tensors: &mut [LogicalTensor]) {
    if !is_gpt2(config) {
        return;
    }
    for tensor in tensors {
        let is_bare =
            ["wte.", "wpe.", "h.", "ln_f."].iter().any(|part| tensor.name.starts_with(part));
        if is_bare {
            tensor.name.insert_str(0, PREFIX);
        }
        if let (Storage::Plain(info), true, &[inputs, outputs]) =
            (&tensor.storage, is_linear(&tensor.name), &tensor.shape[..])
        {
            tensor.storage = Storage::Transposed(info.clone());
            tensor.shape = vec![outputs, inputs];
        }
    }
}

/// The columns of rows of `width` as rows.
pub(super) fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    let column = |column: usize| values.iter().skip(column).step_by(width.max(1)).copied();
    (0..width).flat_map(column).collect()
}

impl Source {
    /// All bytes of a matrix with its rows as rows, whatever a folder of its family has.
    ///
    /// # Errors
    /// As [`raw`](Self::raw), and when `dtype` is no type of floats that are written.
    pub fn upright(&self, name: &str, dtype: Dtype) -> Result<Vec<u8>, FormatError> {
        let values = self.values(self.require(name)?)?;
        let float = match dtype {
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::Bf16,
            _ => return Err(FormatError::malformed(name, format!("cannot be written as {dtype}"))),
        };
        Ok(float.encode(&values))
    }
}
