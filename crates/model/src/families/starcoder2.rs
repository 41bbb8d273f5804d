//! `StarCoder` 2: layer norms, a feed-forward without a gate, biases everywhere.

use super::decoder::{Decoder, FeedForward, Fields, Norm};
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["starcoder2"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let bias = config.flag("use_bias", true)?;
    let fields = Fields {
        eps: "norm_epsilon",
        default_activation: "gelu_pytorch_tanh",
        tied: true,
        ..Fields::default()
    };
    let decoder = Decoder::read(config, fields)?;
    let mut decoder = Decoder {
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        norm: Norm::Layer,
        feed_forward: FeedForward::Plain,
        ..decoder
    };
    let window = config.optional_size("sliding_window")?;
    decoder.layers.iter_mut().for_each(|layer| layer.window = window);
    decoder.spec("starcoder2")
}
