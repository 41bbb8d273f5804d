//! What gradients are taken of: a number for each row of tokens, made of its last hidden states.

use super::numbers;
use crate::ModelError;
use crate::exec::{Batch, Composed, Executor, GraphWeights};
use crate::graph::Graph;
use crate::spec::Spec;
use candle_core::{Device, Tensor, Var};
use lapidary_kernels::random::{gaussian, nth};
use lapidary_kernels::softmax::Summary;
use lapidary_weight::Tensors;

/// A loss of the last block's output.
pub trait Loss {
    /// The loss of a row of tokens, and its gradient with respect to the last hidden states; these and
    /// the gradient are `[tokens, hidden]`.
    ///
    /// # Errors
    /// When the row has no such loss.
    fn seed(&self, tokens: &[u32], hidden: &[f32]) -> Result<(f64, Vec<f32>), ModelError>;
}

/// Predictions whose logits are in memory at once.
const LOGIT_ROWS: usize = 256;

/// Mean cross-entropy, in nats, of each token of a row but the first, predicted from those before it.
pub struct NextToken<'a> {
    head: &'a Graph,
    weights: GraphWeights<Composed>,
    executor: Executor<Composed>,
    hidden_size: usize,
}

impl<'a> NextToken<'a> {
    /// The loss by a model's head, whose weights it holds.
    ///
    /// # Errors
    /// When the model does not predict next tokens, or the head cannot be read.
    pub fn new(spec: &'a Spec, tensors: &dyn Tensors) -> Result<Self, ModelError> {
        let Some(head) = spec.head.as_ref().filter(|_| spec.causal) else {
            let what = "the loss of next tokens is of models that predict them; \
                        take that of the embedding for an encoder";
            return Err(ModelError::Gradient(what.to_owned()));
        };
        let executor = Executor::new(Composed { device: Device::Cpu });
        let weights = GraphWeights::load(head, tensors, executor.backend())?;
        Ok(Self { head, weights, executor, hidden_size: spec.hidden_size })
    }
}

impl Loss for NextToken<'_> {
    fn seed(&self, tokens: &[u32], hidden: &[f32]) -> Result<(f64, Vec<f32>), ModelError> {
        let Some((_, targets)) = tokens.split_first().filter(|(_, targets)| !targets.is_empty())
        else {
            let what = "a row has fewer than two tokens, so that none is predicted; leave it out";
            return Err(ModelError::Gradient(what.to_owned()));
        };
        let mut seed = vec![0.0; hidden.len()];
        let mut sum = 0.0;
        let chunks = hidden.chunks(LOGIT_ROWS * self.hidden_size);
        let seeds = seed.chunks_mut(LOGIT_ROWS * self.hidden_size);
        for ((hidden, seed), targets) in chunks.zip(seeds).zip(targets.chunks(LOGIT_ROWS)) {
            // The last token of the row predicts nothing.
            let hidden = &hidden[..targets.len() * self.hidden_size];
            let input = Var::from_slice(hidden, (targets.len(), self.hidden_size), &Device::Cpu)?;
            let batch = Batch { rows: targets.len(), seq_len: 1 };
            let input = input.as_tensor().clone();
            let logits = self.executor.run(self.head, &self.weights, batch, input.clone(), None)?;
            let mut slopes = numbers(&logits)?;
            let vocab_size = logits.dim(1)?;
            if let Some(token) = targets.iter().find(|token| **token as usize >= vocab_size) {
                return Err(ModelError::Token { token: *token, vocab_size });
            }
            let rows = slopes.chunks_exact_mut(vocab_size);
            sum +=
                rows.zip(targets).map(|(row, token)| surprise(row, *token as usize)).sum::<f64>();
            let slopes = Tensor::from_vec(slopes, logits.shape(), logits.device())?;
            let store = (logits * slopes)?.sum_all()?.backward()?;
            let gradient = super::gradient_of(&store, &input)?;
            seed.iter_mut().zip(gradient).for_each(|(seed, gradient)| *seed = gradient);
        }
        let predicted = targets.len() as f64;
        seed.iter_mut().for_each(|seed| *seed /= predicted as f32);
        Ok((sum / predicted, seed))
    }
}

/// `−log p` of the target by a row of logits, in whose place comes its derivative: their softmax, less
/// one at the target.
fn surprise(logits: &mut [f32], target: usize) -> f64 {
    let summary = Summary::of(logits);
    let surprise = -summary.log_probability(logits, target);
    let log_sum_exp = summary.log_sum_exp as f32;
    logits.iter_mut().for_each(|logit| *logit = (*logit - log_sum_exp).exp());
    logits[target] -= 1.0;
    surprise
}

/// A random projection of an encoder's embedding: `⟨r, e⟩`, where `e` is the mean of a row's last
/// hidden states divided by its length, and `r` has independent normal numbers, others for
/// each row.
///
/// An encoder has no labels, and the squared error of its embedding against its own has no gradient.
/// What that error has is a curvature `JᵀJ`, `J` being the derivative of `e`; and since `E[r rᵀ] = 1`,
/// the mean square of this loss's gradient over rows is the diagonal of `JᵀJ`. So scores that take
/// squares or absolute values row by row say how far a change moves the embedding. The mean of the
/// gradient itself is 0, and says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Projection {
    /// Seed of the random numbers.
    pub seed: u64,
    /// Width of the hidden states.
    pub hidden_size: usize,
}

impl Loss for Projection {
    fn seed(&self, tokens: &[u32], hidden: &[f32]) -> Result<(f64, Vec<f32>), ModelError> {
        let width = self.hidden_size;
        let key = tokens.iter().fold(self.seed, |key, token| nth(key, u64::from(*token)));
        let direction: Vec<f64> = (0..width as u64).map(|i| gaussian(nth(key, i))).collect();
        let tokens = tokens.len();
        let mut mean = vec![0.0; width];
        for state in hidden.chunks_exact(width) {
            mean.iter_mut().zip(state).for_each(|(mean, h)| *mean += f64::from(*h) / tokens as f64);
        }
        let length = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
        let unit: Vec<f64> = mean.iter().map(|value| value / length).collect();
        let value: f64 = unit.iter().zip(&direction).map(|(e, r)| e * r).sum();
        let slope = |(r, e): (&f64, &f64)| ((r - e * value) / (length * tokens as f64)) as f32;
        let of_token: Vec<f32> = direction.iter().zip(&unit).map(slope).collect();
        Ok((value, of_token.repeat(tokens)))
    }
}
