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
//! so `s` is the largest factor, and any factor between 1 and `s` gives `c`. The factors of LongRoPE
//! are tensors too, those of short and those of long contexts; all of YaRN is metadata.

use lapidary_store::gguf::{MetaValue, Metadata};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use super::metadata::{Config, single, unsigned, wrong};
use super::{Architecture, GgufError, keys};

/// The values of the tensors of rotary factors, by their names.
pub type RopeFactors = BTreeMap<&'static str, Vec<f32>>;

/// The tensors that belong to `config.json` at Hugging Face, and the architecture that llama.cpp reads
/// them for: Llama 3's factors, and LongRoPE's for long and for short contexts.
pub(super) const TENSORS: [(&str, Architecture); 3] =
    [(FREQS, Architecture::Llama), (LONG, Architecture::Phi3), (SHORT, Architecture::Phi3)];

const FREQS: &str = "rope_freqs.weight";
const LONG: &str = "rope_factors_long.weight";
const SHORT: &str = "rope_factors_short.weight";

const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;

/// The original context of every published Llama 3; taken when no factor tells.
const USUAL_CONTEXT: f64 = 8192.0;

/// How far a stored factor may be from the rule, relatively; they are computed in single precision.
const TOLERANCE: f64 = 1e-4;

/// How far a number may be from its usual value, relatively, to be taken for it: a rounding.
const ROUNDING: f64 = 5e-7;

/// Times that a pair turns in the original context between which YaRN blends, where nothing is said.
/// llama.cpp reads other ones for architectures that are not written here.
const YARN_BETAS: [(&str, f64); 2] = [("beta_fast", 32.0), ("beta_slow", 1.0)];

/// The value of `rope_scaling`, null for none, from the metadata and the tensors of factors, and the
/// context the model was first trained with where it stands beside it.
pub(super) fn read(
    metadata: &Metadata,
    architecture: Architecture,
    factors: &RopeFactors,
    theta: f64,
) -> Result<(Value, Option<u64>), GgufError> {
    let prefix = architecture.name();
    let kind = keys::string(metadata, &format!("{prefix}.rope.scaling.type"))?;
    let factor_key = format!("{prefix}.rope.scaling.factor");
    let factor = match keys::float(metadata, &factor_key)? {
        Some(factor) => Some(factor),
        // The key of files from 2023.
        None => keys::float(metadata, &format!("{prefix}.rope.scale_linear"))?,
    };
    let factor = factor.filter(|&factor| factor != 0.0 && factor != 1.0);
    let [freqs, long, short] = TENSORS.map(|(name, _)| factors.get(name));
    // llama.cpp takes a factor without a type for a linear one.
    let scaling = match (kind.unwrap_or("linear"), factor, freqs) {
        ("none" | "linear" | "longrope", None, None) if long.is_some() || short.is_some() => {
            return longrope(metadata, prefix, long, short);
        }
        ("none" | "linear", None, Some(factors)) => llama3(factors, theta)?,
        ("none", _, None) | ("linear", None, None) => Value::Null,
        ("linear", Some(factor), None) => json!({"rope_type": "linear", "factor": factor}),
        ("yarn", factor, None) if long.is_none() && short.is_none() => {
            let factor = keys::required(&factor_key, Ok(factor))?;
            yarn(metadata, prefix, factor)?
        }
        (kind, _, _) => {
            let also = if factors.is_empty() { "" } else { " together with a tensor of factors" };
            let feature = format!("rope scaling of type `{kind}`{also}");
            return Err(GgufError::Unsupported { feature, architecture: prefix });
        }
    };
    Ok((scaling, None))
}

fn original_context(metadata: &Metadata, prefix: &str) -> Result<u64, GgufError> {
    let key = format!("{prefix}.rope.scaling.original_context_length");
    keys::required(&key, keys::unsigned(metadata, &key))
}

