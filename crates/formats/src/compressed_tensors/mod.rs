//! compressed-tensors: what vLLM and transformers load.
//!
//! A folder has groups of layers, each with a format of its own and the names or kinds of its layers;
//! `mixed-precision` stands over several formats. Layouts of compressed-tensors 0.19:
//!
//! | format | a layer `m` of `[rows, cols]` |
//! |---|---|
//! | `pack-quantized` | integers as dense streams in words, see [`integers`] |
//! | `int-quantized` | integers as bytes: `weight` I8, `weight_scale`, `weight_zero_point` I8 |
//! | `naive-quantized`, `float-quantized` | `weight` F8_E4M3, `weight_scale` |
//! | `mxfp8-quantized` | `weight` F8_E4M3, `weight_scale` U8: E8M0 of 32 columns |
//! | `mxfp4-pack-quantized` | `weight_packed` U8: E2M1, two a byte; `weight_scale` U8 as above |
//! | `nvfp4-pack-quantized` | the same of 16 columns with E4M3, over `weight_global_scale` F32 |
//!
//! A group's `input_activations` say how the inputs of its layers are rounded when the model is run;
//! integers stand in bytes then, and FP8 is called `float-quantized`. Scales are `[1]`, `[rows, 1]`, `[rows, groups]`, or one for each rectangle of rows and columns.

pub(crate) mod floats;
mod integers;
mod reader;
mod scheme;

use crate::{Format, FormatError, Layout, ReadTensor, Reader};
use lapidary_store::TensorSpec;
use lapidary_weight::{FloatType, InputNumbers, InputRounding, InputScales, Outline, Weight};
use scheme::Scheme;
use serde_json::{Map, Value, json};

const METHOD: &str = "compressed-tensors";

/// Integers go into words, or each into a byte.
pub(crate) enum CompressedTensors {
    /// `pack-quantized`.
    Packed,
    /// `int-quantized`.
    Bytes,
}

impl CompressedTensors {
    fn scheme(&self, outline: &Outline) -> Result<Scheme, String> {
        let scheme = Scheme::of(outline, matches!(self, Self::Packed))?;
        match (self, &scheme) {
            (Self::Bytes, Scheme::Floats(_)) => {
                Err(format!("it holds integers, not {}", outline.describe()))
            }
            _ => Ok(scheme),
        }
    }

    /// Where a layer with rounded inputs stands: engines multiply integers by integers from bytes, and
    /// FP8 by integers (vLLM's `W4A8`) from words.
    fn beside(&self, outline: &Outline, inputs: InputRounding) -> Result<&'static Self, String> {
        if let InputScales::Fixed(_) = inputs.scales {
            let what = "it is written with scales of inputs that follow from the inputs, not with a \
                        fixed one";
            return Err(what.to_owned());
        }
        match (self.scheme(outline)?, inputs.numbers) {
            (Scheme::Integers(_), InputNumbers::Integers(_)) => Ok(&Self::Bytes),
            _ if matches!(self, Self::Bytes) => Ok(&Self::Bytes),
            _ => Ok(&Self::Packed),
        }
    }
}

impl Format for CompressedTensors {
    fn id(&self) -> &'static str {
        match self {
            Self::Packed => METHOD,
            Self::Bytes => "int-quantized",
        }
    }

    fn loaders(&self) -> &'static str {
        match self {
            Self::Packed => {
                "vLLM (4 and 8 bits and FP8 on all, others on newer kernels), transformers, lapidary"
            }
            Self::Bytes => "transformers, lapidary (compressed-tensors with a byte a weight)",
        }
    }

    fn scale_type(&self, model: FloatType) -> FloatType {
        // A loader casts scales to the model's type; a type of 16 bits survives that where the
        // model's own is no wider.
        if model == FloatType::Bf16 { FloatType::Bf16 } else { FloatType::F16 }
    }

    fn accepts(&self, outline: &Outline) -> Result<(), String> {
        self.scheme(outline).map(|_| ())
    }

    fn accepts_table(&self, _outline: &Outline) -> Result<(), String> {
        Err("vLLM and transformers load embedding tables as plain floats only".to_owned())
    }

    fn with_inputs(
        &self,
        outline: &Outline,
        inputs: InputRounding,
    ) -> Result<&'static dyn Format, String> {
        Ok(self.beside(outline, inputs)?)
    }

    fn tensors(&self, module: &str, outline: &Outline, _dtype: FloatType) -> Vec<TensorSpec> {
        let shape = (outline.rows, outline.cols);
        match self.scheme(outline) {
            Err(_) => vec![],
            Ok(Scheme::Integers(integers)) => integers.tensors(module, shape),
            Ok(Scheme::Floats(floats)) => floats.tensors(module, shape),
        }
    }

    fn encode(&self, weight: &Weight, _dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        let outline = weight.outline();
        let tensors = match self.scheme(&outline) {
            Err(_) => None,
            Ok(Scheme::Integers(integers)) => integers.encode(weight),
            Ok(Scheme::Floats(floats)) => floats.encode(weight),
        };
        tensors
            .ok_or_else(|| FormatError::Unsupported { format: METHOD, outline: outline.describe() })
    }

    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        _dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        let scheme = self.scheme(outline).map_err(|what| FormatError::malformed(module, what))?;
        scheme.decode(module, outline, read)
    }

    fn config(&self, layout: &Layout<'_>) -> Option<Value> {
        // Modules by what is said of them, in order of appearance.
        let mut groups: Vec<(&str, Value, Vec<&str>)> = vec![];
        for (module, outline) in layout.compressed {
            let inputs = layout.inputs_of(module);
            let beside = inputs.map_or(Ok(self), |inputs| self.beside(outline, inputs)).ok()?;
            let scheme = beside.scheme(outline).ok()?;
            let format = scheme.format(inputs.is_some());
            let group = json!({
                "targets": ["Linear"],
                "format": format,
                "weights": scheme.arguments(),
                "input_activations": inputs.map(scheme::input_arguments),
                "output_activations": null,
            });
            match groups.iter_mut().find(|(_, known, _)| *known == group) {
                Some((_, _, modules)) => modules.push(module),
                None => groups.push((format, group, vec![module])),
            }
        }
        let first = groups.first().map_or(integers::PACKED, |(format, _, _)| format);
        let is_mixed = groups.iter().any(|(format, _, _)| *format != first);
        let alone = groups.len() == 1;
        let group = |(index, (_, mut group, modules)): (usize, (&str, Value, Vec<&str>))| {
            if !alone {
                group["targets"] = json!(modules);
            }
            (format!("group_{index}"), group)
        };
        let format = if is_mixed { "mixed-precision" } else { first };
        let groups: Map<String, Value> = groups.into_iter().enumerate().map(group).collect();
        Some(json!({
            "quant_method": METHOD,
            "format": format,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": layout.plain,
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
        }))
    }

    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        // One reader for all, whichever way integers are stored.
        let is_ours = config.get("quant_method").and_then(Value::as_str) == Some(METHOD);
        let reads = is_ours && matches!(self, Self::Packed);
        reads.then(|| Ok(Box::new(reader::FolderReader::new(config)?) as Box<dyn Reader>))
    }
}
