//! Sums over predictions: negative log-likelihood, divergence from a reference, agreement.

use lapidary_kernels::softmax::{Comparison, Summary};
use rayon::prelude::*;

/// Sums over the predictions scored so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sums {
    pub(crate) predictions: u64,
    pub(crate) nll: f64,
    pub(crate) reference_nll: f64,
    pub(crate) kl: f64,
    pub(crate) same_top: u64,
}

impl Sums {
    /// Adds rows of logits, `[targets, vocab]`, of the candidate and perhaps the reference.
    ///
    /// Rows are judged in parallel and added in order, so that sums do not depend on threads.
    pub(crate) fn add(&mut self, candidate: &[f32], reference: Option<&[f32]>, targets: &[u32]) {
        let vocab = candidate.len() / targets.len().max(1);
        let judge = |(index, target): (usize, &u32)| {
            let row = &candidate[index * vocab..][..vocab];
            let target = *target as usize;
            match reference {
                None => {
                    let log_p = Summary::of(row).log_probability(row, target);
                    Self { predictions: 1, nll: -log_p, ..Self::default() }
                }
                Some(reference) => {
                    let wanted = &reference[index * vocab..][..vocab];
                    let compared = Comparison::of(wanted, row);
                    Self {
                        predictions: 1,
                        nll: -compared.candidate.log_probability(row, target),
                        reference_nll: -compared.reference.log_probability(wanted, target),
                        kl: compared.kl_divergence,
                        same_top: u64::from(compared.candidate.argmax == compared.reference.argmax),
                    }
                }
            }
        };
        let judged: Vec<Self> = targets.par_iter().enumerate().map(judge).collect();
        judged.iter().for_each(|judged| self.merge(judged));
    }

    /// The mean over the predictions of one of the sums.
    pub(crate) fn mean(&self, sum: f64) -> f64 {
        sum / self.predictions.max(1) as f64
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.predictions += other.predictions;
        self.nll += other.nll;
        self.reference_nll += other.reference_nll;
        self.kl += other.kl;
        self.same_top += other.same_top;
    }
}
