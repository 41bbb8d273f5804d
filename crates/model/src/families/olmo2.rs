//! OLMo 2: norms after attention and feed-forward instead of before, and over the whole of queries
//! and keys.

use super::decoder::{BeforeMlp, Decoder, Fields, Norms, QkNorms};
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["olmo2"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let bias = config.flag("attention_bias", false)?;
    let norms = Norms {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some(BeforeMlp::Stream),
        after_mlp: Some("post_feedforward_layernorm"),
    };
    let decoder = Decoder::read(config, Fields::default())?;
    let qk_norms = QkNorms::Rows;
    Decoder { qkv_bias: bias, o_bias: bias, qk_norms, norms, ..decoder }.spec("olmo2")
}
