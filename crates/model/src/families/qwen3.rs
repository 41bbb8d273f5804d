//! Qwen 3: as Qwen 2, with norms over each head of queries and keys, and biases only on request.

use super::decoder::Decoder;
use super::qwen2::window;
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["qwen3"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    let window = window(config)?;
    let decoder =
        Decoder { qkv_bias: bias, o_bias: bias, head_norms: true, window, ..Decoder::default() };
    decoder.spec("qwen3", config)
}
