//! Mistral: the plain decoder with a sliding window over all layers (`null` switches it off).

use super::decoder::{Decoder, Fields};
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["mistral"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let mut decoder = Decoder::read(config, Fields::default())?;
    let window = config.optional_size("sliding_window")?;
    decoder.layers.iter_mut().for_each(|layer| layer.window = window);
    decoder.spec("mistral")
}
