//! The scaling of rotary embeddings: `rope_scaling` of `config.json`.
//!
//! Llama 3's scaling stands in a GGUF file only as its result, one factor `f` per frequency. With
//! the wavelength `λ` of the frequency, the original context `c`, the scaling `s`, and the bounds
//! `low = 1` and `high = 4` that all Llama 3 models use,
//!
//! ```text
//! f = 1 / ((1 − t)/s + t),    t = (c/λ − low) / (high − low) clamped to [0, 1]
//! ```
//!
//! so `s` is the largest factor, and any factor between 1 and `s` gives `c`.

use lapidary_store::gguf::Metadata;
use serde_json::{Map, Value, json};

use super::names::ROPE_FACTORS;
use super::{Architecture, GgufError, keys};

const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;

/// The original context of every published Llama 3; taken when no factor tells.
const USUAL_CONTEXT: f64 = 8192.0;

/// How far a stored factor may be from the rule, relatively; they are computed in single precision.
const TOLERANCE: f64 = 1e-4;

/// The value of `rope_scaling`, null for none, from the metadata and the values of the tensor of
/// factors if the file has one.
pub(super) fn scaling(
    metadata: &Metadata,
    architecture: Architecture,
    factors: Option<&[f32]>,
    theta: f64,
) -> Result<Value, GgufError> {
    let prefix = format!("{}.rope", architecture.name());
    let kind = keys::string(metadata, &format!("{prefix}.scaling.type"))?;
    let factor_key = format!("{prefix}.scaling.factor");
    let factor = match keys::float(metadata, &factor_key)? {
        Some(factor) => Some(factor),
        // The key of files from 2023.
        None => keys::float(metadata, &format!("{prefix}.scale_linear"))?,
    };
    let factor = factor.filter(|&factor| factor != 0.0 && factor != 1.0);
    // llama.cpp takes a factor without a type for a linear one.
    match (kind.unwrap_or("linear"), factor, factors) {
        ("none" | "linear", None, Some(factors)) => llama3(factors, theta),
        ("none", _, None) | ("linear", None, None) => Ok(Value::Null),
        ("linear", Some(factor), None) => Ok(json!({"rope_type": "linear", "factor": factor})),
        ("yarn", factor, None) => {
            let factor = keys::required(&factor_key, Ok(factor))?;
            yarn(metadata, &prefix, factor)
        }
        (kind, _, factors) => {
            let also = if factors.is_some() { " together with a tensor of factors" } else { "" };
            let feature = format!("rope scaling of type `{kind}`{also}");
            Err(GgufError::Unsupported { feature, architecture: architecture.name() })
        }
    }
}

fn yarn(metadata: &Metadata, prefix: &str, factor: f64) -> Result<Value, GgufError> {
    let key = format!("{prefix}.scaling.original_context_length");
    let original = keys::required(&key, keys::unsigned(metadata, &key))?;
    let mut scaling = Map::new();
    scaling.insert("rope_type".to_owned(), json!("yarn"));
    scaling.insert("factor".to_owned(), json!(factor));
    scaling.insert("original_max_position_embeddings".to_owned(), json!(original));
    // llama.cpp multiplies by it what transformers takes where nothing is given.
    let attention = keys::float(metadata, &format!("{prefix}.scaling.attn_factor"))?;
    if let Some(attention) = attention.filter(|attention| *attention != 1.0) {
        let usual = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
        scaling.insert("attention_factor".to_owned(), json!(attention * usual));
    }
    for (gguf, name) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
        if let Some(value) = keys::float(metadata, &format!("{prefix}.scaling.{gguf}"))? {
            scaling.insert(name.to_owned(), json!(value));
        }
    }
    Ok(Value::Object(scaling))
}

fn llama3(factors: &[f32], theta: f64) -> Result<Value, GgufError> {
    let largest = factors.iter().copied().fold(1.0, f32::max);
    if factors.iter().all(|&factor| factor == 1.0) {
        return Ok(Value::Null);
    }
    let scale = keys::shortest(largest);
    let context = context(factors, scale, theta);
    for (i, &factor) in factors.iter().enumerate() {
        let t =
            ((context / wavelength(i, factors.len(), theta) - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - t) / scale + t);
        let error = (f64::from(factor) / expected - 1.0).abs();
        if error.is_nan() || error > TOLERANCE {
            return Err(GgufError::BadValue {
                key: ROPE_FACTORS.to_owned(),
                problem: format!(
                    "factor {i} is {factor}, where Llama 3's rule with factor {scale} and original \
                     context {context} gives {expected}"
                ),
            });
        }
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": scale,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": context as u64,
    }))
}

/// The factors of `count` frequencies: what [`scaling`] reads back. `low` and `high` are the bounds
/// of the rule, `scale` and `context` its scaling and original context.
pub(super) fn factors(
    count: usize,
    theta: f64,
    (low, high): (f64, f64),
    scale: f64,
    context: f64,
) -> Vec<f32> {
    let factor = |i: usize| {
        let t = ((context / wavelength(i, count, theta) - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - t) / scale + t)) as f32
    };
    (0..count).map(factor).collect()
}

/// The original context that the first factor between 1 and `scale` tells.
fn context(factors: &[f32], scale: f64, theta: f64) -> f64 {
    let between = factors
        .iter()
        .map(|&factor| f64::from(factor))
        .enumerate()
        .find(|&(_, factor)| factor > 1.0 + TOLERANCE && factor < scale * (1.0 - TOLERANCE));
    let Some((i, factor)) = between else {
        return USUAL_CONTEXT;
    };
    let t = (1.0 / factor - 1.0 / scale) / (1.0 - 1.0 / scale);
    (wavelength(i, factors.len(), theta) * (t * (HIGH - LOW) + LOW)).round()
}

/// The wavelength of frequency `i` of `count`, in positions.
fn wavelength(i: usize, count: usize, theta: f64) -> f64 {
    std::f64::consts::TAU * theta.powf(i as f64 / count as f64)
}
