//! Reads folders of NVIDIA's ModelOpt: FP8 and NVFP4, of all layers or layer by layer.
//!
//! What was quantized stands under `quantization_config` of `config.json` (`"quant_method":
//! "modelopt"`), or in `hf_quant_config.json` alone. A layer of FP8 is `weight` (F8_E4M3) and
//! `weight_scale` (one F32, or one a row); one of NVFP4 is `weight` (U8, two E2M1 a byte, the even
//! column in the low bits), `weight_scale` (F8_E4M3, of 16 columns) and `weight_scale_2` (F32), which
//! is 1 over the divisor.

use crate::compressed_tensors::floats::{Floats, Scales};
use crate::{FormatError, Module, ReadTensor, Reader, TensorIndex};
use lapidary_store::Dtype;
use lapidary_weight::{FloatType, Grouping, Outline, SmallFloat, TermOutline, Weight};
use serde_json::Value;
use std::num::NonZeroUsize;

/// The file that describes the layers where `config.json` does not.
pub(crate) const FILE: &str = "hf_quant_config.json";

/// Columns that share a scale in NVFP4.
const WIDTH: usize = 16;

/// A reader for a folder with this `quantization_config` or file, when it is of this kind.
pub(crate) fn reader(config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
    let by_method = config.get("quant_method").and_then(Value::as_str) == Some("modelopt");
    let producer = config.pointer("/producer/name").and_then(Value::as_str);
    if !by_method && producer != Some("modelopt") {
        return None;
    }
    let algorithm = config.get("quant_algo").or_else(|| config.pointer("/quantization/quant_algo"));
    let algorithm = algorithm.and_then(Value::as_str).unwrap_or("?");
    let known = ["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "MIXED_PRECISION"];
    Some(if known.contains(&algorithm) {
        Ok(Box::new(ModelOptReader))
    } else {
        let what =
            format!("{algorithm:?} of ModelOpt cannot be read yet; {} can", known.join(", "));
        Err(FormatError::malformed("quant_algo", what))
    })
}

/// Types and names of the tensors tell what a layer is.
#[derive(Debug)]
struct ModelOptReader;

impl ModelOptReader {
    fn module(name: &str, tensors: &dyn TensorIndex) -> Result<Option<Module>, FormatError> {
        let place = |part: &str| format!("{name}.{part}");
        let Some((dtype, shape)) = tensors.spec(&place("weight")) else { return Ok(None) };
        let is_four_bits = match dtype {
            Dtype::F8E4M3 => false,
            Dtype::U8 => true,
            _ => return Ok(None),
        };
        let [rows, width] = shape[..] else {
            let what = format!("is {dtype:?} of shape {shape:?}, where a matrix is needed");
            return Err(FormatError::malformed(place("weight"), what));
        };
        if tensors.spec(&place("pre_quant_scale")).is_some() {
            let what = "scales of inputs cannot be read yet";
            return Err(FormatError::malformed(place("pre_quant_scale"), what));
        }
        let needed = |part: &str| {
            let missing = || FormatError::malformed(place(part), "is missing");
            tensors.spec(&place(part)).ok_or_else(missing)
        };
        let wrong = |part: &str, have: &(Dtype, Vec<usize>), need: &str| {
            let what =
                format!("is {:?} {:?}, where {need} is needed for {rows} rows", have.0, have.1);
            FormatError::malformed(place(part), what)
        };
        let is_one = |shape: &[usize]| shape.len() <= 1 && shape.iter().all(|size| *size == 1);
        let scale = needed("weight_scale")?;
        let (cols, grouping, scales) = if is_four_bits {
            let cols = width.checked_mul(2).filter(|cols| cols.is_multiple_of(WIDTH));
            let cols = cols.ok_or_else(|| {
                let what = format!("{shape:?} is not of whole groups of {WIDTH} columns");
                FormatError::malformed(place("weight"), what)
            })?;
            if scale != (Dtype::F8E4M3, vec![rows, cols / WIDTH]) {
                return Err(wrong("weight_scale", &scale, "F8E4M3 with 16 columns a scale"));
            }
            let divisor = needed("weight_scale_2")?;
            if divisor.0 != Dtype::F32 || !is_one(&divisor.1) {
                return Err(wrong("weight_scale_2", &divisor, "one F32"));
            }
            let columns = NonZeroUsize::new(WIDTH).map_or(Grouping::Row, Grouping::Columns);
            (cols, columns, Scales::Divided)
        } else {
            let float = match scale.0 {
                Dtype::F32 => FloatType::F32,
                Dtype::F16 => FloatType::F16,
                Dtype::BF16 => FloatType::Bf16,
                _ => return Err(wrong("weight_scale", &scale, "F32, F16 or BF16")),
            };
            let grouping = match &scale.1[..] {
                one if is_one(one) => Grouping::Tensor,
                [height] | [height, 1] if *height == rows => Grouping::Row,
                _ => return Err(wrong("weight_scale", &scale, "one number, or one a row")),
            };
            (width, grouping, Scales::Plain(float))
        };
        let float = if is_four_bits { SmallFloat::E2M1 } else { SmallFloat::E4M3 };
        let term = TermOutline::Lookup {
            bits: float.bits(),
            grouping: Some(grouping),
            book_per_row: false,
            books: float.into(),
            scales: scales.into(),
        };
        let parts = ["weight", "weight_scale", "weight_scale_2"];
        let parts = &parts[..if is_four_bits { 3 } else { 2 }];
        let outline = Outline { rows, cols, terms: vec![term] };
        Ok(Some(Module::new(name, outline, parts.iter().map(|part| place(part)))))
    }
}

impl Reader for ModelOptReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let modules = names.iter().filter_map(|name| name.strip_suffix(".weight"));
        modules.filter_map(|name| Self::module(name, tensors).transpose()).collect()
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        // compressed-tensors' tensors under other names, and the divisor the other way up.
        let name = &module.name;
        Floats::decode_outline(name, &module.outline, &|part| {
            if part.ends_with(".weight_packed") {
                return read(&format!("{name}.weight"));
            }
            if !part.ends_with(".weight_global_scale") {
                return read(part);
            }
            let factors = FloatType::F32.decode(&read(&format!("{name}.weight_scale_2"))?);
            Ok(factors.iter().flat_map(|factor| (1.0 / factor).to_le_bytes()).collect())
        })
    }

    fn unused(&self, tensors: &dyn TensorIndex) -> Vec<(String, String)> {
        let reason = |name: &str| match name.rsplit('.').next() {
            Some("input_scale") => Some("activations stay floats here"),
            Some("k_scale" | "v_scale") => Some("the cache of keys and values stays floats here"),
            _ => None,
        };
        let names = tensors.names().into_iter();
        names.filter_map(|name| Some((name.clone(), reason(&name)?.to_owned()))).collect()
    }
}
