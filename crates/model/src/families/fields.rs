//! Fields of `config.json` that families share: activations, rotary positions, kinds of layers.

use crate::config::wrong;
use crate::spec::{Activation, RopeScaling};
use crate::{Config, ModelError};
use serde_json::Value;

/// An activation by its name in `config.json`.
pub(super) fn activation(key: &str, name: &str) -> Result<Activation, ModelError> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        _ => {
            let known = "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast and relu";
            Err(wrong(key, format!("{name:?} is not supported; known are {known}")))
        }
    }
}

/// Rotary positions of a layer, whatever its heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rotary {
    /// Base of the frequencies.
    pub(super) theta: f64,
    /// How they are stretched.
    pub(super) scaling: RopeScaling,
    /// The part of a head that is rotated.
    pub(super) part: f64,
}

impl Rotary {
    /// Base, scaling and part, from `rope_parameters` (transformers 5) or from `rope_theta`,
    /// `rope_scaling` and `partial_rotary_factor` (before).
    pub(super) fn read(config: &Config<'_>, theta: f64, part: f64) -> Result<Self, ModelError> {
        let parameters = config.object("rope_parameters");
        let scaling = parameters.clone().or_else(|| config.object("rope_scaling"));
        let either = |key: &str| -> Result<Option<f64>, ModelError> {
            let inner = parameters.as_ref().map(|parameters| parameters.optional_number(key));
            let outer = config.optional_number(key)?;
            Ok(inner.transpose()?.flatten().or(outer))
        };
        let theta = either("rope_theta")?.unwrap_or(theta);
        let part = either("partial_rotary_factor")?.unwrap_or(part);
        let scaling = scaling.as_ref().map_or(Ok(RopeScaling::None), stretching)?;
        Self { theta, scaling, part }.checked()
    }

    /// The same, with each number in its range.
    pub(super) fn checked(self) -> Result<Self, ModelError> {
        let Self { theta, part, .. } = self;
        if theta <= 0.0 {
            return Err(wrong(
                "rope_theta",
                format!("is {theta}, where a positive number is needed"),
            ));
        }
        if !(part > 0.0 && part <= 1.0) {
            let what = format!("is {part}, where a number above 0 and up to 1 is needed");
            return Err(wrong("partial_rotary_factor", what));
        }
        Ok(self)
    }

    /// The channels of a head that are rotated, which make pairs.
    pub(super) fn channels(self, head_dim: usize) -> Result<usize, ModelError> {
        let channels = (head_dim as f64 * self.part) as usize;
        if channels == 0 || !channels.is_multiple_of(2) {
            let what = format!("is {head_dim}, of which {channels} channels are to be rotated");
            return Err(wrong("head_dim", format!("{what}; rotary positions need pairs")));
        }
        Ok(channels)
    }
}

/// How the frequencies are stretched, from `rope_scaling` or `rope_parameters`.
pub(super) fn stretching(scaling: &Config<'_>) -> Result<RopeScaling, ModelError> {
    let kind = scaling.text("rope_type").or_else(|| scaling.text("type")).unwrap_or("default");
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: scaling.positive("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: scaling.positive("factor")?,
            low: scaling.positive("low_freq_factor")?,
            high: scaling.positive("high_freq_factor")?,
            original_context: scaling.positive("original_max_position_embeddings")?,
        }),
        _ => {
            let what = format!("{kind:?} is not supported; known are default, linear and llama3");
            Err(wrong("rope_scaling.rope_type", what))
        }
    }
}

/// Whether each layer sees a window only, from `layer_types`; `default` says so where they are not
/// listed.
pub(super) fn sliding_layers(
    config: &Config<'_>,
    layers: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ModelError> {
    let Some(kinds) = config.get("layer_types") else {
        return Ok((0..layers).map(default).collect());
    };
    let kinds = kinds.as_array().filter(|kinds| kinds.len() == layers);
    let kinds =
        kinds.ok_or_else(|| wrong("layer_types", format!("is no list of {layers} layers")))?;
    let slides = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => {
            let known = "known are full_attention and sliding_attention";
            Err(wrong("layer_types", format!("{kind} is not supported; {known}")))
        }
    };
    kinds.iter().map(slides).collect()
}
