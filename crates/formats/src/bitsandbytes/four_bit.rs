//! Sixteen levels, scaled by the largest magnitude of each block of the flattened matrix.

use super::Bitsandbytes;
use crate::folder::{Bytes, Parts, checked, weight};
use crate::{FormatError, Module, ReadTensor};
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{
    BookType, FloatType, GroupFloats, GroupType, Grouping, Levels, Lookup, Origin, Outline, Runs,
    Term, TermOutline, TwoLevel, Weight,
};
use serde_json::{Value, json};
use std::num::NonZeroUsize;

/// The tensors that describe a layer, after the name of its module.
pub(super) const STATES: [&str; 2] =
    ["weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"];

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A twelfth of 0, 1/16, 8, 12, 4, 6, 2 and 3, then these less than zero.
const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// Scales that share a coarse scale.
const NESTED: usize = 256;

/// Sizes of blocks that the kernels have.
const BLOCKS: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Room for a number in a text whose length is known before the number.
const NUMBER: usize = 32;

/// Longest text that is believed to describe a layer.
const MOST_TEXT: usize = 1 << 12;

/// The name of the levels.
pub(super) fn quant_type(kind: Bitsandbytes) -> &'static str {
    match kind {
        Bitsandbytes::Nf4 => "nf4",
        Bitsandbytes::Fp4 => "fp4",
    }
}

/// The tensor that describes a layer.
pub(super) fn state_part(kind: Bitsandbytes) -> &'static str {
    STATES[usize::from(kind == Bitsandbytes::Fp4)]
}

fn levels(kind: Bitsandbytes) -> &'static [f32; 16] {
    match kind {
        Bitsandbytes::Nf4 => &NF4,
        Bitsandbytes::Fp4 => &FP4,
    }
}

/// How scales are quantized: the same as QLoRA's, with codes that are evenly spaced.
fn double_quantization() -> Option<TwoLevel> {
    let runs = Runs::Flat(NonZeroUsize::new(NESTED)?);
    Some(TwoLevel { bits: 8, runs, origin: Origin::Mean, coarse: FloatType::F32 })
}

/// The map of evenly spaced codes.
fn even_map() -> Vec<f32> {
    (-128_i16..128).map(f32::from).collect()
}

/// What a layer of 4 bits is, apart from its levels.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    rows: usize,
    cols: usize,
    block: usize,
    nested: bool,
}

impl State {
    pub(super) fn of(outline: &Outline) -> Result<Self, String> {
        let [
            TermOutline::Lookup {
                bits: 4,
                grouping: Some(grouping),
                book_per_row: false,
                books: BookType::Stored(FloatType::F32),
                scales,
            },
        ] = outline.terms[..]
        else {
            return Err(format!(
                "it holds levels of 4 bits, not {}; use method: nf4",
                outline.describe()
            ));
        };
        let Outline { rows, cols, .. } = *outline;
        let block = grouping.width(cols);
        if grouping == Grouping::Tensor || !BLOCKS.contains(&block) || !cols.is_multiple_of(block) {
            return Err(format!(
                "its blocks are powers of two from 32 to 4096 that divide the {cols} columns, not \
                 {}",
                outline.describe()
            ));
        }
        let nested = match scales {
            GroupType::Plain(FloatType::F32) => false,
            GroupType::TwoLevel(kind) if Some(kind) == double_quantization() => true,
            _ => {
                return Err(format!(
                    "its scales are F32, or of 8 bits, not {}",
                    outline.describe()
                ));
            }
        };
        Ok(Self { rows, cols, block, nested })
    }

    pub(super) fn is_nested(&self) -> bool {
        self.nested
    }

    fn blocks(&self) -> usize {
        self.rows * self.cols / self.block
    }

    pub(super) fn tensors(
        &self,
        module: &str,
        kind: Bitsandbytes,
        dtype: FloatType,
    ) -> Vec<TensorSpec> {
        let spec = |part, dtype, shape| TensorSpec::new(format!("{module}.{part}"), dtype, shape);
        let blocks = self.blocks();
        let absmax = if self.nested { Dtype::U8 } else { Dtype::F32 };
        let mut tensors = vec![
            spec("weight", Dtype::U8, vec![(self.rows * self.cols).div_ceil(2), 1]),
            spec("weight.absmax", absmax, vec![blocks]),
            spec("weight.quant_map", Dtype::F32, vec![levels(kind).len()]),
        ];
        if self.nested {
            tensors.push(spec("weight.nested_absmax", Dtype::F32, vec![blocks.div_ceil(NESTED)]));
            tensors.push(spec("weight.nested_quant_map", Dtype::F32, vec![NESTED]));
        }
        let text = self.text(kind, dtype, 0.0).len();
        tensors.push(spec(state_part(kind), Dtype::U8, vec![text]));
        tensors
    }

