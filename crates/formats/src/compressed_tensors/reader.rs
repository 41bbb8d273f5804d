//! Reads a compressed-tensors folder: which group a layer is of, and whether its tensors are as the
//! group says.

use super::floats::{Floats, Scales};
use super::integers::{self, Integers, PACKED};
use super::scheme::Scheme;
use crate::{FormatError, Module, ModuleKind, Pattern, ReadTensor, Reader, TensorIndex};
use lapidary_store::Dtype;
use lapidary_weight::{
    FloatType, Grouping, InputNumbers, InputRounding, InputScales, SmallFloat, Weight,
};
use serde_json::Value;
use std::num::NonZeroUsize;

const PLACE: &str = "config.json: quantization_config.config_groups";

#[derive(Debug)]
pub(super) struct FolderReader {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    /// Where it stands.
    place: String,
    targets: Vec<Pattern>,
    codes: Codes,
    /// Rows and columns of a rectangle with one scale.
    block: Option<[NonZeroUsize; 2]>,
    inputs: Inputs,
}

/// What a group says of the inputs of its layers.
#[derive(Debug)]
enum Inputs {
    /// They stay floats.
    Floats,
    /// They are rounded under scales that follow from them.
    Dynamic(InputRounding),
    /// They are rounded under the scale that stands beside each layer.
    Static(InputNumbers),
    /// They are rounded in a way that is not read.
    Unread(String),
}

/// What a group's layers are made of.
#[derive(Debug, Clone, Copy)]
enum Codes {
    Integers { bits: u8, symmetric: bool, packed: bool },
    Floats { float: SmallFloat, scales: FloatScales },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FloatScales {
    Plain,
    PowersOfTwo,
    Divided,
}

impl FolderReader {
    pub(super) fn new(config: &Value) -> Result<Self, FormatError> {
        let global = config.get("format").and_then(Value::as_str).unwrap_or(PACKED);
        let groups = config.get("config_groups").and_then(Value::as_object);
        let groups = groups.ok_or_else(|| FormatError::malformed(PLACE, "is missing"))?;
        let group =
            |(name, group): (&String, &Value)| Group::new(format!("{PLACE}.{name}"), group, global);
        Ok(Self { groups: groups.iter().map(group).collect::<Result<_, _>>()? })
    }

    fn group_of(&self, module: &str, part: &str) -> Result<&Group, FormatError> {
        // Whatever is compressed is a linear layer.
        let named = |target: &Pattern| target.matches(module, ModuleKind::Layer);
        let matches = |group: &&Group| group.targets.iter().any(named);
        self.groups.iter().find(matches).ok_or_else(|| {
            FormatError::malformed(
                format!("{module}.{part}"),
                "no group of quantization_config.config_groups names this module",
            )
        })
    }
}

impl Group {
    fn new(place: String, group: &Value, global: &str) -> Result<Self, FormatError> {
        let format = group.get("format").and_then(Value::as_str).unwrap_or(global);
        let weights = group.get("weights").filter(|weights| weights.is_object());
        let weights = weights.ok_or_else(|| FormatError::malformed(&place, "has no weights"))?;
        let codes = Codes::new(&place, format, weights)?;
        let pattern = |text: &str| {
            Pattern::new(text).map_err(|error| FormatError::malformed(&place, error.to_string()))
        };
        let targets = group.get("targets").and_then(Value::as_array);
        let targets = targets.into_iter().flatten().filter_map(Value::as_str).map(pattern);
        let inputs = group.get("input_activations").filter(|inputs| inputs.is_object());
        Ok(Self {
            targets: targets.collect::<Result<_, _>>()?,
            codes,
            block: block(&place, weights)?,
            inputs: inputs.map_or(Inputs::Floats, Inputs::new),
            place,
        })
    }
}

impl Codes {
    fn new(place: &str, format: &str, weights: &Value) -> Result<Self, FormatError> {
        let bits = weights.get("num_bits").and_then(Value::as_u64);
        let bits = bits.and_then(|bits| u8::try_from(bits).ok()).filter(|b| (1..=8).contains(b));
        let bits = bits.ok_or_else(|| {
            FormatError::malformed(format!("{place}.weights.num_bits"), "is not from 1 to 8")
        })?;
        let is_float = weights.get("type").and_then(Value::as_str) == Some("float");
        let symmetric = weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
        let integers = |packed| Self::Integers { bits, symmetric, packed };
        let floats = |float, scales| Self::Floats { float, scales };
        match (format, is_float, bits) {
            (PACKED, false, _) => Ok(integers(true)),
            ("int-quantized" | "naive-quantized", false, _) => Ok(integers(false)),
            ("float-quantized" | "naive-quantized", true, 8) => {
                Ok(floats(SmallFloat::E4M3, FloatScales::Plain))
            }
            ("mxfp8-quantized", true, 8) => Ok(floats(SmallFloat::E4M3, FloatScales::PowersOfTwo)),
            ("mxfp4-pack-quantized", true, 4) => {
                Ok(floats(SmallFloat::E2M1, FloatScales::PowersOfTwo))
            }
            ("nvfp4-pack-quantized", true, 4) => Ok(floats(SmallFloat::E2M1, FloatScales::Divided)),
            _ => {
                let kind = if is_float { "floats" } else { "integers" };
                let what = format!(
                    "format {format:?} with {kind} of {bits} bits cannot be read; {PACKED}, \
                     int-quantized, float-quantized, mxfp8-quantized, mxfp4-pack-quantized and \
                     nvfp4-pack-quantized can, with what they hold"
                );
                Err(FormatError::malformed(place, what))
            }
        }
    }

