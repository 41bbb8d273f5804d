//! AWQ as AutoAWQ stores it for its GEMM kernels: what vLLM, SGLang and transformers load.
//!
//! A linear layer `m` of `[out, in]` becomes `m.qweight` (I32 `[in, out / 8]`), `m.qzeros` (I32
//! `[groups, out / 8]`) and `m.scales` (`[groups, out]`), 4 bits a code:
//! `W[o, i] = scales[g, o] · (q[i, o] − zeros[g, o])`. The codes of eight outputs share a word, from its
//! lowest bits those of outputs 0, 2, 4, 6, 1, 3, 5, 7. The layout of the GEMV kernels is not read.

use crate::folder::{Bytes, Grid, Parts, checked, most_common, transpose, weight, words_to_bytes};
use crate::{Format, FormatError, Layout, Module, ReadTensor, Reader, TensorIndex, float_dtype};
use lapidary_kernels::pack;
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{
    Affine, FloatType, GroupFloats, Grouping, Outline, Term, Weight, ZeroType, Zeros,
};
use serde_json::{Value, json};
use std::num::NonZeroUsize;

const METHOD: &str = "awq";
const PLACE: &str = "config.json: quantization_config";
const BITS: u8 = 4;

/// Which of eight outputs stands at each place of a word.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

pub(crate) struct Awq;

fn scheme(outline: &Outline) -> Result<Grid, String> {
    let grid = Grid::of(outline)?;
    if grid.bits != BITS {
        return Err(format!("it has 4 bits, not {}; use bits: 4", grid.bits));
    }
    grid.has_integer_zeros(outline)?;
    if grid.grouping == Grouping::Tensor {
        return Err("it has no scale for a whole matrix; use rows or groups".to_owned());
    }
    if grid.scales == FloatType::F32 {
        return Err("its scales are floats of 16 bits".to_owned());
    }
    if !outline.rows.is_multiple_of(ORDER.len()) {
        return Err(format!("outputs come in packs of 8, which {} are not", outline.rows));
    }
    Ok(grid)
}

impl Format for Awq {
    fn id(&self) -> &'static str {
        METHOD
    }

    fn loaders(&self) -> &'static str {
        "vLLM, SGLang, transformers with GPTQModel, lapidary"
    }

    fn scale_type(&self, _model: FloatType) -> FloatType {
        FloatType::F16
    }

    fn accepts(&self, outline: &Outline) -> Result<(), String> {
        scheme(outline).map(|_| ())
    }

    fn accepts_table(&self, _outline: &Outline) -> Result<(), String> {
        Err("embedding tables are plain floats in it".to_owned())
    }

    fn accepts_together(&self, layout: &Layout<'_>) -> Result<(), String> {
        let sizes = layout.compressed.iter().filter_map(|(_, outline)| scheme(outline).ok());
        let mut sizes = sizes.map(|grid| grid.group_size());
        let first = sizes.next();
        match sizes.find(|size| Some(*size) != first) {
            None => Ok(()),
            Some(other) => {
                // A power of two divides all columns if it divides their bits together.
                let columns = layout.compressed.iter().map(|(_, outline)| outline.cols);
                let size = 1 << columns.fold(0, |bits, cols| bits | cols).trailing_zeros().min(7);
                let cure = match size {
                    16.. => {
                        format!("groups of {size} divide the columns of all (--group-size {size})")
                    }
                    _ => "no usual one divides the columns of all; add --format native".to_owned(),
                };
                let first = first.unwrap_or(other);
                Err(format!(
                    "all layers have one group size, not {first} and {other} (-1: a row); {cure}"
                ))
            }
        }
    }

    fn tensors(&self, module: &str, outline: &Outline, _dtype: FloatType) -> Vec<TensorSpec> {
        let Ok(grid) = scheme(outline) else { return vec![] };
        let Outline { rows, cols, .. } = *outline;
        let (groups, words) = (grid.grouping.per_row(cols), rows / ORDER.len());
        let spec = |part, dtype, shape| TensorSpec::new(format!("{module}.{part}"), dtype, shape);
        vec![
            spec("qweight", Dtype::I32, vec![cols, words]),
            spec("qzeros", Dtype::I32, vec![groups, words]),
            spec("scales", float_dtype(grid.scales), vec![groups, rows]),
        ]
    }

    fn encode(&self, weight: &Weight, _dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        let outline = weight.outline();
        let unsupported =
            || FormatError::Unsupported { format: METHOD, outline: outline.describe() };
        let [Term::Affine(affine)] = weight.terms() else { return Err(unsupported()) };
        let grid = scheme(&outline).map_err(|_| unsupported())?;
        let (rows, cols) = (weight.rows(), weight.cols());
        let groups = grid.grouping.per_row(cols);
        let pack = |codes: &[u8]| {
            let mut words = vec![0; codes.len() / ORDER.len()];
            pack::pack_rows(&interleaved(codes), rows, u32::from(BITS), &mut words)
                .map_err(|_| unsupported())?;
            Ok::<_, FormatError>(words_to_bytes(&words))
        };
        let zeros = match &affine.zeros {
            Zeros::Codes(zeros) => transpose(zeros, groups),
            _ => vec![1 << (BITS - 1); rows * groups],
        };
        Ok(vec![
            pack(&transpose(&affine.codes, cols))?,
            pack(&zeros)?,
            grid.scales.encode(&transpose(&affine.scales, groups)),
        ])
    }

    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        _dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        decode(module, outline, read)
    }

    fn config(&self, layout: &Layout<'_>) -> Option<Value> {
        let sizes = layout.compressed.iter().filter_map(|(_, outline)| scheme(outline).ok());
        let group_size = most_common(sizes.map(|grid| grid.group_size()))?;
        Some(json!({
            "quant_method": METHOD,
            "bits": BITS,
            "group_size": group_size,
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": layout.plain,
        }))
    }

    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        let is_ours = config.get("quant_method").and_then(Value::as_str) == Some(METHOD);
        is_ours.then(|| Ok(Box::new(AwqReader::new(config)?) as Box<dyn Reader>))
    }
}

