//! Gemma 2: norms before and after attention and feed-forward, whose gains are stored less one; every
//! other layer sees a window; scores and logits are capped.

use super::decoder::{BeforeMlp, Decoder, Fields, Norm, Norms};
use super::fields::sliding_layers;
use crate::config::wrong;
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["gemma2"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let mut decoder = decoder(config, 10_000.0)?;
    decoder.attention_cap = cap(config, "attn_logit_softcapping", Some(50.0))?;
    decoder.logit_cap = cap(config, "final_logit_softcapping", Some(30.0))?;
    let slides = sliding_layers(config, decoder.layers.len(), |layer| layer % 2 == 0)?;
    decoder.slide(config.optional_size("sliding_window")?, &slides);
    decoder.spec("gemma2")
}

/// What Gemma 2 and 3 share.
pub(super) fn decoder(config: &Config<'_>, theta: f64) -> Result<Decoder, ModelError> {
    if config.flag("use_bidirectional_attention", false)? {
        let what = "is true: a decoder that sees the positions after it is not supported";
        return Err(wrong("use_bidirectional_attention", what));
    }
    let fields = Fields {
        activation: ["hidden_activation", "hidden_act"],
        default_activation: "gelu_pytorch_tanh",
        tied: true,
        theta,
        ..Fields::default()
    };
    let bias = config.flag("attention_bias", false)?;
    let decoder = Decoder::read(config, fields)?;
    if config.get("head_dim").is_none() {
        return Err(wrong("head_dim", "is missing"));
    }
    let scalar = match config.get("query_pre_attn_scalar") {
        Some(_) => config.positive("query_pre_attn_scalar")?,
        None => 256.0,
    };
    Ok(Decoder {
        qkv_bias: bias,
        o_bias: bias,
        norm: Norm::Rms { offset: 1.0 },
        norms: Norms {
            before_attention: Some("input_layernorm"),
            after_attention: Some("post_attention_layernorm"),
            before_mlp: Some(BeforeMlp::Norm("pre_feedforward_layernorm")),
            after_mlp: Some("post_feedforward_layernorm"),
        },
        attention_scale: scalar.powf(-0.5) as f32,
        embedding_scale: (decoder.hidden as f32).sqrt(),
        ..decoder
    })
}

/// A cap, which `null` switches off; `default` where the field is not there at all.
pub(super) fn cap(
    config: &Config<'_>,
    key: &str,
    default: Option<f32>,
) -> Result<Option<f32>, ModelError> {
    match config.get(key) {
        Some(_) => Ok(Some(config.positive(key)? as f32)),
        None if config.has(key) => Ok(None),
        None => Ok(default),
    }
}