    /// The description of the layer, as long for any offset.
    fn text(&self, kind: Bitsandbytes, dtype: FloatType, offset: f32) -> Vec<u8> {
        let dtype = match dtype {
            FloatType::F32 => "float32",
            FloatType::F16 => "float16",
            FloatType::Bf16 => "bfloat16",
        };
        let mut fields = json!({
            "quant_type": quant_type(kind),
            "blocksize": self.block,
            "dtype": dtype,
            "shape": [self.rows, self.cols],
        });
        let mut number = 0;
        if self.nested {
            fields["nested_blocksize"] = json!(NESTED);
            fields["nested_dtype"] = json!("float32");
            fields["nested_offset"] = json!(offset);
            number = fields["nested_offset"].to_string().len();
        }
        let mut text = fields.to_string().into_bytes();
        let length = text.len() + NUMBER.saturating_sub(number);
        text.resize(length, b' ');
        text
    }

    pub(super) fn encode(
        &self,
        weight: &Weight,
        kind: Bitsandbytes,
        dtype: FloatType,
    ) -> Result<Vec<Vec<u8>>, String> {
        let [Term::Lookup(lookup)] = weight.terms() else {
            return Err("is not one lookup".to_owned());
        };
        let Some((_, scales)) = &lookup.scales else { return Err("has no scales".to_owned()) };
        let known = levels(kind);
        // A level that stands there twice keeps its place.
        let place = |(code, level): (usize, &f32)| match known[code] == *level {
            true => Some(code),
            false => known.iter().position(|other| other == level),
        };
        let places: Vec<Option<usize>> = lookup.books.iter().enumerate().map(place).collect();
        let codes = lookup.codes.iter().map(|code| places[usize::from(*code)].map(|c| c as u8));
        let codes: Option<Vec<u8>> = codes.collect();
        let name = quant_type(kind);
        let codes =
            codes.ok_or_else(|| format!("has levels that are not those of {name} there"))?;
        let pair = |pair: &[u8]| pair[0] << 4 | pair.get(1).unwrap_or(&0);
        let packed: Vec<u8> = codes.chunks(2).map(pair).collect();
        let float = FloatType::F32;
        let map = float.encode(known);
        let Some(nested) = scales.levels() else {
            let text = self.text(kind, dtype, 0.0);
            return Ok(vec![packed, float.encode(scales), map, text]);
        };
        let offset = nested.offsets.first().copied().unwrap_or(0.0);
        Ok(vec![
            packed,
            nested.codes.clone(),
            map,
            float.encode(&nested.coarse),
            float.encode(&even_map()),
            self.text(kind, dtype, offset),
        ])
    }
}

/// What the text says of a layer.
struct Description {
    rows: usize,
    cols: usize,
    block: NonZeroUsize,
    /// Scales that share a coarse scale, and the offset of all.
    nested: Option<(NonZeroUsize, f32)>,
}

impl Description {
    fn parse(text: &[u8]) -> Result<Self, String> {
        let fields: Value =
            serde_json::from_slice(text).map_err(|error| format!("is not JSON: {error}"))?;
        let size = |value: Option<&Value>| {
            let size = value.and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
            size.and_then(NonZeroUsize::new)
        };
        let field = |key: &str| {
            size(fields.get(key)).ok_or_else(|| format!("{key} is not a positive number"))
        };
        let shape = fields.get("shape").and_then(Value::as_array);
        let shape: Vec<usize> =
            shape.into_iter().flatten().filter_map(|s| size(Some(s))).map(Into::into).collect();
        let [rows, cols] = shape[..] else {
            return Err("shape is not that of a matrix".to_owned());
        };
        let nested = match fields.get("nested_blocksize") {
            None => None,
            Some(_) => {
                let offset = fields.get("nested_offset").and_then(Value::as_f64);
                let offset = offset.ok_or("nested_offset is not a number")?;
                Some((field("nested_blocksize")?, offset as f32))
            }
        };
        Ok(Self { rows, cols, block: field("blocksize")?, nested })
    }
}

