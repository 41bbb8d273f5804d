//! Element types: the ones of safetensors and the block formats of ggml.
//!
//! A tensor of plain numbers has the same [`Dtype`] whether it came from safetensors or GGUF;
//! [`Dtype::Ggml`] is only used for ggml's block-quantized types.

use std::fmt;

use crate::checked::element_count;

/// The type of the elements of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half-precision float.
    F16,
    /// The upper 16 bits of a 32-bit float.
    BF16,
    /// 8-bit float with 4 exponent and 3 mantissa bits, finite and NaN only (largest 448).
    F8E4M3,
    /// 8-bit float with 5 exponent and 2 mantissa bits.
    F8E5M2,
    /// 8-bit power of two, `2^(e − 127)`: the block scale of the MX formats.
    F8E8M0,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// A block-quantized type of ggml; never one of its plain number types.
    Ggml(GgmlType),
}

/// The safetensors name and width in bytes of every plain type.
const PLAIN: [(Dtype, &str, u64); 16] = [
    (Dtype::F64, "F64", 8),
    (Dtype::F32, "F32", 4),
    (Dtype::F16, "F16", 2),
    (Dtype::BF16, "BF16", 2),
    (Dtype::F8E4M3, "F8_E4M3", 1),
    (Dtype::F8E5M2, "F8_E5M2", 1),
    (Dtype::F8E8M0, "F8_E8M0", 1),
    (Dtype::I64, "I64", 8),
    (Dtype::I32, "I32", 4),
    (Dtype::I16, "I16", 2),
    (Dtype::I8, "I8", 1),
    (Dtype::U64, "U64", 8),
    (Dtype::U32, "U32", 4),
    (Dtype::U16, "U16", 2),
    (Dtype::U8, "U8", 1),
    (Dtype::Bool, "BOOL", 1),
];

/// Why a tensor of some type cannot have some shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The number of elements or bytes exceeds 64 bits.
    #[error("its size exceeds 64 bits")]
    Overflow,
    /// The innermost dimension is not a whole number of blocks.
    #[error("its rows of {row} elements do not divide into {dtype} blocks of {block}")]
    Ragged {
        /// Elements in a row.
        row: u64,
        /// Elements in a block.
        block: u64,
        /// The block type.
        dtype: Dtype,
    },
}

impl Dtype {
    /// The type that safetensors spells `name`.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        PLAIN.iter().find(|entry| entry.1 == name).map(|entry| entry.0)
    }

    /// How safetensors spells the type; `None` for the block types of ggml, which it cannot hold.
    pub fn safetensors_name(self) -> Option<&'static str> {
        PLAIN.iter().find(|entry| entry.0 == self).map(|entry| entry.1)
    }

    /// The type of a GGUF tensor: its plain number types map to ours, the rest stay ggml's.
    pub fn from_ggml(ggml: GgmlType) -> Self {
        match ggml {
            GgmlType::F64 => Self::F64,
            GgmlType::F32 => Self::F32,
            GgmlType::F16 => Self::F16,
            GgmlType::BF16 => Self::BF16,
            GgmlType::I64 => Self::I64,
            GgmlType::I32 => Self::I32,
            GgmlType::I16 => Self::I16,
            GgmlType::I8 => Self::I8,
            block => Self::Ggml(block),
        }
    }

    /// The type that ggml has for it; `None` for those it has not.
    pub fn to_ggml(self) -> Option<GgmlType> {
        GgmlType::ALL.iter().copied().find(|ggml| Self::from_ggml(*ggml) == self)
    }

    /// Elements per block; 1 for plain numbers.
    pub fn block_elements(self) -> u64 {
        match self {
            Self::Ggml(ggml) => ggml.block_elements(),
            _ => 1,
        }
    }

    /// Bytes per block; the width of an element for plain numbers.
    pub fn block_bytes(self) -> u64 {
        match self {
            Self::Ggml(ggml) => ggml.block_bytes(),
            plain => PLAIN.iter().find(|entry| entry.0 == plain).map_or(1, |entry| entry.2),
        }
    }

    /// Whether an element is a float in a format of its own (not a block of codes).
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2)
    }

    /// How many bytes a tensor of this shape takes (outermost dimension first; the empty shape is
    /// one element).
    ///
    /// # Errors
    /// When the size exceeds 64 bits, or a row is not a whole number of blocks.
    pub fn byte_len(self, shape: &[usize]) -> Result<u64, SizeError> {
        let elements = element_count(shape).ok_or(SizeError::Overflow)?;
        let block = self.block_elements();
        let row = shape.last().map_or(Ok(1), |&row| u64::try_from(row));
        let row = row.map_err(|_| SizeError::Overflow)?;
        if row.checked_rem(block) != Some(0) {
            return Err(SizeError::Ragged { row, block, dtype: self });
        }
        let blocks = elements.checked_div(block).ok_or(SizeError::Overflow)?;
        blocks.checked_mul(self.block_bytes()).ok_or(SizeError::Overflow)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ggml(ggml) => ggml.fmt(f),
            plain => f.write_str(plain.safetensors_name().unwrap_or("?")),
        }
    }
}

