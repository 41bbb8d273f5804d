//! Shares of pruning by outliers, layer by layer: `OWL` (Yin et al., 2024, arXiv 2310.05175).
//!
//! A weight is an outlier where `|W| · ‖x‖` is more than five times the mean over its block. Blocks with
//! more outliers keep more: their densities differ by at most `2 λ`, and the mean over all weights is what
//! was asked for, which the authors' program has for blocks of one size only.

use crate::pruning::SparsityParams;
use serde_json::Value;

/// How many times the mean an outlier is.
const OUTLIER: f64 = 5.0;

/// The largest share of a block that goes.
const MOST: f64 = 0.99;

/// Outliers among the scores of a block.
#[derive(Debug, Clone, Default)]
pub struct Outliers {
    sum: f64,
    scores: Vec<f32>,
}

impl Outliers {
    /// Adds a matrix, row-major, whose columns have inputs of these lengths.
    pub fn add(&mut self, weight: &[f32], lengths: &[f64]) {
        for row in weight.chunks_exact(lengths.len().max(1)) {
            for (weight, length) in row.iter().zip(lengths) {
                let score = f64::from(weight.abs()) * length;
                self.sum += score;
                self.scores.push(score as f32);
            }
        }
    }

    /// Weights there are.
    pub fn weights(&self) -> usize {
        self.scores.len()
    }

    /// The share of them that is an outlier, in percent.
    pub fn percent(&self) -> f64 {
        let count = self.scores.len().max(1) as f64;
        let least = OUTLIER * self.sum / count;
        let outliers = self.scores.iter().filter(|score| f64::from(**score) > least).count();
        100.0 * outliers as f64 / count
    }
}

/// What is asked of a pruner by its parameters: the mean share, and `λ`; `None` where all layers have the
/// same share.
pub fn wanted(params: &Value) -> Option<(f64, f64)> {
    let read = |key: &str| params.get(key).and_then(Value::as_f64);
    Some((read("sparsity").unwrap_or(SparsityParams::HALF), read("owl")?))
}

/// The share of each block that goes, from the percentages of outliers and the numbers of weights.
pub fn shares(percent: &[f64], weights: &[usize], share: f64, lambda: f64) -> Vec<f64> {
    let least = percent.iter().copied().fold(f64::INFINITY, f64::min);
    let most = percent.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = most - least;
    let rise = |percent: &f64| match range > 0.0 {
        true => 2.0 * lambda * (percent - least) / range,
        false => 0.0,
    };
    let rises: Vec<f64> = percent.iter().map(rise).collect();
    let all = weights.iter().sum::<usize>().max(1) as f64;
    let weighed = rises.iter().zip(weights).map(|(rise, weights)| rise * *weights as f64);
    let mean = weighed.sum::<f64>() / all;
    rises.iter().map(|rise| (share - rise + mean).clamp(0.0, MOST)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Card 3, 5: the mean is what was asked for; equal blocks get equal shares.
    #[test]
    fn the_mean_is_kept() {
        let (percent, weights) = ([1.0, 4.0, 2.5, 0.5], [10, 10, 40, 20]);
        let found = shares(&percent, &weights, 0.7, 0.08);
        let mean: f64 = found.iter().zip(&weights).map(|(s, w)| s * *w as f64).sum::<f64>() / 80.0;
        assert!((mean - 0.7).abs() < 1e-12, "{mean}");
        assert!(found[1] < found[2] && found[2] < found[0] && found[0] < found[3]);
        assert!((found[3] - found[1] - 0.16).abs() < 1e-12);
        assert_eq!(shares(&[2.0, 2.0], &[3, 9], 0.5, 0.08), [0.5, 0.5]);
        assert!(shares(&[0.0, 9.0], &[1, 1], 0.98, 0.08).iter().all(|s| (0.0..=0.99).contains(s)));
    }

    /// The definition, in a few lines.
    #[test]
    fn outliers_are_counted_over_the_block() {
        let mut outliers = Outliers::default();
        outliers.add(&[1.0, -1.0, 1.0, 20.0], &[1.0, 1.0]);
        outliers.add(&[1.0; 6], &[1.0, 0.5, 1.0]);
        // The mean is (23 + 5) / 10, five times that 14: one of ten weights is above.
        assert_eq!((outliers.percent(), outliers.weights()), (10.0, 10));
    }
}
