//! GPTQ as AutoGPTQ and GPTQModel store it: what vLLM, SGLang, transformers and ExLlama load.
//!
//! A linear layer `m` of `[out, in]` becomes `m.qweight` (I32 `[in · bits / 32, out]`, each column a
//! dense stream of codes), `m.qzeros` (I32 `[groups, out · bits / 32]`, each row one), `m.scales`
//! (`[groups, out]`) and `m.g_idx` (I32 `[in]`, the group of each input).
//! `W[o, i] = scales[g, o] · (q[i, o] − zeros[g, o])`, `g = g_idx[i]`.
//!
//! The first version of the format stores a zero point less one, modulo `2^bits`. Engines add the one
//! again in different ways where that wraps (a zero of 0): in a wider integer, within the code, or
//! across the codes of a word. So `gptq` is written for symmetric grids only, whose zero is the middle
//! code, and `gptq-v2`, which stores zeros as they are, for both. Both are read; a wrapped zero is
//! read as 0, which is what was meant.
//!
//! With `desc_act` groups may be of any inputs. Where they are runs of neighbours in another order the
//! order is undone; else the layer is read as the numbers that it decodes to, and a note says so.

mod config;

use crate::folder::{
    Bytes, Grid, Parts, bytes_to_words, checked, transpose, weight, words_to_bytes,
};
use crate::{Format, FormatError, Layout, Module, ReadTensor, Reader, TensorIndex, float_dtype};
use config::GptqConfig;
use lapidary_kernels::pack;
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{
    Affine, Dense, FloatType, GroupFloats, GroupType, Grouping, Outline, Term, TermOutline, Weight,
    ZeroType, Zeros,
};
use serde_json::Value;
use std::num::NonZeroUsize;

/// Inputs and outputs come in packs of this many.
const PACK: usize = 32;

/// Groups that the kernels of the engines have.
const GROUPS: [usize; 7] = [16, 32, 64, 128, 256, 512, 1024];

/// Which version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gptq {
    /// `checkpoint_format: gptq`: zeros are stored less one.
    V1,
    /// `checkpoint_format: gptq_v2`.
    V2,
}

impl Gptq {
    /// What is stored for a zero point.
    fn stored(self, zero: u8, bits: u8) -> u8 {
        match self {
            Self::V1 => zero.wrapping_sub(1) & (u8::MAX >> (8 - bits)),
            Self::V2 => zero,
        }
    }

    /// The zero point that is stored as this.
    fn zero(self, stored: u8, bits: u8) -> u8 {
        match self {
            Self::V1 => stored.wrapping_add(1) & (u8::MAX >> (8 - bits)),
            Self::V2 => stored,
        }
    }

    fn scheme(self, outline: &Outline) -> Result<Grid, String> {
        let grid = Grid::of(outline)?;
        let Outline { rows, cols, .. } = *outline;
        if !matches!(grid.bits, 2 | 3 | 4 | 8) {
            return Err(format!("it has 2, 3, 4 or 8 bits, not {}", grid.bits));
        }
        if grid.has_integer_zeros(outline)? && self == Self::V1 {
            return Err(
                "it stores zero points less one, which engines read back differently where \
                        one is 0; use symmetric: true or the format gptq-v2"
                    .to_owned(),
            );
        }
        match grid.grouping {
            Grouping::Tensor => {
                return Err("it has no scale for a whole matrix; use rows or groups".to_owned());
            }
            Grouping::Columns(width) if !GROUPS.contains(&width.get()) => {
                return Err(format!("its groups are powers of two from 16 to 1024, not {width}"));
            }
            _ => {}
        }
        if grid.scales == FloatType::F32 {
            return Err("its scales are floats of 16 bits".to_owned());
        }
        if !rows.is_multiple_of(PACK) || !cols.is_multiple_of(PACK) {
            return Err(format!(
                "outputs and inputs come in packs of {PACK}, which [{rows}, {cols}] is not"
            ));
        }
        Ok(grid)
    }

