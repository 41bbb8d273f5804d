//! compressed-tensors `pack-quantized`: what vLLM and transformers load.
//!
//! A linear layer `m` of `[rows, cols]` becomes `m.weight_packed` (I32, each row a dense stream of
//! codes), `m.weight_scale` (`[rows, groups]`), `m.weight_shape` (I64 `[2]`), and with zero points
//! `m.weight_zero_point` (I32, packed along the rows). Codes are stored as `q + 2^(bits−1)`, which
//! is what an affine term holds. Layout of compressed-tensors 0.20; its older packing of 3, 5, 6 and
//! 7 bits is read too.

use crate::folder::{Grid, bytes_to_words, float_type, words_to_bytes};
use crate::{
    Format, FormatError, Layout, Module, ModuleKind, Pattern, ReadTensor, Reader, TensorIndex,
    float_dtype,
};
use lapidary_kernels::pack;
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{
    Affine, FloatType, GroupFloats, GroupType, Grouping, Outline, Term, TermOutline, Weight,
    ZeroType, Zeros,
};
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;

const METHOD: &str = "compressed-tensors";
const PACKED: &str = "pack-quantized";

pub(crate) struct CompressedTensors;

/// The term of an outline and whether it has no zero points, or why it cannot be held.
fn scheme(outline: &Outline) -> Result<(Grid, bool), String> {
    let grid = Grid::of(outline)?;
    let symmetric = !grid.has_integer_zeros(outline)?;
    if grid.grouping == Grouping::Tensor && !symmetric {
        return Err("it has no zero point for a whole matrix; use rows or groups".to_owned());
    }
    Ok((grid, symmetric))
}

impl Format for CompressedTensors {
    fn id(&self) -> &'static str {
        METHOD
    }

    fn loaders(&self) -> &'static str {
        "vLLM (4 and 8 bits on all, others on newer kernels), transformers, lapidary"
    }

    fn scale_type(&self, model: FloatType) -> FloatType {
        // A loader casts scales to the model's type; a type of 16 bits survives that where the
        // model's own is no wider.
        if model == FloatType::Bf16 { FloatType::Bf16 } else { FloatType::F16 }
    }

    fn accepts(&self, outline: &Outline) -> Result<(), String> {
        scheme(outline).map(|_| ())
    }

    fn accepts_table(&self, _outline: &Outline) -> Result<(), String> {
        Err("vLLM and transformers load embedding tables as plain floats only".to_owned())
    }

    fn tensors(&self, module: &str, outline: &Outline, _dtype: FloatType) -> Vec<TensorSpec> {
        let Outline { rows, cols, .. } = *outline;
        let Ok((scheme, symmetric)) = scheme(outline) else { return vec![] };
        let (bits, groups) = (u32::from(scheme.bits), scheme.grouping.per_row(cols));
        let words = |codes| pack::Layout::Dense.words(codes, bits);
        let spec = |part, dtype, shape| TensorSpec::new(format!("{module}.{part}"), dtype, shape);
        let mut tensors = vec![
            spec("weight_packed", Dtype::I32, vec![rows, words(cols)]),
            spec(
                "weight_scale",
                float_dtype(scheme.scales),
                scheme.grouping.scale_shape(rows, cols),
            ),
            spec("weight_shape", Dtype::I64, vec![2]),
        ];
        if !symmetric {
            tensors.push(spec("weight_zero_point", Dtype::I32, vec![words(rows), groups]));
        }
        tensors
    }

    fn encode(&self, weight: &Weight, _dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        let unsupported =
            || FormatError::Unsupported { format: METHOD, outline: weight.outline().describe() };
        let [Term::Affine(affine)] = weight.terms() else { return Err(unsupported()) };
        let (scheme, _) = scheme(&weight.outline()).map_err(|_| unsupported())?;
        let (rows, cols, bits) = (weight.rows(), weight.cols(), u32::from(scheme.bits));
        let words = |codes| pack::Layout::Dense.words(codes, bits);
        let mut packed = vec![0; rows * words(cols)];
        pack::pack_rows(&affine.codes, cols, bits, &mut packed).map_err(|_| unsupported())?;
        let shape = [rows as u64, cols as u64];
        let mut tensors = vec![
            words_to_bytes(&packed),
            scheme.scales.encode(&affine.scales),
            shape.iter().flat_map(|size| size.to_le_bytes()).collect(),
        ];
        if let Zeros::Codes(zeros) = &affine.zeros {
            let groups = scheme.grouping.per_row(cols);
            let mut packed = vec![0; words(rows) * groups];
            pack::pack_columns(zeros, groups, bits, &mut packed).map_err(|_| unsupported())?;
            tensors.push(words_to_bytes(&packed));
        }
        Ok(tensors)
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
        // Modules by scheme, in order of appearance.
        let mut groups: Vec<(Value, Vec<&str>)> = vec![];
        for (module, outline) in layout.compressed {
            let (scheme, symmetric) = scheme(outline).ok()?;
            let weights = arguments(&scheme, symmetric);
            match groups.iter_mut().find(|(known, _)| *known == weights) {
                Some((_, modules)) => modules.push(module),
                None => groups.push((weights, vec![module])),
            }
        }
        let alone = groups.len() == 1;
        let group = |(index, (weights, modules)): (usize, (Value, Vec<&str>))| {
            let targets = if alone { json!(["Linear"]) } else { json!(modules) };
            let group = json!({
                "targets": targets,
                "format": PACKED,
                "weights": weights,
                "input_activations": null,
                "output_activations": null,
            });
            (format!("group_{index}"), group)
        };
        let groups: Map<String, Value> = groups.into_iter().enumerate().map(group).collect();
        Some(json!({
            "quant_method": METHOD,
            "format": PACKED,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": layout.plain,
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
        }))
    }

    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        let is_ours = config.get("quant_method").and_then(Value::as_str) == Some(METHOD);
        is_ours.then(|| Ok(Box::new(PackedReader::new(config)?) as Box<dyn Reader>))
    }
}

