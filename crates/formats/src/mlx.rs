//! MLX's affine quantization: what mlx-lm loads.
//!
//! A layer or table `m` of `[out, in]` becomes `m.weight` (U32 `[out, in · bits / 32]`, each row a dense
//! stream of codes), `m.scales` and `m.biases` (`[out, groups]`): `W = scales · q + biases`. A bias is
//! what stands here as a minimum, with the other sign. Grids whose zero is a code are stored too, with
//! the bias `−scale · zero` rounded to the type of the scales; that of a middle code is exact.

use crate::folder::{Bytes, Grid, Parts, checked, most_common, weight, words_to_bytes};
use crate::{
    Format, FormatError, Layout, Module, QUANTIZATION_KEYS, ReadTensor, Reader, TensorIndex,
    float_dtype,
};
use lapidary_kernels::pack;
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{
    Affine, FloatType, GroupFloats, GroupType, Grouping, Outline, Term, Weight, ZeroType, Zeros,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::num::NonZeroUsize;

const FORMAT: &str = "mlx";
const PLACE: &str = "config.json: quantization";
const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];
const GROUPS: [usize; 3] = [32, 64, 128];

pub(crate) struct Mlx;

/// The term of an outline and its groups' size, or why it cannot be held.
fn scheme(outline: &Outline) -> Result<(Grid, NonZeroUsize), String> {
    let grid = Grid::of(outline)?;
    if !BITS.contains(&grid.bits) {
        return Err(format!("it has 2, 3, 4, 5, 6 or 8 bits, not {}", grid.bits));
    }
    let size = NonZeroUsize::new(grid.grouping.width(outline.cols));
    let size =
        size.filter(|size| GROUPS.contains(&size.get()) && grid.grouping != Grouping::Tensor);
    let Some(size) = size else {
        return Err(format!("its groups are of 32, 64 or 128 columns, not {}", outline.describe()));
    };
    match grid.zeros {
        ZeroType::Floats(GroupType::TwoLevel(_)) => {
            Err(format!("its zeros are plain floats, not {}", outline.describe()))
        }
        ZeroType::Minima(kind) if kind != GroupType::Plain(grid.scales) => {
            Err(format!("its minima are floats as its scales are, not {}", outline.describe()))
        }
        _ => Ok((grid, size)),
    }
}

/// The array of biases, before they are rounded to what is stored.
fn biases(affine: &Affine) -> Vec<f32> {
    let scales = affine.scales.iter();
    match &affine.zeros {
        Zeros::Middle => scales.map(|scale| -scale * (1 << (affine.bits - 1)) as f32).collect(),
        Zeros::Codes(zeros) => scales.zip(zeros).map(|(s, zero)| -s * f32::from(*zero)).collect(),
        Zeros::Floats(zeros) => scales.zip(zeros.iter()).map(|(s, zero)| -s * zero).collect(),
        Zeros::Minima(minima) => minima.iter().map(|minimum| -minimum).collect(),
    }
}

impl Format for Mlx {
    fn id(&self) -> &'static str {
        FORMAT
    }

    fn loaders(&self) -> &'static str {
        "mlx-lm, LM Studio on Apple silicon, lapidary"
    }

    fn scale_type(&self, model: FloatType) -> FloatType {
        model
    }

    fn accepts(&self, outline: &Outline) -> Result<(), String> {
        scheme(outline).map(|_| ())
    }

    fn tensors(&self, module: &str, outline: &Outline, _dtype: FloatType) -> Vec<TensorSpec> {
        let Ok((grid, size)) = scheme(outline) else { return vec![] };
        let Outline { rows, cols, .. } = *outline;
        let words = pack::Layout::Dense.words(cols, u32::from(grid.bits));
        let spec = |part, dtype, shape| TensorSpec::new(format!("{module}.{part}"), dtype, shape);
        let floats = |part| spec(part, float_dtype(grid.scales), vec![rows, cols / size]);
        vec![spec("weight", Dtype::U32, vec![rows, words]), floats("scales"), floats("biases")]
    }

    fn encode(&self, weight: &Weight, _dtype: FloatType) -> Result<Vec<Vec<u8>>, FormatError> {
        let unsupported = |outline| FormatError::Unsupported { format: FORMAT, outline };
        let describe = || weight.outline().describe();
        let [Term::Affine(affine)] = weight.terms() else { return Err(unsupported(describe())) };
        let (grid, _) = scheme(&weight.outline()).map_err(|_| unsupported(describe()))?;
        let (cols, bits) = (weight.cols(), u32::from(grid.bits));
        let mut packed = vec![0; weight.rows() * pack::Layout::Dense.words(cols, bits)];
        pack::pack_rows(&affine.codes, cols, bits, &mut packed)
            .map_err(|_| unsupported(describe()))?;
        let biases = biases(affine);
        if biases.iter().any(|bias| !grid.scales.round(*bias).is_finite()) {
            let what = format!("{}, whose biases overflow {:?}", describe(), grid.scales);
            return Err(unsupported(what));
        }
        let scales = grid.scales.encode(&affine.scales);
        Ok(vec![words_to_bytes(&packed), scales, grid.scales.encode(&biases)])
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
        let fields =
            |outline: &Outline| scheme(outline).ok().map(|(grid, size)| (size.get(), grid.bits));
        let schemes = layout.compressed.iter().filter_map(|(_, outline)| fields(outline));
        let usual = most_common(schemes)?;
        let object = |(size, bits)| json!({"group_size": size, "bits": bits, "mode": "affine"});
        let mut config = object(usual);
        for (module, outline) in layout.compressed {
            let own = fields(outline)?;
            if own != usual {
                config[module] = object(own);
            }
        }
        for module in layout.plain {
            config[module] = json!(false);
        }
        Some(config)
    }

    fn config_keys(&self) -> &'static [&'static str] {
        &QUANTIZATION_KEYS
    }

    fn reader(&self, config: &Value) -> Option<Result<Box<dyn Reader>, FormatError>> {
        // It is the one format without a name.
        let is_ours = config.get("quant_method").is_none()
            && config.get("bits").is_some()
            && config.get("group_size").is_some();
        is_ours.then(|| Ok(Box::new(MlxReader::new(config)?) as Box<dyn Reader>))
    }
}

