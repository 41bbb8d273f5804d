//! Granite 3: Llama's decoder with multipliers of the embedding, of what is added to the residual
//! stream, of the attention's scores, and a divisor of the logits.

use super::decoder::{Decoder, Fields};
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["granite"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let number = |key: &str| config.optional_number(key).map(|n| n.unwrap_or(1.0) as f32);
    let decoder = Decoder::read(config, Fields::default())?;
    let logits_scaling = match config.get("logits_scaling") {
        Some(_) => config.positive("logits_scaling")?,
        None => 1.0,
    };
    Decoder {
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias,
        embedding_scale: number("embedding_multiplier")?,
        residual_scale: number("residual_multiplier")?,
        attention_scale: number("attention_multiplier")?,
        logit_scale: (1.0 / logits_scaling) as f32,
        ..decoder
    }
    .spec("granite")
}
