//! Reads folders of `"quant_method": "fp8"`: DeepSeek's, and transformers' fine-grained FP8.
//!
//! A layer is `weight` (F8_E4M3) and `weight_scale_inv`, one number for each rectangle of
//! `weight_block_size`, which weights are multiplied by in spite of the name; F32, or F8_E8M0 where
//! `scale_fmt` says ue8m0. Without blocks it is `weight_scale_inv` or `weight_scale`, one number.

use crate::compressed_tensors::floats::{Floats, Scales};
use crate::{FormatError, Module, ReadTensor, Reader, TensorIndex};
use lapidary_store::Dtype;
use lapidary_weight::{FloatType, Grouping, Outline, SmallFloat, TermOutline, Weight};
use serde_json::Value;
use std::num::NonZeroUsize;

/// Names of the scales, by preference.
const SCALES: [&str; 2] = ["weight_scale_inv", "weight_scale"];

/// A reader for a folder with this `quantization_config`, when it is of this kind.
pub(crate) fn reader(config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
    let is_ours = config.get("quant_method").and_then(Value::as_str) == Some("fp8");
    is_ours.then(|| Ok(Box::new(Fp8Reader::new(config)?) as Box<dyn Reader>))
}

#[derive(Debug)]
struct Fp8Reader {
    block: Option<[NonZeroUsize; 2]>,
}

impl Fp8Reader {
    fn new(config: &Value) -> Result<Self, FormatError> {
        let place = |key: &str| format!("config.json: quantization_config.{key}");
        let format = config.get("fmt").and_then(Value::as_str).unwrap_or("e4m3");
        if format != "e4m3" && format != "float8_e4m3fn" {
            let what = format!("is {format:?}; only e4m3 can be read");
            return Err(FormatError::malformed(place("fmt"), what));
        }
        let side =
            |value: &Value| usize::try_from(value.as_u64()?).ok().and_then(NonZeroUsize::new);
        let sides = config.get("weight_block_size").filter(|sides| !sides.is_null());
        let sides = sides.map(|sides| sides.as_array().into_iter().flatten().map(side));
        let block = match sides.map(Iterator::collect::<Vec<_>>).as_deref() {
            None => None,
            Some([Some(rows), Some(columns)]) => Some([*rows, *columns]),
            Some(_) => {
                let what = "is not two positive numbers";
                return Err(FormatError::malformed(place("weight_block_size"), what));
            }
        };
        Ok(Self { block })
    }

    fn module(&self, name: &str, tensors: &dyn TensorIndex) -> Result<Option<Module>, FormatError> {
        let weight = format!("{name}.weight");
        let Some((Dtype::F8E4M3, shape)) = tensors.spec(&weight) else { return Ok(None) };
        let [rows, cols] = shape[..] else {
            let what = format!("is FP8 of shape {shape:?}, where a matrix is needed");
            return Err(FormatError::malformed(weight, what));
        };
        let found = SCALES.iter().find_map(|part| {
            let scale = format!("{name}.{part}");
            tensors.spec(&scale).map(|spec| (scale, spec))
        });
        let Some((scale, (dtype, shape))) = found else {
            return Err(FormatError::malformed(format!("{name}.{}", SCALES[0]), "is missing"));
        };
        let wrong = |what: String| Err(FormatError::malformed(&scale, what));
        let grouping = match (self.block, &shape[..]) {
            (_, [] | [1]) => Grouping::Tensor,
            (Some([rows, columns]), _) => Grouping::Blocks { rows, columns },
            (None, [height] | [height, 1]) if *height == rows => Grouping::Row,
            (None, _) => return wrong(format!("{shape:?} fits no sharing of [{rows}, {cols}]")),
        };
        if matches!(grouping, Grouping::Blocks { .. }) && shape != grouping.scale_shape(rows, cols)
        {
            let need = grouping.scale_shape(rows, cols);
            return wrong(format!("is {shape:?}, where {need:?} is needed for [{rows}, {cols}]"));
        }
        let scales = match dtype {
            Dtype::F32 => Scales::Plain(FloatType::F32),
            Dtype::F16 => Scales::Plain(FloatType::F16),
            Dtype::BF16 => Scales::Plain(FloatType::Bf16),
            Dtype::F8E8M0 => Scales::PowersOfTwo,
            other => return wrong(format!("is {other:?}, where F32 or F8_E8M0 is needed")),
        };
        let term = TermOutline::Lookup {
            bits: 8,
            grouping: Some(grouping),
            book_per_row: false,
            books: SmallFloat::E4M3.into(),
            scales: scales.into(),
        };
        let outline = Outline { rows, cols, terms: vec![term] };
        Ok(Some(Module::new(name, outline, [weight, scale])))
    }
}

impl Reader for Fp8Reader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let modules = names.iter().filter_map(|name| name.strip_suffix(".weight"));
        modules.filter_map(|name| self.module(name, tensors).transpose()).collect()
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        let scale = &module.tensors[module.tensors.len() - 1];
        Floats::decode_outline(&module.name, &module.outline, &|name| match name {
            name if name.ends_with(".weight_scale") => read(scale),
            name => read(name),
        })
    }

    fn unused(&self, tensors: &dyn TensorIndex) -> Vec<(String, String)> {
        let names = tensors.names().into_iter();
        let of_activations = names
            .filter(|name| name.ends_with(".input_scale") || name.ends_with(".activation_scale"));
        let reason = "activations stay floats here";
        let declared = "config.json: quantization_config.activation_scheme".to_owned();
        [declared].into_iter().chain(of_activations).map(|name| (name, reason.to_owned())).collect()
    }
}
