//! BitNet as transformers stores it (`quant_method: bitnet`): weights −1, 0 and 1, one scale a matrix.
//!
//! A linear layer `m` of `[out, in]` becomes `m.weight` (U8 `[out / 4, in]`) and `m.weight_scale` (`[1]`).
//! A byte of packed row `r` holds, from its lowest two bits, one more than the weights of rows `r`,
//! `r + out/4`, `r + 2·out/4` and `r + 3·out/4`. `autobitlinear`, which is written, multiplies by the
//! scale; `bitlinear` divides by it. Loaders round activations to 8 bits a token, which nothing here
//! does.

use crate::folder::{Bytes, Parts, checked, float_type, weight};
use crate::{Format, FormatError, Layout, Module, ReadTensor, Reader, TensorIndex, float_dtype};
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{
    Affine, FloatType, GroupFloats, GroupType, Grouping, Outline, Term, TermOutline, Weight,
    ZeroType, Zeros,
};
use serde_json::{Value, json};

const METHOD: &str = "bitnet";
const PLACE: &str = "config.json: quantization_config";

/// Weights in a byte.
const PACK: usize = 4;

pub(crate) struct BitNet;

/// Type of the scale of an outline that can hold ternary weights.
fn scale_type(outline: &Outline) -> Result<FloatType, String> {
    let float = match outline.terms[..] {
        [
            TermOutline::Affine {
                bits: 2,
                grouping,
                zeros: ZeroType::Middle | ZeroType::Codes,
                scales: GroupType::Plain(float),
            },
        ] => (grouping == Grouping::Tensor).then_some(float),
        [
            TermOutline::Lookup {
                bits: 2,
                grouping,
                book_per_row: false,
                scales: GroupType::Plain(float),
                ..
            },
        ] => (grouping == Some(Grouping::Tensor)).then_some(float),
        _ => {
            return Err(format!(
                "it holds weights of −1, 0 and 1 in 2 bits, not {}",
                outline.describe()
            ));
        }
    };
    let float = float.ok_or("it has one scale for a whole matrix; use group_size: tensor")?;
    if !outline.rows.is_multiple_of(PACK) {
        return Err(format!("outputs come in packs of 4, which {} are not", outline.rows));
    }
    Ok(float)
}

/// The sign of each weight plus one, and the scale; `None` where some weight is neither of the three.
fn ternary(term: &Term) -> Option<(Vec<u8>, f32)> {
    // What each code stands for, in units of the scale.
    let (codes, levels, scale): (&[u8], Vec<f32>, f32) = match term {
        Term::Affine(affine) => {
            let zero = match &affine.zeros {
                Zeros::Codes(zeros) => *zeros.first()?,
                _ => 2,
            };
            let levels = (0..4_u8).map(|code| f32::from(code) - f32::from(zero)).collect();
            (&affine.codes, levels, *affine.scales.first()?)
        }
        Term::Lookup(lookup) => {
            let (_, scales) = lookup.scales.as_ref()?;
            (&lookup.codes, lookup.books.clone(), *scales.first()?)
        }
        _ => return None,
    };
    let sign = |level: &f32| match *level {
        -1.0 => Some(0),
        0.0 => Some(1),
        1.0 => Some(2),
        _ => None,
    };
    let signs: Vec<Option<u8>> = levels.iter().map(sign).collect();
    let signs: Option<Vec<u8>> = codes.iter().map(|code| signs[usize::from(*code)]).collect();
    Some((signs?, scale))
}

impl Format for BitNet {
    fn id(&self) -> &'static str {
        METHOD
    }

    fn loaders(&self) -> &'static str {
        "transformers, lapidary"
    }

    fn scale_type(&self, model: FloatType) -> FloatType {
        model
    }

    fn accepts(&self, outline: &Outline) -> Result<(), String> {
        scale_type(outline).map(|_| ())
    }

    fn accepts_table(&self, _outline: &Outline) -> Result<(), String> {
        Err("embedding tables are plain floats in it".to_owned())
    }

    fn tensors(&self, module: &str, outline: &Outline, _dtype: FloatType) -> Vec<TensorSpec> {
        let Ok(scale) = scale_type(outline) else { return vec![] };
        let shape = vec![outline.rows / PACK, outline.cols];
        vec![
            TensorSpec::new(format!("{module}.weight"), Dtype::U8, shape),
            TensorSpec::new(format!("{module}.weight_scale"), float_dtype(scale), vec![1]),
        ]
    }

    fn encode(&self, weight: &Weight, _dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        let unsupported = |outline| FormatError::Unsupported { format: METHOD, outline };
        let outline = weight.outline();
        let float = scale_type(&outline).map_err(|_| unsupported(outline.describe()))?;
        let (signs, scale) = weight.terms().first().and_then(ternary).ok_or_else(|| {
            unsupported(format!(
                "{} with levels other than −1, 0 and 1; use method: kbit, data_type: int",
                outline.describe()
            ))
        })?;
        let mut packed = vec![0; signs.len() / PACK];
        for (part, signs) in signs.chunks(packed.len().max(1)).enumerate() {
            packed.iter_mut().zip(signs).for_each(|(byte, sign)| *byte |= sign << (2 * part));
        }
        Ok(vec![packed, float.encode(&[scale])])
    }

    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        _dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        decode(module, outline, None, read)
    }

    fn config(&self, layout: &Layout<'_>) -> Option<Value> {
        Some(json!({
            "quant_method": METHOD,
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": layout.plain,
        }))
    }

    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        let is_ours = config.get("quant_method").and_then(Value::as_str) == Some(METHOD);
        is_ours.then(|| Ok(Box::new(BitNetReader::new(config)?) as Box<dyn Reader>))
    }
}

