//! Lapidary's own format: any sum of terms, each stored as its parts.
//!
//! The weight of module `m` becomes tensors `m.terms.0.codes`, `m.terms.0.scales`, …; the outlines
//! stand in `config.json`, and how the inputs of layers are rounded when the model is run.

use crate::{Format, FormatError, Layout, Module, ReadTensor, Reader, TensorIndex, float_dtype};
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{
    BookType, FloatType, GroupNames, GroupType, Grouping, InputRounding, Outline, Part, PartType,
    Term, TermOutline, Weight, ZeroType,
};
use serde_json::{Map, Value, json};

const METHOD: &str = "lapidary";

pub(crate) struct Native;

impl Format for Native {
    fn id(&self) -> &'static str {
        "native"
    }

    fn loaders(&self) -> &'static str {
        "lapidary"
    }

    fn scale_type(&self, _model: FloatType) -> FloatType {
        FloatType::F16
    }

    fn accepts(&self, _outline: &Outline) -> Result<(), String> {
        Ok(())
    }

    fn with_inputs(
        &self,
        _outline: &Outline,
        _inputs: InputRounding,
    ) -> Result<&'static dyn Format, String> {
        Ok(&Self)
    }

    fn tensors(&self, module: &str, outline: &Outline, _dtype: FloatType) -> Vec<TensorSpec> {
        let Outline { rows, cols, terms } = outline;
        let terms = terms.iter().enumerate();
        terms
            .flat_map(|(index, term)| {
                part_shapes(term, *rows, *cols).into_iter().map(move |(part, dtype, shape)| {
                    TensorSpec::new(tensor_name(module, index, part), dtype, shape)
                })
            })
            .collect()
    }

    fn encode(&self, weight: &Weight, _dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        let parts = |term: &Term| term.parts(weight.rows(), weight.cols());
        Ok(weight.terms().iter().flat_map(parts).map(|part: Part| part.bytes).collect())
    }

    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        _dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        let wrong = |error| FormatError::Weight { module: module.to_owned(), error };
        let mut terms = vec![];
        for (index, term) in outline.terms.iter().enumerate() {
            let mut parts = vec![];
            for (part, _, _) in part_shapes(term, outline.rows, outline.cols) {
                parts.push((part, read(&tensor_name(module, index, part))?));
            }
            let get = |name: &str| {
                parts.iter().find(|(part, _)| *part == name).map(|(_, bytes)| bytes.clone())
            };
            terms.push(Term::from_parts(term, outline.rows, outline.cols, &get).map_err(wrong)?);
        }
        Weight::new(outline.rows, outline.cols, terms).map_err(wrong)
    }

    fn config(&self, layout: &Layout<'_>) -> Option<Value> {
        let outline = |outline: &Outline| serde_json::to_value(outline).unwrap_or(Value::Null);
        let sites: Map<String, Value> =
            layout.compressed.iter().map(|(name, o)| (name.clone(), outline(o))).collect();
        let mut config =
            json!({ "quant_method": METHOD, "format": "native", "version": 1, "sites": sites });
        if !layout.inputs.is_empty() {
            let inputs = layout.inputs.iter().map(|(name, inputs)| (name.clone(), json!(inputs)));
            config["inputs"] = inputs.collect::<Map<_, _>>().into();
        }
        Some(config)
    }

    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        let is_ours = config.get("quant_method").and_then(Value::as_str) == Some(METHOD);
        is_ours.then(|| Ok(Box::new(NativeReader::new(config)?) as Box<dyn Reader>))
    }
}

/// Name of the tensor that holds one part of one term.
fn tensor_name(module: &str, term: usize, part: &str) -> String {
    format!("{module}.terms.{term}.{part}")
}