/// The weight of a module: always with minima, whatever it was written from.
fn decode(module: &str, outline: &Outline, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
    let bytes = Bytes { module, read };
    let (grid, size) = scheme(outline).map_err(|what| bytes.wrong("weight", what))?;
    let Outline { rows, cols, .. } = *outline;
    let mut codes = vec![0; rows * cols];
    let words = bytes.words("weight")?;
    pack::unpack_rows(&words, pack::Layout::Dense, cols, u32::from(grid.bits), &mut codes)
        .map_err(|error| bytes.wrong("weight", error.to_string()))?;
    let floats = |part| {
        let values = bytes.floats(part, grid.scales)?;
        bytes.expect(part, &values, rows * (cols / size))?;
        Ok::<_, FormatError>(values)
    };
    let minima = floats("biases")?.into_iter().map(|bias| -bias).collect();
    let affine = Affine {
        bits: grid.bits,
        grouping: grid.grouping,
        codes,
        scales: GroupFloats::plain(floats("scales")?, grid.scales),
        zeros: Zeros::Minima(GroupFloats::plain(minima, grid.scales)),
    };
    weight(module, rows, cols, Term::Affine(affine))
}

#[derive(Debug)]
struct MlxReader {
    /// Bits and group size.
    usual: (u8, NonZeroUsize),
    own: HashMap<String, (u8, NonZeroUsize)>,
}

impl MlxReader {
    fn new(config: &Value) -> Result<Self, FormatError> {
        let usual = fields(config, PLACE)?;
        let layers = config.as_object().into_iter().flatten();
        let layers = layers.filter(|(_, fields)| fields.is_object());
        let own = layers.map(|(module, value)| {
            Ok((module.clone(), fields(value, &format!("{PLACE}.{module}"))?))
        });
        Ok(Self { usual, own: own.collect::<Result<_, FormatError>>()? })
    }

    fn module(&self, parts: Parts<'_>) -> Result<Module, FormatError> {
        let (bits, size) = *self.own.get(parts.module).unwrap_or(&self.usual);
        let [rows, words] = parts.matrix("weight", Dtype::U32)?;
        let cols = words.saturating_mul(32) / usize::from(bits);
        let fits = cols.is_multiple_of(size.get())
            && pack::Layout::Dense.words(cols, u32::from(bits)) == words;
        if !fits {
            let what = format!("{words} words a row are no groups of {size} codes of {bits} bits");
            return parts.wrong("weight", what);
        }
        let scales = parts.floats("scales", &[rows, cols / size])?;
        if parts.floats("biases", &[rows, cols / size])? != scales {
            return parts.wrong("biases", "are of another type than the scales");
        }
        let grouping = if size.get() == cols { Grouping::Row } else { Grouping::Columns(size) };
        let zeros = ZeroType::Minima(scales.into());
        let outline =
            checked(parts.module, Grid { bits, grouping, zeros, scales }.outline(rows, cols))?;
        let tensors = ["weight", "scales", "biases"].map(|part| parts.name(part));
        Ok(Module::new(parts.module, outline, tensors))
    }
}

/// Bits and group size of the folder or of one layer.
fn fields(config: &Value, place: &str) -> Result<(u8, NonZeroUsize), FormatError> {
    let wrong = |key: &str, what: &str| Err(FormatError::malformed(format!("{place}.{key}"), what));
    if config.get("mode").is_some_and(|mode| mode != "affine") {
        return wrong("mode", "is not affine, the only one that can be read");
    }
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    let bits = number("bits").and_then(|bits| BITS.into_iter().find(|b| u64::from(*b) == bits));
    let Some(bits) = bits else { return wrong("bits", "is not 2, 3, 4, 5, 6 or 8") };
    let size = number("group_size");
    let size = size.and_then(|size| GROUPS.into_iter().find(|group| *group as u64 == size));
    match size.and_then(NonZeroUsize::new) {
        Some(size) => Ok((bits, size)),
        None => wrong("group_size", "is not 32, 64 or 128"),
    }
}

impl Reader for MlxReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let modules = names.iter().filter_map(|name| name.strip_suffix(".scales"));
        modules.map(|module| self.module(Parts { module, tensors })).collect()
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        decode(&module.name, &module.outline, read)
    }
}
