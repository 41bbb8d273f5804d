//! Qwen 3 with experts instead of feed-forwards in some layers or all.

use super::decoder::Experts;
use super::mixtral::route;
use super::qwen3::decoder;
use crate::{Config, ModelError, Spec};
use serde_json::Value;

pub(super) const MODEL_TYPES: &[&str] = &["qwen3_moe"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let mut decoder = decoder(config)?;
    let normalized = config.flag("norm_topk_prob", false)?;
    // As transformers 5 calls it, or as the versions before did.
    let key = ["num_local_experts", "num_experts"].into_iter().find(|key| config.get(key).is_some());
    let experts = Experts {
        module: "mlp",
        names: ["gate_proj", "up_proj", "down_proj"],
        intermediate: config.size("moe_intermediate_size")?,
        route: route(config, key.unwrap_or("num_experts"), decoder.layers.len(), normalized)?,
    };
    let step = config.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let plain = config.get("mlp_only_layers").and_then(Value::as_array);
    let plain: Vec<u64> = plain.into_iter().flatten().filter_map(Value::as_u64).collect();
    for (index, layer) in decoder.layers.iter_mut().enumerate() {
        let has_experts = (index + 1) % step == 0 && !plain.contains(&(index as u64));
        layer.experts = has_experts.then(|| experts.clone());
    }
    decoder.spec("qwen3_moe")
}
