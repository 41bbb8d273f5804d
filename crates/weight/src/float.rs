//! The floating-point types that scales, factors and dense values are stored in.

use half::{bf16, f16};
use lapidary_kernels::convert::{round_to_bf16, round_to_f16};
use serde::{Deserialize, Serialize};

/// A storage type of floats. In memory values are `f32` that this type represents exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// Bits of one value.
    pub fn bits(self) -> u64 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
        }
    }

    /// The nearest value of this type, ties to even. Overflow gives infinity.
    #[inline]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => round_to_f16(value),
            Self::Bf16 => round_to_bf16(value),
        }
    }

    /// Like [`round`](Self::round) for a scale that must stay positive and finite: a positive value
    /// that would round to zero becomes the smallest positive value of the type, one that would
    /// overflow its largest.
    #[inline]
    pub fn round_scale(self, value: f32) -> f32 {
        // By their bits, since conversions look for the processor's instruction each time.
        let (smallest, largest) = match self {
            Self::F32 => (f32::from_bits(1), f32::MAX),
            Self::F16 => (f32::from_bits((127 - 24) << 23), 65_504.0),
            Self::Bf16 => (f32::from_bits(1 << 16), f32::from_bits(0x7f7f_0000)),
        };
        self.round(value).clamp(smallest, largest)
    }

    /// Little-endian bytes of `values`, rounded to this type.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }

    /// Values from little-endian bytes; a trailing partial value is ignored.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => {
                bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
            }
            Self::Bf16 => {
                bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
        }
    }
}
