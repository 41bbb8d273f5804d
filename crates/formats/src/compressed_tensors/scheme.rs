//! How one layer is stored: the format of its group, and `QuantizationArgs`.

use super::floats::{Floats, Scales};
use super::integers::{self, Integers};
use crate::{FormatError, ReadTensor};
use lapidary_weight::{
    BookType, GroupType, Grouping, InputNumbers, InputRounding, InputScales, Outline, SmallCodes,
    SmallFloat, TermOutline, Weight, ZeroType,
};
use serde_json::{Value, json};

/// The one term of a weight that the format can hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scheme {
    Integers(Integers),
    Floats(Floats),
}

impl Scheme {
    /// The scheme of an outline.
    ///
    /// # Errors
    /// The reason why there is none, for users.
    pub(super) fn of(outline: &Outline, packed: bool) -> Result<Self, String> {
        let wrong =
            || format!("it holds one affine or small-float term, not {}", outline.describe());
        let scheme = match outline.terms[..] {
            [TermOutline::Affine { bits, grouping, zeros, scales }] => {
                let symmetric = match zeros {
                    ZeroType::Middle => true,
                    ZeroType::Codes => false,
                    ZeroType::Floats(_) | ZeroType::Minima(_) => {
                        let what = outline.describe();
                        return Err(format!("its zero points are integers, not {what}"));
                    }
                };
                let GroupType::Plain(scale_type) = scales else {
                    return Err(format!("its scales are plain floats, not {}", outline.describe()));
                };
                if let Grouping::Blocks { .. } = grouping {
                    return Err("its integers have groups of columns, not blocks".to_owned());
                }
                if grouping == Grouping::Tensor && !symmetric {
                    let what = "it has no zero point for a whole matrix; use rows or groups";
                    return Err(what.to_owned());
                }
                Self::Integers(Integers { bits, grouping, symmetric, scale_type, packed })
            }
            [
                TermOutline::Lookup {
                    grouping: Some(grouping),
                    books: BookType::Fixed(float),
                    scales,
                    ..
                },
            ] => Self::Floats(Floats {
                float,
                grouping,
                scales: Scales::of(scales, float, grouping)?,
            }),
            _ => return Err(wrong()),
        };
        if let Grouping::Columns(width) = scheme.grouping()
            && outline.cols % width != 0
        {
            let cols = outline.cols;
            return Err(format!("groups of {width} do not divide the {cols} columns"));
        }
        Ok(scheme)
    }

    fn grouping(&self) -> Grouping {
        match self {
            Self::Integers(integers) => integers.grouping,
            Self::Floats(floats) => floats.grouping,
        }
    }

