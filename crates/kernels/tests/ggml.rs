//! ggml's formats against values made by the `gguf` package, and against a second, value-by-value
//! reading of the layouts.

use half::f16;
use lapidary_kernels::ggml::{BlockKind, dequantize};
use proptest::collection::vec;
use proptest::prelude::*;

/// Value `i` of a block, with the arithmetic of the reference in the same order.
fn naive(kind: BlockKind, block: &[u8], i: usize) -> f32 {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let bit = |at: usize, n: usize| block[at + n / 8] >> (n % 8) & 1;
    // Value `i` among nibbles that start at a byte and lie low first in runs of `run` bytes.
    let nibble = |at: usize, run: usize, i: usize| {
        block[at + i / (2 * run) * run + i % run] >> (i / run % 2 * 4) & 15
    };
    let pair = |at: usize, i: usize| block[at + i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
    let number = |at: usize, width: usize| {
        (0..width).fold(0u64, |all, k| all | u64::from(block[at + k]) << (8 * k))
    };
    let (d, m) = match kind {
        BlockKind::Q2_K => (half(80), half(82)),
        BlockKind::Q3_K => (half(108), 0.0),
        BlockKind::Q6_K => (half(208), 0.0),
        BlockKind::TQ1_0 => (half(52), 0.0),
        BlockKind::TQ2_0 => (half(64), 0.0),
        _ if kind.elements() > 1 && kind.bytes() > 17 => (half(0), half(2)),
        _ => (0.0, 0.0),
    };
    match kind {
        BlockKind::F32 => f32::from_bits(number(0, 4) as u32),
        BlockKind::F16 => half(0),
        BlockKind::BF16 => f32::from_bits((number(0, 2) as u32) << 16),
        BlockKind::F64 => f64::from_bits(number(0, 8)) as f32,
        BlockKind::I8 => f32::from(block[0] as i8),
        BlockKind::I16 => f32::from(number(0, 2) as i16),
        BlockKind::I32 => number(0, 4) as i32 as f32,
        BlockKind::I64 => number(0, 8) as i64 as f32,
        BlockKind::Q4_0 => d * (f32::from(nibble(2, 16, i)) - 8.0),
        BlockKind::Q4_1 => d * f32::from(nibble(4, 16, i)) + m,
        BlockKind::Q5_0 => d * (f32::from(nibble(6, 16, i) + 16 * bit(2, i)) - 16.0),
        BlockKind::Q5_1 => d * f32::from(nibble(8, 16, i) + 16 * bit(4, i)) + m,
        BlockKind::Q8_0 => d * f32::from(block[2 + i] as i8),
        BlockKind::Q8_1 => d * f32::from(block[4 + i] as i8),
        BlockKind::Q8_K => f32::from_bits(number(0, 4) as u32) * f32::from(block[4 + i] as i8),
        BlockKind::MXFP4 => {
            let q = nibble(1, 16, i);
            let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(q & 7)];
            // As ggml, whose table has no -0.
            let signed = if q > 8 { -e2m1 } else { e2m1 };
            (2f64.powi(i32::from(block[0]) - 127) * signed) as f32
        }
        BlockKind::Q2_K => {
            let scale = block[i / 16];
            d * f32::from(scale & 15) * f32::from(pair(16, i)) - m * f32::from(scale >> 4)
        }
        BlockKind::Q3_K => {
            let j = i / 16;
            let low = block[96 + j % 8] >> (j / 8 * 4) & 15;
            let high = block[104 + j % 4] >> (j / 4 * 2) & 3;
            let third = block[i % 32] >> (i / 32) & 1;
            let q = f32::from(pair(32, i)) - if third == 1 { 0.0 } else { 4.0 };
            d * (f32::from(low + 16 * high) - 32.0) * q
        }
        BlockKind::Q4_K | BlockKind::Q5_K => {
            let s = &block[4..16];
            let j = i / 32;
            let (scale, minimum) = if j < 4 {
                (s[j] & 63, s[j + 4] & 63)
            } else {
                (s[j + 4] % 16 + (s[j - 4] / 64) * 16, s[j + 4] / 16 + (s[j] / 64) * 16)
            };
            let q = if kind == BlockKind::Q4_K {
                nibble(16, 32, i)
            } else {
                nibble(48, 32, i) + 16 * (block[16 + i % 32] >> (i / 32) & 1)
            };
            d * f32::from(scale) * f32::from(q) - m * f32::from(minimum)
        }
        BlockKind::Q6_K => {
            let q = f32::from(nibble(0, 64, i) + 16 * pair(128, i)) - 32.0;
            d * f32::from(block[192 + i / 16] as i8) * q
        }
        BlockKind::IQ4_NL => d * f32::from(LEVELS[usize::from(nibble(2, 16, i))]),
        BlockKind::IQ4_XS => {
            let j = i / 32;
            let high = number(2, 2) >> (2 * j) & 3;
            let scale = (nibble_of_byte(block[4 + j / 2], j % 2) + 16 * high as u8) as i8 - 32;
            d * f32::from(scale) * f32::from(LEVELS[usize::from(nibble(8, 16, i))])
        }
        BlockKind::TQ1_0 => d * trit(block, i),
        BlockKind::TQ2_0 => d * (f32::from(pair(0, i)) - 1.0),
        other => panic!("{other:?} has a codebook"),
    }
}