    /// The tensor that the codes stand in.
    fn part(self) -> &'static str {
        match self {
            Self::Integers { packed: true, .. } | Self::Floats { float: SmallFloat::E2M1, .. } => {
                "weight_packed"
            }
            Self::Integers { .. } | Self::Floats { .. } => "weight",
        }
    }
}

impl Inputs {
    fn new(arguments: &Value) -> Self {
        let text = |key: &str| arguments.get(key).and_then(Value::as_str);
        let bits = arguments.get("num_bits").and_then(Value::as_u64).unwrap_or(8);
        let kind = text("type").unwrap_or("int");
        let group = arguments.get("group_size").and_then(Value::as_u64);
        let strategy = text("strategy").or_else(|| group.map(|_| "group")).unwrap_or("tensor");
        let unread =
            || Self::Unread(format!("{kind} activations of {bits} bits: they stay floats here"));
        if arguments.get("symmetric").and_then(Value::as_bool) == Some(false) {
            return unread();
        }
        let numbers = match (kind, u8::try_from(bits)) {
            ("int", Ok(bits @ 2..=8)) => InputNumbers::Integers(bits),
            ("float", Ok(8)) => InputNumbers::E4M3,
            _ => return unread(),
        };
        let group = group.and_then(|width| NonZeroUsize::new(usize::try_from(width).ok()?));
        match (arguments.get("dynamic"), strategy, group) {
            (Some(Value::Bool(true)), "token", _) => {
                Self::Dynamic(InputRounding { numbers, scales: InputScales::Token })
            }
            (Some(Value::Bool(true)), "group", Some(width)) => {
                Self::Dynamic(InputRounding { numbers, scales: InputScales::Channels(width) })
            }
            (None | Some(Value::Bool(false)), "tensor", _) => Self::Static(numbers),
            _ => unread(),
        }
    }

