//! Qwen 2 and 2.5: biases on queries, keys and values; a sliding window over the upper layers when
//! `use_sliding_window` is set.

use super::decoder::{Decoder, Fields};
use super::fields::sliding_layers;
use crate::{Config, ModelError, Spec};
use serde_json::Value;

pub(super) const MODEL_TYPES: &[&str] = &["qwen2"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let mut decoder = Decoder::read(config, Fields::default())?;
    decoder.qkv_bias = true;
    slide(&mut decoder, config)?;
    decoder.spec("qwen2")
}

/// The layers from `max_window_layers` on see a window only, unless `layer_types` lists them.
pub(super) fn slide(decoder: &mut Decoder, config: &Config<'_>) -> Result<(), ModelError> {
    if !config.flag("use_sliding_window", false)? {
        config.ignore("layer_types");
        return Ok(());
    }
    let first = config.get("max_window_layers").and_then(Value::as_u64).unwrap_or(0);
    let slides =
        sliding_layers(config, decoder.layers.len(), |layer| layer as u64 >= first)?;
    decoder.slide(config.optional_size("sliding_window")?, &slides);
    Ok(())
}
