//! The softmax of a block of scores, given the blocks before it.

use std::ops::Range;

use crate::convert::round_to_bf16;
use crate::math::exp;
use crate::simd::{LANES, add_lanes, vectorized};
use crate::tile::{BLOCK, Block};

/// Keys of a block of scores.
pub(super) const KEYS: usize = 256;

/// What is known of each row of queries after some blocks of keys.
pub(super) struct Rows {
    /// The largest score so far.
    maximum: [f32; BLOCK],
    /// `Σ exp(score - maximum)` so far.
    pub(super) sum: [f32; BLOCK],
    /// What the output so far has to be multiplied by, because the maximum has grown.
    factor: [f32; BLOCK],
}

impl Default for Rows {
    fn default() -> Self {
        // Lower than any score, but finite: a row that has seen no key yet must not make NaN.
        Self { maximum: [f32::MIN; BLOCK], sum: [0.0; BLOCK], factor: [1.0; BLOCK] }
    }
}

vectorized! {
    /// Replaces products of queries and keys by `exp(scale · product - maximum)`, and by zero
    /// outside the keys that a row has `seen`; rounded to bf16 if they will be multiplied so, and
    /// then summed as rounded, so that the weights add up to one.
    pub(super) fn softmax(
        scores: &mut [Block],
        seen: &[Range<usize>; BLOCK],
        scale: f32,
        rounded: bool,
        rows: &mut Rows,
    ) {
        for (row, seen) in seen.iter().enumerate() {
            let mut lanes = [f32::MIN; LANES];
            for_each_seen(scores, row, seen, |lane, score| {
                let score = *score * scale;
                lanes[lane] = if score > lanes[lane] { score } else { lanes[lane] };
            });
            let before = rows.maximum[row];
            let maximum = lanes.iter().fold(before, |a, b| if *b > a { *b } else { a });
            let mut sums = [0.0; LANES];
            for_each_seen(scores, row, seen, |lane, score| {
                let weight = exp(*score * scale - maximum);
                let weight = if rounded { round_to_bf16(weight) } else { weight };
                sums[lane] += weight;
                *score = weight;
            });
            let factor = exp(before - maximum);
            rows.maximum[row] = maximum;
            rows.factor[row] = factor;
            rows.sum[row] = rows.sum[row] * factor + add_lanes(sums);
        }
    }
}

vectorized! {
    /// Brings the output of earlier blocks to the maximum of the latest.
    pub(super) fn rescale(output: &mut [Block], rows: &Rows) {
        for block in output {
            for (values, factor) in block.0.iter_mut().zip(&rows.factor) {
                for value in values {
                    *value *= factor;
                }
            }
        }
    }
}

/// Calls `visit` with the lane and score of each key that the row has seen; the other scores of the
/// row become zero.
#[inline(always)]
fn for_each_seen(
    scores: &mut [Block],
    row: usize,
    seen: &Range<usize>,
    mut visit: impl FnMut(usize, &mut f32),
) {
    for (index, block) in scores.iter_mut().enumerate() {
        let first = index * BLOCK;
        let chunks = block.0[row].as_chunks_mut::<LANES>().0;
        for (half, chunk) in chunks.iter_mut().enumerate() {
            let first = first + half * LANES;
            if seen.start <= first && first + LANES <= seen.end {
                for (lane, score) in chunk.iter_mut().enumerate() {
                    visit(lane, score);
                }
            } else {
                for (lane, score) in chunk.iter_mut().enumerate() {
                    if seen.contains(&(first + lane)) {
                        visit(lane, score);
                    } else {
                        *score = 0.0;
                    }
                }
            }
        }
    }
}