    /// The rounding of a layer's inputs, and the tensor that it needs.
    fn of_module(
        &self,
        name: &str,
        tensors: &dyn TensorIndex,
    ) -> Result<(Option<InputRounding>, Option<String>), FormatError> {
        let numbers = match self {
            Self::Floats | Self::Unread(_) => return Ok((None, None)),
            Self::Dynamic(rounding) => return Ok((Some(*rounding), None)),
            Self::Static(numbers) => *numbers,
        };
        let place = format!("{name}.{INPUT_SCALE}");
        let wrong = |what: &str| FormatError::malformed(&place, what);
        let (dtype, _) = tensors.spec(&place).ok_or_else(|| wrong("is missing"))?;
        let float = float_of(dtype).ok_or_else(|| wrong("is not of floats"))?;
        match float.decode(&tensors.read(&place)?)[..] {
            [scale] if scale.is_normal() && scale > 0.0 => {
                let scales = InputScales::Fixed(scale);
                Ok((Some(InputRounding { numbers, scales }), Some(place)))
            }
            _ => Err(wrong("is not one number above 0")),
        }
    }
}

/// The name of a scale of inputs.
const INPUT_SCALE: &str = "input_scale";

fn float_of(dtype: Dtype) -> Option<FloatType> {
    match dtype {
        Dtype::F32 => Some(FloatType::F32),
        Dtype::F16 => Some(FloatType::F16),
        Dtype::BF16 => Some(FloatType::Bf16),
        _ => None,
    }
}

/// The rectangle that the strategy `block` has.
fn block(place: &str, weights: &Value) -> Result<Option<[NonZeroUsize; 2]>, FormatError> {
    if weights.get("strategy").and_then(Value::as_str) != Some("block") {
        return Ok(None);
    }
    let side = |value: &Value| usize::try_from(value.as_u64()?).ok().and_then(NonZeroUsize::new);
    let sides = weights.get("block_structure").and_then(Value::as_array);
    match sides.map(|sides| sides.iter().map(side).collect::<Vec<_>>()).as_deref() {
        Some([Some(rows), Some(columns)]) => Ok(Some([*rows, *columns])),
        _ => {
            let place = format!("{place}.weights.block_structure");
            Err(FormatError::malformed(place, "is not two positive numbers"))
        }
    }
}

impl Reader for FolderReader {
    fn modules(&self, tensors: &dyn TensorIndex) -> Result<Vec<Module>, FormatError> {
        let names = tensors.names();
        let module = |name: &String| -> Option<Result<Module, FormatError>> {
            if let Some(module) = name.strip_suffix(".weight_packed") {
                return Some(self.module(module, "weight_packed", tensors));
            }
            // A byte a weight: what has scales. (Packed layers have no tensor of this name.)
            let module = name.strip_suffix(".weight")?;
            tensors.spec(&format!("{module}.weight_scale"))?;
            Some(self.module(module, "weight", tensors))
        };
        names.iter().filter_map(module).collect()
    }

    fn decode(&self, module: &Module, read: ReadTensor<'_>) -> Result<Weight, FormatError> {
        let packed = module.tensors.iter().any(|name| name.ends_with(".weight_packed"));
        let scheme = Scheme::of(&module.outline, packed)
            .map_err(|what| FormatError::malformed(&module.name, what))?;
        scheme.decode(&module.name, &module.outline, read)
    }

    fn unused(&self, tensors: &dyn TensorIndex) -> Vec<(String, String)> {
        let of_activations = |name: &String| {
            let (module, part) = name.rsplit_once('.').unwrap_or(("", name));
            let is_read = |group: &Group| matches!(group.inputs, Inputs::Static(_));
            if part == INPUT_SCALE && self.group_of(module, part).is_ok_and(is_read) {
                return None;
            }
            let parts = [INPUT_SCALE, "input_zero_point", "input_global_scale", "output_scale"];
            let caches = ["k_scale", "v_scale", "q_scale"];
            let reason = match part {
                _ if parts.contains(&part) => "activations stay floats here",
                _ if caches.contains(&part) => "the cache of keys and values stays floats here",
                _ => return None,
            };
            Some((name.clone(), reason.to_owned()))
        };
        let declared = self.groups.iter().filter_map(|group| match &group.inputs {
            Inputs::Unread(what) => {
                Some((format!("{}.input_activations", group.place), what.clone()))
            }
            _ => None,
        });
        declared.chain(tensors.names().iter().filter_map(of_activations)).collect()
    }
}

