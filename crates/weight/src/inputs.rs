//! How the inputs of a linear layer are rounded when the model is run: `W8A8` and its kin.
//!
//! Weights are rounded once and stored; inputs are rounded whenever they are computed, so that a
//! layer's products are of few bits on both sides. Nothing is stored of it but this rule.

use lapidary_kernels::rounding::Numbers;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroUsize;

/// How the inputs of a linear layer are rounded when the model is run: symmetric numbers under scales
/// that follow from the inputs, or one that was settled before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct InputRounding {
    /// To which numbers.
    pub numbers: InputNumbers,
    /// Which inputs share a scale.
    pub scales: InputScales,
}

/// The numbers that inputs are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputNumbers {
    /// Integers of 2 to 8 bits.
    Integers(u8),
    /// FP8: floats with four bits of exponent and three of fraction.
    E4M3,
}

/// Which inputs share a scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum InputScales {
    /// All channels of a token; the scale follows from them.
    Token,
    /// So many consecutive channels of a token; likewise.
    Channels(NonZeroUsize),
    /// All inputs there are, under this scale.
    Fixed(f32),
}

impl InputNumbers {
    /// Bits of a number.
    pub fn bits(self) -> u8 {
        match self {
            Self::Integers(bits) => bits,
            Self::E4M3 => 8,
        }
    }
}

impl InputRounding {
    /// Integers of 8 bits with a scale a token: what `W8A8` means.
    pub const INT8: Self = Self { numbers: InputNumbers::Integers(8), scales: InputScales::Token };
    /// FP8 with a scale a token: what `FP8_DYNAMIC` means.
    pub const FP8: Self = Self { numbers: InputNumbers::E4M3, scales: InputScales::Token };

    /// Rounds inputs in place, `[tokens, channels]`.
    pub fn apply(&self, inputs: &mut [f32], channels: usize) {
        let numbers = match self.numbers {
            InputNumbers::Integers(bits) => Numbers::Integers(bits),
            InputNumbers::E4M3 => Numbers::E4M3,
        };
        match self.scales {
            InputScales::Token if channels == 0 => {}
            InputScales::Token => numbers.round_runs(inputs, channels),
            InputScales::Channels(width) => {
                // A group never reaches into the next token.
                let rows = inputs.chunks_exact_mut(channels.max(1));
                match channels.is_multiple_of(width.get()) {
                    true => numbers.round_runs(inputs, width.get()),
                    false => rows.for_each(|row| numbers.round_runs(row, width.get())),
                }
            }
            InputScales::Fixed(scale) => numbers.round_scaled(inputs, scale),
        }
    }
}

/// As people read it: `int8 per token`.
impl fmt::Display for InputRounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.numbers {
            InputNumbers::Integers(bits) => write!(f, "int{bits}")?,
            InputNumbers::E4M3 => f.write_str("fp8")?,
        }
        match self.scales {
            InputScales::Token => f.write_str(" per token"),
            InputScales::Channels(width) => write!(f, " per {width} channels"),
            InputScales::Fixed(scale) => write!(f, " with the scale {scale}"),
        }
    }
}

/// As it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default = "eight")]
    bits: u8,
    #[serde(default)]
    strategy: Strategy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group_size: Option<NonZeroUsize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scale: Option<f32>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Int,
    Float,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Strategy {
    #[default]
    Token,
    Group,
    Tensor,
}

fn eight() -> u8 {
    8
}

