//! The distributions that rows of logits stand for, compared: what perplexity, KL divergence and
//! top-1 agreement are made of.
//!
//! Sums of exponentials run in f32 over stretches of [`STRETCH`] logits and in f64 over stretches.
//! A row with NaN gives NaN.

use crate::isa::Isa;
use crate::math::exp;
use crate::simd::{LANES, add_lanes, vectorized};

/// Logits whose sum is kept in f32.
const STRETCH: usize = 16 * LANES;

/// What there is to know about one row of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The index of the largest logit, the first of equals; 0 for an empty row.
    pub argmax: usize,
    /// `ln Σ exp(logit)`: what is subtracted from a logit to make it a log-probability.
    pub log_sum_exp: f64,
}

/// Two distributions over the same tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The distribution that counts as true.
    pub reference: Summary,
    /// The distribution that is judged.
    pub candidate: Summary,
    /// `Σ p ln(p / q)` in nats, with p the reference and q the candidate.
    pub kl_divergence: f64,
}

impl Summary {
    /// The summary of a row of logits.
    pub fn of(logits: &[f32]) -> Self {
        Self::of_with(Isa::detect(), logits)
    }

    /// [`of`](Self::of) for a level of instructions, or the machine's own where that is lower.
    pub fn of_with(isa: Isa, logits: &[f32]) -> Self {
        let (argmax, maximum) = largest(isa, logits);
        let sum = exponential_sum(isa, logits, maximum);
        Self { argmax, log_sum_exp: f64::from(maximum) + sum.ln() }
    }

    /// The log-probability of a token: `logits` is the row that this is the summary of.
    ///
    /// # Panics
    /// If `token` is not an index of `logits`.
    pub fn log_probability(&self, logits: &[f32], token: usize) -> f64 {
        f64::from(logits[token]) - self.log_sum_exp
    }
}

impl Comparison {
    /// Compares two rows of logits.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn of(reference: &[f32], candidate: &[f32]) -> Self {
        Self::of_with(Isa::detect(), reference, candidate)
    }

    /// [`of`](Self::of) for a level of instructions, or the machine's own where that is lower.
    pub fn of_with(isa: Isa, reference: &[f32], candidate: &[f32]) -> Self {
        assert_eq!(reference.len(), candidate.len(), "the rows differ in length");
        let judged = Summary::of_with(isa, candidate);
        let (argmax, maximum) = largest(isa, reference);
        let shift = maximum - largest_value(candidate, judged.argmax);
        let (sum, excess) = weighted_difference(isa, reference, candidate, maximum, shift);
        let log_sum_exp = f64::from(maximum) + sum.ln();
        // Σ p (x - y) - ln Σ eˣ + ln Σ eʸ, with `shift` taken out of x - y so that little cancels.
        let normalisers = f64::from(shift) - log_sum_exp + judged.log_sum_exp;
        Self {
            reference: Summary { argmax, log_sum_exp },
            candidate: judged,
            kl_divergence: excess / sum + normalisers,
        }
    }
}

fn largest_value(logits: &[f32], argmax: usize) -> f32 {
    logits.get(argmax).copied().unwrap_or(f32::NEG_INFINITY)
}

/// The index of the largest logit, the first of equals, and its value.
fn largest(isa: Isa, logits: &[f32]) -> (usize, f32) {
    let maximum = maximum(isa, logits);
    let argmax = logits.iter().position(|logit| *logit == maximum).unwrap_or(0);
    (argmax, maximum)
}

vectorized! {
    fn maximum(logits: &[f32]) -> f32 {
        let (chunks, rest) = logits.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for (lane, logit) in lanes.iter_mut().zip(chunk) {
                *lane = if *logit > *lane { *logit } else { *lane };
            }
        }
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
    }
}

vectorized! {
    fn exponential_sum(logits: &[f32], maximum: f32) -> f64 {
        let mut total = 0.0;
        for stretch in logits.chunks(STRETCH) {
            let mut sums = [0.0; LANES];
            let (chunks, rest) = stretch.as_chunks::<LANES>();
            for chunk in chunks {
                for (sum, logit) in sums.iter_mut().zip(chunk) {
                    *sum += exp(logit - maximum);
                }
            }
            for (sum, logit) in sums.iter_mut().zip(rest) {
                *sum += exp(logit - maximum);
            }
            total += f64::from(add_lanes(sums));
        }
        total
    }
}

vectorized! {
    /// `Σ eˣ⁻ᵐ` and `Σ eˣ⁻ᵐ (x - y - shift)`.
    fn weighted_difference(x: &[f32], y: &[f32], maximum: f32, shift: f32) -> (f64, f64) {
        let (mut total, mut weighted) = (0.0, 0.0);
        for (x, y) in x.chunks(STRETCH).zip(y.chunks(STRETCH)) {
            let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
            let (x_chunks, x_rest) = x.as_chunks::<LANES>();
            let (y_chunks, y_rest) = y.as_chunks::<LANES>();
            for (x, y) in x_chunks.iter().zip(y_chunks) {
                for lane in 0..LANES {
                    let weight = exp(x[lane] - maximum);
                    sums[lane] += weight;
                    products[lane] += product(weight, x[lane] - y[lane] - shift);
                }
            }
            for (lane, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
                let weight = exp(x - maximum);
                sums[lane] += weight;
                products[lane] += product(weight, x - y - shift);
            }
            total += f64::from(add_lanes(sums));
            weighted += f64::from(add_lanes(products));
        }
        (total, weighted)
    }
}

/// The product, but zero for a weight of zero: a token excluded with -∞ on both sides counts for
/// nothing.
#[inline(always)]
fn product(weight: f32, value: f32) -> f32 {
    if weight == 0.0 { 0.0 } else { weight * value }
}
