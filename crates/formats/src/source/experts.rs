//! Experts that a checkpoint holds together, one tensor for all of a layer, as transformers 5 has them
//! in memory and saves them when asked for nothing else: `experts.gate_up_proj` is
//! `[experts, 2 · intermediate, hidden]`, gates before ups, and `experts.down_proj`
//! `[experts, hidden, intermediate]`. Each expert is a layer of its own here, a part of that tensor
//! under the name that it has where it is stored alone.

use super::{LogicalTensor, Storage};
use crate::FormatError;
use lapidary_store::TensorInfo;
use serde_json::Value;

/// How a family calls the module of the experts, and gate, up and down of one, where they stand alone.
#[derive(Debug)]
pub(crate) struct ExpertNames {
    model_type: &'static str,
    pub(crate) module: &'static str,
    pub(crate) parts: [&'static str; 3],
}

const FAMILIES: &[ExpertNames] = &[
    ExpertNames { model_type: "mixtral", module: "block_sparse_moe", parts: ["w1", "w3", "w2"] },
    ExpertNames {
        model_type: "qwen3_moe",
        module: "mlp",
        parts: ["gate_proj", "up_proj", "down_proj"],
    },
];

impl ExpertNames {
    /// Those of a family, where it has experts.
    pub(crate) fn of(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|names| names.model_type == model_type)
    }
}

/// The module of the experts where they are held together.
const TOGETHER: &str = "mlp";

/// Gives each expert tensors of its own.
///
/// # Errors
/// When a tensor has not the shape that all experts of a layer have together.
pub(super) fn part(config: &Value, tensors: &mut Vec<LogicalTensor>) -> Result<(), FormatError> {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let Some(names) = model_type.and_then(ExpertNames::of) else { return Ok(()) };
    let are_together = |tensor: &LogicalTensor| together(&tensor.name).is_some();
    if !tensors.iter().any(are_together) {
        return Ok(());
    }
    let mut parted = vec![];
    for mut tensor in tensors.drain(..) {
        match (together(&tensor.name), &tensor.storage) {
            (Some((layer, kinds)), Storage::Plain(info)) => {
                let parts = &names.parts[kinds];
                let prefix = format!("{layer}.{}.experts", names.module);
                parted.extend(experts(info, &prefix, parts)?);
            }
            // The router stands in the same module.
            _ => {
                if let Some(layer) = tensor.name.strip_suffix(&format!(".{TOGETHER}.gate.weight")) {
                    tensor.name = format!("{layer}.{}.gate.weight", names.module);
                }
                parted.push(tensor);
            }
        }
    }
    *tensors = parted;
    Ok(())
}

/// The layer whose experts a tensor holds, and which of gate, up and down.
fn together(name: &str) -> Option<(&str, std::ops::Range<usize>)> {
    let kinds = [("gate_up_proj", 0..2), ("down_proj", 2..3)];
    kinds.into_iter().find_map(|(part, kinds)| {
        Some((name.strip_suffix(&format!(".{TOGETHER}.experts.{part}"))?, kinds))
    })
}

/// The parts of a tensor that are one matrix each: of every expert, those of `parts` in turn.
pub(super) fn experts(
    info: &TensorInfo,
    prefix: &str,
    parts: &[&str],
) -> Result<Vec<LogicalTensor>, FormatError> {
    let wrong = || {
        let what = format!("has shape {:?}, which is not that of experts together", info.shape);
        FormatError::malformed(&info.name, what)
    };
    let &[experts, rows, cols] = &info.shape[..] else { return Err(wrong()) };
    let count = experts * parts.len();
    if count == 0 || rows % parts.len() != 0 {
        return Err(wrong());
    }
    let shape = vec![rows / parts.len(), cols];
    let bytes = info.span.len() / count as u64;
    let places = (0..experts).flat_map(|expert| parts.iter().map(move |part| (expert, part)));
    let parted = (0..).zip(places).map(|(index, (expert, part))| {
        let span = info.span.part(index * bytes, (index + 1) * bytes).ok_or_else(wrong)?;
        let storage = Storage::Plain(TensorInfo { shape: shape.clone(), span, ..info.clone() });
        let name = format!("{prefix}.{expert}.{part}.weight");
        Ok(LogicalTensor { name, shape: shape.clone(), storage })
    });
    parted.collect()
}
