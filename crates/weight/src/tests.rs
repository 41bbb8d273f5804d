//! Each term against its formula element by element, parts round trips, sizes, hostile parts.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::num::NonZeroUsize;

const FLOATS: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

fn grouping() -> impl Strategy<Value = Grouping> {
    prop_oneof![
        Just(Grouping::Tensor),
        Just(Grouping::Row),
        (1_usize..20)
            .prop_map(|width| Grouping::Columns(NonZeroUsize::new(width).expect("positive"))),
    ]
}

/// Deterministic values in [-1, 1], rounded to the storage type.
fn values(count: usize, seed: u64, dtype: FloatType) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| dtype.round(next())).collect()
}

fn codes(count: usize, seed: u64, bits: u8) -> Vec<u8> {
    let scaled = |v: f32| ((v + 1.0) / 2.0 * f32::from(1_u16 << bits)) as u16;
    values(count, seed, FloatType::F32)
        .into_iter()
        .map(|v| scaled(v).min((1_u16 << bits) - 1) as u8)
        .collect()
}

fn round_trip(weight: &Weight) -> Result<Weight, WeightError> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let rebuild = |term: &Term| {
        let parts: HashMap<&str, Vec<u8>> =
            term.parts(rows, cols).into_iter().map(|p| (p.name, p.bytes)).collect();
        Term::from_parts(&term.outline(), rows, cols, &|name| parts.get(name).cloned())
    };
    Weight::new(rows, cols, weight.terms().iter().map(rebuild).collect::<Result<_, _>>()?)
}

/// Scale index by the definition of each grouping, one element at a time.
fn group_of(grouping: Grouping, row: usize, col: usize, cols: usize) -> usize {
    match grouping {
        Grouping::Tensor => 0,
        Grouping::Row => row,
        Grouping::Columns(width) => row * cols.div_ceil(width.get()) + col / width.get(),
    }
}

