//! Comparisons of rows of logits against f64.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::numbers;
use lapidary_kernels::isa::Isa;
use lapidary_kernels::softmax::{Comparison, Summary};
use proptest::prelude::*;

fn log_sum_exp(logits: &[f32]) -> f64 {
    let maximum = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    maximum + logits.iter().map(|x| (f64::from(*x) - maximum).exp()).sum::<f64>().ln()
}

fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_sum, q_sum) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - p_sum, f64::from(*q) - q_sum);
        p.exp() * (p - q)
    };
    p.iter().zip(q).map(term).sum()
}

fn argmax(logits: &[f32]) -> usize {
    let maximum = logits.iter().copied().fold(f32::MIN, f32::max);
    logits.iter().position(|x| *x == maximum).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equal_their_definitions(length in 1_usize..2000, size in 0.0_f32..40.0, noise in 0.0_f32..2.0) {
        let p: Vec<f32> = numbers(length, 40).iter().map(|x| x * size + 5.0).collect();
        let q: Vec<f32> =
            p.iter().zip(numbers(length, 41)).map(|(p, n)| p + n * noise - 3.0).collect();
        for isa in Isa::available() {
            let got = Comparison::of_with(isa, &p, &q);
            prop_assert_eq!(got, Comparison::of_with(Isa::Portable, &p, &q));
            prop_assert_eq!(got.reference, Summary::of_with(isa, &p));
            prop_assert_eq!(got.candidate, Summary::of_with(isa, &q));
            prop_assert!((got.reference.log_sum_exp - log_sum_exp(&p)).abs() < 1e-6);
            prop_assert_eq!(got.reference.argmax, argmax(&p));
            prop_assert_eq!(got.candidate.argmax, argmax(&q));
            let want = kl_divergence(&p, &q);
            prop_assert!((got.kl_divergence - want).abs() < 1e-6 * (1.0 + want), "{got:?} {want}");
            let log_probability = got.candidate.log_probability(&q, length / 2);
            prop_assert!((log_probability - (f64::from(q[length / 2]) - log_sum_exp(&q))).abs() < 1e-6);
        }
    }
}

#[test]
fn a_vocabulary_of_usual_size_keeps_its_precision() {
    let p: Vec<f32> = numbers(49_152, 42).iter().map(|x| x * 9.0).collect();
    let q: Vec<f32> = p.iter().zip(numbers(49_152, 43)).map(|(p, n)| p + n * 1e-3).collect();
    let got = Comparison::of(&p, &q);
    assert!((got.kl_divergence - kl_divergence(&p, &q)).abs() < 2e-8, "{got:?}");
    assert!((got.reference.log_sum_exp - log_sum_exp(&p)).abs() < 1e-7);
    assert!(Comparison::of(&p, &p).kl_divergence.abs() < 1e-12);
}

#[test]
fn of_equal_logits_the_first_is_the_largest() {
    let mut logits = [0.0; 100];
    logits[40] = 1.0;
    logits[97] = 1.0;
    assert_eq!(Summary::of(&logits).argmax, 40);
}

#[test]
fn excluded_tokens_count_for_nothing_and_nan_is_seen() {
    let mut p = numbers(60, 44);
    let mut q = numbers(60, 45);
    let (short_p, short_q) = (p.clone(), q.clone());
    p.extend([f32::NEG_INFINITY; 7]);
    q.extend([f32::NEG_INFINITY; 7]);
    let got = Comparison::of(&p, &q);
    assert!((got.kl_divergence - kl_divergence(&short_p, &short_q)).abs() < 1e-6, "{got:?}");
    q[3] = f32::NAN;
    assert!(Comparison::of(&p, &q).kl_divergence.is_nan());
}
