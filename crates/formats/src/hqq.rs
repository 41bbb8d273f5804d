//! HQQ as its package stores it: each layer with its own settings, as tensors.
//!
//! The weight of a linear layer `m` is reshaped to `[groups, group_size]` (axis 1), and `m.W_q` has its
//! codes: the rows are cut into as many parts as a word has places, and the first part stands highest
//! (U8 for 1, 2, 4 and 8 bits; 3 bits ten to an I32; 5 and 6 bits a byte each). `m.scale` and `m.zero`
//! are `[groups, 1]`: `W = scale · (q − zero)`. Numbers are scalars (I32), truths U8, texts their
//! characters in U8. With axis 0 the members of a group lie rows apart, which no grouping of columns
//! is; such layers are read as the numbers they decode to.

mod settings;

use crate::folder::{Bytes, Grid, Parts, checked, most_common, weight};
use crate::{Format, FormatError, Layout, Module, ReadTensor, Reader, TensorIndex, float_dtype};
use lapidary_store::TensorSpec;
use lapidary_weight::{
    Affine, Dense, FloatType, GroupFloats, GroupType, Grouping, Outline, Term, TermOutline, Weight,
    ZeroType, Zeros,
};
use serde_json::{Value, json};
use settings::{Packing, Settings};

const METHOD: &str = "hqq";

pub(crate) struct Hqq;

/// The term of an outline and how its codes are packed, or why it cannot be held.
fn scheme(outline: &Outline) -> Result<(Grid, Packing), String> {
    let grid = Grid::of(outline)?;
    let Some(packing) = Packing::of(grid.bits) else {
        return Err(format!("it has 1, 2, 3, 4, 5, 6 or 8 bits, not {}", grid.bits));
    };
    if grid.grouping == Grouping::Tensor {
        return Err("it has no scale for a whole matrix; use rows or groups".to_owned());
    }
    match grid.zeros {
        ZeroType::Middle | ZeroType::Codes => {}
        ZeroType::Floats(kind) if kind == GroupType::Plain(grid.scales) => {}
        ZeroType::Floats(_) | ZeroType::Minima(_) => {
            let what = outline.describe();
            return Err(format!("its zeros are floats as its scales are, not {what}"));
        }
    }
    let groups = grid.grouping.count(outline.rows, outline.cols);
    if packing != Packing::THREE && !groups.is_multiple_of(packing.parts) {
        return Err(format!(
            "its groups come in packs of {}, which {groups} are not; use another group_size",
            packing.parts
        ));
    }
    Ok((grid, packing))
}

impl Format for Hqq {
    fn id(&self) -> &'static str {
        METHOD
    }

    fn loaders(&self) -> &'static str {
        "hqq, lapidary"
    }

    fn scale_type(&self, model: FloatType) -> FloatType {
        model
    }

    fn accepts(&self, outline: &Outline) -> Result<(), String> {
        scheme(outline).map(|_| ())
    }

    fn accepts_table(&self, _outline: &Outline) -> Result<(), String> {
        Err("embedding tables are plain floats in it".to_owned())
    }

    fn tensors(&self, module: &str, outline: &Outline, _dtype: FloatType) -> Vec<TensorSpec> {
        let Ok((grid, packing)) = scheme(outline) else { return vec![] };
        let Outline { rows, cols, .. } = *outline;
        let groups = grid.grouping.count(rows, cols);
        let spec = |part, dtype, shape| TensorSpec::new(format!("{module}.{part}"), dtype, shape);
        let packed = vec![groups.div_ceil(packing.parts), grid.grouping.width(cols)];
        let mut tensors = vec![
            spec("W_q", packing.dtype, packed),
            spec("scale", float_dtype(grid.scales), vec![groups, 1]),
            spec("zero", float_dtype(grid.scales), vec![groups, 1]),
        ];
        let settings = Settings::new(outline, &grid, packing).tensors();
        tensors
            .extend(settings.into_iter().map(|(part, dtype, shape, _)| spec(part, dtype, shape)));
        tensors
    }

    fn encode(&self, weight: &Weight, _dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        let outline = weight.outline();
        let unsupported =
            || FormatError::Unsupported { format: METHOD, outline: outline.describe() };
        let [Term::Affine(affine)] = weight.terms() else { return Err(unsupported()) };
        let (grid, packing) = scheme(&outline).map_err(|_| unsupported())?;
        let zeros: Vec<f32> = match &affine.zeros {
            Zeros::Codes(zeros) => zeros.iter().map(|zero| f32::from(*zero)).collect(),
            Zeros::Floats(zeros) => zeros.to_vec(),
            _ => vec![f32::from(1_u8 << (grid.bits - 1)); affine.scales.len()],
        };
        let mut tensors = vec![
            packing.pack(&affine.codes, grid.grouping.width(weight.cols())),
            grid.scales.encode(&affine.scales),
            grid.scales.encode(&zeros),
        ];
        let settings = Settings::new(&outline, &grid, packing).tensors();
        tensors.extend(settings.into_iter().map(|(_, _, _, bytes)| bytes));
        Ok(tensors)
    }

    fn decode(
        &self,
        module: &str,
        outline: &Outline,
        _dtype: FloatType,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        let bytes = Bytes { module, read };
        let (grid, packing) = scheme(outline).map_err(|what| bytes.wrong("W_q", what))?;
        Stored::read(&bytes, &Settings::new(outline, &grid, packing), grid.scales)?
            .grouped(module, outline, &grid)
    }

    fn config(&self, layout: &Layout<'_>) -> Option<Value> {
        let fields = |outline: &Outline| {
            let (grid, _) = scheme(outline).ok()?;
            Some((grid.bits, grid.grouping.width(outline.cols)))
        };
        let usual = layout.compressed.iter().filter_map(|(_, outline)| fields(outline));
        let (bits, group_size) = most_common(usual)?;
        Some(json!({
            "quant_method": METHOD,
            "quant_config": {
                "weight_quant_params": {
                    "nbits": bits,
                    "channel_wise": true,
                    "group_size": group_size,
                    "optimize": true,
                    "round_zero": false,
                    "axis": 1,
                    "view_as_float": false,
                },
                "scale_quant_params": null,
                "zero_quant_params": null,
                "offload_meta": false,
            },
            "skip_modules": layout.plain,
        }))
    }

    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        // Every layer has its own settings; the configuration has nothing to add.
        let is_ours = config.get("quant_method").and_then(Value::as_str) == Some(METHOD);
        is_ours.then(|| Ok(Box::new(HqqReader) as Box<dyn Reader>))
    }
}

