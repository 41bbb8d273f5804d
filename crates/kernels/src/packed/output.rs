//! Where products are written: strips of rows of `[tokens, rows]`, each by one thread.

use std::sync::atomic::{AtomicU64, Ordering};

use super::STRIP;
use crate::shared::SharedSlice;

/// Claims kept without allocating: one bit a strip.
const WORDS: usize = 128;

/// The result `[tokens, rows]` of one product, shared by the threads that compute it.
///
/// Every strip may be written once: a second attempt panics instead of racing with the first, which
/// is what makes sharing this safe.
pub struct Output<'a> {
    values: SharedSlice<'a, f32>,
    tokens: usize,
    rows: usize,
    claimed: Claims,
}

impl<'a> Output<'a> {
    /// Room for the products of `tokens` rows with a matrix of `rows` rows. What is there is
    /// overwritten.
    ///
    /// # Panics
    /// If `values` has another length than `tokens × rows`.
    pub fn new(values: &'a mut [f32], tokens: usize, rows: usize) -> Self {
        assert_eq!(values.len(), tokens * rows, "the output has another shape");
        let claimed = Claims::new(rows.div_ceil(STRIP));
        Self { values: SharedSlice::new(values), tokens, rows, claimed }
    }

    /// Rows of the activations.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The right to write strip `strip`, given once.
    pub(super) fn claim(&self, strip: usize) -> Part<'_, 'a> {
        let first = strip * STRIP;
        assert!(first < self.rows, "strip {strip} of a matrix of {} rows", self.rows);
        assert!(self.claimed.claim(strip), "strip {strip} is written twice");
        Part { output: self, first, count: STRIP.min(self.rows - first) }
    }
}

/// One strip of an [`Output`], held by one thread.
pub(super) struct Part<'o, 'a> {
    output: &'o Output<'a>,
    first: usize,
    count: usize,
}

impl Part<'_, '_> {
    /// Writes the rows of this strip for one token; what is beyond the last row is left out.
    #[inline(always)]
    pub(super) fn write(&mut self, token: usize, values: &[f32; STRIP]) {
        assert!(token < self.output.tokens);
        // SAFETY: the strip was claimed once, so that only this part reaches its rows.
        let out = unsafe {
            self.output.values.slice_mut(token * self.output.rows + self.first, self.count)
        };
        match out.first_chunk_mut::<STRIP>() {
            Some(out) => *out = *values,
            None => out.copy_from_slice(&values[..self.count]),
        }
    }
}

/// One bit a strip, set by whoever comes first.
pub(super) struct Claims {
    few: [AtomicU64; WORDS],
    many: Vec<AtomicU64>,
}

impl Claims {
    pub(super) fn new(count: usize) -> Self {
        let more = count.div_ceil(64).saturating_sub(WORDS);
        let many = (0..more).map(|_| AtomicU64::new(0)).collect();
        Self { few: [const { AtomicU64::new(0) }; WORDS], many }
    }

    /// Whether nobody has claimed this number before.
    pub(super) fn claim(&self, number: usize) -> bool {
        let (word, bit) = (number / 64, 1_u64 << (number % 64));
        let word = if word < WORDS { &self.few[word] } else { &self.many[word - WORDS] };
        word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}