/// Rows of codes with each eight in the order of a word.
fn interleaved(codes: &[u8]) -> Vec<u8> {
    codes.as_chunks::<8>().0.iter().flat_map(|eight| ORDER.map(|place| eight[place])).collect()
}

/// The inverse of [`interleaved`].
fn in_order(codes: &[u8]) -> Vec<u8> {
    let eight = |codes: &[u8; 8]| {
        let mut eight = [0; 8];
        ORDER.iter().zip(codes).for_each(|(place, code)| eight[*place] = *code);
        eight
    };
    codes.as_chunks::<8>().0.iter().flat_map(eight).collect()
}

fn decode(module: &str, outline: &Outline, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
    let bytes = Bytes { module, read };
    let Outline { rows, cols, .. } = *outline;
    let grid = scheme(outline).map_err(|what| bytes.wrong("qweight", what))?;
    let groups = grid.grouping.per_row(cols);
    let unpack = |part: &str, inputs: usize| {
        let mut codes = vec![0; inputs * rows];
        let words = bytes.words(part)?;
        pack::unpack_rows(&words, pack::Layout::Dense, rows, u32::from(BITS), &mut codes)
            .map_err(|error| bytes.wrong(part, error.to_string()))?;
        Ok::<_, FormatError>(transpose(&in_order(&codes), rows))
    };
    let scales = bytes.floats("scales", grid.scales)?;
    bytes.expect("scales", &scales, rows * groups)?;
    let affine = Affine {
        bits: BITS,
        grouping: grid.grouping,
        codes: unpack("qweight", cols)?,
        scales: GroupFloats::plain(transpose(&scales, rows), grid.scales),
        zeros: match grid.zeros {
            ZeroType::Middle => Zeros::Middle,
            _ => Zeros::Codes(unpack("qzeros", groups)?),
        },
    };
    weight(module, rows, cols, Term::Affine(affine))
}

#[derive(Debug)]
struct AwqReader {
    /// Inputs that share a scale; `None` for all.
    group_size: Option<NonZeroUsize>,
}

impl AwqReader {
    fn new(config: &Value) -> Result<Self, FormatError> {
        let get = |keys: [&str; 2]| keys.iter().find_map(|key| config.get(key));
        let wrong =
            |key: &str, what: String| Err(FormatError::malformed(format!("{PLACE}.{key}"), what));
        if get(["bits", "w_bit"]).and_then(Value::as_u64) != Some(u64::from(BITS)) {
            return wrong("bits", "is not 4, the only width there is".to_owned());
        }
        let version = config.get("version").and_then(Value::as_str).unwrap_or("gemm");
        if !version.eq_ignore_ascii_case("gemm") {
            return wrong("version", format!("{version:?} cannot be read; only gemm can"));
        }
        let size = get(["group_size", "q_group_size"]).and_then(Value::as_i64).unwrap_or(128);
        match (size, usize::try_from(size).ok().and_then(NonZeroUsize::new)) {
            (-1, _) => Ok(Self { group_size: None }),
            (_, Some(size)) => Ok(Self { group_size: Some(size) }),
            _ => wrong("group_size", format!("{size} is neither positive nor -1")),
        }
    }

    fn module(&self, parts: Parts<'_>) -> Result<Module, FormatError> {
        let [cols, words] = parts.matrix("qweight", Dtype::I32)?;
        let rows = words.saturating_mul(ORDER.len());
        let size = self.group_size.filter(|size| size.get() < cols);
        let grouping = size.map_or(Grouping::Row, Grouping::Columns);
        let groups = grouping.per_row(cols);
        parts.expect("qzeros", Dtype::I32, &[groups, words])?;
        let scales = parts.floats("scales", &[groups, rows])?;
        let outline =
            Grid { bits: BITS, grouping, zeros: ZeroType::Codes, scales }.outline(rows, cols);
        if let Err(what) = scheme(&outline) {
            return parts.wrong("qweight", what);
        }
        let tensors = ["qweight", "qzeros", "scales"].map(|part| parts.name(part));
        let outline = checked(parts.module, outline)?;
        Ok(Module::new(parts.module, outline, tensors))
    }
}

impl Reader for AwqReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let modules = names.iter().filter_map(|name| name.strip_suffix(".qweight"));
        modules.map(|module| self.module(Parts { module, tensors })).collect()
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        decode(&module.name, &module.outline, read)
    }
}
