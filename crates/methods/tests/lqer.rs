//! Low-rank corrections against an independent singular value decomposition, and their chain with an
//! encoder.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::spectrum::{singular_squares, weighted};
use common::{Random, build, encode, gram, method, output_error, weight_error};
use lapidary_methods::{Chain, Correction, Encoded, Method, Site, Statistics, Tensorwise};
use lapidary_weight::{FloatType, LowRank, Term, TermOutline, Weight};
use serde_json::{Value, json};
use std::sync::Arc;

fn lqer(changes: Value) -> Arc<dyn Correction> {
    match build("lqer", changes) {
        Method::Correction(method) => Arc::from(method),
        _ => panic!("lqer corrects"),
    }
}

/// The best approximation of a weight itself: what encodes it is nothing.
fn of_nothing(
    changes: Value,
    weight: &[f32],
    cols: usize,
    statistics: Option<&Statistics>,
) -> (Encoded, f64) {
    let rows = weight.len() / cols;
    let site = Site {
        name: "site",
        rows,
        cols,
        weight,
        statistics,
        scale_type: FloatType::F32,
        peak: None,
    };
    let nothing = Weight::new(rows, cols, vec![]).unwrap();
    let method = lqer(changes);
    let corrected = method.correct(&site, &nothing).unwrap();
    let outlines: Vec<TermOutline> = corrected.terms.iter().map(Term::outline).collect();
    assert_eq!(outlines, method.terms(rows, cols, FloatType::F32));
    let weight = Weight::new(rows, cols, corrected.terms).unwrap();
    (Encoded { weight, notes: corrected.notes }, corrected.loss)
}

/// Card of SVD-LLM, must show 1: the error left is the sum of the squares of the other singular
/// values, for each weighting and for both forms of the matrix.
#[test]
fn what_is_left_is_the_rest_of_the_spectrum() {
    let mut random = Random::new(1);
    for (rows, cols) in [(12, 20), (20, 12), (7, 7)] {
        let weight = random.gaussians(rows * cols);
        let statistics = gram(&random.correlated(300, cols, 0.9), cols);
        for weighting in ["none", "rms", "gram"] {
            let scaled = weighted(&weight, cols, weighting, &statistics);
            let squares = singular_squares(&scaled, cols);
            for rank in [1, 3, 6] {
                let changes = json!({"rank": rank, "weighting": weighting});
                let (encoded, loss) = of_nothing(changes, &weight, cols, Some(&statistics));
                let expected: f64 = squares.iter().skip(rank).sum();
                assert!(
                    (loss / expected - 1.0).abs() < 1e-8,
                    "{weighting} {rank}: {loss} {expected}"
                );
                let rest: Vec<f32> =
                    weight.iter().zip(encoded.weight.decode()).map(|(w, l)| w - l).collect();
                let rest = weighted(&rest, cols, weighting, &statistics);
                let measured: f64 = rest.iter().map(|value| value * value).sum();
                assert!((measured / expected - 1.0).abs() < 1e-4, "{weighting}: {measured}");
            }
        }
    }
}

/// Must show 2: each weighting is the best in its own measure; and must show 5, more rank is better.
#[test]
fn each_weighting_is_best_in_its_own_measure_and_rank_helps() {
    let mut random = Random::new(2);
    let (rows, cols) = (24, 32);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(500, cols, 0.85), cols);
    let errors = |weighting: &str, rank: usize| {
        let changes = json!({"rank": rank, "weighting": weighting});
        let (encoded, _) = of_nothing(changes, &weight, cols, Some(&statistics));
        (weight_error(&encoded, &weight), output_error(&encoded, &weight, &statistics))
    };
    let (none, rms, whole) = (errors("none", 8), errors("rms", 8), errors("gram", 8));
    assert!(none.0 < rms.0 && none.0 < whole.0, "{none:?} {rms:?} {whole:?}");
    assert!(whole.1 < 0.8 * rms.1 && whole.1 < 0.8 * none.1, "{none:?} {rms:?} {whole:?}");
    let mut before = f64::INFINITY;
    for rank in [1, 2, 4, 8, 16, 24] {
        let (_, error) = errors("gram", rank);
        assert!(error < before, "rank {rank}: {error} {before}");
        before = error;
    }
    let everything: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
    assert!(errors("none", 100).0 < 1e-10 * everything, "full rank is exact");
    assert!(errors("gram", 100).0 < 1e-8 * everything, "full rank is exact");
}

/// Must show 6: both factors are of one length, in every inner dimension.
#[test]
fn the_factors_are_balanced() {
    let mut random = Random::new(3);
    let weight: Vec<f32> = random.gaussians(20 * 30).iter().map(|w| 1e-3 * w).collect();
    let statistics = gram(&random.correlated(300, 30, 0.9), 30);
    let (encoded, _) = of_nothing(json!({"rank": 5}), &weight, 30, Some(&statistics));
    let Term::LowRank(LowRank { rank, left, right, .. }) = &encoded.weight.terms()[0] else {
        panic!("a low-rank term")
    };
    for k in 0..*rank {
        let length = |values: &mut dyn Iterator<Item = &f32>| values.map(|v| v * v).sum::<f32>();
        let left = length(&mut left.iter().skip(k).step_by(*rank));
        let right = length(&mut right[k * 30..][..30].iter());
        assert!((left / right - 1.0).abs() < 1e-4, "{left} {right}");
    }
}

fn chain(encoder: Value, corrections: &[Value]) -> Box<dyn Tensorwise> {
    let corrections = corrections.iter().map(|changes| lqer(changes.clone())).collect();
    Chain::of(method("rtn", encoder), corrections)
}

