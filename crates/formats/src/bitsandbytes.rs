//! bitsandbytes: NF4 and FP4, with scales that may be quantized too, and LLM.int8's rows of integers.
//!
//! In 4 bits a linear layer `m` of `[out, in]` becomes `m.weight` (U8 `[⌈out · in / 2⌉, 1]`, the even
//! elements in the high halves), `m.weight.absmax` (F32, one a block of the flattened matrix),
//! `m.weight.quant_map` (F32 `[16]`, the levels) and `m.weight.quant_state.bitsandbytes__nf4` (or
//! `__fp4`), a text in JSON. With double quantization `absmax` is U8, and
//! `nested_quant_map[absmax] · nested_absmax + nested_offset`, an entry of `nested_absmax` for each 256,
//! is the scale. Our codes of scales are evenly spaced, which such a map can say as well as that of
//! bitsandbytes, whose scales are read as the floats that they decode to.
//!
//! In 8 bits it becomes `m.weight` (I8), `m.SCB` (F32 `[out]`; weights are `q · SCB / 127`) and
//! `m.weight_format` (U8, 0 for rows).

mod eight_bit;
mod four_bit;

use crate::folder::Parts;
use crate::{Format, FormatError, Layout, Module, ReadTensor, Reader, TensorIndex};
use four_bit::State;
use lapidary_store::TensorSpec;
use lapidary_weight::{FloatType, Outline, Weight};
use serde_json::{Value, json};

const METHOD: &str = "bitsandbytes";

/// Which levels of 4 bits are written: their name stands in the name of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bitsandbytes {
    /// NF4, and 8 bits.
    Nf4,
    /// FP4.
    Fp4,
}

impl Bitsandbytes {
    /// Whether it is 8 bits, else the state of 4 bits, or why it can be neither.
    fn kind(self, outline: &Outline) -> Result<Option<State>, String> {
        if self == Self::Nf4 && eight_bit::accepts(outline)? {
            return Ok(None);
        }
        State::of(outline).map(Some)
    }
}

impl Format for Bitsandbytes {
    fn id(&self) -> &'static str {
        match self {
            Self::Nf4 => METHOD,
            Self::Fp4 => "bitsandbytes-fp4",
        }
    }

    fn loaders(&self) -> &'static str {
        "transformers with bitsandbytes, vLLM, lapidary"
    }

    fn scale_type(&self, _model: FloatType) -> FloatType {
        FloatType::F32
    }

    fn accepts(&self, outline: &Outline) -> Result<(), String> {
        self.kind(outline).map(|_| ())
    }

    fn accepts_table(&self, _outline: &Outline) -> Result<(), String> {
        Err("embedding tables are plain floats in it".to_owned())
    }

    fn accepts_together(&self, layout: &Layout<'_>) -> Result<(), String> {
        let mut kinds = layout.compressed.iter().filter_map(|(_, o)| self.kind(o).ok());
        let first = kinds.next().map(|kind| kind.is_some());
        match kinds.all(|kind| Some(kind.is_some()) == first) {
            true => Ok(()),
            false => Err("all layers have 4 bits (nf4) or all have 8 (rtn, by rows)".to_owned()),
        }
    }

    fn tensors(&self, module: &str, outline: &Outline, dtype: FloatType) -> Vec<TensorSpec> {
        match self.kind(outline) {
            Ok(Some(state)) => state.tensors(module, *self, dtype),
            Ok(None) => eight_bit::tensors(module, outline),
            Err(_) => vec![],
        }
    }

    fn encode(&self, weight: &Weight, dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        let outline = weight.outline();
        let unsupported = |outline| FormatError::Unsupported { format: self.id(), outline };
        let kind = self.kind(&outline).map_err(|_| unsupported(outline.describe()))?;
        let encoded = match kind {
            Some(state) => state.encode(weight, *self, dtype),
            None => eight_bit::encode(weight),
        };
        encoded.map_err(|what| unsupported(format!("{}: {what}", outline.describe())))
    }

    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        _dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        match self.kind(outline) {
            Ok(Some(_)) => four_bit::decode(module, outline, four_bit::state_part(*self), read),
            _ => eight_bit::decode(module, outline, read),
        }
    }

    fn config(&self, layout: &Layout<'_>) -> Option<Value> {
        let mut kinds = layout.compressed.iter().filter_map(|(_, o)| self.kind(o).ok());
        let four_bit = kinds.next()?;
        let is_nested = four_bit.is_some_and(|state| state.is_nested())
            || kinds.flatten().any(|state| state.is_nested());
        Some(json!({
            "quant_method": METHOD,
            "load_in_8bit": four_bit.is_none(),
            "load_in_4bit": four_bit.is_some(),
            "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": layout.plain,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "bnb_4bit_quant_type": four_bit::quant_type(*self),
            "bnb_4bit_use_double_quant": is_nested,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
        }))
    }

    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        // One reader for all kinds: the tensors say which they are.
        let is_ours = *self == Self::Nf4
            && config.get("quant_method").and_then(Value::as_str) == Some(METHOD);
        is_ours.then(|| Ok(Box::new(BitsandbytesReader) as Box<dyn Reader>))
    }
}

#[derive(Debug)]
struct BitsandbytesReader;

impl Reader for BitsandbytesReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let mut modules = vec![];
        for name in &names {
            let four_bit = four_bit::STATES.iter().find_map(|part| {
                name.strip_suffix(part).and_then(|module| module.strip_suffix('.'))
            });
            if let Some(module) = four_bit {
                modules.push(four_bit::module(Parts { module, tensors })?);
            } else if let Some(module) = name.strip_suffix(".SCB") {
                modules.push(eight_bit::module(Parts { module, tensors })?);
            }
        }
        Ok(modules)
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        match module.outline.terms.first() {
            Some(lapidary_weight::TermOutline::Lookup { .. }) => four_bit::read(module, read),
            _ => eight_bit::decode(&module.name, &module.outline, read),
        }
    }
}
