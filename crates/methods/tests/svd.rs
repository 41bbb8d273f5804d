//! Factors in place of a matrix, against an independent singular value decomposition.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::spectrum::{singular_squares, weighted};
use common::{Random, encode, gram, method, output_error, weight_error};
use lapidary_methods::{Needs, NoteKind, Statistics, find};
use lapidary_weight::{FloatType, Outline, TermOutline};
use serde_json::{Value, json};

/// Errors of the weights, of the outputs.
fn errors(changes: Value, weight: &[f32], cols: usize, known: &Statistics) -> (f64, f64) {
    let encoded = encode(&*method("svd", changes), weight, cols, Some(known));
    (weight_error(&encoded, weight), output_error(&encoded, weight, known))
}

/// Card of SVD-LLM, must show 1: `‖(W − W′) X‖²` is the sum of the squares of the dropped singular
/// values of `W S`; and of `W` itself, where nothing weighs the error.
#[test]
fn what_is_lost_is_the_rest_of_the_spectrum() {
    let mut random = Random::new(1);
    for (rows, cols) in [(12, 20), (20, 12), (14, 14)] {
        let weight = random.gaussians(rows * cols);
        let known = gram(&random.correlated(300, cols, 0.9), cols);
        for rank in [1, 3, 6] {
            let rest = |weighting: &str| -> f64 {
                let scaled = weighted(&weight, cols, weighting, &known);
                singular_squares(&scaled, cols).iter().skip(rank).sum()
            };
            let of = |objective: &str| {
                errors(json!({"rank": rank, "objective": objective}), &weight, cols, &known)
            };
            let (plain, outputs) = (of("plain").0, of("gram").1);
            assert!((plain / rest("none") - 1.0).abs() < 1e-4, "{rows} {rank}: {plain}");
            assert!((outputs / rest("gram") - 1.0).abs() < 1e-4, "{rows} {rank}: {outputs}");
        }
    }
}

/// `ASVD`'s: the error of the weights, each column times the size of its input to the power α.
#[test]
fn activations_weigh_columns_by_a_power_of_their_size() {
    let mut random = Random::new(2);
    let (rows, cols, rank) = (15, 18, 4);
    let weight = random.gaussians(rows * cols);
    let known = gram(&random.correlated(300, cols, 0.8), cols);
    for alpha in [0.0, 0.5, 1.0] {
        let size = |c: usize| (f64::from(known.gram[c * (cols + 1)]).sqrt()).powf(alpha);
        let scale = |values: &[f32]| -> Vec<f64> {
            let scaled = |(at, value): (usize, &f32)| f64::from(*value) * size(at % cols);
            values.iter().enumerate().map(scaled).collect()
        };
        let expected: f64 = singular_squares(&scale(&weight), cols).iter().skip(rank).sum();
        let changes = json!({"rank": rank, "objective": "activations", "alpha": alpha});
        let factors = encode(&*method("svd", changes.clone()), &weight, cols, Some(&known));
        let lost: Vec<f32> =
            weight.iter().zip(factors.weight.decode()).map(|(w, near)| w - near).collect();
        let lost: f64 = scale(&lost).iter().map(|value| value * value).sum();
        assert!((lost / expected - 1.0).abs() < 1e-4, "α {alpha}: {lost} {expected}");
        // The diagonal is all it looks at.
        let diagonal = (0..cols).map(|c| known.gram[c * (cols + 1)]).collect();
        let diagonal = Statistics { gram: diagonal, ..known.clone() };
        let method = method("svd", changes);
        assert!(method.needs_only_diagonal());
        assert_eq!(encode(&*method, &weight, cols, Some(&diagonal)), factors);
    }
}