/// Value `i` of a block of TQ1_0 before its scale: five digits of base 3 to a byte.
fn trit(block: &[u8], i: usize) -> f32 {
    let (byte, digit) = match i {
        0..160 => (i % 32, i / 32),
        160..240 => (32 + i % 16, (i - 160) / 16),
        _ => (48 + i % 4, (i - 240) / 4),
    };
    let fraction = u64::from(block[byte]) * 3u64.pow(digit as u32) % 256;
    (fraction * 3 / 256) as f32 - 1.0
}

/// Kinds whose values are points of codebooks: the files of golden values go through all of these.
const WITH_CODEBOOKS: [BlockKind; 7] = [
    BlockKind::IQ1_S,
    BlockKind::IQ1_M,
    BlockKind::IQ2_XXS,
    BlockKind::IQ2_XS,
    BlockKind::IQ2_S,
    BlockKind::IQ3_XXS,
    BlockKind::IQ3_S,
];

const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn nibble_of_byte(byte: u8, high: usize) -> u8 {
    byte >> (4 * high) & 15
}

/// Equal as bits, any two NaN being equal.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

proptest! {
    #[test]
    fn any_bytes_agree_with_the_naive_reading(
        kind in prop::sample::select(BlockKind::ALL),
        noise in vec(any::<u8>(), 3 * 292),
    ) {
        let blocks = 3;
        let bytes = &noise[..blocks * kind.bytes()];
        let mut out = vec![0.0; blocks * kind.elements()];
        dequantize(kind, bytes, &mut out).unwrap();
        for (block, out) in bytes.chunks(kind.bytes()).zip(out.chunks(kind.elements())) {
            if WITH_CODEBOOKS.contains(&kind) {
                continue;
            }
            for (i, &value) in out.iter().enumerate() {
                let expected = naive(kind, block, i);
                prop_assert!(same(value, expected), "{kind:?} value {i}: {value} {expected}");
            }
        }
    }

    #[test]
    fn any_lengths_are_accepted_or_refused(
        kind in prop::sample::select(BlockKind::ALL),
        bytes in 0..700usize,
        values in 0..700usize,
    ) {
        let fits = values % kind.elements() == 0
            && bytes == values / kind.elements() * kind.bytes();
        let result = dequantize(kind, &vec![0; bytes], &mut vec![0.0; values]);
        prop_assert_eq!(result.is_ok(), fits);
    }
}

#[test]
fn every_half_widens_exactly() {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    let mut out = vec![0.0; halves.len()];
    dequantize(BlockKind::F16, &bytes, &mut out).unwrap();
    for (half, value) in halves.into_iter().zip(out) {
        assert!(same(value, f16::from_bits(half).to_f32()), "{half:#06x}");
    }
}

/// Compares with a file of `testdata/golden/ggml`.
macro_rules! golden {
    ($($kind:ident $file:literal,)*) => {
        #[test]
        fn the_values_are_those_of_the_gguf_package() {
            $(check_golden(
                BlockKind::$kind,
                include_bytes!(concat!("../../../testdata/golden/ggml/", $file, ".bin")),
            );)*
        }
    };
}

golden! {
    F32 "f32", F16 "f16", BF16 "bf16", Q4_0 "q4_0", Q4_1 "q4_1", Q5_0 "q5_0", Q5_1 "q5_1",
    Q8_0 "q8_0", Q8_1 "q8_1", Q2_K "q2_k", Q3_K "q3_k", Q4_K "q4_k", Q5_K "q5_k", Q6_K "q6_k",
    Q8_K "q8_k", IQ1_S "iq1_s", IQ1_M "iq1_m", IQ2_XXS "iq2_xxs", IQ2_XS "iq2_xs", IQ2_S "iq2_s",
    IQ3_XXS "iq3_xxs", IQ3_S "iq3_s", IQ4_NL "iq4_nl", IQ4_XS "iq4_xs", TQ1_0 "tq1_0", TQ2_0 "tq2_0", MXFP4 "mxfp4",
}

fn check_golden(kind: BlockKind, file: &[u8]) {
    let blocks = file.len() / (kind.bytes() + 4 * kind.elements());
    assert!(blocks >= 10, "{kind:?}");
    let (bytes, golden) = file.split_at(blocks * kind.bytes());
    let mut out = vec![0.0; blocks * kind.elements()];
    assert_eq!(dequantize(kind, bytes, &mut out), Ok(()));
    for (i, (value, golden)) in out.iter().zip(golden.as_chunks().0).enumerate() {
        let golden = f32::from_le_bytes(*golden);
        assert_eq!(value.to_bits(), golden.to_bits(), "{kind:?} value {i}: {value} {golden}");
    }
}

#[test]
fn the_numbers_and_sizes_are_ggmls() {
    let mut ids: Vec<u32> = BlockKind::ALL.iter().map(|kind| kind.id()).collect();
    assert!(ids.is_sorted());
    ids.dedup();
    assert_eq!(ids.len(), BlockKind::ALL.len());
    for &kind in BlockKind::ALL {
        assert_eq!(BlockKind::from_id(kind.id()), Some(kind));
    }
    assert_eq!(BlockKind::from_id(4), None);
    assert_eq!(BlockKind::from_id(u32::MAX), None);
    assert_eq!(BlockKind::from_id(12).map(BlockKind::name), Some("Q4_K"));
}

#[test]
fn a_wrong_length_is_explained() {
    let error = dequantize(BlockKind::Q4_K, &[0; 143], &mut [0.0; 256]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "143 bytes of Q4_K for 256 values, which take whole blocks of 144 bytes for 256 values; \
         compare the tensor's shape with its length in the file"
    );
}