/// `QuantizationArgs`; loaders refuse keys they do not know, so only the needed ones are written.
fn arguments(scheme: &Grid, symmetric: bool) -> Value {
    let mut arguments = json!({
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": symmetric,
        "dynamic": false,
    });
    match scheme.grouping {
        Grouping::Tensor => arguments["strategy"] = json!("tensor"),
        Grouping::Row => arguments["strategy"] = json!("channel"),
        Grouping::Columns(width) => {
            arguments["strategy"] = json!("group");
            arguments["group_size"] = json!(width);
        }
    }
    arguments
}

#[derive(Debug)]
struct PackedReader {
    groups: Vec<ConfigGroup>,
}

#[derive(Debug)]
struct ConfigGroup {
    targets: Vec<Pattern>,
    bits: u8,
    symmetric: bool,
}

impl PackedReader {
    fn new(config: &Value) -> Result<Self, FormatError> {
        let place = "config.json: quantization_config.config_groups";
        let global = config.get("format").and_then(Value::as_str).unwrap_or(PACKED);
        let groups = config.get("config_groups").and_then(Value::as_object);
        let groups = groups.ok_or_else(|| FormatError::malformed(place, "is missing"))?;
        let group = |(name, group): (&String, &Value)| {
            let place = format!("{place}.{name}");
            let format = group.get("format").and_then(Value::as_str).unwrap_or(global);
            if format != PACKED {
                let what = format!("format {format:?} cannot be read yet; only {PACKED} can");
                return Err(FormatError::malformed(place, what));
            }
            ConfigGroup::new(&place, group)
        };
        Ok(Self { groups: groups.iter().map(group).collect::<Result<_, _>>()? })
    }

    fn group_of(&self, module: &str) -> Result<&ConfigGroup, FormatError> {
        // Whatever is packed is a linear layer.
        let named = |target: &Pattern| target.matches(module, ModuleKind::Layer);
        let matches = |group: &&ConfigGroup| group.targets.iter().any(named);
        self.groups.iter().find(matches).ok_or_else(|| {
            FormatError::malformed(
                format!("{module}.weight_packed"),
                "no group of quantization_config.config_groups names this module",
            )
        })
    }
}

