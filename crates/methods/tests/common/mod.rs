//! Seeded matrices, and the errors of encoded weights in f64.

#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

pub(crate) mod spectrum;

use lapidary_methods::{Encoded, Method, Site, Statistics, Tensorwise, find};
use lapidary_weight::{FloatType, Term};
use serde_json::Value;

/// SplitMix64, and Gaussians from it.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn gaussian(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn gaussians(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.gaussian() as f32).collect()
    }

    /// Inputs `[tokens, n]` whose covariance has a spectrum that falls by `decay` a dimension, in a
    /// random basis: strongly correlated columns.
    pub(crate) fn correlated(&mut self, tokens: usize, n: usize, decay: f64) -> Vec<f32> {
        let basis: Vec<f64> = (0..n * n).map(|_| self.gaussian() / (n as f64).sqrt()).collect();
        let mut inputs = vec![];
        for _ in 0..tokens {
            let factors: Vec<f64> =
                (0..n).map(|k| self.gaussian() * decay.powi(k as i32)).collect();
            for column in 0..n {
                let value: f64 = (0..n).map(|k| factors[k] * basis[k * n + column]).sum();
                inputs.push(value as f32);
            }
        }
        inputs
    }
}

/// `Σ x xᵀ` of `[tokens, n]`.
pub(crate) fn gram(inputs: &[f32], n: usize) -> Statistics {
    let mut sums = vec![0.0_f64; n * n];
    for row in inputs.chunks_exact(n) {
        for i in 0..n {
            for j in 0..n {
                sums[i * n + j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    let tokens = (inputs.len() / n) as u64;
    Statistics {
        gram: sums.into_iter().map(|sum| sum as f32).collect(),
        drift: None,
        inputs: None,
        tokens,
    }
}

/// The encoder of this name with some parameters changed.
pub(crate) fn method(id: &str, changes: Value) -> Box<dyn Tensorwise> {
    match build(id, changes) {
        Method::Tensorwise(method) => method,
        _ => panic!("{id} encodes nothing"),
    }
}

/// The method of this name with some parameters changed.
pub(crate) fn build(id: &str, changes: Value) -> Method {
    let entry = find(id).unwrap();
    let mut params = (entry.defaults)();
    for (key, value) in changes.as_object().unwrap() {
        assert!(params.get(key).is_some(), "{id} has no parameter {key}");
        params[key] = value.clone();
    }
    (entry.build)(&params).unwrap()
}

/// Encodes `[rows, cols]` with scales in f32, and checks that the outline was the promised one.
pub(crate) fn encode(
    method: &dyn Tensorwise,
    weight: &[f32],
    cols: usize,
    statistics: Option<&Statistics>,
) -> Encoded {
    let rows = weight.len() / cols;
    let scale_type = FloatType::F32;
    let site = Site { name: "site", rows, cols, weight, statistics, scale_type, peak: None };
    let encoded = method.encode(&site).unwrap();
    assert_eq!(encoded.weight.outline(), method.outline(rows, cols, scale_type));
    assert!(encoded.weight.decode().iter().all(|value| value.is_finite()));
    encoded
}

/// What encoding `[rows, cols]` complains of.
pub(crate) fn error(
    id: &str,
    weight: &[f32],
    cols: usize,
    statistics: Option<&Statistics>,
) -> String {
    let (rows, scale_type) = (weight.len() / cols, FloatType::F32);
    let site = Site { name: "site", rows, cols, weight, statistics, scale_type, peak: None };
    let method = method(id, serde_json::json!({"group_size": 16}));
    method.encode(&site).unwrap_err().to_string()
}

pub(crate) fn codes(encoded: &Encoded) -> Vec<u8> {
    match encoded.weight.terms() {
        [Term::Affine(affine)] => affine.codes.clone(),
        _ => panic!("one affine term"),
    }
}

/// `‖W − Ŵ‖²`.
pub(crate) fn weight_error(encoded: &Encoded, weight: &[f32]) -> f64 {
    let decoded = encoded.weight.decode();
    decoded.iter().zip(weight).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// `tr((W − Ŵ) H (W − Ŵ)ᵀ)`.
pub(crate) fn output_error(encoded: &Encoded, weight: &[f32], statistics: &Statistics) -> f64 {
    let cols = encoded.weight.cols();
    let decoded = encoded.weight.decode();
    let difference: Vec<f64> =
        decoded.iter().zip(weight).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    let row_error = |row: &[f64]| -> f64 {
        (0..cols)
            .map(|i| {
                let product: f64 =
                    (0..cols).map(|j| f64::from(statistics.gram[i * cols + j]) * row[j]).sum();
                row[i] * product
            })
            .sum()
    };
    difference.chunks_exact(cols).map(row_error).sum()
}
