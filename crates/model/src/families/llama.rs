//! Llama 1 to 3 and what shares its configuration (SmolLM, TinyLlama, Yi): the plain decoder, with
//! optional biases.

use super::decoder::{Decoder, Fields};
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["llama"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let attention_bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let decoder = Decoder::read(config, Fields::default())?;
    Decoder { qkv_bias: attention_bias, o_bias: attention_bias, mlp_bias, ..decoder }.spec("llama")
}