    /// Name of the format, which for FP8 depends on whether inputs are rounded too.
    pub(super) fn format(&self, with_inputs: bool) -> &'static str {
        match self {
            Self::Integers(Integers { packed: true, .. }) => integers::PACKED,
            Self::Integers(_) => "int-quantized",
            Self::Floats(floats) => match floats.scales {
                Scales::Plain(_) if with_inputs => "float-quantized",
                Scales::Plain(_) => "naive-quantized",
                Scales::PowersOfTwo if floats.float == SmallFloat::E4M3 => "mxfp8-quantized",
                Scales::PowersOfTwo => "mxfp4-pack-quantized",
                Scales::Divided => "nvfp4-pack-quantized",
            },
        }
    }

    /// `QuantizationArgs`; loaders refuse keys they do not know, so only the needed ones are written.
    pub(super) fn arguments(&self) -> Value {
        let (bits, kind, symmetric) = match self {
            Self::Integers(integers) => (integers.bits, "int", integers.symmetric),
            Self::Floats(floats) => (floats.float.bits(), "float", true),
        };
        let mut arguments = json!({
            "num_bits": bits,
            "type": kind,
            "symmetric": symmetric,
            "dynamic": false,
        });
        match self.grouping() {
            Grouping::Tensor => arguments["strategy"] = json!("tensor"),
            Grouping::Row => arguments["strategy"] = json!("channel"),
            Grouping::Columns(width) => {
                arguments["strategy"] = json!("group");
                arguments["group_size"] = json!(width);
            }
            Grouping::Blocks { rows, columns } => {
                arguments["strategy"] = json!("block");
                arguments["block_structure"] = json!([rows, columns]);
            }
        }
        if let Self::Floats(floats) = self {
            let scale_type = match floats.scales {
                Scales::Plain(_) => None,
                Scales::PowersOfTwo => Some("torch.uint8"),
                Scales::Divided => {
                    arguments["strategy"] = json!("tensor_group");
                    Some("torch.float8_e4m3fn")
                }
            };
            if let Some(scale_type) = scale_type {
                arguments["scale_dtype"] = json!(scale_type);
                arguments["zp_dtype"] = json!(scale_type);
            }
        }
        arguments
    }

    /// The weight of a module from its tensors.
    ///
    /// # Errors
    /// When they hold what the outline does not allow.
    pub(super) fn decode(
        &self,
        module: &str,
        outline: &Outline,
        read: ReadTensor<'_>,
    ) -> Result<Weight, FormatError> {
        let shape = (outline.rows, outline.cols);
        let term = match self {
            Self::Integers(integers) => integers.decode(module, shape, read)?,
            Self::Floats(floats) => floats.decode(module, shape, read)?,
        };
        Weight::new(outline.rows, outline.cols, vec![term])
            .map_err(|error| FormatError::Weight { module: module.to_owned(), error })
    }

    /// The outline of a weight of this scheme.
    pub(super) fn outline(&self, rows: usize, cols: usize) -> Outline {
        let term = match *self {
            Self::Integers(Integers { bits, grouping, symmetric, scale_type, .. }) => {
                let zeros = if symmetric { ZeroType::Middle } else { ZeroType::Codes };
                TermOutline::Affine { bits, grouping, zeros, scales: scale_type.into() }
            }
            Self::Floats(Floats { float, grouping, scales }) => TermOutline::Lookup {
                bits: float.bits(),
                grouping: Some(grouping),
                book_per_row: false,
                books: float.into(),
                scales: scales.into(),
            },
        };
        Outline { rows, cols, terms: vec![term] }
    }
}

/// `QuantizationArgs` of inputs whose scales follow from them.
pub(super) fn input_arguments(inputs: InputRounding) -> Value {
    let (bits, kind) = match inputs.numbers {
        InputNumbers::Integers(bits) => (bits, "int"),
        InputNumbers::E4M3 => (8, "float"),
    };
    let mut arguments = json!({
        "num_bits": bits,
        "type": kind,
        "symmetric": true,
        "strategy": "token",
        "dynamic": true,
    });
    if let InputScales::Channels(width) = inputs.scales {
        arguments["strategy"] = json!("group");
        arguments["group_size"] = json!(width);
    }
    arguments
}

impl From<Scales> for GroupType {
    fn from(scales: Scales) -> Self {
        match scales {
            Scales::Plain(float) => Self::Plain(float),
            Scales::PowersOfTwo => {
                Self::Small(SmallCodes { float: SmallFloat::E8M0, divided: false })
            }
            Scales::Divided => Self::Small(SmallCodes { float: SmallFloat::E4M3, divided: true }),
        }
    }
}

impl Scales {
    /// The kind of scales that these are.
    ///
    /// # Errors
    /// The reason why they are none, for users.
    pub(crate) fn stored(scales: GroupType) -> Result<Self, String> {
        match scales {
            GroupType::Plain(float) => Ok(Self::Plain(float)),
            GroupType::Small(SmallCodes { float: SmallFloat::E8M0, divided: false }) => {
                Ok(Self::PowersOfTwo)
            }
            GroupType::Small(SmallCodes { float: SmallFloat::E4M3, divided: true }) => {
                Ok(Self::Divided)
            }
            _ => Err("its scales are floats, E8M0, or E4M3 under one divisor".to_owned()),
        }
    }

    /// The same, where the format has them for such numbers in such groups.
    fn of(scales: GroupType, float: SmallFloat, grouping: Grouping) -> Result<Self, String> {
        let found = Self::stored(scales)?;
        let width = match grouping {
            Grouping::Columns(width) => width.get(),
            _ => 0,
        };
        match (float, found, width) {
            (SmallFloat::E4M3, Self::Plain(_), _)
            | (SmallFloat::E4M3 | SmallFloat::E2M1, Self::PowersOfTwo, 32)
            | (SmallFloat::E2M1, Self::Divided, 16) => Ok(found),
            _ => Err("its floats are FP8 with plain scales, MXFP8 and MXFP4 in groups of 32, and \
                      NVFP4 in groups of 16"
                .to_owned()),
        }
    }
}
