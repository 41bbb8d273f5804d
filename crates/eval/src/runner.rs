//! A model that turns tokens into hidden states, block by block: one block's weights are in memory at
//! a time, read again for each group of segments.

use crate::EvalError;
use lapidary_formats::Source;
use lapidary_model::{Batch, Executor, Fused, GraphWeights, Precision, Spec};
use std::sync::atomic::{AtomicBool, Ordering};

/// A model under evaluation.
pub(crate) struct Runner<'a> {
    source: &'a Source,
    pub(crate) spec: &'a Spec,
    executor: Executor,
    head: Option<GraphWeights>,
    stop: &'a AtomicBool,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(
        source: &'a Source,
        spec: &'a Spec,
        precision: Precision,
        stop: &'a AtomicBool,
    ) -> Result<Self, EvalError> {
        let executor = Executor::new(Fused { precision });
        let load = |graph| GraphWeights::load(graph, source, executor.backend());
        let head = spec.head.as_ref().map(load).transpose()?;
        Ok(Self { source, spec, executor, head, stop })
    }

    /// Hidden states after the last block, `[tokens, hidden]`, of each row; `advance` is called after
    /// each block.
    pub(crate) fn hidden(
        &self,
        rows: &[&[u32]],
        advance: &mut dyn FnMut(),
    ) -> Result<Vec<Vec<f32>>, EvalError> {
        let mut states = vec![];
        for row in rows {
            let batch = Batch { rows: 1, seq_len: row.len() };
            states.push(self.executor.embed(self.spec, self.source, batch, (*row).into())?);
        }
        for graph in &self.spec.blocks {
            let weights = GraphWeights::load(graph, self.source, self.executor.backend())?;
            for (state, row) in states.iter_mut().zip(rows) {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(EvalError::Interrupted);
                }
                let batch = Batch { rows: 1, seq_len: row.len() };
                let input = std::mem::take(state);
                *state = self.executor.run(graph, &weights, batch, input, None)?;
            }
            advance();
        }
        Ok(states)
    }

    /// Logits of some hidden states, `[rows, vocab]`.
    pub(crate) fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, EvalError> {
        let (Some(graph), Some(weights)) = (&self.spec.head, &self.head) else {
            let what = "the model has no language-model head, so it has no perplexity";
            return Err(EvalError::Unusable(what.to_owned()));
        };
        let batch = Batch { rows: hidden.len() / self.spec.hidden_size.max(1), seq_len: 1 };
        Ok(self.executor.run(graph, weights, batch, hidden.to_vec(), None)?)
    }
}

/// How an encoder agrees with its reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncoderAgreement {
    /// Mean cosine of the mean-pooled states of each segment.
    pub embedding_cosine: f64,
    /// `‖h − h_ref‖² / ‖h_ref‖²` over all hidden states.
    pub hidden_error: f64,
    /// Tokens compared.
    pub tokens: usize,
}

/// Compares the last hidden states of two encoders on rows of tokens.
///
/// # Errors
/// When a model cannot be run on them.
pub fn compare_encoders(
    candidate: (&Source, &Spec),
    reference: (&Source, &Spec),
    rows: &[Vec<u32>],
    precision: Precision,
    stop: &AtomicBool,
) -> Result<EncoderAgreement, EvalError> {
    if candidate.1.hidden_size != reference.1.hidden_size {
        return Err(EvalError::Unusable("the two encoders differ in width".to_owned()));
    }
    let candidate = Runner::new(candidate.0, candidate.1, precision, stop)?;
    let reference = Runner::new(reference.0, reference.1, precision, stop)?;
    let width = reference.spec.hidden_size;
    let (mut cosines, mut error, mut energy, mut tokens) = (0.0, 0.0, 0.0, 0);
    for rows in rows.chunks(8) {
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let have = candidate.hidden(&rows, &mut || {})?;
        for (have, want) in have.iter().zip(&reference.hidden(&rows, &mut || {})?) {
            cosines += cosine(&mean(have, width), &mean(want, width));
            for (have, want) in have.iter().zip(want) {
                error += f64::from(have - want).powi(2);
                energy += f64::from(*want).powi(2);
            }
            tokens += want.len() / width;
        }
    }
    let embedding_cosine = cosines / rows.len().max(1) as f64;
    Ok(EncoderAgreement { embedding_cosine, hidden_error: error / energy, tokens })
}

fn mean(states: &[f32], width: usize) -> Vec<f64> {
    let mut mean = vec![0.0; width];
    for state in states.chunks_exact(width) {
        mean.iter_mut().zip(state).for_each(|(mean, value)| *mean += f64::from(*value));
    }
    mean
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