impl TryFrom<Fields> for InputRounding {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let numbers = match (fields.kind, fields.bits) {
            (Kind::Int, bits @ 2..=8) => InputNumbers::Integers(bits),
            (Kind::Int, bits) => return Err(format!("integers of {bits} bits; use 2 to 8")),
            (Kind::Float, 8) => InputNumbers::E4M3,
            (Kind::Float, bits) => return Err(format!("floats of {bits} bits; use 8")),
        };
        let scales = match (fields.strategy, fields.group_size, fields.scale) {
            (Strategy::Token, None, None) => InputScales::Token,
            (Strategy::Group, Some(width), None) => InputScales::Channels(width),
            (Strategy::Tensor, None, Some(scale)) if scale.is_normal() && scale > 0.0 => {
                InputScales::Fixed(scale)
            }
            (Strategy::Token, ..) => return Err("strategy token stands alone".to_owned()),
            (Strategy::Group, ..) => return Err("strategy group needs a group_size".to_owned()),
            (Strategy::Tensor, ..) => {
                return Err("strategy tensor needs a scale above 0".to_owned());
            }
        };
        Ok(Self { numbers, scales })
    }
}

impl From<InputRounding> for Fields {
    fn from(rounding: InputRounding) -> Self {
        let (kind, bits) = match rounding.numbers {
            InputNumbers::Integers(bits) => (Kind::Int, bits),
            InputNumbers::E4M3 => (Kind::Float, 8),
        };
        let (strategy, group_size, scale) = match rounding.scales {
            InputScales::Token => (Strategy::Token, None, None),
            InputScales::Channels(width) => (Strategy::Group, Some(width), None),
            InputScales::Fixed(scale) => (Strategy::Tensor, None, Some(scale)),
        };
        Self { kind, bits, strategy, group_size, scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written(rounding: InputRounding) -> serde_json::Value {
        serde_json::to_value(rounding).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let token = json!({ "type": "int", "bits": 8, "strategy": "token" });
        assert_eq!(written(InputRounding::INT8), token);
        let numbers = [InputNumbers::E4M3, InputNumbers::Integers(2), InputNumbers::Integers(8)];
        let width = NonZeroUsize::new(128).unwrap();
        let scales = [InputScales::Token, InputScales::Channels(width), InputScales::Fixed(0.1)];
        for rounding in numbers.iter().flat_map(|numbers| {
            scales.iter().map(|scales| InputRounding { numbers: *numbers, scales: *scales })
        }) {
            let text = written(rounding).to_string();
            assert_eq!(serde_json::from_str::<InputRounding>(&text).unwrap(), rounding, "{text}");
        }
        let short: InputRounding = serde_json::from_value(json!({ "type": "float" })).unwrap();
        assert_eq!(short, InputRounding::FP8);
        assert_eq!(short.to_string(), "fp8 per token");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (value, reason) in [
            (json!({ "type": "int", "bits": 9 }), "integers of 9 bits"),
            (json!({ "type": "float", "bits": 4 }), "floats of 4 bits"),
            (json!({ "type": "int", "strategy": "group" }), "needs a group_size"),
            (json!({ "type": "int", "strategy": "group", "group_size": 0 }), "nonzero"),
            (json!({ "type": "int", "group_size": 8 }), "stands alone"),
            (json!({ "type": "int", "strategy": "tensor" }), "needs a scale above 0"),
            (json!({ "type": "int", "strategy": "tensor", "scale": -1.0 }), "above 0"),
            (json!({ "type": "int", "strategy": "tensor", "scale": 1e-60 }), "above 0"),
            (json!({ "type": "int", "dynamic": true }), "unknown field"),
            (json!({ "bits": 8 }), "missing field `type`"),
        ] {
            let error = serde_json::from_value::<InputRounding>(value).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    /// Groups end with their token.
    #[test]
    fn a_scale_is_of_its_own_token() {
        let mut inputs = vec![100.0, 1.0, 0.3, 1.0, 50.0, 0.3];
        let width = NonZeroUsize::new(2).unwrap();
        let numbers = InputNumbers::Integers(2);
        InputRounding { numbers, scales: InputScales::Channels(width) }.apply(&mut inputs, 3);
        let step = |largest: f32| largest / 1.5;
        let expected = [step(100.0), 0.0, step(0.3), 0.0, step(50.0), step(0.3)];
        assert_eq!(inputs, expected);
        InputRounding::INT8.apply(&mut [], 0);
    }
}
