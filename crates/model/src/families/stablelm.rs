//! `StableLM` 2: layer norms, rotary positions on a part of each head, and on request attention and
//! feed-forward side by side.

use super::decoder::{Decoder, Fields, Norm};
use crate::config::wrong;
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["stablelm"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    if config.flag("qk_layernorm", false)? {
        let what = "is true: norms with gains of their own for each head are not supported";
        return Err(wrong("qk_layernorm", what));
    }
    let fields = Fields { eps: "layer_norm_eps", rotary_part: Some(0.25), ..Fields::default() };
    let mut decoder = Decoder::read(config, fields)?;
    if decoder.heads * decoder.head_dim != decoder.hidden {
        let what = "is not supported by this family: heads are as wide as all channels allow";
        return Err(wrong("head_dim", what));
    }
    decoder.qkv_bias = config.flag("use_qkv_bias", false)?;
    decoder.norm = Norm::Layer;
    if config.flag("use_parallel_residual", false)? {
        decoder.norms.before_mlp = None;
    }
    decoder.spec("stablelm")
}
