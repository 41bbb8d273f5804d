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
#[derive(Debug, Clone, PartialEq)]
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
        let scaling = stretching(scaling.as_ref(), config)?;
        Self { theta, scaling, part }.checked()
    }

    /// The same, with each number in its range.
    pub(super) fn checked(self) -> Result<Self, ModelError> {
        let (theta, part) = (self.theta, self.part);
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
    pub(super) fn channels(&self, head_dim: usize) -> Result<usize, ModelError> {
        let channels = (head_dim as f64 * self.part) as usize;
        if let RopeScaling::LongRope { short, long, .. } = &self.scaling
            && let Some(odd) = [short, long].iter().find(|list| 2 * list.len() != channels)
        {
            let what = format!("have {} divisors for {} pairs", odd.len(), channels / 2);
            return Err(wrong("rope_scaling.short_factor, long_factor", what));
        }
        if channels == 0 || !channels.is_multiple_of(2) {
            let what = format!("is {head_dim}, of which {channels} channels are to be rotated");
            return Err(wrong("head_dim", format!("{what}; rotary positions need pairs")));
        }
        Ok(channels)
    }
}

/// How the frequencies are stretched, from `rope_scaling` or `rope_parameters`, where there is one.
pub(super) fn stretching(
    scaling: Option<&Config<'_>>,
    config: &Config<'_>,
) -> Result<RopeScaling, ModelError> {
    // Phi 3 has it outside.
    let outside = config.optional_number("original_max_position_embeddings")?;
    let Some(scaling) = scaling else { return Ok(RopeScaling::None) };
    let kind = scaling.text("rope_type").or_else(|| scaling.text("type")).unwrap_or("default");
    let whole = config.optional_number("max_position_embeddings")?.unwrap_or(2048.0);
    let inside = scaling.optional_number("original_max_position_embeddings")?;
    let original_context = outside.or(inside).unwrap_or(whole);
    let factor = || match scaling.optional_number("factor")? {
        Some(_) => scaling.positive("factor"),
        None => Ok(whole / original_context),
    };
    let known = original_context >= 1.0;
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: scaling.positive("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: scaling.positive("factor")?,
            low: scaling.positive("low_freq_factor")?,
            high: scaling.positive("high_freq_factor")?,
            original_context: scaling.positive("original_max_position_embeddings")?,
        }),
        // Frequencies change beyond the model's context only, where nothing is computed here.
        "dynamic" if original_context >= whole => Ok(RopeScaling::None),
        "yarn" if known => yarn(scaling, factor()?, original_context),
        // "su" is what LongRoPE was called at first.
        "longrope" | "su" if known => longrope(scaling, factor()?, original_context),
        _ => {
            let known =
                "default, linear, llama3, yarn, longrope and dynamic without another context";
            let what = format!("{kind:?} is not supported; known are {known}");
            Err(wrong("rope_scaling.rope_type", what))
        }
    }
}

fn yarn(
    scaling: &Config<'_>,
    factor: f64,
    original_context: f64,
) -> Result<RopeScaling, ModelError> {
    let number = |key: &str| scaling.optional_number(key);
    let given = |key: &str, default: f64| -> Result<f64, ModelError> {
        Ok(number(key)?.filter(|value| *value != 0.0).unwrap_or(default))
    };
    let of = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let scales = (given("mscale", 0.0)?, given("mscale_all_dim", 0.0)?);
    let attention = match (number("attention_factor")?, scales) {
        (Some(attention), _) => attention,
        (None, (own, all)) if own != 0.0 && all != 0.0 => of(own) / of(all),
        (None, _) => of(1.0),
    };
    let (fast, slow) = (given("beta_fast", 32.0)?, given("beta_slow", 1.0)?);
    let truncate = scaling.flag("truncate", true)?;
    Ok(RopeScaling::Yarn { factor, fast, slow, truncate, original_context, attention })
}

fn longrope(
    scaling: &Config<'_>,
    factor: f64,
    original_context: f64,
) -> Result<RopeScaling, ModelError> {
    let divisors = |key: &str| -> Result<Vec<f64>, ModelError> {
        let list = scaling.get(key).and_then(Value::as_array);
        let numbers: Option<Vec<f64>> =
            list.and_then(|list| list.iter().map(Value::as_f64).collect());
        let positive = |numbers: &Vec<f64>| numbers.iter().all(|number| *number > 0.0);
        let what = "is no list of positive numbers, one for each pair of channels";
        numbers.filter(positive).ok_or_else(|| wrong(&format!("rope_scaling.{key}"), what))
    };
    for key in ["short_mscale", "long_mscale"] {
        if scaling.get(key).is_some() {
            return Err(wrong(&format!("rope_scaling.{key}"), "is not supported"));
        }
    }
    let attention = match scaling.optional_number("attention_factor")? {
        Some(attention) => attention,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original_context.ln()).sqrt(),
    };
    let (short, long) = (divisors("short_factor")?, divisors("long_factor")?);
    Ok(RopeScaling::LongRope { short, long, original_context, attention })
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
