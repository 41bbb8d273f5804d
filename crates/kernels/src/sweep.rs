//! The column sweep shared by GPTQ and its relatives.
//!
//! Columns of `W [m, n]` are fixed one after another; the error of each is spread over the columns
//! that are still free, so as to keep `W X` near. With `H = X Xᵀ` (damped) and `U` the upper
//! triangular factor of its inverse, `H⁻¹ = Uᵀ U`, column `j` in turn does, for every row,
//!
//! ```text
//! e = (w[j] − q[j]) / U[j, j]        w[j..] −= e · U[j, j..]
//! ```
//!
//! and the weighted error of the result is `Σ e² = tr((W − Q) H (W − Q)ᵀ)`. Updates within a block
//! of columns are applied at once, those beyond it together by one matrix product per block
//! (Frantar et al., 2022, section 3.3).

use crate::isa::Isa;
use crate::matrix::{PackedMatrix, Precision};
use crate::simd::vectorized;
use rayon::prelude::*;
use std::ops::Range;

/// Columns of a block when groups do not ask for other bounds.
const BLOCK: usize = 128;

/// Rows swept together by one thread.
const STRIP: usize = 16;

/// Rows whose later columns are updated by one product: bounds the memory it takes.
const UPDATE_ROWS: usize = 256;

/// Decides one row's values as the sweep reaches them.
pub trait RowQuantizer {
    /// The final value of `column`. `rest` holds the row's current values from `column` on; those
    /// of the column's own group have received every update so far, so that a group's grid can be
    /// fitted when its first column is reached.
    fn quantize(&mut self, column: usize, rest: &[f32]) -> f32;
}

/// Bounds of the blocks for groups of `group` columns: every group lies in one block or starts one.
pub fn block_bounds(columns: usize, group: usize) -> Vec<usize> {
    let group = group.clamp(1, columns.max(1));
    let mut bounds = vec![];
    if group <= BLOCK {
        bounds.extend((0..columns).step_by(BLOCK / group * group));
    } else {
        for start in (0..columns).step_by(group) {
            bounds.extend((start..columns.min(start + group)).step_by(BLOCK));
        }
    }
    bounds.push(columns);
    bounds
}

/// Sweeps `weights`, row-major `[quantizers.len(), n]`, in place: on return it holds the quantized
/// values. `factor` is `U`, row-major `[n, n]` with a positive diagonal; what is below its diagonal
/// is not read. `bounds` are ascending block bounds from 0 to `n`.
///
/// Returns `Σ e²` of each row. The result does not depend on the number of threads.
///
/// # Panics
/// When the slices do not fit each other.
pub fn sweep<Q: RowQuantizer + Send>(
    weights: &mut [f32],
    factor: &[f32],
    bounds: &[usize],
    quantizers: &mut [Q],
) -> Vec<f64> {
    let rows = quantizers.len();
    let columns = bounds.last().copied().unwrap_or(0);
    assert_eq!(weights.len(), rows * columns, "weights are rows times columns");
    assert_eq!(factor.len(), columns * columns, "the factor is square");
    if columns == 0 {
        return vec![0.0; rows];
    }
    let mut losses = vec![0.0; rows];
    let mut errors = vec![];
    for block in bounds.windows(2) {
        let (start, end) = (block[0], block[1]);
        let width = end - start;
        errors.clear();
        errors.resize(rows * width, 0.0);
        weights
            .par_chunks_mut(STRIP * columns)
            .zip(errors.par_chunks_mut(STRIP * width))
            .zip(quantizers.par_chunks_mut(STRIP))
            .zip(losses.par_chunks_mut(STRIP))
            .for_each(|(((weights, errors), quantizers), losses)| {
                let rows = weights.chunks_exact_mut(columns).zip(errors.chunks_exact_mut(width));
                for (((row, errors), quantizer), loss) in rows.zip(quantizers).zip(losses) {
                    *loss += sweep_row(row, errors, factor, start..end, quantizer);
                }
            });
        update_beyond(weights, &errors, factor, start..end, columns);
    }
    losses
}

/// Fixes one row's columns of a block; returns its `Σ e²` and leaves each `e` in `errors`.
fn sweep_row<Q: RowQuantizer>(
    row: &mut [f32],
    errors: &mut [f32],
    factor: &[f32],
    block: Range<usize>,
    quantizer: &mut Q,
) -> f64 {
    let (columns, isa) = (row.len(), Isa::detect());
    let mut loss = 0.0;
    for (column, slot) in block.clone().zip(errors) {
        let factor = &factor[column * columns..][column..columns];
        let quantized = quantizer.quantize(column, &row[column..]);
        let error = (row[column] - quantized) / factor[0];
        row[column] = quantized;
        subtract(isa, &mut row[column + 1..block.end], error, &factor[1..block.end - column]);
        *slot = error;
        loss += f64::from(error) * f64::from(error);
    }
    loss
}