/// Names, types and shapes of a term's parts, in the order of [`Term::parts`].
fn part_shapes(
    term: &TermOutline,
    rows: usize,
    cols: usize,
) -> Vec<(&'static str, Dtype, Vec<usize>)> {
    let words = |columns: usize, bits: u8| {
        let width = lapidary_kernels::pack::Layout::Dense.words(columns, u32::from(bits));
        // As the packer counts rows: a matrix without columns has none.
        vec![if columns == 0 { 0 } else { rows }, width]
    };
    let floats = |kind: GroupType, names: GroupNames, grouping: Grouping| {
        kind.parts(names, grouping, rows, cols).into_iter().map(|(part, dtype, shape)| {
            let dtype = match dtype {
                PartType::U32 => Dtype::U32,
                PartType::Float(float) => float_dtype(float),
            };
            (part, dtype, shape)
        })
    };
    // As the packer counts a single row: without columns there is none.
    let line = |columns: usize, bits: u8| {
        let width = lapidary_kernels::pack::Layout::Dense.words(columns, u32::from(bits));
        vec![usize::from(columns > 0), width]
    };
    match *term {
        TermOutline::Dense { values } => vec![("values", float_dtype(values), vec![rows, cols])],
        TermOutline::Affine { bits, grouping, zeros, scales } => {
            let mut parts = vec![("codes", Dtype::U32, words(cols, bits))];
            parts.extend(floats(scales, GroupNames::SCALES, grouping));
            match zeros {
                ZeroType::Middle => {}
                ZeroType::Codes => {
                    let per_row = grouping.per_row(cols);
                    let mut shape = words(per_row, bits);
                    shape[0] = grouping.count(rows, cols).checked_div(per_row).unwrap_or(0);
                    parts.push(("zeros", Dtype::U32, shape));
                }
                ZeroType::Floats(kind) => parts.extend(floats(kind, GroupNames::ZEROS, grouping)),
                ZeroType::Minima(kind) => parts.extend(floats(kind, GroupNames::MINIMA, grouping)),
            }
            parts
        }
        TermOutline::Lookup { bits, grouping, book_per_row, books, scales } => {
            let count = if book_per_row { rows } else { 1 };
            let (symbols, symbol_bits) = books.symbols(bits, grouping, cols);
            let mut parts = vec![("codes", Dtype::U32, words(symbols, symbol_bits))];
            if let BookType::Stored(float) = books {
                parts.push(("books", float_dtype(float), vec![count, 1 << bits]));
            }
            parts.extend(grouping.into_iter().flat_map(|g| floats(scales, GroupNames::SCALES, g)));
            parts
        }
        TermOutline::Planes { planes, grouping, offsets, scales } => {
            let (mut signs, groups) = (words(cols, 1), grouping.scale_shape(rows, cols));
            signs[0] *= usize::from(planes);
            let alphas = [vec![usize::from(planes)], groups.clone()].concat();
            let mut parts =
                vec![("signs", Dtype::U32, signs), ("alphas", float_dtype(scales), alphas)];
            parts.extend(offsets.then(|| ("offsets", float_dtype(scales), groups)));
            parts
        }
        TermOutline::Sparse { nonzeros, values, places } => {
            let words = places.parts(rows, cols, nonzeros).into_iter();
            let words = words.map(|(part, length)| (part, Dtype::U32, vec![length]));
            words.chain([("values", float_dtype(values), vec![nonzeros])]).collect()
        }
        TermOutline::Columns { count, values } => vec![
            ("columns", Dtype::U32, vec![count]),
            ("values", float_dtype(values), vec![rows, count]),
        ],
        TermOutline::LowRank { rank, values } => vec![
            ("left", float_dtype(values), vec![rows, rank]),
            ("right", float_dtype(values), vec![rank, cols]),
        ],
        TermOutline::Trellis { row_bits, .. } => vec![
            ("codes", Dtype::U32, vec![(rows * row_bits as usize).div_ceil(32)]),
            ("rates", Dtype::U32, line(cols, 4)),
            ("row_scales", Dtype::U32, line(rows, 8)),
            ("column_scales", Dtype::U32, line(cols, 8)),
            ("scale", Dtype::F32, vec![1]),
        ],
    }
}

#[derive(Debug)]
struct NativeReader {
    modules: Vec<Module>,
}

impl NativeReader {
    fn new(config: &Value) -> Result<Self, FormatError> {
        let place = "config.json: quantization_config.sites";
        let sites = config.get("sites").and_then(Value::as_object);
        let sites = sites.ok_or_else(|| FormatError::malformed(place, "is missing"))?;
        let module = |(name, outline): (&String, &Value)| {
            let outline: Outline = serde_json::from_value(outline.clone()).map_err(|error| {
                FormatError::malformed(format!("{place}.{name}"), error.to_string())
            })?;
            outline.check().map_err(|error| FormatError::Weight { module: name.clone(), error })?;
            let tensors = Native.tensors(name, &outline, FloatType::F32);
            let tensors = tensors.into_iter().map(|tensor| tensor.name);
            let inputs = config.get("inputs").and_then(|inputs| inputs.get(name));
            let inputs = inputs.map(|inputs| serde_json::from_value(inputs.clone())).transpose();
            let inputs = inputs.map_err(|error| {
                let place = format!("config.json: quantization_config.inputs.{name}");
                FormatError::malformed(place, error.to_string())
            })?;
            Ok(Module { inputs, ..Module::new(name, outline, tensors) })
        };
        Ok(Self { modules: sites.iter().map(module).collect::<Result<_, FormatError>>()? })
    }
}

impl Reader for NativeReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        for module in &self.modules {
            for need in Native.tensors(&module.name, &module.outline, FloatType::F32) {
                let have = tensors.spec(&need.name);
                if have != Some((need.dtype, need.shape.clone())) {
                    let what =
                        format!("is {have:?} where {:?} {:?} is needed", need.dtype, need.shape);
                    return Err(FormatError::malformed(need.name, what));
                }
            }
        }
        Ok(self.modules.clone())
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        Native.decode(&module.name, &module.outline, FloatType::F32, read)
    }
}
