//! Gemma 3, its text model: Gemma 2 with norms of queries and keys instead of caps, and rotary
//! positions of another base in the layers that see a window, five of six.

use super::decoder::QkNorms;
use super::fields::{Rotary, sliding_layers, stretching};
use super::gemma2::{cap, decoder};
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["gemma3_text"];

/// Bases of the layers that see everything, and of those that see a window.
const THETA: [f64; 2] = [1_000_000.0, 10_000.0];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let mut decoder = decoder(config, THETA[0])?;
    decoder.qk_norms = QkNorms::Heads;
    decoder.attention_cap = cap(config, "attn_logit_softcapping", None)?;
    decoder.logit_cap = cap(config, "final_logit_softcapping", None)?;
    let pattern = config.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let slides =
        sliding_layers(config, decoder.layers.len(), |layer| (layer + 1) % pattern != 0)?;
    decoder.slide(config.optional_size("sliding_window")?, &slides);
    let [full, sliding] = rotary(config)?;
    for (layer, slides) in decoder.layers.iter_mut().zip(&slides) {
        layer.rotary = Some(if *slides { sliding.clone() } else { full.clone() });
    }
    decoder.spec("gemma3")
}

/// Rotary positions by kind of layer (transformers 5), or of two bases of which only the first is
/// stretched (before).
fn rotary(config: &Config<'_>) -> Result<[Rotary; 2], ModelError> {
    let parameters = config.object("rope_parameters");
    let part = 1.0;
    let of_kind = |kind: &str, old: &str, theta: f64| -> Result<Rotary, ModelError> {
        let inner = parameters.as_ref().and_then(|parameters| parameters.object(kind));
        let given = inner.as_ref().map(|inner| inner.optional_number("rope_theta")).transpose()?;
        let theta = given.flatten().or(config.optional_number(old)?).unwrap_or(theta);
        let scaling = stretching(inner.as_ref(), config)?;
        Rotary { theta, scaling, part }.checked()
    };
    let mut full = of_kind("full_attention", "rope_theta", THETA[0])?;
    let sliding = of_kind("sliding_attention", "rope_local_base_freq", THETA[1])?;
    if let (None, Some(scaling)) = (&parameters, config.object("rope_scaling")) {
        full.scaling = stretching(Some(&scaling), config)?;
    }
    Ok([full, sliding])
}
