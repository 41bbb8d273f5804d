//! Second-order knockoffs (Candès, Fan, Janson and Lv, "Panning for gold", 2018): numbers that have the
//! means and the covariance of some channels, and the same covariance with the others of them, but know
//! nothing more of what depends on the channels.
//!
//! Of channels `u` that are scaled to variance 1, with correlations `C`, the knockoffs are
//! `ũ = u − s C⁻¹ u + ε`, `ε` normal with covariance `2s − s² C⁻¹`, where `s` is the largest number for
//! which that is one: `min(2 λ, 1)`, `λ` being the least eigenvalue of `C`.

use crate::ModelError;
use candle_core::{Device, Tensor};
use faer::{Mat, Side};
use lapidary_kernels::gram::Gram;
use lapidary_kernels::matrix::Precision;
use lapidary_kernels::random::{gaussian, nth};

/// Makes knockoffs of rows of channels.
#[derive(Debug, Clone)]
pub struct SecondOrder {
    mean: Tensor,
    /// What pulls a row to the mean, `[channels, channels]`, multiplied from the right.
    pull: Tensor,
    /// What makes `ε` of independent normal numbers, likewise.
    spread: Tensor,
    independence: f64,
}

impl SecondOrder {
    /// Knockoffs of channels with these means and this covariance, row-major
    /// `[channels, channels]`, of whose correlations the share `shrinkage` is taken away: the least
    /// eigenvalue of a covariance that was estimated is next to 0, and the knockoffs would be the
    /// channels themselves. A channel that never changes is its own knockoff.
    ///
    /// # Errors
    /// When the covariance is not finite, or has no eigenvalues that can be found.
    pub fn new(mean: &[f64], covariance: &[f64], shrinkage: f64) -> Result<Self, ModelError> {
        let n = mean.len();
        let fails = |what: &str| {
            let what = format!("the covariance of {n} channels {what}, so there are no knockoffs");
            ModelError::Gradient(what)
        };
        if covariance.len() != n * n || !covariance.iter().chain(mean).all(|v| v.is_finite()) {
            return Err(fails("is not a matrix of finite numbers"));
        }
        let deviation: Vec<f64> = (0..n).map(|i| covariance[i * n + i].max(0.0).sqrt()).collect();
        let correlations = Mat::from_fn(n, n, |i, j| match deviation[i] * deviation[j] {
            _ if i == j => 1.0,
            product if product > 0.0 => (1.0 - shrinkage) * covariance[i * n + j] / product,
            _ => 0.0,
        });
        let eigen = correlations.self_adjoint_eigen(Side::Lower);
        let eigen = eigen.map_err(|_| fails("has no eigenvalues that can be found"))?;
        let (vectors, values) = (eigen.U(), eigen.S().column_vector());
        let least = (0..n).map(|i| values[i]).fold(1.0, f64::min);
        if least <= 0.0 {
            return Err(fails("is not positive; raise the shrinkage"));
        }
        let s = (2.0 * least).min(1.0);
        // f(C) between the scales of the channels: `left · V f(λ) Vᵀ · right`.
        let scaled = |f: &dyn Fn(f64) -> f64, left: &dyn Fn(usize) -> f64| {
            let weighted = Mat::from_fn(n, n, |i, k| vectors[(i, k)] * f(values[k]));
            let product = weighted * vectors.transpose();
            let at = |i: usize, j: usize| (left(i) * product[(i, j)] * deviation[j]) as f32;
            let numbers = (0..n * n).map(|index| at(index / n, index % n)).collect();
            Tensor::from_vec(numbers, (n, n), &Device::Cpu)
        };
        let inverse = |i: usize| if deviation[i] > 0.0 { 1.0 / deviation[i] } else { 0.0 };
        let pull = scaled(&|value| s / value, &inverse)?;
        // At the least eigenvalue the variance of ε is 0, and rounding may make it less.
        let spread = scaled(&|value| (2.0 * s - s * s / value).max(0.0).sqrt(), &|_| 1.0)?;
        let mean: Vec<f32> = mean.iter().map(|mean| *mean as f32).collect();
        let mean = Tensor::from_vec(mean, (1, n), &Device::Cpu)?;
        Ok(Self { mean, pull, spread, independence: s })
    }

    /// How little a channel has to do with its own knockoff: one minus their correlation, from 0 to 1.
    pub fn independence(&self) -> f64 {
        self.independence
    }

    /// Knockoffs of rows, `[rows, channels]`, others for each key.
    ///
    /// # Errors
    /// When the rows have other channels.
    pub fn sample(&self, rows: &Tensor, key: u64) -> Result<Tensor, ModelError> {
        let noise: Vec<f32> =
            (0..rows.elem_count() as u64).map(|i| gaussian(nth(key, i)) as f32).collect();
        let noise = Tensor::from_vec(noise, rows.shape(), rows.device())?.matmul(&self.spread)?;
        let pulled = rows.broadcast_sub(&self.mean)?.matmul(&self.pull)?;
        Ok(((rows - pulled)? + noise)?)
    }
}

/// Means and covariance of channels in the making.
pub(super) struct Moments {
    /// About where the channels are, so that squares do not drown the variance.
    shift: Vec<f32>,
    sum: Vec<f64>,
    gram: Gram,
}

impl Moments {
    /// Of channels whose first rows are these, `[rows, channels]`; they are not added yet.
    pub(super) fn new(rows: &[f32], channels: usize) -> Self {
        let mut shift = vec![0.0; channels];
        let count = (rows.len() / channels.max(1)).max(1) as f32;
        for row in rows.chunks_exact(channels) {
            shift.iter_mut().zip(row).for_each(|(shift, value)| *shift += value / count);
        }
        Self { shift, sum: vec![0.0; channels], gram: Gram::new(channels, Precision::F32) }
    }

    pub(super) fn add(&mut self, rows: &[f32]) {
        let channels = self.shift.len();
        let shift = self.shift.iter().cycle();
        let moved: Vec<f32> = rows.iter().zip(shift).map(|(value, shift)| value - shift).collect();
        for row in moved.chunks_exact(channels) {
            self.sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        self.gram.accumulate(&moved, moved.len() / channels.max(1));
    }

    pub(super) fn knockoffs(self, shrinkage: f64) -> Result<SecondOrder, ModelError> {
        let (n, rows) = (self.shift.len(), self.gram.rows().max(1) as f64);
        let offset: Vec<f64> = self.sum.iter().map(|sum| sum / rows).collect();
        let gram = self.gram.finish();
        let central =
            |index: usize| f64::from(gram[index]) / rows - offset[index / n] * offset[index % n];
        let covariance: Vec<f64> = (0..n * n).map(central).collect();
        let means = self.shift.iter().zip(&offset).map(|(shift, o)| f64::from(*shift) + o);
        SecondOrder::new(&means.collect::<Vec<_>>(), &covariance, shrinkage)
    }
}