/// Must show 2: each is best in its own measure; of the outputs' errors that of the Gram matrix is
/// least, whatever the rank, and more rank is better.
#[test]
fn outputs_are_kept_best_by_their_own_measure() {
    let mut random = Random::new(3);
    let (rows, cols) = (24, 32);
    let weight = random.gaussians(rows * cols);
    let known = gram(&random.correlated(500, cols, 0.85), cols);
    let mut before = f64::INFINITY;
    for rank in [1, 4, 8, 13] {
        let of = |objective: &str| {
            errors(json!({"rank": rank, "objective": objective}), &weight, cols, &known)
        };
        let (plain, activations, gram) = (of("plain"), of("activations"), of("gram"));
        assert!(gram.1 < activations.1 && gram.1 < plain.1, "{plain:?} {activations:?} {gram:?}");
        assert!(plain.0 < activations.0 && plain.0 < gram.0, "{plain:?} {activations:?} {gram:?}");
        assert!(gram.1 < before, "rank {rank}");
        before = gram.1;
    }
}

/// Card 6, must show 3: a matrix of the rank that is asked for comes back.
#[test]
fn a_matrix_of_that_rank_is_kept() {
    let mut random = Random::new(4);
    let (rows, cols, rank) = (20, 30, 5);
    let (left, right) = (random.gaussians(rows * rank), random.gaussians(rank * cols));
    let entry = |at: usize| -> f32 {
        (0..rank).map(|k| left[at / cols * rank + k] * right[k * cols + at % cols]).sum()
    };
    let weight: Vec<f32> = (0..rows * cols).map(entry).collect();
    let known = gram(&random.correlated(200, cols, 0.9), cols);
    let size: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
    for objective in ["plain", "activations", "gram"] {
        let changes = json!({"rank": rank, "objective": objective});
        assert!(errors(changes, &weight, cols, &known).0 < 1e-9 * size, "{objective}");
    }
}

#[test]
fn the_rank_is_the_share_of_the_numbers_rounded_down() {
    for (share, rows, cols) in [(0.5, 384, 384), (0.75, 1536, 384), (0.3, 384, 1536), (0.99, 7, 9)]
    {
        let method = method("svd", json!({"share": share}));
        let Outline { terms, .. } = method.outline(rows, cols, FloatType::F16);
        let &[TermOutline::LowRank { rank, values: FloatType::F16 }] = &terms[..] else {
            panic!("{terms:?}")
        };
        let most = share * (rows * cols) as f64;
        assert!((rank * (rows + cols)) as f64 <= most, "{rank}");
        assert!(((rank + 1) * (rows + cols)) as f64 > most, "{rank}");
        assert_eq!(method.check_shape(rows, cols), Ok(()));
    }
}

/// What saves nothing is refused, with the largest rank that does.
#[test]
fn what_saves_nothing_is_refused() {
    let build = find("svd").unwrap().build;
    for share in [0.0, 1.0, 1.5, -0.5] {
        let error = build(&json!({"share": share})).err().unwrap();
        assert_eq!(error.path, "share", "{error}");
    }
    assert_eq!(build(&json!({"rank": 0})).err().unwrap().path, "rank");
    assert_eq!(build(&json!({"alpha": 1.5})).err().unwrap().path, "alpha");
    let rank = |rank: usize| method("svd", json!({"rank": rank}));
    let refused = rank(192).check_shape(384, 384).unwrap_err();
    assert!(refused.contains("is 191,"), "{refused}");
    assert_eq!(rank(191).check_shape(384, 384), Ok(()));
    let refused = method("svd", json!({"share": 0.01})).check_shape(8, 8).unwrap_err();
    assert!(refused.contains("raise share"), "{refused}");
}

#[test]
fn without_inputs_the_weights_alone_decide() {
    let mut random = Random::new(5);
    let (rows, cols) = (20, 12);
    let weight = random.gaussians(rows * cols);
    let plain = method("svd", json!({"objective": "plain"}));
    assert_eq!(plain.needs(), Needs::default());
    let expected = encode(&*plain, &weight, cols, None);
    let method = method("svd", json!({}));
    let silent = encode(&*method, &weight, cols, Some(&gram(&vec![0.0; cols], cols)));
    assert_eq!(silent.weight, expected.weight);
    assert_eq!(silent.notes[0].kind, NoteKind::Fallback);
    let looked_up = method.without_statistics().unwrap();
    assert_eq!(encode(&*looked_up, &weight, cols, None), expected);
}
