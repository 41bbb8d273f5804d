//! Bit packing against a bit-by-bit oracle, and against words made by compressed-tensors.

use lapidary_kernels::pack::{
    Layout, PackError, pack_columns, pack_rows, unpack_columns, unpack_rows,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// The stream of one row, one bit at a time.
fn naive_dense(codes: &[u8], bits: usize) -> Vec<u32> {
    let mut words = vec![0; (codes.len() * bits).div_ceil(32)];
    for (i, code) in codes.iter().enumerate() {
        for k in 0..bits {
            let bit = i * bits + k;
            words[bit / 32] |= u32::from(code >> k & 1) << (bit % 32);
        }
    }
    words
}

/// The older layout of one row.
fn naive_whole_codes(codes: &[u8], bits: usize) -> Vec<u32> {
    let each = 32 / bits;
    let mut words = vec![0; codes.len().div_ceil(each)];
    for (i, &code) in codes.iter().enumerate() {
        words[i / each] |= u32::from(code) << (i % each * bits);
    }
    words
}

fn naive(layout: Layout) -> fn(&[u8], usize) -> Vec<u32> {
    match layout {
        Layout::Dense => naive_dense,
        Layout::WholeCodes => naive_whole_codes,
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose<T: Copy>(matrix: &[T], columns: usize) -> Vec<T> {
    let rows = matrix.len() / columns;
    (0..matrix.len())
        .map(|i| matrix[i % rows * columns + i / rows])
        .collect()
}

/// Width, columns, and codes that fit.
fn matrices() -> impl Strategy<Value = (u32, usize, Vec<u8>)> {
    (1..=8u32, 1..9usize, 1..150usize, any::<bool>()).prop_flat_map(|(bits, few, many, wide)| {
        let (rows, columns) = if wide { (few, many) } else { (many, few) };
        let codes = vec(0..=u8::MAX >> (8 - bits), rows * columns);
        (Just(bits), Just(columns), codes)
    })
}

proptest! {
    #[test]
    fn rows_are_the_naive_streams((bits, columns, codes) in matrices()) {
        let streams = |naive: fn(&[u8], usize) -> Vec<u32>| {
            codes.chunks(columns).flat_map(|row| naive(row, bits as usize)).collect::<Vec<_>>()
        };
        let expected = streams(naive_dense);
        let mut words = vec![u32::MAX; expected.len()];
        pack_rows(&codes, columns, bits, &mut words).unwrap();
        prop_assert_eq!(&words, &expected);
        for layout in [Layout::Dense, Layout::WholeCodes] {
            let mut back = vec![u8::MAX; codes.len()];
            unpack_rows(&streams(naive(layout)), layout, columns, bits, &mut back).unwrap();
            prop_assert_eq!(&back, &codes);
        }
    }

    #[test]
    fn columns_are_the_naive_streams((bits, columns, codes) in matrices()) {
        let streams = |naive: fn(&[u8], usize) -> Vec<u32>| {
            let turned = transpose(&codes, columns);
            let rows = codes.len() / columns;
            let streams: Vec<_> =
                turned.chunks(rows).flat_map(|column| naive(column, bits as usize)).collect();
            let words = streams.len() / columns;
            transpose(&streams, words)
        };
        let expected = streams(naive_dense);
        let mut words = vec![u32::MAX; expected.len()];
        pack_columns(&codes, columns, bits, &mut words).unwrap();
        prop_assert_eq!(&words, &expected);
        for layout in [Layout::Dense, Layout::WholeCodes] {
            let mut back = vec![u8::MAX; codes.len()];
            unpack_columns(&streams(naive(layout)), layout, columns, bits, &mut back).unwrap();
            prop_assert_eq!(&back, &codes);
        }
    }

    #[test]
    fn any_words_unpack_to_codes_of_the_width(
        (bits, columns, codes) in matrices(),
        noise in any::<u32>(),
    ) {
        let mut out = codes.clone();
        let rows = codes.len() / columns;
        for layout in [Layout::Dense, Layout::WholeCodes] {
            let words = vec![noise; rows * layout.words(columns, bits)];
            unpack_rows(&words, layout, columns, bits, &mut out).unwrap();
            prop_assert!(out.iter().all(|&code| u32::from(code) < 1 << bits));
            let words = vec![noise; layout.words(rows, bits) * columns];
            unpack_columns(&words, layout, columns, bits, &mut out).unwrap();
            prop_assert!(out.iter().all(|&code| u32::from(code) < 1 << bits));
        }
    }

    #[test]
    fn wrong_lengths_and_widths_are_errors(
        codes in vec(any::<u8>(), 0..70),
        words in 0..70usize,
        columns in 0..70usize,
        bits in prop_oneof![0..10u32, Just(32), Just(u32::MAX)],
    ) {
        // Nothing here may panic; what succeeds is covered above.
        let mut words = vec![0; words];
        let mut out = codes.clone();
        let _ = pack_rows(&codes, columns, bits, &mut words);
        let _ = pack_columns(&codes, columns, bits, &mut words);
        for layout in [Layout::Dense, Layout::WholeCodes] {
            let _ = unpack_rows(&words, layout, columns, bits, &mut out);
            let _ = unpack_columns(&words, layout, columns, bits, &mut out);
            let _ = layout.words(usize::MAX, bits);
        }
    }
}

#[test]
fn the_words_are_those_of_compressed_tensors() {
    let mut bytes = &include_bytes!("../../../testdata/golden/pack/pack.bin")[..];
    let mut records = 0;
    while !bytes.is_empty() {
        let [bits, rows, columns, dimension] = take_words(&mut bytes, 4)[..] else {
            unreachable!("four words were taken")
        };
        let (rows, columns) = (rows as usize, columns as usize);
        let codes = bytes[..rows * columns].to_vec();
        bytes = &bytes[codes.len().next_multiple_of(4)..];
        let (length, pack, unpack): (_, Pack, Unpack) = if dimension == 1 {
            (
                rows * Layout::Dense.words(columns, bits),
                pack_rows,
                unpack_rows,
            )
        } else {
            (
                Layout::Dense.words(rows, bits) * columns,
                pack_columns,
                unpack_columns,
            )
        };
        let golden = take_words(&mut bytes, length);
        let mut words = vec![0; length];
        pack(&codes, columns, bits, &mut words).unwrap();
        assert_eq!(
            words, golden,
            "{bits} bits, {rows} x {columns}, dimension {dimension}"
        );
        let mut back = vec![0; codes.len()];
        unpack(&golden, Layout::Dense, columns, bits, &mut back).unwrap();
        assert_eq!(
            back, codes,
            "{bits} bits, {rows} x {columns}, dimension {dimension}"
        );
        records += 1;
    }
    assert_eq!(records, 8 * 9 * 2);
}

type Pack = fn(&[u8], usize, u32, &mut [u32]) -> Result<(), PackError>;
type Unpack = fn(&[u32], Layout, usize, u32, &mut [u8]) -> Result<(), PackError>;

fn take_words(bytes: &mut &[u8], count: usize) -> Vec<u32> {
    let (words, rest) = bytes.split_at(4 * count);
    *bytes = rest;
    words
        .as_chunks()
        .0
        .iter()
        .map(|&word| u32::from_le_bytes(word))
        .collect()
}

#[test]
fn the_layouts_are_told_apart_by_the_words() {
    for bits in 1..=8 {
        for codes in [1, 31, 32, 33, 576, 4096] {
            let (dense, whole) = (
                Layout::Dense.words(codes, bits),
                Layout::WholeCodes.words(codes, bits),
            );
            assert_eq!(Layout::of(codes, bits, dense), Some(Layout::Dense));
            if whole != dense {
                assert_eq!(Layout::of(codes, bits, whole), Some(Layout::WholeCodes));
            }
            assert_eq!(Layout::of(codes, bits, whole + 1), None);
        }
    }
    assert_eq!(Layout::Dense.words(576, 3), 54);
    assert_eq!(Layout::WholeCodes.words(576, 3), 58);
}

#[test]
fn errors_say_what_is_wrong() {
    let mut words = [0; 4];
    let error = |result: Result<(), PackError>| result.unwrap_err().to_string();
    assert_eq!(
        error(pack_rows(&[0; 6], 3, 9, &mut words)),
        "codes of 9 bits cannot be packed; use 1 to 8 bits"
    );
    assert_eq!(
        error(pack_rows(&[0; 7], 3, 4, &mut words)),
        "7 codes are not a whole number of rows of 3; pass complete rows"
    );
    assert_eq!(
        error(pack_rows(&[0; 6], 3, 4, &mut words)),
        "4 words for codes that take 2; compare the packed tensor's shape"
    );
    assert_eq!(
        error(pack_columns(&[3, 8, 1, 0], 4, 3, &mut words)),
        "a code does not fit into 3 bits; clamp the codes before packing"
    );
    assert_eq!(
        error(pack_rows(&[16, 0, 0, 0], 1, 4, &mut words)),
        "a code does not fit into 4 bits; clamp the codes before packing"
    );
}
