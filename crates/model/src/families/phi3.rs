//! Phi 3 and 4: Llama's decoder with one layer for queries, keys and values and one for gate and up.

use super::decoder::{Decoder, FeedForward, Fields};
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["phi3"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let mut decoder = Decoder::read(config, Fields { rotary_part: Some(1.0), ..Fields::default() })?;
    decoder.fused_qkv = true;
    decoder.feed_forward = FeedForward::FusedGated;
    let window = config.optional_size("sliding_window")?;
    decoder.layers.iter_mut().for_each(|layer| layer.window = window);
    decoder.spec("phi3")
}