fn yarn(metadata: &Metadata, prefix: &'static str, factor: f64) -> Result<Value, GgufError> {
    let mut scaling = Map::new();
    scaling.insert("rope_type".to_owned(), json!("yarn"));
    scaling.insert("factor".to_owned(), json!(factor));
    let original = original_context(metadata, prefix)?;
    scaling.insert("original_max_position_embeddings".to_owned(), json!(original));
    for (key, usual) in [("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0.0)] {
        let value = keys::float(metadata, &format!("{prefix}.rope.scaling.{key}"))?;
        if let Some(value) = value.filter(|value| *value != usual) {
            let feature = format!("`{prefix}.rope.scaling.{key}` of {value}");
            return Err(GgufError::Unsupported { feature, architecture: prefix });
        }
    }
    // llama.cpp multiplies by it what transformers takes where nothing is given.
    let attention = keys::float(metadata, &format!("{prefix}.rope.scaling.attn_factor"))?;
    if let Some(attention) = attention.filter(|attention| *attention != 1.0) {
        let whole = keys::shortest((attention * yarn_attention(factor)) as f32);
        scaling.insert("attention_factor".to_owned(), json!(whole));
    }
    for (name, _) in YARN_BETAS {
        if let Some(value) = keys::float(metadata, &format!("{prefix}.rope.scaling.yarn_{name}"))? {
            scaling.insert(name.to_owned(), json!(value));
        }
    }
    Ok(Value::Object(scaling))
}

/// What YaRN multiplies cosines and sines by where nothing is given.
fn yarn_attention(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

/// What LongRoPE multiplies them by, for a context so many times the original one.
fn longrope_attention(factor: f64, original: f64) -> f64 {
    if factor > 1.0 { (1.0 + factor.ln() / original.ln()).sqrt() } else { 1.0 }
}

fn longrope(
    metadata: &Metadata,
    prefix: &'static str,
    long: Option<&Vec<f32>>,
    short: Option<&Vec<f32>>,
) -> Result<(Value, Option<u64>), GgufError> {
    let missing = |name: &str| GgufError::MissingTensor { name: name.to_owned() };
    let listed = |list: &[f32]| -> Value {
        json!(list.iter().map(|factor| keys::shortest(*factor)).collect::<Vec<f64>>())
    };
    let mut scaling = Map::new();
    // What this scaling was called at first, and the three fields that its first readers take.
    scaling.insert("type".to_owned(), json!("longrope"));
    scaling.insert("long_factor".to_owned(), listed(long.ok_or_else(|| missing(LONG))?));
    scaling.insert("short_factor".to_owned(), listed(short.ok_or_else(|| missing(SHORT))?));
    let original = original_context(metadata, prefix)?;
    let key = format!("{prefix}.context_length");
    let whole = keys::required(&key, keys::unsigned(metadata, &key))?;
    let usual = longrope_attention(whole as f64 / original as f64, original as f64);
    let given = keys::float(metadata, &format!("{prefix}.rope.scaling.attn_factor"))?;
    let given = given.unwrap_or(1.0);
    if (given / usual - 1.0).abs() > ROUNDING {
        scaling.insert("attention_factor".to_owned(), json!(given));
    }
    Ok((Value::Object(scaling), Some(original)))
}

/// What a scaling is in a file.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    /// Under the name of the architecture.
    pub(super) entries: Vec<(&'static str, MetaValue)>,
    pub(super) factors: RopeFactors,
    /// What llama.cpp will do otherwise.
    pub(super) departure: Option<String>,
}

/// What [`read()`] reads back: `scaling` is `rope_scaling` or `rope_parameters` of `config`, and so many
/// channels of a head are rotated.
pub(super) fn written(
    scaling: Config<'_>,
    config: Config<'_>,
    architecture: Architecture,
    rotated: usize,
    theta: f64,
) -> Result<Scaling, GgufError> {
    let mut to = Scaling::default();
    let kind = scaling.text("rope_type").or_else(|| scaling.text("type")).unwrap_or("default");
    let stretched = Stretched { scaling, config };
    let has = |tensor: &str| match TENSORS.iter().find(|(name, _)| *name == tensor) {
        Some((_, of)) if architecture != *of => {
            let problem = format!("{kind:?}: llama.cpp has it for {} only", of.name());
            Err(wrong("rope_scaling.rope_type", problem))
        }
        _ => Ok(()),
    };
    match kind {
        "default" => {}
        "linear" => {
            let factor = single("factor", stretched.positive("factor")?)?;
            to.entries.push(("rope.scaling.type", MetaValue::String("linear".to_owned())));
            to.entries.push(("rope.scaling.factor", factor));
        }
        "llama3" => {
            has(FREQS)?;
            let low = stretched.positive("low_freq_factor")?;
            let high = stretched.positive("high_freq_factor")?;
            let context = stretched.positive("original_max_position_embeddings")?;
            let factor = stretched.positive("factor")?;
            to.factors.insert(FREQS, factors(rotated / 2, theta, (low, high), factor, context));
        }
        "yarn" => stretched.yarn(&mut to)?,
        // "su" is what LongRoPE was called at first.
        "longrope" | "su" => {
            has(LONG)?;
            stretched.longrope(rotated / 2, &mut to)?;
        }
        other => {
            let known = "default, linear, llama3, yarn and longrope can be written to GGUF";
            return Err(wrong("rope_scaling.rope_type", format!("{other:?}; {known}")));
        }
    }
    Ok(to)
}

/// A scaling and the configuration it stands in.
struct Stretched<'a> {
    scaling: Config<'a>,
    config: Config<'a>,
}

impl Stretched<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.scaling.number(self.scaling.get(key), key)
    }

    fn positive(&self, key: &str) -> Result<f64, GgufError> {
        let value = self.number(key)?.filter(|value| *value > 0.0);
        value.ok_or_else(|| wrong(key, "is no positive number"))
    }

    /// The context the model was first trained with, and by what it is stretched.
    fn context(&self, to: &mut Scaling) -> Result<(f64, f64), GgufError> {
        let key = "original_max_position_embeddings";
        let whole = self.config.optional_size("max_position_embeddings")?.unwrap_or(2048);
        let given = match self.config.optional_size(key)? {
            Some(outside) => Some(outside),
            None => self.scaling.optional_size(key)?,
        };
        let original = given.unwrap_or(whole);
        let entry = ("rope.scaling.original_context_length", unsigned(key, original)?);
        to.entries.push(entry);
        let factor = match self.scaling.get("factor") {
            Some(_) => self.positive("factor")?,
            None => whole as f64 / original as f64,
        };
        Ok((original as f64, factor))
    }

    fn yarn(&self, to: &mut Scaling) -> Result<(), GgufError> {
        let (_, factor) = self.context(to)?;
        if self.scaling.get("truncate").is_some_and(|flag| flag == false) {
            return Err(wrong("rope_scaling.truncate", "is false: llama.cpp truncates"));
        }
        to.entries.push(("rope.scaling.type", MetaValue::String("yarn".to_owned())));
        to.entries.push(("rope.scaling.factor", single("factor", factor)?));
        let given = |key| Ok::<_, GgufError>(self.number(key)?.filter(|value| *value != 0.0));
        let usual = yarn_attention(factor);
        let scaled = |scale: f64| if factor > 1.0 { 0.1 * scale * factor.ln() + 1.0 } else { 1.0 };
        let attention =
            match (given("attention_factor")?, given("mscale")?, given("mscale_all_dim")?) {
                (Some(attention), _, _) => attention,
                (None, Some(own), Some(all)) => scaled(own) / scaled(all),
                _ => usual,
            };
        if (attention / usual - 1.0).abs() > ROUNDING {
            let over = single("attention_factor", attention / usual)?;
            to.entries.push(("rope.scaling.attn_factor", over));
        }
        for (name, usual) in YARN_BETAS {
            if let Some(value) = given(name)?.filter(|value| *value != usual) {
                let problem = format!("is {value}: llama.cpp computes with {usual}");
                return Err(wrong(&format!("rope_scaling.{name}"), problem));
            }
        }
        Ok(())
    }

    fn longrope(&self, pairs: usize, to: &mut Scaling) -> Result<(), GgufError> {
        let (original, factor) = self.context(to)?;
        let attention = match self.number("attention_factor")? {
            Some(attention) => attention,
            None => longrope_attention(factor, original),
        };
        to.entries.push(("rope.scaling.attn_factor", single("attention_factor", attention)?));
        for (tensor, key) in [(LONG, "long_factor"), (SHORT, "short_factor")] {
            let list = self.scaling.get(key).and_then(Value::as_array);
            let numbers: Option<Vec<f32>> = list
                .and_then(|list| list.iter().map(|number| Some(number.as_f64()? as f32)).collect());
            let positive = |numbers: &Vec<f32>| {
                numbers.len() == pairs && numbers.iter().all(|number| *number > 0.0)
            };
            let numbers = numbers.filter(positive).ok_or_else(|| {
                wrong(
                    key,
                    format!("is no list of {pairs} positive numbers, one a pair of channels"),
                )
            })?;
            to.factors.insert(tensor, numbers);
        }
        for key in ["short_mscale", "long_mscale"] {
            if self.scaling.get(key).is_some() {
                return Err(wrong(key, "has no place in GGUF"));
            }
        }
        to.departure = Some(format!(
            "llama.cpp takes the factors of long contexts for texts of any length once its context is \
             larger than {original} tokens; give it no larger one (-c {original}) for shorter texts"
        ));
        Ok(())
    }
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
                key: FREQS.to_owned(),
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

/// The factors of `count` frequencies: what [`llama3`] reads back. `low` and `high` are the bounds
/// of the rule, `scale` and `context` its scaling and original context.
fn factors(
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
