//! What is particular to the checkpoints of GPT-2: the weights of linear layers stand as
//! `[in_features, out_features]` (transformers' `Conv1D`), and in the original ones the prefix that
//! everything has is left out.

use super::{LogicalTensor, Storage};
use serde_json::Value;

const PREFIX: &str = "transformer.";

/// Gives the tensors the names and shapes of every other family.
pub(super) fn undo(config: &Value, tensors: &mut [LogicalTensor]) {
    if config.get("model_type").and_then(Value::as_str) != Some("gpt2") {
        return;
    }
    for tensor in tensors {
        let is_bare =
            ["wte.", "wpe.", "h.", "ln_f."].iter().any(|part| tensor.name.starts_with(part));
        if is_bare {
            tensor.name.insert_str(0, PREFIX);
        }
        let layers = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"];
        let module = tensor.name.strip_suffix(".weight").unwrap_or_default();
        if let (Storage::Plain(info), true, &[inputs, outputs]) =
            (&tensor.storage, layers.iter().any(|layer| module.ends_with(layer)), &tensor.shape[..])
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