impl ConfigGroup {
    fn new(place: &str, group: &Value) -> Result<Self, FormatError> {
        let weights = group.get("weights").filter(|weights| weights.is_object());
        let weights = weights.ok_or_else(|| FormatError::malformed(place, "has no weights"))?;
        let bits = weights.get("num_bits").and_then(Value::as_u64);
        let bits = bits.and_then(|bits| u8::try_from(bits).ok()).filter(|b| (1..=8).contains(b));
        let bits = bits.ok_or_else(|| {
            FormatError::malformed(format!("{place}.weights.num_bits"), "is not from 1 to 8")
        })?;
        let targets = group.get("targets").and_then(Value::as_array);
        let pattern = |text: &str| {
            Pattern::new(text).map_err(|error| FormatError::malformed(place, error.to_string()))
        };
        let targets = targets.into_iter().flatten().filter_map(Value::as_str).map(pattern);
        Ok(Self {
            targets: targets.collect::<Result<_, _>>()?,
            bits,
            symmetric: weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true),
        })
    }
}

impl Reader for PackedReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let modules = names.iter().filter_map(|name| name.strip_suffix(".weight_packed"));
        modules.map(|name| self.module(name, tensors)).collect()
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        decode(&module.name, &module.outline, read)
    }
}

/// The weight of a module from its tensors.
fn decode(module: &str, outline: &Outline, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
    let Outline { rows, cols, ref terms } = *outline;
    let [TermOutline::Affine { bits, grouping, zeros, scales: GroupType::Plain(scale_type) }] =
        terms[..]
    else {
        return Err(FormatError::malformed(module, "is not one affine term with plain scales"));
    };
    let get = |part: &str| read(&format!("{module}.{part}"));
    let wrong_length = |part: &str| {
        let what = format!("its length is not that of {bits}-bit codes");
        FormatError::malformed(format!("{module}.{part}"), what)
    };
    let codes = |part: &str, along_rows: bool, columns: usize| {
        let words = bytes_to_words(&get(part)?);
        let (streams, per_stream) = if along_rows { (columns, rows) } else { (rows, columns) };
        let length = words.len().checked_div(streams).unwrap_or(0);
        let layout = layout(per_stream, bits, length).ok_or_else(|| wrong_length(part))?;
        let mut codes = vec![0; rows * columns];
        let unpack = if along_rows { pack::unpack_columns } else { pack::unpack_rows };
        unpack(&words, layout, columns, u32::from(bits), &mut codes)
            .map_err(|_| wrong_length(part))?;
        Ok::<_, FormatError>(codes)
    };
    let affine = Affine {
        bits,
        grouping,
        codes: codes("weight_packed", false, cols)?,
        scales: GroupFloats::plain(scale_type.decode(&get("weight_scale")?), scale_type),
        zeros: match zeros == ZeroType::Middle {
            true => Zeros::Middle,
            false => Zeros::Codes(codes("weight_zero_point", true, grouping.per_row(cols))?),
        },
    };
    Weight::new(rows, cols, vec![Term::Affine(affine)])
        .map_err(|error| FormatError::Weight { module: module.to_owned(), error })
}