    /// The weight from its tensors.
    fn decode(
        self,
        module: &str,
        outline: &Outline,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        let bytes = Bytes { module, read };
        let Outline { rows, cols, ref terms } = *outline;
        match terms[..] {
            [TermOutline::Affine { bits, grouping, zeros, scales: GroupType::Plain(float) }] => {
                let stored = Stored::read(self, &bytes, (rows, cols), bits, float, zeros)?;
                weight(module, rows, cols, Term::Affine(stored.affine(grouping)))
            }
            _ => Err(bytes.wrong("qweight", "is not one affine term with plain scales")),
        }
    }
}

impl Format for Gptq {
    fn id(&self) -> &'static str {
        match self {
            Self::V1 => "gptq",
            Self::V2 => "gptq-v2",
        }
    }

    fn loaders(&self) -> &'static str {
        match self {
            Self::V1 => "vLLM, SGLang, transformers with GPTQModel, ExLlamaV2, lapidary",
            Self::V2 => "GPTQModel and transformers with it, newer vLLM, lapidary",
        }
    }

    fn scale_type(&self, _model: FloatType) -> FloatType {
        FloatType::F16
    }

    fn accepts(&self, outline: &Outline) -> Result<(), String> {
        self.scheme(outline).map(|_| ())
    }

    fn accepts_table(&self, _outline: &Outline) -> Result<(), String> {
        Err("embedding tables are plain floats in it".to_owned())
    }

    fn tensors(&self, module: &str, outline: &Outline, _dtype: FloatType) -> Vec<TensorSpec> {
        let Ok(grid) = self.scheme(outline) else { return vec![] };
        let Outline { rows, cols, .. } = *outline;
        let groups = grid.grouping.per_row(cols);
        let words = |codes| pack::Layout::Dense.words(codes, u32::from(grid.bits));
        let spec = |part, dtype, shape| TensorSpec::new(format!("{module}.{part}"), dtype, shape);
        vec![
            spec("qweight", Dtype::I32, vec![words(cols), rows]),
            spec("qzeros", Dtype::I32, vec![groups, words(rows)]),
            spec("scales", float_dtype(grid.scales), vec![groups, rows]),
            spec("g_idx", Dtype::I32, vec![cols]),
        ]
    }

    fn encode(&self, weight: &Weight, _dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        let outline = weight.outline();
        let unsupported =
            || FormatError::Unsupported { format: self.id(), outline: outline.describe() };
        let [Term::Affine(affine)] = weight.terms() else { return Err(unsupported()) };
        let grid = self.scheme(&outline).map_err(|_| unsupported())?;
        let (rows, cols, bits) = (weight.rows(), weight.cols(), u32::from(grid.bits));
        let groups = grid.grouping.per_row(cols);
        let words = |codes| pack::Layout::Dense.words(codes, bits);
        let mut packed = vec![0; words(cols) * rows];
        pack::pack_columns(&transpose(&affine.codes, cols), rows, bits, &mut packed)
            .map_err(|_| unsupported())?;
        let stored = |zero: u8| self.stored(zero, grid.bits);
        let zeros: Vec<u8> = match &affine.zeros {
            Zeros::Codes(zeros) => transpose(zeros, groups).into_iter().map(stored).collect(),
            _ => vec![stored(1 << (grid.bits - 1)); rows * groups],
        };
        let mut packed_zeros = vec![0; groups * words(rows)];
        pack::pack_rows(&zeros, rows, bits, &mut packed_zeros).map_err(|_| unsupported())?;
        let width = grid.grouping.width(cols);
        let index: Vec<u32> = (0..cols).map(|input| (input / width) as u32).collect();
        Ok(vec![
            words_to_bytes(&packed),
            words_to_bytes(&packed_zeros),
            grid.scales.encode(&transpose(&affine.scales, groups)),
            words_to_bytes(&index),
        ])
    }

    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        _dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        Self::decode(*self, module, outline, read)
    }

    fn config(&self, layout: &Layout<'_>) -> Option<Value> {
        config::write(*self, layout)
    }

    fn config_file(&self) -> Option<&'static str> {
        Some("quantize_config.json")
    }

    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        // One reader for both versions.
        let is_ours =
            *self == Self::V1 && config.get("quant_method").and_then(Value::as_str) == Some("gptq");
        is_ours.then(|| Ok(Box::new(GptqReader(GptqConfig::read(config)?)) as Box<dyn Reader>))
    }
}

