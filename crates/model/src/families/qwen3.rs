//! Qwen 3: as Qwen 2, with norms over each head of queries and keys, and biases only on request.

use super::decoder::{Decoder, Fields, QkNorms};
use super::qwen2::slide;
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["qwen3"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    decoder(config)?.spec("qwen3")
}

/// The decoder, before experts take the place of its feed-forwards.
pub(super) fn decoder(config: &Config<'_>) -> Result<Decoder, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    let decoder = Decoder::read(config, Fields::default())?;
    let qk_norms = QkNorms::Heads;
    let mut decoder = Decoder { qkv_bias: bias, o_bias: bias, qk_norms, ..decoder };
    slide(&mut decoder, config)?;
    Ok(decoder)
}