#[test]
fn a_chain_is_the_encoder_and_its_correction() {
    let mut random = Random::new(4);
    let (rows, cols) = (24, 40);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(400, cols, 0.9), cols);
    let rtn = json!({"bits": 3, "group_size": 8});
    let alone = encode(&*chain(rtn.clone(), &[]), &weight, cols, Some(&statistics));
    let mut before = output_error(&alone, &weight, &statistics);
    for rank in [1, 4, 12] {
        let chain = chain(rtn.clone(), &[json!({"rank": rank})]);
        assert!(chain.needs().gram);
        let encoded = encode(&*chain, &weight, cols, Some(&statistics));
        assert_eq!(encoded.weight.terms()[0], alone.weight.terms()[0], "codes are the encoder's");
        let error = output_error(&encoded, &weight, &statistics);
        assert!(error < before, "rank {rank}: {error} {before}");
        before = error;
    }
    // Two corrections are as one of both ranks.
    let twice = chain(rtn.clone(), &[json!({"rank": 6}), json!({"rank": 6})]);
    let error =
        output_error(&encode(&*twice, &weight, cols, Some(&statistics)), &weight, &statistics);
    assert!((error / before - 1.0).abs() < 1e-3, "{error} {before}");
    // Another grouping keeps the correction.
    let regrouped = twice.regroup(lapidary_weight::Grouping::Row).unwrap();
    assert_eq!(regrouped.outline(rows, cols, FloatType::F16).terms.len(), 3);
}

/// Card of LoftQ: rounds gain where a grid has zero points; on a symmetric one of 2 bits each round
/// is worse than the one before, and the first is kept.
#[test]
fn rounds_keep_the_best() {
    let mut random = Random::new(5);
    let (rows, cols) = (32, 48);
    let weight = random.gaussians(rows * cols);
    let error = |symmetric: bool, bits: u8, rounds: usize| {
        let changes = json!({"rank": 8, "weighting": "none", "rounds": rounds});
        let rtn = json!({"bits": bits, "group_size": 16, "symmetric": symmetric});
        weight_error(&encode(&*chain(rtn, &[changes]), &weight, cols, None), &weight)
    };
    let errors: Vec<f64> = [1, 2, 3, 5].into_iter().map(|n| error(false, 3, n)).collect();
    assert!(errors.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-6)), "{errors:?}");
    assert!(errors[3] < 0.95 * errors[0], "{errors:?}");
    assert_eq!(error(true, 2, 5), error(true, 2, 1));
}

#[test]
fn a_weight_on_the_grid_needs_no_correction() {
    let weight: Vec<f32> = (0..16 * 16).map(|i| ((i * 7 % 16) as f32 - 8.0) * 0.25).collect();
    let rtn = json!({"bits": 4, "group_size": "row", "symmetric": false});
    let chain = chain(rtn, &[json!({"rank": 4, "weighting": "none"})]);
    let encoded = encode(&*chain, &weight, 16, None);
    assert!(weight_error(&encoded, &weight) < 1e-9);
}

/// Dead inputs, equal rows, an outlier, a constant row, one row, no input at all: finite, and never
/// worse than the encoder alone.
#[test]
fn awkward_weights_are_never_worse_than_uncorrected() {
    let mut random = Random::new(6);
    for rows in [1, 9, 30] {
        let cols = 21;
        let mut weight = random.gaussians(rows * cols);
        weight[0] = 1e4;
        weight.copy_within(0..cols, (rows - 1) * cols);
        weight[(rows / 2) * cols..][..cols].fill(0.5);
        let mut inputs = random.correlated(8, cols, 0.8);
        inputs.iter_mut().skip(3).step_by(cols).for_each(|x| *x = 0.0);
        for statistics in [gram(&inputs, cols), gram(&vec![0.0; cols], cols)] {
            for weighting in ["none", "rms", "gram"] {
                let rtn = json!({"bits": 4, "group_size": 8});
                let alone = encode(&*chain(rtn.clone(), &[]), &weight, cols, None);
                let changes = json!({"rank": 3, "weighting": weighting});
                let encoded = encode(&*chain(rtn, &[changes]), &weight, cols, Some(&statistics));
                let measure = |encoded: &Encoded| match weighting {
                    "none" => weight_error(encoded, &weight),
                    "rms" => {
                        let mut diagonal = statistics.clone();
                        let off = |at: &usize| at / cols != at % cols;
                        (0..cols * cols).filter(off).for_each(|at| diagonal.gram[at] = 0.0);
                        output_error(encoded, &weight, &diagonal)
                    }
                    _ => output_error(encoded, &weight, &statistics),
                };
                let (error, before) = (measure(&encoded), measure(&alone));
                assert!(error <= before * 1.0001 + 1e-9, "{weighting} {rows}: {error} {before}");
            }
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let weight = [1.0, 2.0];
    let site = Site {
        name: "layer",
        rows: 1,
        cols: 2,
        weight: &weight,
        statistics: None,
        scale_type: FloatType::F16,
        peak: None,
    };
    let nothing = Weight::new(1, 2, vec![]).unwrap();
    let error = lqer(json!({})).correct(&site, &nothing).unwrap_err().to_string();
    assert!(error.contains("layer") && error.contains("Gram matrix"), "{error}");
    for (key, value) in [("rank", 0), ("rank", 70_000), ("rounds", 0)] {
        let entry = lapidary_methods::find("lqer").unwrap();
        let mut params = (entry.defaults)();
        params[key] = value.into();
        let error = (entry.build)(&params).err().unwrap();
        assert_eq!(error.path, key);
    }
}
