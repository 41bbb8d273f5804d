//! The number formats of ggml (llama.cpp's GGUF files), dequantized to f32.
//!
//! A tensor is a run of blocks, each of a fixed number of values in a fixed number of bytes; rows
//! are whole blocks. The arithmetic is that of the `gguf` Python package (`quants.py`), operation
//! for operation, so the results are the same bits. The layouts are documented at the functions,
//! one file per family of formats: [`plain`] numbers, [`legacy`] blocks of 32 values, [`k_quants`]
//! and [`i_quants`] of 256 with scales of scales, [`vector`] codebooks, [`ternary`].
//!
//! Where a layout says "low nibbles first", a run of `n` bytes holds `2n` values: first the low
//! nibbles of all bytes, then their high nibbles.

mod codes;
mod i_quants;
mod k_quants;
mod legacy;
mod pack;
mod plain;
mod ternary;
mod vector;

pub(crate) use codes::{Grid as GridKind, Meaning, grid, read_row};
pub use pack::{Block, PACKED, Unpacked, pack, unpack};

/// Declares the kinds: name, ggml's number, values per block, bytes per block.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $id:literal $elements:literal $bytes:literal,)*) => {
        /// A number format of ggml.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(non_camel_case_types, reason = "the names are ggml's")]
        pub enum BlockKind {
            $($(#[$doc])* $kind,)*
        }

        impl BlockKind {
            /// Every kind, in the order of ggml's numbers.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The `ggml_type` number that GGUF files use.
            #[must_use]
            pub const fn id(self) -> u32 {
                match self { $(Self::$kind => $id,)* }
            }

            /// The kind with a `ggml_type` number, if it is one that [`dequantize`] knows.
            #[must_use]
            pub const fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(Self::$kind),)* _ => None }
            }

            /// ggml's name, such as `Q4_K`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)* }
            }

            /// Values in one block.
            #[must_use]
            pub const fn elements(self) -> usize {
                match self { $(Self::$kind => $elements,)* }
            }

            /// Bytes of one block.
            #[must_use]
            pub const fn bytes(self) -> usize {
                match self { $(Self::$kind => $bytes,)* }
            }
        }
    };
}

kinds! {
    /// Single precision.
    F32 0 1 4,
    /// Half precision.
    F16 1 1 2,
    /// 4 bits, symmetric, an f16 scale for 32 values.
    Q4_0 2 32 18,
    /// 4 bits, an f16 scale and minimum for 32 values.
    Q4_1 3 32 20,
    /// 5 bits, symmetric, an f16 scale for 32 values.
    Q5_0 6 32 22,
    /// 5 bits, an f16 scale and minimum for 32 values.
    Q5_1 7 32 24,
    /// 8 bits, symmetric, an f16 scale for 32 values.
    Q8_0 8 32 34,
    /// `Q8_0` with the sum of the block beside it: an operand of dot products, not of files.
    Q8_1 9 32 36,
    /// 2 bits, 4-bit scales and minima for 16 values.
    Q2_K 10 256 84,
    /// 3 bits, symmetric, 6-bit scales for 16 values.
    Q3_K 11 256 110,
    /// 4 bits, 6-bit scales and minima for 32 values.
    Q4_K 12 256 144,
    /// 5 bits, 6-bit scales and minima for 32 values.
    Q5_K 13 256 176,
    /// 6 bits, symmetric, 8-bit scales for 16 values.
    Q6_K 14 256 210,
    /// 8 bits, an f32 scale for 256 values, with sums: an operand of dot products, not of files.
    Q8_K 15 256 292,
    /// Points of a codebook of 256 for 8 values, signs beside them, 4-bit scales for 32 values.
    IQ2_XXS 16 256 66,
    /// Points of a codebook of 512 for 8 values, signs beside them, 4-bit scales for 16 values.
    IQ2_XS 17 256 74,
    /// Points of a codebook of 256 for 4 values, signs beside them, 4-bit scales for 32 values.
    IQ3_XXS 18 256 98,
    /// Points of a codebook of 2048 for 8 values, 3-bit scales and a shift for 32 values.
    IQ1_S 19 256 50,
    /// 4-bit indices into a fixed table, an f16 scale for 32 values.
    IQ4_NL 20 32 18,
    /// Points of a codebook of 512 for 4 values, signs beside them, 4-bit scales for 32 values.
    IQ3_S 21 256 110,
    /// Points of a codebook of 1024 for 8 values, signs beside them, 4-bit scales for 16 values.
    IQ2_S 22 256 82,
    /// `IQ4_NL`'s table, 6-bit scales for 32 values.
    IQ4_XS 23 256 136,
    /// Signed integers of 8 bits.
    I8 24 1 1,
    /// Signed integers of 16 bits.
    I16 25 1 2,
    /// Signed integers of 32 bits.
    I32 26 1 4,
    /// Signed integers of 64 bits.
    I64 27 1 8,
    /// Double precision.
    F64 28 1 8,
    /// `IQ1_S`'s codebook, 3-bit scales for 16 values, a shift for 8.
    IQ1_M 29 256 56,
    /// bfloat16.
    BF16 30 1 2,
    /// -1, 0 or 1, five values a byte, an f16 scale for 256 values.
    TQ1_0 34 256 54,
    /// -1, 0 or 1 in 2 bits, an f16 scale for 256 values.
    TQ2_0 35 256 66,
    /// 4-bit floats (E2M1), a power of two for 32 values.
    MXFP4 39 32 17,
}