pub(super) fn module(parts: Parts<'_>) -> Result<Module, FormatError> {
    let Some(state) = STATES.into_iter().find(|state| parts.has(state)) else {
        return parts.wrong(STATES[0], "is missing");
    };
    match parts.spec(state)? {
        (Dtype::U8, shape) if shape.len() == 1 && shape[0] <= MOST_TEXT => {}
        (dtype, shape) => return parts.wrong(state, format!("is {dtype:?} {shape:?}, not a text")),
    }
    let described = Description::parse(&parts.read(state)?);
    let Description { rows, cols, block, nested } =
        described.or_else(|what| parts.wrong(state, what))?;
    let Some(count) = rows.checked_mul(cols) else {
        return parts.wrong(state, format!("[{rows}, {cols}] is beyond all sense"));
    };
    parts.expect("weight", Dtype::U8, &[count.div_ceil(2), 1])?;
    parts.expect("weight.quant_map", Dtype::F32, &[16])?;
    let blocks = count.div_ceil(block.get());
    let mut tensors = vec!["weight", "weight.absmax", "weight.quant_map", state];
    let mut is_even = false;
    if let Some((runs, _)) = nested {
        parts.expect("weight.absmax", Dtype::U8, &[blocks])?;
        parts.expect("weight.nested_absmax", Dtype::F32, &[blocks.div_ceil(runs.get())])?;
        parts.expect("weight.nested_quant_map", Dtype::F32, &[256])?;
        tensors.extend(["weight.nested_absmax", "weight.nested_quant_map"]);
        let map = FloatType::F32.decode(&parts.read("weight.nested_quant_map")?);
        is_even = runs.get() == NESTED && map == even_map();
    } else {
        parts.expect("weight.absmax", Dtype::F32, &[blocks])?;
    }
    // Blocks that end within a row are cut where rows and blocks begin.
    let width = common_divisor(cols, block.get());
    let is_whole = cols.is_multiple_of(block.get());
    let scales = match double_quantization() {
        Some(kind) if is_even && is_whole => GroupType::TwoLevel(kind),
        _ => GroupType::Plain(FloatType::F32),
    };
    let grouping = match NonZeroUsize::new(width) {
        Some(width) if width.get() < cols => Grouping::Columns(width),
        _ => Grouping::Row,
    };
    let books = FloatType::F32.into();
    let term = TermOutline::Lookup {
        bits: 4,
        grouping: Some(grouping),
        book_per_row: false,
        books,
        scales,
    };
    let outline = checked(parts.module, Outline { rows, cols, terms: vec![term] })?;
    let note = (!is_whole).then(|| {
        format!("its blocks of {block} run across the ends of rows; read as groups of {width}")
    });
    let tensors = tensors.into_iter().map(|part| parts.name(part));
    Ok(Module { note, ..Module::new(parts.module, outline, tensors) })
}

/// The weight of a module of a folder.
pub(super) fn read(module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
    let is_fp4 = module.tensors.iter().any(|name| name.ends_with(STATES[1]));
    decode(&module.name, &module.outline, STATES[usize::from(is_fp4)], read)
}

/// The weight of a module that the tensor `state` describes.
pub(super) fn decode(
    module: &str,
    outline: &Outline,
    state: &str,
    read: ReadTensor<'_>,
) -> Result<Weight, FormatError> {
    let bytes = Bytes { module, read };
    let [TermOutline::Lookup { grouping: Some(grouping), scales: kind, .. }] = outline.terms[..]
    else {
        return Err(bytes.wrong("weight", "is not one lookup with scales"));
    };
    let described =
        Description::parse(&bytes.get(state)?).map_err(|what| bytes.wrong(state, what))?;
    let Outline { rows, cols, .. } = *outline;
    let (count, float) = (rows * cols, FloatType::F32);
    let packed = bytes.get("weight")?;
    bytes.expect("weight", &packed, count.div_ceil(2))?;
    let codes = packed.iter().flat_map(|pair| [pair >> 4, pair & 15]).take(count).collect();
    let absmax = bytes.get("weight.absmax")?;
    let blocks = count.div_ceil(described.block.get());
    let scales = match (described.nested, kind) {
        (Some((_, offset)), GroupType::TwoLevel(kind)) => {
            let coarse = bytes.floats("weight.nested_absmax", float)?;
            let per_row = grouping.per_row(cols);
            let levels = Levels { kind, per_row, codes: absmax, coarse, offsets: vec![offset] };
            GroupFloats::two_level(levels)
                .map_err(|error| FormatError::Weight { module: module.to_owned(), error })?
        }
        (nested, _) => {
            let scales = match nested {
                None => float.decode(&absmax),
                Some((runs, offset)) => {
                    let coarse = bytes.floats("weight.nested_absmax", float)?;
                    bytes.expect("weight.nested_absmax", &coarse, blocks.div_ceil(runs.get()))?;
                    let map = bytes.floats("weight.nested_quant_map", float)?;
                    bytes.expect("weight.nested_quant_map", &map, 256)?;
                    let scale = |(index, code): (usize, &u8)| {
                        map[usize::from(*code)] * coarse[index / runs] + offset
                    };
                    absmax.iter().enumerate().map(scale).collect()
                }
            };
            bytes.expect("weight.absmax", &scales, blocks)?;
            let (width, groups) = (grouping.width(cols), grouping.count(rows, cols));
            let of_group = |group: usize| scales[group * width / described.block];
            GroupFloats::plain((0..groups).map(of_group).collect(), float)
        }
    };
    let lookup = Lookup {
        bits: 4,
        codes,
        books: bytes.floats("weight.quant_map", float)?,
        book_per_row: false,
        scales: Some((grouping, scales)),
        book_type: float.into(),
    };
    weight(module, rows, cols, Term::Lookup(lookup))
}

fn common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        b => common_divisor(b, a % b),
    }
}