proptest! {
    #[test]
    fn affine_is_its_formula(
        rows in 1_usize..6, cols in 1_usize..40, bits in 1_u8..=8, grouping in grouping(),
        symmetric: bool, seed: u64, dtype in 0_usize..3,
    ) {
        let scale_type = FLOATS[dtype];
        let groups = grouping.count(rows, cols);
        let affine = Affine {
            bits, grouping, codes: codes(rows * cols, seed, bits),
            scales: values(groups, seed ^ 1, scale_type), scale_type,
            zeros: (!symmetric).then(|| codes(groups, seed ^ 2, bits)),
        };
        let weight = Weight::new(rows, cols, vec![Term::Affine(affine.clone())]).unwrap();
        for (index, value) in weight.decode().into_iter().enumerate() {
            let group = group_of(grouping, index / cols, index % cols, cols);
            let zero = affine.zeros.as_ref().map_or(1_i32 << (bits - 1), |z| i32::from(z[group]));
            let expected = affine.scales[group] * (i32::from(affine.codes[index]) - zero) as f32;
            prop_assert_eq!(value, expected);
        }
        let zero_bits = if symmetric { 0 } else { u64::from(bits) };
        let expected = (rows * cols) as u64 * u64::from(bits)
            + groups as u64 * (scale_type.bits() + zero_bits);
        prop_assert_eq!(weight.bits(), expected);
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
    }

    #[test]
    fn lookup_is_its_formula(
        rows in 1_usize..5, cols in 1_usize..30, bits in 1_u8..=8, grouping in grouping(),
        scaled: bool, book_per_row: bool, seed: u64,
    ) {
        let dtype = FloatType::F16;
        let groups = grouping.count(rows, cols);
        let books = if book_per_row { rows } else { 1 };
        let lookup = Lookup {
            bits, codes: codes(rows * cols, seed, bits), book_per_row,
            books: values(books << bits, seed ^ 3, dtype), scale_type: dtype,
            scales: scaled.then(|| (grouping, values(groups, seed ^ 4, dtype))),
        };
        let weight = Weight::new(rows, cols, vec![Term::Lookup(lookup.clone())]).unwrap();
        for (index, value) in weight.decode().into_iter().enumerate() {
            let (row, col) = (index / cols, index % cols);
            let scale = lookup.scales.as_ref()
                .map_or(1.0, |(g, scales)| scales[group_of(*g, row, col, cols)]);
            let book = if book_per_row { row << bits } else { 0 };
            prop_assert_eq!(value, scale * lookup.books[book + usize::from(lookup.codes[index])]);
        }
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
    }

    #[test]
    fn a_sum_decodes_to_the_sum_of_its_terms(
        rows in 1_usize..5, cols in 1_usize..12, rank in 0_usize..4, seed: u64,
    ) {
        let dtype = FloatType::Bf16;
        let dense = Dense { values: values(rows * cols, seed, dtype), dtype };
        let low_rank = LowRank {
            rank, dtype,
            left: values(rows * rank, seed ^ 5, dtype),
            right: values(rank * cols, seed ^ 6, dtype),
        };
        let columns: Vec<u32> = (0..rows).map(|r| ((seed as usize % cols + r) % cols) as u32).collect();
        let sparse = Sparse {
            row_starts: (0..=rows as u32).collect(), columns,
            values: values(rows, seed ^ 7, dtype), dtype,
        };
        let mut expected: Vec<f64> = dense.values.iter().map(|v| f64::from(*v)).collect();
        for row in 0..rows {
            for col in 0..cols {
                for k in 0..rank {
                    expected[row * cols + col] +=
                        f64::from(low_rank.left[row * rank + k]) * f64::from(low_rank.right[k * cols + col]);
                }
            }
            expected[row * cols + sparse.columns[row] as usize] += f64::from(sparse.values[row]);
        }
        let terms = vec![Term::Dense(dense), Term::LowRank(low_rank), Term::Sparse(sparse)];
        let weight = Weight::new(rows, cols, terms).unwrap();
        for (value, expected) in weight.decode().into_iter().zip(expected) {
            prop_assert!((f64::from(value) - expected).abs() < 1e-5);
        }
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
    }

    #[test]
    fn parts_of_any_length_are_an_error_and_never_a_panic(
        rows in 0_usize..5, cols in 0_usize..9, bits in 0_u8..12, lengths in prop::array::uniform4(0_usize..90),
        kind in 0_usize..5,
    ) {
        let width = NonZeroUsize::new(3).unwrap();
        let (values, scales) = (FloatType::F16, FloatType::F32);
        let grouping = Grouping::Columns(width);
        let outline = [
            TermOutline::Dense { values },
            TermOutline::Affine { bits, grouping, symmetric: false, scales },
            TermOutline::Lookup { bits, grouping: Some(grouping), book_per_row: true, scales },
            TermOutline::Sparse { nonzeros: 3, values },
            TermOutline::LowRank { rank: 2, values },
        ][kind].clone();
        let bytes = |name: &str| {
            let length = lengths[name.len() % 4];
            (length % 7 != 0).then(|| (0..length).map(|i| (i * 37) as u8).collect::<Vec<u8>>())
        };
        if let Ok(term) = Term::from_parts(&outline, rows, cols, &bytes) {
            Weight::new(rows, cols, vec![term]).unwrap().decode();
        }
    }
}

#[test]
fn a_code_above_its_width_is_named() {
    let affine = Affine {
        bits: 2,
        grouping: Grouping::Row,
        codes: vec![0, 3, 4],
        scales: vec![1.0],
        scale_type: FloatType::F32,
        zeros: None,
    };
    let error = Weight::new(1, 3, vec![Term::Affine(affine)]).unwrap_err();
    assert_eq!(error.to_string(), "affine term: codes holds 4, which is not below 4");
}

#[test]
fn a_scale_survives_its_storage_type() {
    assert_eq!(FloatType::F16.round(1e-12), 0.0);
    assert!(FloatType::F16.round_scale(1e-12) > 0.0);
    assert_eq!(FloatType::F16.round_scale(1e9), 65504.0);
    assert_eq!(FloatType::Bf16.round(1.0 + 1.0 / 256.0), 1.0, "ties go to even");
}
