//! What methods that go by gradients have in common: the first rows, not longer than need be, and the
//! loss that a model has.

use super::{Walk, refused};
use crate::{MethodError, ParamError};
use lapidary_model::ModelError;
use lapidary_model::gradient::{Loss, NextToken, Projection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What gradients are taken of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Sample {
    /// Calibration rows.
    pub rows: usize,
    /// Tokens of each, at the most.
    pub tokens: usize,
}

impl Default for Sample {
    fn default() -> Self {
        Self { rows: 32, tokens: 128 }
    }
}

impl Sample {
    pub(crate) fn check(&self) -> Result<(), ParamError> {
        match (self.rows, self.tokens) {
            (0, _) => Err(ParamError::new("rows", "gradients need at least one row")),
            (_, 0 | 1) => Err(ParamError::new("tokens", "a loss needs at least two tokens")),
            _ => Ok(()),
        }
    }

    /// Tokens of all rows: what a backward pass holds the residual stream of, before every block.
    pub(crate) fn tokens(&self) -> usize {
        self.rows * self.tokens
    }

    /// The rows.
    pub(crate) fn of(&self, walk: &dyn Walk) -> Vec<Vec<u32>> {
        let (tokens, seq_len) = walk.rows();
        let rows = tokens.chunks_exact(seq_len.max(1)).take(self.rows);
        rows.map(|row| row[..row.len().min(self.tokens)].to_vec()).collect()
    }
}

/// The loss of a model: of the next token where it has a head that predicts one, else how its embedding
/// moves.
pub(crate) fn loss<'a>(walk: &'a dyn Walk) -> Result<Box<dyn Loss + 'a>, MethodError> {
    let spec = walk.spec();
    if spec.head.is_some() && spec.causal {
        return Ok(Box::new(NextToken::new(spec, walk.tensors()).map_err(failed)?));
    }
    match spec.head {
        None => Ok(Box::new(Projection { seed: 0, hidden_size: spec.hidden_size })),
        Some(_) => Err(refused(
            "the model",
            "predicts tokens in place, of which calibration text has no labels; use minitron",
        )),
    }
}

/// A model that could not be run.
pub(crate) fn failed(error: ModelError) -> MethodError {
    MethodError::Walk(Box::new(error))
}