impl PackedReader {
    fn module(&self, name: &str, tensors: &dyn TensorIndex) -> Result<Module, FormatError> {
        let group = self.group_of(name)?;
        let place = |part: &str| format!("{name}.{part}");
        if tensors.spec(&place("weight_g_idx")).is_some() {
            let what = "groups in activation order (actorder: group) cannot be read; compress again \
                        with actorder: weight";
            return Err(FormatError::malformed(place("weight_g_idx"), what));
        }
        let spec = |part: &str| {
            let missing = || FormatError::malformed(place(part), "is missing");
            tensors.spec(&place(part)).ok_or_else(missing)
        };
        let (rows, cols) = self.shape(name, group.bits, tensors)?;
        let (scale_type, scale_shape) = spec("weight_scale")?;
        let grouping = grouping(&scale_shape, rows, cols).ok_or_else(|| {
            let what = format!("{scale_shape:?} fits no grouping of [{rows}, {cols}]");
            FormatError::malformed(place("weight_scale"), what)
        })?;
        let scales = float_type(scale_type).ok_or_else(|| {
            let what = format!("is {scale_type:?}, where F16, BF16 or F32 is needed");
            FormatError::malformed(place("weight_scale"), what)
        })?;
        let zeros = if group.symmetric { ZeroType::Middle } else { ZeroType::Codes };
        let term = TermOutline::Affine { bits: group.bits, grouping, zeros, scales: scales.into() };
        let mut parts = vec!["weight_packed", "weight_scale", "weight_shape"];
        if !group.symmetric {
            let (dtype, packed) = spec("weight_zero_point")?;
            let groups = grouping.per_row(cols);
            let fits = match packed[..] {
                [words, have] => have == groups && layout(rows, group.bits, words).is_some(),
                _ => false,
            };
            if dtype != Dtype::I32 || !fits {
                let what = format!(
                    "{dtype:?} {packed:?} cannot hold {}-bit zero points of {groups} groups a row",
                    group.bits
                );
                return Err(FormatError::malformed(place("weight_zero_point"), what));
            }
            parts.push("weight_zero_point");
        }
        let outline = Outline { rows, cols, terms: vec![term] };
        Ok(Module::new(name, outline, parts.into_iter().map(place)))
    }
}

impl PackedReader {
    /// Rows and columns of a module. Both are bounded by what the file holds: its packed tensor has
    /// a word at least for each row and 32 columns.
    fn shape(
        &self,
        name: &str,
        bits: u8,
        tensors: &dyn TensorIndex,
    ) -> Result<(usize, usize), FormatError> {
        let place = |part: &str| format!("{name}.{part}");
        let wrong = |part: &str, what: String| Err(FormatError::malformed(place(part), what));
        match tensors.spec(&place("weight_shape")) {
            Some((Dtype::I64, shape)) if shape == [2] => {}
            Some(have) => {
                return wrong("weight_shape", format!("is {have:?}, where two I64 are needed"));
            }
            None => return wrong("weight_shape", "is missing".to_owned()),
        }
        let bytes = tensors.read(&place("weight_shape"))?;
        let sizes: Vec<i64> = bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        let size = |index: usize| {
            let size = sizes.get(index).and_then(|size| usize::try_from(*size).ok());
            size.filter(|size| *size > 0)
        };
        let (Some(rows), Some(cols)) = (size(0), size(1)) else {
            return wrong("weight_shape", format!("holds {sizes:?}, where two sizes are needed"));
        };
        let (dtype, packed) = tensors.spec(&place("weight_packed")).unwrap_or((Dtype::I32, vec![]));
        let fits = match packed[..] {
            [have, words] => have == rows && layout(cols, bits, words).is_some(),
            _ => false,
        };
        if dtype == Dtype::I32 && fits {
            return Ok((rows, cols));
        }
        let what = format!("{dtype:?} {packed:?} cannot hold [{rows}, {cols}] in {bits}-bit codes");
        wrong("weight_packed", what)
    }
}

/// How a stream of codes lies in so many words.
fn layout(codes: usize, bits: u8, words: usize) -> Option<pack::Layout> {
    pack::Layout::of(codes, u32::from(bits), words)
}

/// The grouping that an array of scales of this shape stands for.
fn grouping(shape: &[usize], rows: usize, cols: usize) -> Option<Grouping> {
    match *shape {
        [1] | [] => Some(Grouping::Tensor),
        [r, 1] if r == rows => Some(Grouping::Row),
        [1, 1] => Some(Grouping::Tensor),
        [r, groups] if r == rows && groups > 0 && cols.is_multiple_of(groups) => {
            NonZeroUsize::new(cols / groups).map(Grouping::Columns)
        }
        _ => None,
    }
}
