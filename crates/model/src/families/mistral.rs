//! Mistral: the plain decoder with a sliding window over all layers (`null` switches it off).

use super::decoder::{Decoder, Window};
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["mistral"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let window = config.optional_size("sliding_window")?;
    let window = window.map(|width| Window { width, first_layer: 0, layer_types: vec![] });
    Decoder { window, ..Decoder::default() }.spec("mistral", config)
}