/// `W[:, end..] −= E · U[start..end, end..]`.
fn update_beyond(
    weights: &mut [f32],
    errors: &[f32],
    factor: &[f32],
    block: Range<usize>,
    columns: usize,
) {
    let (width, beyond) = (block.len(), columns - block.end);
    if beyond == 0 {
        return;
    }
    // A packed matrix multiplies by its transpose.
    let mut transposed = vec![0.0; beyond * width];
    for (k, row) in block.clone().enumerate() {
        let values = &factor[row * columns + block.end..][..beyond];
        for (value, target) in values.iter().zip(transposed[k..].iter_mut().step_by(width)) {
            *target = *value;
        }
    }
    let spread = PackedMatrix::new(&transposed, beyond, width, Precision::F32);
    let mut change = vec![];
    let strips = weights.chunks_mut(UPDATE_ROWS * columns).zip(errors.chunks(UPDATE_ROWS * width));
    for (weights, errors) in strips {
        let rows = errors.len() / width;
        change.clear();
        change.resize(rows * beyond, 0.0);
        spread.multiply(errors, rows, None, &mut change);
        for (row, change) in weights.chunks_exact_mut(columns).zip(change.chunks_exact(beyond)) {
            row[block.end..].iter_mut().zip(change).for_each(|(weight, change)| *weight -= change);
        }
    }
}

vectorized! {
    /// `from −= factor · times`.
    fn subtract(from: &mut [f32], factor: f32, times: &[f32]) {
        for (from, times) in from.iter_mut().zip(times) {
            *from -= factor * times;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Integers;

    impl RowQuantizer for Integers {
        fn quantize(&mut self, _column: usize, rest: &[f32]) -> f32 {
            rest[0].round_ties_even()
        }
    }

    /// The recursion column by column in f64, no blocks: the definition.
    fn oracle(weights: &[f32], factor: &[f32], n: usize) -> (Vec<f64>, f64) {
        let mut w: Vec<f64> = weights.iter().map(|v| f64::from(*v)).collect();
        let mut loss = 0.0;
        for row in w.chunks_exact_mut(n) {
            for j in 0..n {
                let quantized = f64::from((row[j] as f32).round_ties_even());
                let error = (row[j] - quantized) / f64::from(factor[j * n + j]);
                for k in j + 1..n {
                    row[k] -= error * f64::from(factor[j * n + k]);
                }
                row[j] = quantized;
                loss += error * error;
            }
        }
        (w, loss)
    }

    #[test]
    fn the_hand_case_of_two_correlated_columns() {
        // H = [[1, .9], [.9, 1]]: rounding 0.4 down moves the second weight to 0.76, which rounds up.
        let d = 1.0 - 0.81_f32;
        let factor = [(1.0 / d).sqrt(), -0.9 / d / (1.0 / d).sqrt(), 0.0, 1.0];
        let mut w = [0.4, 0.4];
        let loss = sweep(&mut w, &factor, &[0, 2], &mut [Integers]);
        assert_eq!(w, [0.0, 1.0]);
        assert!((loss[0] - 0.088).abs() < 1e-6, "{loss:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn blocks_and_strips_change_nothing(rows in 1_usize..140, n in 1_usize..150, group in 1_usize..170, seed: u32) {
            let mut state = u64::from(seed) * 2 + 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
            };
            // Small off-diagonals: a rounding that falls differently in f32 and f64 stays rare, and
            // is skipped by comparing errors, not codes.
            let mut factor = vec![0.0; n * n];
            for j in 0..n {
                for k in j..n {
                    factor[j * n + k] = if j == k { 1.0 + next().abs() } else { next() / n as f32 };
                }
            }
            let weights: Vec<f32> = (0..rows * n).map(|_| 4.0 * next()).collect();
            let (_, expected) = oracle(&weights, &factor, n);
            let mut quantizers: Vec<Integers> = (0..rows).map(|_| Integers).collect();
            let mut swept = weights.clone();
            let losses = sweep(&mut swept, &factor, &block_bounds(n, group), &mut quantizers);
            let total: f64 = losses.iter().sum();
            prop_assert!((total - expected).abs() <= 1e-3 * expected + 1e-6, "{total} {expected}");
            prop_assert!(swept.iter().all(|v| *v == v.round()));
        }

        #[test]
        fn every_group_lies_in_a_block_or_starts_one(columns in 0_usize..700, group in 1_usize..800) {
            let bounds = block_bounds(columns, group);
            prop_assert_eq!((bounds[0], bounds[bounds.len() - 1]), (0, columns));
            prop_assert!(bounds.windows(2).all(|b| b[0] < b[1] && b[1] - b[0] <= BLOCK));
            for start in (0..columns).step_by(group.min(columns)) {
                let end = columns.min(start + group);
                let inside = bounds.windows(2).any(|b| b[0] <= start && end <= b[1]);
                prop_assert!(inside || bounds.contains(&start));
            }
        }
    }
}