impl FolderReader {
    fn module(
        &self,
        name: &str,
        part: &str,
        tensors: &dyn TensorIndex,
    ) -> Result<Module, FormatError> {
        let group = self.group_of(name, part)?;
        let place = |part: &str| format!("{name}.{part}");
        if group.codes.part() != part {
            let what =
                format!("is there, where {} is needed by {}", group.codes.part(), group.place);
            return Err(FormatError::malformed(place(part), what));
        }
        if tensors.spec(&place("weight_g_idx")).is_some() {
            let what = "groups in activation order (actorder: group) cannot be read; compress again \
                        with actorder: weight";
            return Err(FormatError::malformed(place("weight_g_idx"), what));
        }
        let (rows, cols) = group.shape(name, tensors)?;
        let scheme = group.scheme(name, (rows, cols), tensors)?;
        let outline = scheme.outline(rows, cols);
        Scheme::of(&outline, true).map_err(|what| FormatError::malformed(name, what))?;
        let needed = match &scheme {
            Scheme::Integers(integers) => integers.tensors(name, (rows, cols)),
            Scheme::Floats(floats) => floats.tensors(name, (rows, cols)),
        };
        for need in &needed {
            let Some((dtype, shape)) = tensors.spec(&need.name) else {
                return Err(FormatError::malformed(&need.name, "is missing"));
            };
            // E8M0 is a type of its own in newer files.
            let same_type =
                dtype == need.dtype || (dtype, need.dtype) == (Dtype::F8E8M0, Dtype::U8);
            let fits = shape == need.shape || group.is_another_shape(need, &shape, (rows, cols));
            if !(same_type && fits) {
                let what = format!(
                    "is {dtype:?} {shape:?}, where {:?} {:?} is needed for [{rows}, {cols}] weights",
                    need.dtype, need.shape
                );
                return Err(FormatError::malformed(&need.name, what));
            }
        }
        let (inputs, scale) = group.inputs.of_module(name, tensors)?;
        let tensors = needed.into_iter().map(|tensor| tensor.name).chain(scale);
        Ok(Module { inputs, ..Module::new(name, outline, tensors) })
    }
}

impl Group {
    /// Whether a tensor may have this shape too: a single scale with any number of dimensions, and
    /// the older packing of 3, 5, 6 and 7 bits.
    fn is_another_shape(
        &self,
        need: &lapidary_store::TensorSpec,
        have: &[usize],
        (rows, cols): (usize, usize),
    ) -> bool {
        let part = need.name.rsplit('.').next().unwrap_or_default();
        match (self.codes, part, have, &need.shape[..]) {
            (_, "weight_scale" | "weight_global_scale", have, [1]) => {
                have.len() <= 2 && have.iter().all(|size| *size == 1)
            }
            (Codes::Integers { bits, .. }, "weight_packed", [height, words], _) => {
                *height == rows && integers::layout(cols, bits, *words).is_some()
            }
            (
                Codes::Integers { bits, packed: true, .. },
                "weight_zero_point",
                [words, groups],
                [_, need],
            ) => groups == need && integers::layout(rows, bits, *words).is_some(),
            // A scale a row may be a vector.
            (_, "weight_scale", [height], [need, 1]) => height == need,
            _ => false,
        }
    }

