//! Where products are written: strips of rows of `[tokens, rows]`, each by one thread.

use std::ops::Range;
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

    /// The right to write these strips, given once. It is asked for once for many strips: a thread that
    /// claims waits for all that it has read, and would do so between one strip and the next.
    pub(super) fn claim(&self, strips: Range<usize>) -> Part<'_, 'a> {
        let all = self.rows.div_ceil(STRIP);
        assert!(strips.end <= all, "strips {strips:?} of a matrix of {} rows", self.rows);
        assert!(self.claimed.claim(strips.clone()), "strips {strips:?} are written twice");
        Part { output: self, strips }
    }
}

/// Some strips of an [`Output`], held by one thread.
pub(super) struct Part<'o, 'a> {
    output: &'o Output<'a>,
    strips: Range<usize>,
}

impl Part<'_, '_> {
    /// Writes the rows of one of the strips for the tokens from `first` on; what is beyond the last row
    /// is left out.
    #[inline(always)]
    pub(super) fn write(&mut self, strip: usize, first: usize, tokens: &[[f32; STRIP]]) {
        let rows = self.output.rows;
        assert!(first + tokens.len() <= self.output.tokens && self.strips.contains(&strip));
        let count = STRIP.min(rows - strip * STRIP);
        let out = |token: usize| {
            // SAFETY: the strip was claimed once, so that only this part reaches its rows.
            unsafe { self.output.values.slice_mut((first + token) * rows + strip * STRIP, count) }
        };
        // Asked once, so that whole strips are written by single instructions.
        if count < STRIP {
            for (token, values) in tokens.iter().enumerate() {
                out(token).copy_from_slice(&values[..count]);
            }
            return;
        }
        for (token, values) in tokens.iter().enumerate() {
            if let Some(out) = out(token).first_chunk_mut::<STRIP>() {
                *out = *values;
            }
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

    /// Whether nobody has claimed any of these numbers before.
    pub(super) fn claim(&self, numbers: Range<usize>) -> bool {
        let mut is_first = true;
        let mut next = numbers.start;
        while next < numbers.end {
            let (index, low) = (next / 64, next % 64);
            let count = (64 - low).min(numbers.end - next);
            let bits = (u64::MAX >> (64 - count)) << low;
            let word = if index < WORDS { &self.few[index] } else { &self.many[index - WORDS] };
            is_first &= word.fetch_or(bits, Ordering::Relaxed) & bits == 0;
            next += count;
        }
        is_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_is_given_once(
            count in 1_usize..20_000,
            ranges in prop::collection::vec((0_usize..20_000, 0_usize..300), 1..20),
        ) {
            let (claims, mut given) = (Claims::new(count), vec![false; count]);
            for (first, length) in ranges {
                let range = first.min(count)..(first + length).min(count);
                let is_free = range.clone().all(|number| !given[number]);
                prop_assert_eq!(claims.claim(range.clone()), is_free);
                given[range].fill(true);
            }
        }
    }
}
