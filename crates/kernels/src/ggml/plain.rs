//! One number a block.

/// Declares the widening of a little-endian number.
macro_rules! plain {
    ($($name:ident $bytes:literal: $convert:expr;)*) => {$(
        #[inline(always)]
        pub(super) fn $name(bytes: &[u8; $bytes], out: &mut [f32; 1]) {
            out[0] = $convert(*bytes);
        }
    )*};
}

plain! {
    f32 4: f32::from_le_bytes;
    f64 8: |bytes| f64::from_le_bytes(bytes) as f32;
    f16 2: |bytes| super::f16_to_f32(u16::from_le_bytes(bytes));
    bf16 2: |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
    i8 1: |bytes| f32::from(i8::from_le_bytes(bytes));
    i16 2: |bytes| f32::from(i16::from_le_bytes(bytes));
    i32 4: |bytes| i32::from_le_bytes(bytes) as f32;
    i64 8: |bytes| i64::from_le_bytes(bytes) as f32;
}