    /// Rows and columns of a layer. Both are bounded by what the file holds: its codes take a bit at
    /// least each.
    fn shape(&self, name: &str, tensors: &dyn TensorIndex) -> Result<(usize, usize), FormatError> {
        let part = self.codes.part();
        let place = format!("{name}.{part}");
        let (_, shape) = tensors.spec(&place).unwrap_or((Dtype::U8, vec![]));
        let [rows, width] = shape[..] else {
            let what = format!("has shape {shape:?}, where a matrix is needed");
            return Err(FormatError::malformed(place, what));
        };
        match self.codes {
            Codes::Integers { bits, packed: true, .. } => {
                let (height, cols) = written_shape(name, tensors)?;
                if height == rows && integers::layout(cols, bits, width).is_some() {
                    return Ok((rows, cols));
                }
                let what = format!("{shape:?} cannot hold [{height}, {cols}] in {bits}-bit codes");
                Err(FormatError::malformed(place, what))
            }
            Codes::Floats { float: SmallFloat::E2M1, .. } if width > usize::MAX / 2 => {
                Err(FormatError::malformed(place, format!("{shape:?} is beyond all sense")))
            }
            Codes::Floats { float: SmallFloat::E2M1, .. } => Ok((rows, 2 * width)),
            Codes::Integers { .. } | Codes::Floats { .. } => Ok((rows, width)),
        }
    }

    /// The scheme of a layer, its groups told from the shape of its scales.
    fn scheme(
        &self,
        name: &str,
        (rows, cols): (usize, usize),
        tensors: &dyn TensorIndex,
    ) -> Result<Scheme, FormatError> {
        let place = format!("{name}.weight_scale");
        let missing = || FormatError::malformed(&place, "is missing");
        let (dtype, shape) = tensors.spec(&place).ok_or_else(missing)?;
        let float = || {
            float_of(dtype).ok_or_else(|| {
                let what = format!("is {dtype:?}, where F16, BF16 or F32 is needed");
                FormatError::malformed(&place, what)
            })
        };
        let grouping = || match self.block {
            Some([rows, columns]) => Ok(Grouping::Blocks { rows, columns }),
            None => grouping(&shape, rows, cols).ok_or_else(|| {
                let what = format!("{shape:?} fits no grouping of [{rows}, {cols}]");
                FormatError::malformed(&place, what)
            }),
        };
        let columns = |width| NonZeroUsize::new(width).map_or(Grouping::Row, Grouping::Columns);
        Ok(match self.codes {
            Codes::Integers { bits, symmetric, packed } => {
                let (grouping, scale_type) = (grouping()?, float()?);
                Scheme::Integers(Integers { bits, grouping, symmetric, scale_type, packed })
            }
            Codes::Floats { float: small, scales } => {
                let (grouping, scales) = match scales {
                    FloatScales::Plain => (grouping()?, Scales::Plain(float()?)),
                    FloatScales::PowersOfTwo => (columns(32), Scales::PowersOfTwo),
                    FloatScales::Divided => (columns(16), Scales::Divided),
                };
                Scheme::Floats(Floats { float: small, grouping, scales })
            }
        })
    }
}

/// What `weight_shape` says.
fn written_shape(name: &str, tensors: &dyn TensorIndex) -> Result<(usize, usize), FormatError> {
    let place = format!("{name}.weight_shape");
    let wrong = |what: String| Err(FormatError::malformed(&place, what));
    match tensors.spec(&place) {
        Some((Dtype::I64, shape)) if shape == [2] => {}
        Some(have) => return wrong(format!("is {have:?}, where two I64 are needed")),
        None => return wrong("is missing".to_owned()),
    }
    let bytes = tensors.read(&place)?;
    let sizes: Vec<i64> = bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    let size = |index: usize| {
        let size = sizes.get(index).and_then(|size| usize::try_from(*size).ok());
        size.filter(|size| *size > 0)
    };
    match (size(0), size(1)) {
        (Some(rows), Some(cols)) => Ok((rows, cols)),
        _ => wrong(format!("holds {sizes:?}, where two sizes are needed")),
    }
}

/// The grouping that an array of scales of this shape stands for.
fn grouping(shape: &[usize], rows: usize, cols: usize) -> Option<Grouping> {
    match *shape {
        [1] | [] => Some(Grouping::Tensor),
        [r, 1] | [r] if r == rows => Some(Grouping::Row),
        [1, 1] => Some(Grouping::Tensor),
        [r, groups] if r == rows && groups > 0 && cols.is_multiple_of(groups) => {
            NonZeroUsize::new(cols / groups).map(Grouping::Columns)
        }
        _ => None,
    }
}
