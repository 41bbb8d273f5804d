//! How fast a decoder is.

use crate::{Decoder, Piece, RuntimeError, Want};
use std::time::{Duration, Instant};

/// The times that some tokens took, repetition by repetition.
#[derive(Debug, Clone, Default)]
pub struct Timing {
    tokens: usize,
    times: Vec<Duration>,
}

/// Tokens a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Of the fastest repetition.
    pub best: f64,
    /// Of the middle one.
    pub median: f64,
}

impl Timing {
    /// Of so many tokens.
    pub fn of(tokens: usize) -> Self {
        Self { tokens, times: vec![] }
    }

    /// Takes in a repetition.
    pub fn add(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// Tokens a second; `None` before the first repetition.
    pub fn rate(&self) -> Option<Rate> {
        let mut times = self.times.clone();
        times.sort_unstable();
        let rate = |time: &Duration| self.tokens as f64 / time.as_secs_f64();
        Some(Rate { best: rate(times.first()?), median: rate(times.get(times.len() / 2)?) })
    }
}

impl Decoder {
    /// Time to take in a prompt of so many tokens, up to the logits after its last.
    ///
    /// # Errors
    /// When the context is shorter.
    pub fn time_prefill(&mut self, tokens: usize) -> Result<Duration, RuntimeError> {
        let tokens: Vec<u32> = (0..tokens).map(|index| self.some_token(index)).collect();
        self.truncate(0, 0);
        let begin = Instant::now();
        self.step_for_last(&tokens)?;
        let time = begin.elapsed();
        self.truncate(0, 0);
        Ok(time)
    }

    /// Time to take in so many tokens one by one, from an empty context on, with the logits after
    /// each.
    ///
    /// # Errors
    /// When the context is shorter.
    pub fn time_decoding(&mut self, tokens: usize) -> Result<Duration, RuntimeError> {
        self.truncate(0, 0);
        let begin = Instant::now();
        for index in 0..tokens {
            self.step_for_last(&[self.some_token(index)])?;
        }
        let time = begin.elapsed();
        self.truncate(0, 0);
        Ok(time)
    }

    fn step_for_last(&mut self, tokens: &[u32]) -> Result<(), RuntimeError> {
        let mut logits = self.step(&[Piece { sequence: 0, tokens, want: Want::Last }])?;
        std::hint::black_box(logits.next());
        Ok(())
    }

    /// Tokens in no order: which they are does not matter to the time.
    fn some_token(&self, index: usize) -> u32 {
        (index.wrapping_mul(7919).wrapping_add(17) % self.vocabulary()) as u32
    }
}
