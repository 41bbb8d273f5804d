//! `SmolLM` 3: Llama's decoder, with layers that have no rotary positions.

use super::decoder::{Decoder, Fields};
use super::fields::sliding_layers;
use crate::config::wrong;
use crate::{Config, ModelError, Spec};
use serde_json::Value;

pub(super) const MODEL_TYPES: &[&str] = &["smollm3"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let fields = Fields { tied: true, theta: 2_000_000.0, ..Fields::default() };
    let decoder = Decoder::read(config, fields)?;
    let mut decoder = Decoder { qkv_bias: bias, o_bias: bias, mlp_bias, ..decoder };
    let has_rope = rotary_layers(config, decoder.layers.len())?;
    for (layer, has_rope) in decoder.layers.iter_mut().zip(&has_rope) {
        layer.rotary = layer.rotary.take().filter(|_| *has_rope);
    }
    let slides = sliding_layers(config, has_rope.len(), |layer| !has_rope[layer])?;
    if config.flag("use_sliding_window", false)? {
        decoder.slide(config.optional_size("sliding_window")?, &slides);
    }
    decoder.spec("smollm3")
}

/// The layers with rotary positions: a list of 1 and 0 (`no_rope_layers`, whatever it is called), or
/// all but every fourth.
fn rotary_layers(config: &Config<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    let interval = config.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    let Some(list) = config.get("no_rope_layers") else {
        return Ok((0..layers).map(|layer| (layer + 1) % interval != 0).collect());
    };
    let flag = |value: &Value| match value.as_u64() {
        Some(flag @ 0..=1) => Some(flag == 1),
        _ => value.as_bool(),
    };
    let list = list.as_array().filter(|list| list.len() == layers);
    let flags: Option<Vec<bool>> = list.and_then(|list| list.iter().map(flag).collect());
    flags.ok_or_else(|| wrong("no_rope_layers", format!("is no list of {layers} times 0 or 1")))
}