/// What the tensors of a layer hold, in the order of the flattened weight.
struct Stored {
    settings: Settings,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

impl Stored {
    fn read(bytes: &Bytes<'_>, settings: &Settings, float: FloatType) -> Result<Self, FormatError> {
        let groups = settings.groups();
        let count = settings.rows * settings.cols;
        let packed = bytes.get("W_q")?;
        let codes = settings.packing.unpack(&packed, count, settings.width());
        let codes = codes.map_err(|what| bytes.wrong("W_q", what))?;
        let (scales, zeros) = (bytes.floats("scale", float)?, bytes.floats("zero", float)?);
        bytes.expect("scale", &scales, groups)?;
        bytes.expect("zero", &zeros, groups)?;
        if let Some(code) = codes.iter().find(|code| **code > u8::MAX >> (8 - settings.bits)) {
            return Err(bytes.wrong("W_q", format!("holds {code} in {} bits", settings.bits)));
        }
        Ok(Self { settings: settings.clone(), codes, scales, zeros })
    }

    /// The term, each group of columns with the numbers of the group it lies in.
    fn grouped(self, module: &str, outline: &Outline, grid: &Grid) -> Result<Weight, FormatError> {
        let Outline { rows, cols, .. } = *outline;
        let width = grid.grouping.width(cols);
        let groups = 0..grid.grouping.count(rows, cols);
        let spread = |numbers: &[f32]| {
            let of_group = |group: usize| numbers[group * width / self.settings.group_size];
            GroupFloats::plain(groups.clone().map(of_group).collect(), grid.scales)
        };
        let affine = Affine {
            bits: grid.bits,
            grouping: grid.grouping,
            scales: spread(&self.scales),
            zeros: Zeros::Floats(spread(&self.zeros)),
            codes: self.codes,
        };
        weight(module, rows, cols, Term::Affine(affine))
    }

    /// The numbers of a layer whose groups are no groups of columns.
    fn values(&self) -> Vec<f32> {
        let groups = self.scales.len();
        let value = |(place, code): (usize, &u8)| {
            let group = place % groups;
            self.scales[group] * (f32::from(*code) - self.zeros[group])
        };
        self.codes.iter().enumerate().map(value).collect()
    }
}

#[derive(Debug)]
struct HqqReader;

impl HqqReader {
    fn module(parts: Parts<'_>) -> Result<Module, FormatError> {
        let settings = Settings::read(&parts)?;
        let (rows, cols, groups) = (settings.rows, settings.cols, settings.groups());
        let packing = settings.packing;
        let rows_packed = (rows * cols / settings.width()).div_ceil(packing.parts);
        parts.expect("W_q", packing.dtype, &[rows_packed, settings.width()])?;
        let shape = if settings.axis == 1 { [groups, 1] } else { [1, groups] };
        let float = parts.floats("scale", &shape)?;
        if parts.floats("zero", &shape)? != float {
            return parts.wrong("zero", "is of another type than the scale");
        }
        let (outline, note) = match settings.grid(float) {
            Some(grid) => {
                let is_whole = grid.grouping.width(cols) == settings.group_size;
                let note = (!is_whole).then(|| {
                    let (size, width) = (settings.group_size, grid.grouping.width(cols));
                    format!("its groups of {size} run across the ends of rows; read as groups of {width}")
                });
                (grid.outline(rows, cols), note)
            }
            None => {
                let terms = vec![TermOutline::Dense { values: FloatType::F32 }];
                let what = "the members of its groups lie rows apart (axis 0), which no grouping of \
                            columns is; read as the numbers that it decodes to";
                (Outline { rows, cols, terms }, Some(what.to_owned()))
            }
        };
        let outline = checked(parts.module, outline)?;
        let known = ["W_q", "scale", "zero"].into_iter().chain(settings::NAMES);
        let tensors = known.filter(|part| parts.has(part)).map(|part| parts.name(part));
        Ok(Module { floats: Some(float), note, ..Module::new(parts.module, outline, tensors) })
    }
}

impl Reader for HqqReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let modules = names.iter().filter_map(|name| name.strip_suffix(".W_q"));
        modules.map(|module| Self::module(Parts { module, tensors })).collect()
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        let Module { name, outline, .. } = module;
        let bytes = Bytes { module: name, read };
        let float = module.floats.unwrap_or(FloatType::F16);
        let settings = Settings::read(&bytes)?;
        let stored = Stored::read(&bytes, &settings, float)?;
        match settings.grid(float) {
            Some(grid) => stored.grouped(name, outline, &grid),
            None => {
                let dense = Dense { values: stored.values(), dtype: FloatType::F32 };
                weight(name, outline.rows, outline.cols, Term::Dense(dense))
            }
        }
    }
}