/// What the tensors of a layer hold, inputs innermost.
struct Stored {
    bits: u8,
    rows: usize,
    cols: usize,
    codes: Vec<u8>,
    /// `[rows, groups]`.
    scales: Vec<f32>,
    scale_type: FloatType,
    /// `[rows, groups]`; `None` for the middle code.
    zeros: Option<Vec<u8>>,
    groups: usize,
    /// The group of each input.
    index: Vec<usize>,
}

impl Stored {
    fn read(
        version: Gptq,
        bytes: &Bytes<'_>,
        (rows, cols): (usize, usize),
        bits: u8,
        scale_type: FloatType,
        zeros: ZeroType,
    ) -> Result<Self, FormatError> {
        let width = u32::from(bits);
        let misfit = |part: &'static str| {
            move |_| {
                bytes.wrong(part, format!("does not hold {bits}-bit codes of [{rows}, {cols}]"))
            }
        };
        let mut codes = vec![0; rows * cols];
        let words = bytes.words("qweight")?;
        pack::unpack_columns(&words, pack::Layout::Dense, rows, width, &mut codes)
            .map_err(misfit("qweight"))?;
        let scales = bytes.floats("scales", scale_type)?;
        let groups = scales.len().checked_div(rows).unwrap_or(0);
        bytes.expect("scales", &scales, rows * groups)?;
        let zeros = match zeros == ZeroType::Middle {
            true => None,
            false => {
                let words = bytes.words("qzeros")?;
                let zeros = unpack_zeros(&words, (rows, groups), bits).map_err(misfit("qzeros"))?;
                let zeros: Vec<u8> = zeros.iter().map(|z| version.zero(*z, bits)).collect();
                Some(transpose(&zeros, rows))
            }
        };
        let index = group_index(&bytes.words("g_idx")?, cols, groups)
            .map_err(|what| bytes.wrong("g_idx", what))?;
        let (codes, scales) = (transpose(&codes, rows), transpose(&scales, rows));
        Ok(Self { bits, rows, cols, codes, scales, scale_type, zeros, groups, index })
    }

    /// The term, its groups in the order of the inputs.
    fn affine(self, grouping: Grouping) -> Affine {
        let width = grouping.width(self.cols);
        let order: Vec<usize> = self.index.iter().step_by(width).copied().collect();
        let rows = 0..self.rows;
        let gather = |row: usize| order.iter().map(move |group| row * self.groups + group);
        let places: Vec<usize> = rows.flat_map(gather).collect();
        let scales = places.iter().map(|place| self.scales[*place]).collect();
        Affine {
            bits: self.bits,
            grouping,
            codes: self.codes,
            scales: GroupFloats::plain(scales, self.scale_type),
            zeros: match &self.zeros {
                None => Zeros::Middle,
                Some(zeros) => Zeros::Codes(places.iter().map(|place| zeros[*place]).collect()),
            },
        }
    }

    /// The numbers that the layer decodes to: of 20 bits at most, which `f32` holds.
    fn values(&self) -> Vec<f32> {
        let middle = 1 << (self.bits - 1);
        let value = |(place, code): (usize, &u8)| {
            let group = place / self.cols * self.groups + self.index[place % self.cols];
            let zero = self.zeros.as_ref().map_or(middle, |zeros| i32::from(zeros[group]));
            self.scales[group] * (i32::from(*code) - zero) as f32
        };
        self.codes.iter().enumerate().map(value).collect()
    }
}

/// Zero points as they are stored, `[groups, rows]`.
fn unpack_zeros(
    words: &[u32],
    (rows, groups): (usize, usize),
    bits: u8,
) -> Result<Vec<u8>, pack::PackError> {
    let mut zeros = vec![0; rows * groups];
    pack::unpack_rows(words, pack::Layout::Dense, rows, u32::from(bits), &mut zeros)?;
    Ok(zeros)
}