/// The weight of a module, whatever it was written from: codes less one, times the scale, or divided by
/// what is stored as floats of the type `divisor`.
fn decode(
    module: &str,
    outline: &Outline,
    divisor: Option<FloatType>,
    read: ReadTensor<'_>,
) -> Result<Weight, FormatError> {
    let bytes = Bytes { module, read };
    let Outline { rows, cols, .. } = *outline;
    let float = scale_type(outline).map_err(|what| bytes.wrong("weight", what))?;
    let packed = bytes.get("weight")?;
    bytes.expect("weight", &packed, rows / PACK * cols)?;
    let part = |part: usize| packed.iter().map(move |byte| byte >> (2 * part) & 3);
    let codes: Vec<u8> = (0..PACK).flat_map(part).collect();
    if let Some(place) = codes.iter().position(|code| *code > 2) {
        let what = format!("holds a weight that is not −1, 0 or 1 in row {}", place / cols.max(1));
        return Err(bytes.wrong("weight", what));
    }
    let mut scale = bytes.floats("weight_scale", divisor.unwrap_or(float))?;
    if divisor.is_some() {
        scale.iter_mut().for_each(|scale| *scale = scale.recip());
    }
    bytes.expect("weight_scale", &scale, 1)?;
    let affine = Affine {
        bits: 2,
        grouping: Grouping::Tensor,
        codes,
        scales: GroupFloats::plain(scale, float),
        zeros: Zeros::Codes(vec![1]),
    };
    weight(module, rows, cols, Term::Affine(affine))
}

#[derive(Debug)]
struct BitNetReader {
    /// Whether weights are divided by what is stored.
    divides: bool,
}

impl BitNetReader {
    fn new(config: &Value) -> Result<Self, FormatError> {
        let class = config.get("linear_class").and_then(Value::as_str).unwrap_or("bitlinear");
        if !["bitlinear", "autobitlinear"].contains(&class) {
            let what = format!("{class:?} is neither bitlinear nor autobitlinear");
            return Err(FormatError::malformed(format!("{PLACE}.linear_class"), what));
        }
        if config.get("use_rms_norm").and_then(Value::as_bool) == Some(true) {
            let what = "is true: layers with a norm of their own cannot be read";
            return Err(FormatError::malformed(format!("{PLACE}.use_rms_norm"), what));
        }
        Ok(Self { divides: class == "bitlinear" })
    }

    fn module(&self, parts: Parts<'_>) -> Result<Module, FormatError> {
        let [packed, cols] = parts.matrix("weight", Dtype::U8)?;
        let rows = packed.saturating_mul(PACK);
        let (dtype, shape) = parts.spec("weight_scale")?;
        let stored = float_type(dtype).filter(|_| shape.is_empty() || shape == [1]);
        let Some(stored) = stored else {
            return parts.wrong("weight_scale", format!("is {dtype:?} {shape:?}, not one float"));
        };
        // A reciprocal has more digits than what it is of.
        let float = if self.divides { FloatType::F32 } else { stored };
        let (grouping, zeros) = (Grouping::Tensor, ZeroType::Codes);
        let term = TermOutline::Affine { bits: 2, grouping, zeros, scales: float.into() };
        let outline = checked(parts.module, Outline { rows, cols, terms: vec![term] })?;
        let tensors = ["weight", "weight_scale"].map(|part| parts.name(part));
        let floats = self.divides.then_some(stored);
        Ok(Module { floats, ..Module::new(parts.module, outline, tensors) })
    }
}

impl Reader for BitNetReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let packed =
            |parts: &Parts<'_>| matches!(tensors.spec(&parts.name("weight")), Some((Dtype::U8, _)));
        let modules = names.iter().filter_map(|name| name.strip_suffix(".weight_scale"));
        // Weights that are rounded as they are loaded (`online`) are plain.
        let modules = modules.map(|module| Parts { module, tensors }).filter(packed);
        modules.map(|parts| self.module(parts)).collect()
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        decode(&module.name, &module.outline, module.floats, read)
    }
}
