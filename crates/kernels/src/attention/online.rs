//! The softmax of a block of scores, given the blocks before it.

use std::ops::Range;

use crate::isa::Isa;
use crate::math::exp;
use crate::simd::{add_lanes, larger, reduce, vectorized};
use crate::tile::{BLOCK, Block, Lane, PANEL, Tile, write_factors};

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

/// Turns products of queries and keys into `exp(scale · product - maximum)`, and into zero outside
/// the keys that a row has `seen`, packed as two left panels. The sums are of the packed values,
/// rounded if these are, so that the weights add up to one.
pub(super) fn softmax(
    isa: Isa,
    lane: Lane,
    scores: &mut [Block],
    seen: &[Range<u32>; BLOCK],
    scale: f32,
    rows: &mut Rows,
    probabilities: &mut [Tile],
) {
    let kernel = match lane {
        Lane::F32 => softmax_f32,
        Lane::RoundedF32 => softmax_rounded,
        Lane::Bf16Pair => softmax_pairs,
    };
    kernel(isa, scores, seen, scale, rows, probabilities);
}

macro_rules! softmax {
    ($name:ident, $lane:expr) => {
        vectorized! {
            fn $name(
                scores: &mut [Block],
                seen: &[Range<u32>; BLOCK],
                scale: f32,
                rows: &mut Rows,
                probabilities: &mut [Tile],
            ) {
                softmax_rows($lane, scores, seen, scale, rows, probabilities);
            }
        }
    };
}

softmax!(softmax_f32, Lane::F32);
softmax!(softmax_rounded, Lane::RoundedF32);
softmax!(softmax_pairs, Lane::Bf16Pair);

#[inline(always)]
fn softmax_rows(
    lane: Lane,
    scores: &mut [Block],
    seen: &[Range<u32>; BLOCK],
    scale: f32,
    rows: &mut Rows,
    probabilities: &mut [Tile],
) {
    // Lanes are reduced in loops of their own: a reduction beside them makes the compiler take the
    // vectors apart.
    let mut lanes = [[0.0; BLOCK]; BLOCK];
    for ((row, seen), lanes) in seen.iter().enumerate().zip(&mut lanes) {
        *lanes = scale_and_mask(scores, row, seen, scale);
    }
    let before = rows.maximum;
    for (maximum, lanes) in rows.maximum.iter_mut().zip(&lanes) {
        *maximum = larger(*maximum, reduce(*lanes, larger));
    }
    let (upper, lower) = probabilities.split_at_mut(probabilities.len() / 2);
    for (row, lanes) in lanes.iter_mut().enumerate() {
        let panel = if row < PANEL { &mut *upper } else { &mut *lower };
        let tiles = panel.chunks_exact_mut(panel.len() / scores.len());
        let mut sums = [0.0; BLOCK];
        for (block, tiles) in scores.iter().zip(tiles) {
            let weights = exponentials(&block.0[row], rows.maximum[row]);
            let weights = write_factors(lane, weights, tiles, row % PANEL);
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight;
            }
        }
        *lanes = sums;
    }
    for row in 0..BLOCK {
        rows.factor[row] = exp(before[row] - rows.maximum[row]);
        rows.sum[row] = rows.sum[row] * rows.factor[row] + add_lanes(lanes[row]);
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

vectorized! {
    /// Writes a row of the output, times `scale`.
    pub(super) fn normalize(output: &[Block], row: usize, scale: f32, out: &mut [f32]) {
        for (out, block) in out.chunks_mut(BLOCK).zip(output) {
            let values = &block.0[row];
            match out.first_chunk_mut::<BLOCK>() {
                Some(out) => {
                    for lane in 0..BLOCK {
                        out[lane] = values[lane] * scale;
                    }
                }
                None => {
                    for (lane, out) in out.iter_mut().enumerate() {
                        *out = values[lane] * scale;
                    }
                }
            }
        }
    }
}

/// Multiplies a row by `scale`, replaces what it has not seen by -∞, and returns the largest values
/// of each lane.
#[inline(always)]
fn scale_and_mask(scores: &mut [Block], row: usize, seen: &Range<u32>, scale: f32) -> [f32; BLOCK] {
    let mut largest = [f32::NEG_INFINITY; BLOCK];
    let mut first = 0;
    for block in scores {
        let scores = &mut block.0[row];
        for lane in 0..BLOCK {
            let key = first + lane as u32;
            let visible = key >= seen.start && key < seen.end;
            let score = if visible { scores[lane] * scale } else { f32::NEG_INFINITY };
            scores[lane] = score;
            largest[lane] = larger(largest[lane], score);
        }
        first += BLOCK as u32;
    }
    largest
}

#[inline(always)]
fn exponentials(scores: &[f32; BLOCK], maximum: f32) -> [f32; BLOCK] {
    let mut weights = [0.0; BLOCK];
    for (weight, score) in weights.iter_mut().zip(scores) {
        *weight = exp(score - maximum);
    }
    weights
}
