//! The configuration of a GPTQ folder, under the names of all who have written it.

use super::Gptq;
use crate::folder::{Grid, most_common};
use crate::{FormatError, Layout, ModuleKind, Pattern};
use lapidary_weight::{Grouping, Outline, ZeroType};
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;

const PLACE: &str = "config.json: quantization_config";

/// Bits and groups of some layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scheme {
    pub(super) bits: u8,
    /// Inputs that share a scale; `None` for all.
    pub(super) group_size: Option<NonZeroUsize>,
    pub(super) symmetric: bool,
}

impl Scheme {
    fn of(grid: &Grid) -> Self {
        let group_size = match grid.grouping {
            Grouping::Columns(width) => Some(width),
            Grouping::Row | Grouping::Tensor | Grouping::Blocks { .. } => None,
        };
        Self { bits: grid.bits, group_size, symmetric: grid.zeros == ZeroType::Middle }
    }

    fn fields(self) -> [(&'static str, Value); 3] {
        let size = self.group_size.map_or_else(|| json!(-1), |size| json!(size));
        [("bits", json!(self.bits)), ("group_size", size), ("sym", json!(self.symmetric))]
    }

    /// These fields with what `fields` sets.
    fn updated(self, fields: &Value, place: &str) -> Result<Self, FormatError> {
        let wrong = |key: &str, what: &str| FormatError::malformed(format!("{place}.{key}"), what);
        let bits = match first(fields, &["bits", "w_bit", "wbits"]) {
            None => self.bits,
            Some(value) => match value.as_u64() {
                Some(bits @ (2 | 3 | 4 | 8)) => bits as u8,
                _ => return Err(wrong("bits", "is not 2, 3, 4 or 8")),
            },
        };
        let group_size = match first(fields, &["group_size", "q_group_size"]) {
            None => self.group_size,
            Some(value) => match value.as_i64() {
                Some(-1) => None,
                size => Some(
                    size.and_then(|size| usize::try_from(size).ok())
                        .and_then(NonZeroUsize::new)
                        .ok_or_else(|| wrong("group_size", "is neither positive nor -1"))?,
                ),
            },
        };
        let asymmetric = fields.get("zero_point").and_then(Value::as_bool);
        let symmetric =
            fields.get("sym").and_then(Value::as_bool).or_else(|| asymmetric.map(|a| !a));
        Ok(Self { bits, group_size, symmetric: symmetric.unwrap_or(self.symmetric) })
    }
}

/// What is read of it.
#[derive(Debug)]
pub(super) struct GptqConfig {
    pub(super) version: Gptq,
    scheme: Scheme,
    /// What holds for the modules that an expression matches, the first that does.
    overrides: Vec<(Pattern, Scheme)>,
}

impl GptqConfig {
    pub(super) fn read(config: &Value) -> Result<Self, FormatError> {
        let version = first(config, &["checkpoint_format", "format", "version"]);
        let version = match version.map(|value| value.as_str().unwrap_or_default()) {
            None | Some("gptq") => Gptq::V1,
            Some("gptq_v2") => Gptq::V2,
            Some(other) => {
                let what = format!("is {other:?}; only gptq and gptq_v2 can be read");
                return Err(FormatError::malformed(format!("{PLACE}.checkpoint_format"), what));
            }
        };
        if config.get("is_marlin_format").and_then(Value::as_bool) == Some(true) {
            let what = "is true: weights that are laid out for Marlin cannot be read";
            return Err(FormatError::malformed(format!("{PLACE}.is_marlin_format"), what));
        }
        if config.get("pack_dtype").is_some_and(|dtype| !dtype.is_null() && dtype != "int32") {
            let what = "is not int32, the only one that can be read";
            return Err(FormatError::malformed(format!("{PLACE}.pack_dtype"), what));
        }
        let default = Scheme { bits: 4, group_size: NonZeroUsize::new(128), symmetric: true };
        let scheme = default.updated(config, PLACE)?;
        let mut overrides = vec![];
        for (key, fields) in config.get("dynamic").and_then(Value::as_object).into_iter().flatten()
        {
            // Layers that are left out have no packed tensors.
            if key.starts_with("-:") {
                continue;
            }
            let place = format!("{PLACE}.dynamic.{key}");
            let expression = key.strip_prefix("+:").unwrap_or(key);
            let pattern = Pattern::new(&format!("re:{expression}"))
                .map_err(|error| FormatError::malformed(&place, error.to_string()))?;
            overrides.push((pattern, scheme.updated(fields, &place)?));
        }
        Ok(Self { version, scheme, overrides })
    }

    /// What holds for a module.
    pub(super) fn scheme_of(&self, module: &str) -> Scheme {
        let matching =
            |(pattern, _): &&(Pattern, Scheme)| pattern.matches(module, ModuleKind::Layer);
        self.overrides.iter().find(matching).map_or(self.scheme, |(_, scheme)| *scheme)
    }
}

/// The first of these keys that is set.
fn first<'a>(fields: &'a Value, keys: &[&str]) -> Option<&'a Value> {
    keys.iter().find_map(|key| fields.get(key).filter(|value| !value.is_null()))
}

/// What is written: the scheme of most layers, and what differs from it by module.
pub(super) fn write(version: Gptq, layout: &Layout<'_>) -> Option<Value> {
    let scheme = |outline: &Outline| version.scheme(outline).map(|grid| Scheme::of(&grid)).ok();
    let schemes: Vec<(&str, Scheme)> = layout
        .compressed
        .iter()
        .map(|(module, outline)| Some((module.as_str(), scheme(outline)?)))
        .collect::<Option<_>>()?;
    let usual = most_common(schemes.iter().map(|(_, scheme)| *scheme))?;
    let is_head = |module: &str| module.rsplit('.').next() == Some("lm_head");
    let exactly = |module: &str| format!("^{}$", regex::escape(module));
    let mut dynamic = Map::new();
    for (module, scheme) in &schemes {
        let differs = scheme.fields().into_iter().zip(usual.fields()).filter(|(a, b)| a != b);
        let fields: Map<String, Value> =
            differs.map(|((key, value), _)| (key.to_owned(), value)).collect();
        if !fields.is_empty() {
            dynamic.insert(format!("+:{}", exactly(module)), Value::Object(fields));
        }
    }
    // A head is left out unless it is asked for.
    for module in layout.plain.iter().filter(|module| !is_head(module)) {
        dynamic.insert(format!("-:{}", exactly(module)), json!({}));
    }
    let mut config = json!({
        "quant_method": "gptq",
        "checkpoint_format": if version == Gptq::V1 { "gptq" } else { "gptq_v2" },
        "pack_dtype": "int32",
        "desc_act": false,
        "lm_head": schemes.iter().any(|(module, _)| is_head(module)),
    });
    for (key, value) in usual.fields() {
        config[key] = value;
    }
    if !dynamic.is_empty() {
        config["dynamic"] = Value::Object(dynamic);
    }
    Some(config)
}
