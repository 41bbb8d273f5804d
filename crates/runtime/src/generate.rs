//! Generation: requests in, text and scores out, several sequences at a time.
//!
//! A [`Scheduler`] owns a model and takes it from step to step; an [`Answer`](answer::Answer) turns
//! the rows of logits of one sequence into tokens, text and a reason to end.

mod answer;
mod scheduler;

pub use scheduler::{Counts, Job, Scheduler};

use crate::sampling::{Ranking, Sampling};
use crate::{Decoder, LogitRow, Piece, RuntimeError};
use lapidary_kernels::softmax::Summary;
use lapidary_model::ModelError;
use std::sync::Arc;

/// What a scheduler runs: a decoder, or what stands in for one.
pub trait LanguageModel {
    /// Tokens in the vocabulary: logits of a row.
    fn vocabulary(&self) -> usize;
    /// Most tokens of a sequence.
    fn context(&self) -> usize;
    /// Sequences that there is room for.
    fn sequences(&self) -> usize;
    /// Forgets the tokens of a sequence from `length` on.
    fn truncate(&mut self, sequence: usize, length: usize);
    /// Appends tokens to sequences; `on_row` gets the logits that the pieces want, in order.
    ///
    /// # Errors
    /// When the pieces do not fit; then nothing is appended.
    fn step(
        &mut self,
        pieces: &[Piece<'_>],
        on_row: &mut dyn FnMut(LogitRow<'_>),
    ) -> Result<(), RuntimeError>;
}

impl LanguageModel for Decoder {
    fn vocabulary(&self) -> usize {
        self.vocabulary()
    }

    fn context(&self) -> usize {
        self.context()
    }

    fn sequences(&self) -> usize {
        self.sequences()
    }

    fn truncate(&mut self, sequence: usize, length: usize) {
        self.truncate(sequence, length);
    }

    fn step(
        &mut self,
        pieces: &[Piece<'_>],
        on_row: &mut dyn FnMut(LogitRow<'_>),
    ) -> Result<(), RuntimeError> {
        let mut rows = self.step(pieces)?;
        while let Some(row) = rows.next() {
            on_row(row);
        }
        Ok(())
    }
}

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The tokens to be continued; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to be added.
    pub most_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer, beside the model's own.
    pub stop_tokens: Vec<u32>,
    /// Go on after the model's own end of an answer.
    pub ignore_end: bool,
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Score the tokens of the answer, and so many of the likeliest beside each.
    pub scores: Option<usize>,
    /// Score the tokens of the prompt, all but the first, in the same way.
    pub prompt_scores: Option<usize>,
}

impl Request {
    /// Checks that a model can do it.
    ///
    /// # Errors
    /// When the prompt is empty, has tokens that the model lacks, or leaves too little room, or a
    /// parameter is out of range.
    pub fn check(&self, vocabulary: usize, context: usize) -> Result<(), RuntimeError> {
        if self.prompt.is_empty() {
            let problem = "is empty, and there is nothing to be continued".to_owned();
            return Err(RuntimeError::Parameter { name: "prompt", problem });
        }
        if let Some(token) = self.prompt.iter().find(|token| **token as usize >= vocabulary) {
            return Err(ModelError::Token { token: *token, vocab_size: vocabulary }.into());
        }
        let (prompt, asked) = (self.prompt.len(), self.most_tokens);
        if prompt.saturating_add(asked) > context {
            return Err(RuntimeError::TooLong { prompt, asked, context });
        }
        self.sampling.check()
    }
}

/// What is told of a request, in this order: the prompt's scores if they are wanted, pieces of the
/// answer, its end.
#[derive(Debug, Clone)]
pub enum Event {
    /// Scores of the prompt's tokens, from the second on.
    Prompt(Vec<Score>),
    /// More of the answer.
    Piece {
        /// Text; whole characters, and nothing that may be part of a stop string.
        text: String,
        /// Tokens, about those of the text.
        tokens: Vec<Token>,
    },
    /// The answer is complete.
    End(Finish),
    /// There is no more of it, and why; all requests of a step that failed are told the same.
    Failed(Arc<RuntimeError>),
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Where its text begins: characters of the answer before it.
    pub offset: usize,
    /// How likely it was, where that was asked for.
    pub score: Option<Score>,
}

/// How likely a token was, before temperature and penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// The likeliest tokens and theirs.
    pub top: Vec<(u32, f64)>,
}

impl Score {
    /// The score of a token, with the `top` likeliest ones. The token's own number is the same as
    /// that among the likeliest, to the last bit.
    fn of(logits: &[f32], token: u32, top: usize, room: &mut Vec<u32>) -> Self {
        let summary = Summary::of(logits);
        let logprob = |token: u32| summary.log_probability(logits, token as usize);
        let top = match top {
            0 => vec![],
            1 => vec![(summary.argmax as u32, logprob(summary.argmax as u32))],
            _ => {
                let mut ranking = Ranking::new(logits, room);
                let ranks = 0..top.min(logits.len());
                ranks.map(|rank| ranking.token(rank)).map(|token| (token, logprob(token))).collect()
            }
        };
        Self { logprob: logprob(token), top }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
    /// Nobody wants it any more.
    Cancelled,
}

#[cfg(test)]
mod tests;
