//! The Gram matrix against a sum in f64, at every level of instructions.

mod common;

use common::{bits, factor, near, numbers, on_threads};
use lapidary_kernels::gram::Gram;
use lapidary_kernels::isa::Isa;
use lapidary_kernels::matrix::Precision;
use proptest::prelude::*;

fn check(isa: Isa, precision: Precision, calls: &[usize], n: usize) {
    let mut gram = Gram::new_with(isa, n, precision);
    let total: usize = calls.iter().sum();
    let x = numbers(total * n, 6);
    let mut first = 0;
    for rows in calls {
        gram.accumulate(&x[first * n..][..rows * n], *rows);
        first += rows;
    }
    assert_eq!(gram.rows(), total);
    let h = gram.finish();
    assert_eq!(h.len(), n * n);
    let bf16 = precision == Precision::Bf16;
    let step = (n * n / 3000).max(1);
    for index in (0..n * n).step_by(step) {
        let (i, j) = (index / n, index % n);
        let (mut sum, mut size) = (0.0, 0.0);
        for row in x.chunks_exact(n) {
            let product = factor(row[i], bf16) * factor(row[j], bf16);
            sum += product;
            size += product.abs();
        }
        near(h[index], sum, (total + 2) as f64 * 6e-8 * size);
        assert_eq!(h[i * n + j].to_bits(), h[j * n + i].to_bits(), "not symmetric");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn equals_the_definition(
        calls in prop::collection::vec(0_usize..120, 0..4),
        n in 0_usize..100,
    ) {
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16] {
                check(isa, precision, &calls, n);
            }
        }
    }
}

#[test]
fn equals_the_definition_over_several_rounds() {
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            check(isa, precision, &[2100, 700], 130);
            check(isa, precision, &[64], 576);
        }
    }
}

#[test]
fn gives_the_same_bits_on_any_number_of_threads() {
    let (rows, n) = (900, 450);
    let x = numbers(rows * n, 7);
    for isa in Isa::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let sum = |threads: usize| {
                on_threads(threads, || {
                    let mut gram = Gram::new_with(isa, n, precision);
                    gram.accumulate(&x, rows);
                    bits(&gram.finish())
                })
            };
            let one = sum(1);
            assert_eq!(one, sum(2));
            assert_eq!(one, sum(3));
        }
    }
}

#[test]
fn merging_adds_sums_and_rows() {
    let n = 50;
    let x = numbers(200 * n, 8);
    let gram = |x: &[f32]| {
        let mut gram = Gram::new(n, Precision::F32);
        gram.accumulate(x, x.len() / n);
        gram
    };
    let (a, b) = x.split_at(120 * n);
    let mut merged = gram(a);
    merged.merge(&gram(b));
    assert_eq!(merged.rows(), 200);
    let (a, b) = (gram(a).finish(), gram(b).finish());
    let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(bits(&merged.finish()), bits(&sum));
}

#[test]
fn a_million_rows_keep_the_precision_of_few() {
    // Plain summation in f32 would be off by 1e-3 here.
    let n = 3;
    let rows = 1 << 16;
    let x: Vec<f32> = (0..rows * n).map(|i| 0.9 + 0.1 * (i % 7) as f32).collect();
    for isa in Isa::available() {
        let mut gram = Gram::new_with(isa, n, Precision::F32);
        for _ in 0..16 {
            gram.accumulate(&x, rows);
        }
        let h = gram.finish();
        for i in 0..n {
            let want: f64 = x.chunks_exact(n).map(|x| f64::from(x[i]) * f64::from(x[i])).sum();
            near(h[i * n + i], 16.0 * want, 16.0 * want * 2e-5);
        }
    }
}
