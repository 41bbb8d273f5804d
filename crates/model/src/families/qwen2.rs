//! Qwen 2 and 2.5: biases on queries, keys and values; a sliding window over the upper layers when
//! `use_sliding_window` is set.

use super::decoder::{Decoder, Window};
use crate::{Config, ModelError, Spec};
use serde_json::Value;

pub(super) const MODEL_TYPES: &[&str] = &["qwen2"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    Decoder { qkv_bias: true, window: window(config)?, ..Decoder::default() }.spec("qwen2", config)
}

/// The layers from `max_window_layers` on see a window only, unless `layer_types` lists them.
pub(super) fn window(config: &Config<'_>) -> Result<Option<Window>, ModelError> {
    if !config.flag("use_sliding_window", false)? {
        return Ok(None);
    }
    let first = config.get("max_window_layers").and_then(Value::as_u64).unwrap_or(0);
    let layer_types = config.get("layer_types").and_then(Value::as_array);
    let layer_types = layer_types.into_iter().flatten().filter_map(Value::as_str);
    let layer_types: Vec<String> = layer_types.map(str::to_owned).collect();
    let width = config.optional_size("sliding_window")?;
    Ok(width.map(|width| Window { width, first_layer: first as usize, layer_types }))
}
