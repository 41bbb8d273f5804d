//! The linear product against a sum in f64, at every level of instructions.

mod common;

use common::{bits, factor, near, numbers, on_threads};
use lapidary_kernels::isa::Isa;
use lapidary_kernels::matrix::{PackedMatrix, Precision};
use proptest::prelude::*;

/// Compares some elements of y = x Wᵀ + b with the definition.
fn check(isa: Isa, precision: Precision, rows: usize, out: usize, inner: usize, biased: bool) {
    let weight = numbers(out * inner, 1);
    let x = numbers(rows * inner, 2);
    let bias = biased.then(|| numbers(out, 3));
    let mut y = vec![f32::NAN; rows * out];
    PackedMatrix::new_with(isa, &weight, out, inner, precision).multiply(
        &x,
        rows,
        bias.as_deref(),
        &mut y,
    );
    let bf16 = precision == Precision::Bf16;
    let step = (y.len() / 5000).max(1);
    for (index, got) in y.iter().enumerate().step_by(step) {
        let (row, column) = (index / out, index % out);
        let (mut sum, mut size) = (0.0, 0.0);
        for i in 0..inner {
            let product =
                factor(x[row * inner + i], bf16) * factor(weight[column * inner + i], bf16);
            sum += product;
            size += product.abs();
        }
        let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
        // The bound of any order of summation, plus the rounding of the bias.
        let tolerance = (inner + 2) as f64 * 6e-8 * (size + bias.abs());
        near(*got, sum + bias, tolerance);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn equals_the_definition(
        rows in 0_usize..90,
        out in 0_usize..90,
        inner in 0_usize..150,
        biased: bool,
    ) {
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16] {
                check(isa, precision, rows, out, inner, biased);
            }
        }
    }
}

#[test]
fn equals_the_definition_on_the_shapes_of_models() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            check(isa, precision, 300, 576, 576, false);
            check(isa, precision, 70, 1536, 576, true);
            check(isa, precision, 70, 576, 1536, false);
            check(isa, precision, 1, 3000, 576, false);
        }
    }
}

#[test]
fn gives_the_same_bits_on_any_number_of_threads_and_for_any_other_rows() {
    let (rows, out, inner) = (530, 200, 700);
    let weight = numbers(out * inner, 4);
    let x = numbers(rows * inner, 5);
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let matrix = PackedMatrix::new_with(isa, &weight, out, inner, precision);
            let multiply = |threads: usize| {
                on_threads(threads, || {
                    let mut y = vec![0.0; rows * out];
                    matrix.multiply(&x, rows, None, &mut y);
                    bits(&y)
                })
            };
            let one = multiply(1);
            assert_eq!(one, multiply(2));
            assert_eq!(one, multiply(3));
            let mut row = vec![0.0; out];
            matrix.multiply(&x[77 * inner..][..inner], 1, None, &mut row);
            assert_eq!(one[77 * out..][..out], bits(&row));
        }
    }
}

#[test]
fn infinities_and_nan_stay_in_their_row() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let weight = vec![1.0; 20 * 40];
            let mut x = vec![1.0; 3 * 40];
            x[7] = f32::INFINITY;
            x[40 + 7] = f32::NAN;
            let mut y = vec![0.0; 3 * 20];
            PackedMatrix::new_with(isa, &weight, 20, 40, precision).multiply(&x, 3, None, &mut y);
            assert!(y[..20].iter().all(|y| *y == f32::INFINITY));
            assert!(y[20..40].iter().all(|y| y.is_nan()));
            assert!(y[40..].iter().all(|y| *y == 40.0));
        }
    }
}

#[test]
fn says_how_much_memory_it_holds() {
    let matrix = PackedMatrix::new_with(Isa::Portable, &[1.0; 33 * 20], 33, 20, Precision::F32);
    assert_eq!(matrix.bytes(), 64 * 32 * 4);
    assert_eq!((matrix.out_features(), matrix.in_features()), (33, 20));
}
