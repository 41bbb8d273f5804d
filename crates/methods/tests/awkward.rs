//! Every method on awkward weights: finite, the same on any number of threads, told where it fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Random, encode, gram, method, weight_error};
use lapidary_methods::{Entry, Method, MethodError, Site, Statistics, entries, find};
use lapidary_weight::FloatType;
use serde_json::{Value, json};

/// The methods that encode a weight.
fn encoders() -> impl Iterator<Item = &'static Entry> {
    let encodes = |entry: &&Entry| {
        let built = (entry.build)(&(entry.defaults)());
        matches!(built, Ok(Method::Tensorwise(_)))
    };
    entries().iter().filter(encodes)
}

fn takes(id: &str, changes: &Value) -> bool {
    let entry = find(id).unwrap();
    let mut params = (entry.defaults)();
    changes.as_object().unwrap().iter().for_each(|(k, v)| params[k] = v.clone());
    (entry.build)(&params).is_ok()
}

/// Each method with its defaults and with some of its choices changed, groups of 16.
fn cases() -> Vec<(&'static str, Value)> {
    let mut cases: Vec<(&str, Value)> = vec![];
    for entry in encoders() {
        let defaults = (entry.defaults)();
        let has = |key: &str| defaults.get(key).is_some();
        cases.push((entry.id, json!({})));
        if has("group_size") {
            cases.push((entry.id, json!({"group_size": 16})));
            cases.push((entry.id, json!({"group_size": "row"})));
            cases.push((entry.id, json!({"group_size": "tensor"})));
        }
        if has("bits") {
            cases.push((entry.id, json!({"bits": 2})));
            cases.push((entry.id, json!({"bits": 8})));
        }
        for (key, value) in defaults.as_object().unwrap() {
            if let Some(choice) = value.as_bool() {
                cases.push((entry.id, json!({key: !choice})));
            }
        }
    }
    // Not every method takes every choice, and some choices exclude each other.
    cases.retain(|(id, changes)| takes(id, changes));
    assert!(cases.len() > 3 * encoders().count(), "{cases:?}");
    for data_type in ["int", "quantile", "dynamic-exponent"] {
        cases.push(("kbit", json!({"data_type": data_type, "group_size": 16})));
    }
    cases.push(("kbit", json!({"outlier_share": 0.1})));
    cases.push(("squeezellm", json!({"sparse_share": 0.02})));
    cases.push(("bcq", json!({"bits": 1, "group_size": 16})));
    for (tensors, bits, symmetric) in [(2, 3, true), (2, 6, true), (3, 2, false)] {
        let changes =
            json!({"tensors": tensors, "bits": bits, "symmetric": symmetric, "steps": 60});
        cases.push(("omse", changes));
    }
    cases
}

/// Weights `[rows, cols]` with statistics of their inputs.
fn weights() -> Vec<(&'static str, usize, Vec<f32>)> {
    let mut random = Random::new(11);
    let (rows, cols) = (6, 40);
    let plain = random.gaussians(rows * cols);
    let mut dead = plain.clone();
    dead.iter_mut().skip(3).step_by(cols).for_each(|w| *w = 0.0);
    let duplicate: Vec<f32> = (0..rows).flat_map(|_| plain[..cols].to_vec()).collect();
    let mut outlier = plain.clone();
    outlier[45] = 3e4;
    let mut constant = plain.clone();
    constant[cols..2 * cols].fill(0.7);
    constant[2 * cols..3 * cols].fill(-0.01);
    let mut tiny = plain.clone();
    tiny.iter_mut().for_each(|w| *w *= 1e-30);
    vec![
        ("gaussian", cols, plain.clone()),
        ("dead column", cols, dead),
        ("duplicate rows", cols, duplicate),
        ("huge outlier", cols, outlier),
        ("constant rows", cols, constant),
        ("one row", cols, plain[..cols].to_vec()),
        ("one column", 1, plain[..6].to_vec()),
        ("ragged group", 37, plain[..6 * 37].to_vec()),
        ("zeros", cols, vec![0.0; rows * cols]),
        ("tiny", cols, tiny),
    ]
}

fn statistics(cols: usize) -> Statistics {
    let mut inputs = Random::new(12).correlated(200, cols, 0.95);
    // A column whose input is always zero.
    inputs.iter_mut().skip(cols / 2).step_by(cols).for_each(|x| *x = 0.0);
    gram(&inputs, cols)
}

#[test]
fn awkward_weights_are_encoded_within_reason() {
    for (id, changes) in cases() {
        for (name, cols, weight) in weights() {
            let encoded =
                encode(&*method(id, changes.clone()), &weight, cols, Some(&statistics(cols)));
            let squares: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
            let error = weight_error(&encoded, &weight);
            // No method may lose more than a weight of nothing but zeros would, save for what is
            // smaller than any stored scale.
            assert!(error <= 1.5 * squares + 1e-30, "{id} {changes} {name}: {error} {squares}");
            if matches!(name, "zeros") {
                assert_eq!(error, 0.0, "{id} {changes}");
            }
        }
    }
}

#[test]
fn scales_of_sixteen_bits_are_enough_for_all() {
    for (id, changes) in cases() {
        for scale_type in [FloatType::F16, FloatType::Bf16] {
            for (name, cols, weight) in weights() {
                let (rows, statistics) = (weight.len() / cols, statistics(cols));
                let statistics = Some(&statistics);
                let site = Site {
                    name: "site",
                    rows,
                    cols,
                    weight: &weight,
                    statistics,
                    scale_type,
                    peak: None,
                };
                let method = method(id, changes.clone());
                let encoded = method.encode(&site);
                let encoded = encoded.unwrap_or_else(|e| panic!("{id} {changes} {name}: {e}"));
                assert_eq!(encoded.weight.outline(), method.outline(rows, cols, scale_type));
                assert!(encoded.weight.decode().iter().all(|value| value.is_finite()));
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (rows, cols) = (33, 72);
    let weight = Random::new(13).gaussians(rows * cols);
    let statistics = statistics(cols);
    for (id, changes) in cases() {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let method = method(id, changes.clone());
            pool.install(|| encode(&*method, &weight, cols, Some(&statistics)))
        };
        assert_eq!(on(3), on(1), "{id} {changes}");
    }
}

#[test]
fn what_is_no_number_is_refused_by_all() {
    for entry in encoders() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut weight = vec![0.5; 48];
            weight[26] = bad;
            let statistics = statistics(24);
            let statistics = Some(&statistics);
            let site = Site {
                name: "site",
                rows: 2,
                cols: 24,
                weight: &weight,
                statistics,
                scale_type: FloatType::F16,
                peak: None,
            };
            let error = method(entry.id, json!({})).encode(&site).unwrap_err();
            assert!(matches!(error, MethodError::Numerical { .. }), "{}: {error}", entry.id);
            let what = error.to_string();
            assert!(what.contains("not finite at row 1, column 2"), "{}: {what}", entry.id);
        }
    }
}