/// Declares [`GgmlType`] from one table: name, id in the file, elements and bytes of a block.
macro_rules! ggml_types {
    ($($name:ident = $id:literal, $elements:literal, $bytes:literal;)*) => {
        /// A tensor type of ggml, spelled as ggml spells it, with its id in GGUF files.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[expect(non_camel_case_types, reason = "ggml's own spelling")]
        #[repr(u32)]
        pub enum GgmlType {
            $(
                #[doc = concat!(
                    "Id ", $id, ": blocks of ", $elements, " elements in ", $bytes, " bytes."
                )]
                $name = $id,
            )*
        }

        impl GgmlType {
            /// Every known type, by rising id.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The type with this id in a GGUF file.
            pub fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its id in a GGUF file.
            pub fn id(self) -> u32 {
                self as u32
            }

            /// Its name as ggml spells it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Elements per block.
            pub fn block_elements(self) -> u64 {
                match self {
                    $(Self::$name => $elements,)*
                }
            }

            /// Bytes per block.
            pub fn block_bytes(self) -> u64 {
                match self {
                    $(Self::$name => $bytes,)*
                }
            }
        }
    };
}

// Q8_1 is two f16 and 32 codes, 36 bytes, in ggml's C code; the table of the `gguf` Python package
// (0.19) says 40, from a time when the two were f32. It never stands in a published file.
ggml_types! {
    F32 = 0, 1, 4;
    F16 = 1, 1, 2;
    Q4_0 = 2, 32, 18;
    Q4_1 = 3, 32, 20;
    Q5_0 = 6, 32, 22;
    Q5_1 = 7, 32, 24;
    Q8_0 = 8, 32, 34;
    Q8_1 = 9, 32, 36;
    Q2_K = 10, 256, 84;
    Q3_K = 11, 256, 110;
    Q4_K = 12, 256, 144;
    Q5_K = 13, 256, 176;
    Q6_K = 14, 256, 210;
    Q8_K = 15, 256, 292;
    IQ2_XXS = 16, 256, 66;
    IQ2_XS = 17, 256, 74;
    IQ3_XXS = 18, 256, 98;
    IQ1_S = 19, 256, 50;
    IQ4_NL = 20, 32, 18;
    IQ3_S = 21, 256, 110;
    IQ2_S = 22, 256, 82;
    IQ4_XS = 23, 256, 136;
    I8 = 24, 1, 1;
    I16 = 25, 1, 2;
    I32 = 26, 1, 4;
    I64 = 27, 1, 8;
    F64 = 28, 1, 8;
    IQ1_M = 29, 256, 56;
    BF16 = 30, 1, 2;
    TQ1_0 = 34, 256, 54;
    TQ2_0 = 35, 256, 66;
    MXFP4 = 39, 32, 17;
    NVFP4 = 40, 64, 36;
    Q1_0 = 41, 128, 18;
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (dtype, name, _) in PLAIN {
            assert_eq!(Dtype::from_safetensors(name), Some(dtype));
            assert_eq!(dtype.safetensors_name(), Some(name));
        }
        assert_eq!(Dtype::from_safetensors("F31"), None);
        assert_eq!(Dtype::Ggml(GgmlType::Q4_K).safetensors_name(), None);
    }

    #[test]
    fn ids_go_there_and_back() {
        for &ggml in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ggml.id()), Some(ggml));
        }
        for unknown in [4, 5, 31, 32, 33, 36, 37, 38, 42, u32::MAX] {
            assert_eq!(GgmlType::from_id(unknown), None);
        }
    }

    #[test]
    fn plain_ggml_types_become_ours_with_the_same_width() {
        for &ggml in GgmlType::ALL {
            let dtype = Dtype::from_ggml(ggml);
            assert_eq!(dtype.block_bytes(), ggml.block_bytes(), "{ggml}");
            assert_eq!(dtype.block_elements(), ggml.block_elements(), "{ggml}");
            assert_eq!(matches!(dtype, Dtype::Ggml(_)), ggml.block_elements() > 1, "{ggml}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Dtype::BF16.byte_len(&[3, 5]), Ok(30));
        assert_eq!(Dtype::F64.byte_len(&[]), Ok(8));
        assert_eq!(Dtype::Ggml(GgmlType::Q4_0).byte_len(&[2, 64]), Ok(72));
        assert_eq!(Dtype::F32.byte_len(&[1 << 40, 1 << 40]), Err(SizeError::Overflow));
        assert_eq!(Dtype::F64.byte_len(&[1 << 62]), Err(SizeError::Overflow));
        let ragged = Dtype::Ggml(GgmlType::Q4_K).byte_len(&[4, 100]).unwrap_err();
        let message = "its rows of 100 elements do not divide into Q4_K blocks of 256";
        assert_eq!(ragged.to_string(), message);
        assert!(Dtype::Ggml(GgmlType::Q4_K).byte_len(&[]).is_err());
    }
}