/// The group of each input, checked.
fn group_index(words: &[u32], cols: usize, groups: usize) -> Result<Vec<usize>, String> {
    if words.len() != cols {
        return Err(format!("has {} numbers for {cols} inputs", words.len()));
    }
    match words.iter().find(|group| **group as usize >= groups) {
        Some(group) => Err(format!("holds {}, where there are {groups} groups", *group as i32)),
        None => Ok(words.iter().map(|group| *group as usize).collect()),
    }
}

#[derive(Debug)]
struct GptqReader(GptqConfig);

impl GptqReader {
    fn module(&self, parts: Parts<'_>) -> Result<Module, FormatError> {
        let scheme = self.0.scheme_of(parts.module);
        let bits = scheme.bits;
        let words = |codes| pack::Layout::Dense.words(codes, u32::from(bits));
        let [packed, rows] = parts.matrix("qweight", Dtype::I32)?;
        let (_, index) = parts.spec("g_idx")?;
        let cols = index.first().copied().unwrap_or(0);
        parts.expect("g_idx", Dtype::I32, &[cols])?;
        if words(cols) != packed {
            let what = format!("{packed} words cannot hold {bits}-bit codes of {cols} inputs");
            return parts.wrong("qweight", what);
        }
        let size = scheme.group_size.map_or(cols, |size| size.get().min(cols)).max(1);
        let groups = cols.div_ceil(size);
        let scales = parts.floats("scales", &[groups, rows])?;
        parts.expect("qzeros", Dtype::I32, &[groups, words(rows)])?;
        let index = group_index(&bytes_to_words(&parts.read("g_idx")?), cols, groups);
        let index = index.or_else(|what| parts.wrong("g_idx", what))?;
        // A fact about the layer, whatever the configuration says of zeros.
        let is_middle = scheme.symmetric && {
            let words = bytes_to_words(&parts.read("qzeros")?);
            let zeros = unpack_zeros(&words, (rows, groups), bits)
                .or_else(|error| parts.wrong("qzeros", error.to_string()))?;
            zeros.iter().all(|zero| self.0.version.zero(*zero, bits) == 1 << (bits - 1))
        };
        let grouping = match NonZeroUsize::new(size) {
            Some(size) if groups > 1 => Grouping::Columns(size),
            _ => Grouping::Row,
        };
        let zeros = if is_middle { ZeroType::Middle } else { ZeroType::Codes };
        let in_runs = index.chunks(size).all(|run| run.iter().all(|group| *group == run[0]));
        let (outline, note) = match in_runs {
            true => (Grid { bits, grouping, zeros, scales }.outline(rows, cols), None),
            false => {
                let values = FloatType::F32;
                let terms = vec![TermOutline::Dense { values }];
                let what = format!(
                    "its groups of {size} are of inputs in activation order (desc_act), which no \
                     grouping of columns is; read as the numbers that it decodes to"
                );
                (Outline { rows, cols, terms }, Some(what))
            }
        };
        let tensors = ["qweight", "qzeros", "scales", "g_idx"].map(|part| parts.name(part));
        let outline = checked(parts.module, outline)?;
        Ok(Module { floats: Some(scales), note, ..Module::new(parts.module, outline, tensors) })
    }
}

impl Reader for GptqReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let modules = names.iter().filter_map(|name| name.strip_suffix(".qweight"));
        modules.map(|module| self.module(Parts { module, tensors })).collect()
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        let Module { name, outline, .. } = module;
        let version = self.0.version;
        // Groups that no grouping is: read as the numbers that they decode to.
        let TermOutline::Dense { values: dtype } = outline.terms[0] else {
            return version.decode(name, outline, read);
        };
        let (bytes, shape) = (Bytes { module: name, read }, (outline.rows, outline.cols));
        let bits = self.0.scheme_of(name).bits;
        let float = module.floats.unwrap_or(FloatType::F16);
        let stored = Stored::read(version, &bytes, shape, bits, float, ZeroType::Codes)?;
        weight(name, shape.0, shape.1, Term::Dense(Dense { values: stored.values(), dtype }))
    }
}