/// Bytes and values of a tensor that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{have_bytes} bytes of {name} for {values} values, which take whole blocks of {block_bytes} \
     bytes for {block_values} values; compare the tensor's shape with its length in the file",
    name = kind.name(), block_bytes = kind.bytes(), block_values = kind.elements()
)]
pub struct DequantizeError {
    /// The format.
    pub kind: BlockKind,
    /// Bytes given.
    pub have_bytes: usize,
    /// Values asked for.
    pub values: usize,
}

/// Dequantizes `bytes`, whole blocks of `kind`, into `out`.
///
/// Any bytes are accepted: scales that are not finite give values that are not. Integers and
/// doubles are rounded to the nearest f32.
///
/// # Errors
/// When `bytes` is not exactly the blocks of `out.len()` values.
pub fn dequantize(kind: BlockKind, bytes: &[u8], out: &mut [f32]) -> Result<(), DequantizeError> {
    let blocks = out.len() / kind.elements();
    if !out.len().is_multiple_of(kind.elements())
        || blocks.checked_mul(kind.bytes()) != Some(bytes.len())
    {
        return Err(DequantizeError { kind, have_bytes: bytes.len(), values: out.len() });
    }
    match kind {
        BlockKind::F32 => each(bytes, out, plain::f32),
        BlockKind::F16 => each(bytes, out, plain::f16),
        BlockKind::BF16 => each(bytes, out, plain::bf16),
        BlockKind::F64 => each(bytes, out, plain::f64),
        BlockKind::I8 => each(bytes, out, plain::i8),
        BlockKind::I16 => each(bytes, out, plain::i16),
        BlockKind::I32 => each(bytes, out, plain::i32),
        BlockKind::I64 => each(bytes, out, plain::i64),
        BlockKind::Q4_0 => each(bytes, out, legacy::q4_0),
        BlockKind::Q4_1 => each(bytes, out, legacy::q4_1),
        BlockKind::Q5_0 => each(bytes, out, legacy::q5_0),
        BlockKind::Q5_1 => each(bytes, out, legacy::q5_1),
        BlockKind::Q8_0 => each(bytes, out, legacy::q8_0),
        BlockKind::Q8_1 => each(bytes, out, legacy::q8_1),
        BlockKind::MXFP4 => each(bytes, out, legacy::mxfp4),
        BlockKind::Q2_K => each(bytes, out, k_quants::q2_k),
        BlockKind::Q3_K => each(bytes, out, k_quants::q3_k),
        BlockKind::Q4_K => each(bytes, out, k_quants::q4_k),
        BlockKind::Q5_K => each(bytes, out, k_quants::q5_k),
        BlockKind::Q6_K => each(bytes, out, k_quants::q6_k),
        BlockKind::Q8_K => each(bytes, out, k_quants::q8_k),
        BlockKind::IQ4_NL => each(bytes, out, i_quants::iq4_nl),
        BlockKind::IQ4_XS => each(bytes, out, i_quants::iq4_xs),
        BlockKind::IQ1_S => each(bytes, out, vector::iq1_s),
        BlockKind::IQ1_M => each(bytes, out, vector::iq1_m),
        BlockKind::IQ2_XXS => each(bytes, out, vector::iq2_xxs),
        BlockKind::IQ2_XS => each(bytes, out, vector::iq2_xs),
        BlockKind::IQ2_S => each(bytes, out, vector::iq2_s),
        BlockKind::IQ3_XXS => each(bytes, out, vector::iq3_xxs),
        BlockKind::IQ3_S => each(bytes, out, vector::iq3_s),
        BlockKind::TQ1_0 => each(bytes, out, ternary::tq1_0),
        BlockKind::TQ2_0 => each(bytes, out, ternary::tq2_0),
    }
    Ok(())
}

/// Applies the function of one block to all.
#[inline(always)]
fn each<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (blocks, _) = bytes.as_chunks();
    let (outs, _) = out.as_chunks_mut();
    for (bytes, out) in blocks.iter().zip(outs) {
        block(bytes, out);
    }
}

/// The bytes `[at, at + N)` of a block; `at` is a constant of its layout.
#[inline(always)]
fn field<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    &block[at..].as_chunks().0[0]
}

/// The f16 at byte `at` of a block, as f32.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes(*field(block, at)))
}

/// The value of the f16 with these bits. Exact, and free of branches, so loops over it vectorise;
/// free of denormal f32, too, which the processor handles a hundred times slower.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    /// What the exponent's bias grows by, 127 - 15, in place.
    const REBIAS: u32 = 112 << 23;
    /// 2^-14, whose significand has the place values of denormal f16.
    const SMALLEST_NORMAL: u32 = 113 << 23;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let normal = magnitude + REBIAS;
    let special = normal + REBIAS;
    let denormal = f32::from_bits(magnitude | SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL);
    let widened = match magnitude >> 23 {
        0 => denormal.to_bits(),
        31 => special,
        _ => normal,
    };
    f32::from_bits(widened | u32::from(bits & 0x8000) << 16)
}
