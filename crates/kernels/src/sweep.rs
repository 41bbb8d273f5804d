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

/// Decides several rows' values together, a column at a time, as the sweep reaches it.
pub trait StripQuantizer {
    /// Puts the final values of `column` in place of the strip's current ones.
    fn quantize(&mut self, column: usize, values: &mut [f32]);
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
    sweep_blockwise(weights, factor, bounds, quantizers, |_, _, _| {})
}

/// As [`sweep`], where `begin` sees all rows at the beginning of each block of columns, with every
/// update so far, and may tell the quantizers, in the order of the rows, what it makes of them.
///
/// # Panics
/// When the slices do not fit each other.
pub fn sweep_blockwise<Q: RowQuantizer + Send>(
    weights: &mut [f32],
    factor: &[f32],
    bounds: &[usize],
    quantizers: &mut [Q],
    mut begin: impl FnMut(Range<usize>, &[f32], &mut dyn Iterator<Item = &mut Q>),
) -> Vec<f64> {
    let mut losses = vec![0.0; quantizers.len()];
    let strips = quantizers.chunks_mut(STRIP).zip(losses.chunks_mut(STRIP));
    let mut strips: Vec<_> = strips.collect();
    let begin = |block, weights: &[f32], strips: &mut [(&mut [Q], &mut [f64])]| {
        begin(block, weights, &mut strips.iter_mut().flat_map(|(rows, _)| rows.iter_mut()));
    };
    sweep_with(weights, factor, bounds, STRIP, &mut strips, begin, |(rows, losses), part| {
        let lines = part.weights.chunks_exact_mut(part.columns);
        let lines = lines.zip(part.errors.chunks_exact_mut(part.block.len()));
        for (((row, errors), quantizer), loss) in lines.zip(rows.iter_mut()).zip(losses.iter_mut())
        {
            *loss += sweep_row(row, errors, factor, part.block.clone(), quantizer);
        }
    });
    losses
}

/// As [`sweep`], where each of `quantizers` has `rows_per_strip` rows, the last one those that are
/// left.
///
/// # Panics
/// When the slices do not fit each other.
pub fn sweep_strips<Q: StripQuantizer + Send>(
    weights: &mut [f32],
    factor: &[f32],
    bounds: &[usize],
    rows_per_strip: usize,
    quantizers: &mut [Q],
) {
    let begin = |_, _: &[f32], _: &mut [Q]| {};
    sweep_with(weights, factor, bounds, rows_per_strip, quantizers, begin, |quantizer, part| {
        sweep_strip(part, factor, quantizer);
    });
}

/// A block of columns of one strip of rows.
struct Part<'a> {
    /// Whole rows.
    weights: &'a mut [f32],
    /// Each `e` of the block's columns, row-major.
    errors: &'a mut [f32],
    columns: usize,
    block: Range<usize>,
}

/// The loop over blocks, shared by both sweeps: `begin` sees all rows before each block, `fix` does
/// a block's columns in one strip.
fn sweep_with<S: Send>(
    weights: &mut [f32],
    factor: &[f32],
    bounds: &[usize],
    rows_per_strip: usize,
    strips: &mut [S],
    mut begin: impl FnMut(Range<usize>, &[f32], &mut [S]),
    fix: impl Fn(&mut S, Part<'_>) + Sync,
) {
    let columns = bounds.last().copied().unwrap_or(0);
    if columns == 0 {
        return;
    }
    let rows = weights.len() / columns;
    assert_eq!(weights.len(), rows * columns, "weights are rows times columns");
    assert_eq!(rows.div_ceil(rows_per_strip), strips.len(), "a quantizer for each strip");
    assert_eq!(factor.len(), columns * columns, "the factor is square");
    let mut errors = vec![];
    for block in bounds.windows(2) {
        let block = block[0]..block[1];
        begin(block.clone(), weights, strips);
        errors.clear();
        errors.resize(rows * block.len(), 0.0);
        weights
            .par_chunks_mut(rows_per_strip * columns)
            .zip(errors.par_chunks_mut(rows_per_strip * block.len()))
            .zip(strips.par_iter_mut())
            .for_each(|((weights, errors), strip)| {
                fix(strip, Part { weights, errors, columns, block: block.clone() });
            });
        update_beyond(weights, &errors, factor, block, columns);
    }
}

/// Fixes a block's columns in all rows of a strip, leaving each `e` in its errors.
fn sweep_strip<Q: StripQuantizer>(part: Part<'_>, factor: &[f32], quantizer: &mut Q) {
    let Part { weights, errors, columns, block } = part;
    let isa = Isa::detect();
    let mut values = vec![];
    for (place, column) in block.clone().enumerate() {
        let factor = &factor[column * columns..][column..columns];
        values.clear();
        values.extend(weights.chunks_exact(columns).map(|row| row[column]));
        quantizer.quantize(column, &mut values);
        let lines = weights.chunks_exact_mut(columns).zip(errors.chunks_exact_mut(block.len()));
        for ((row, errors), quantized) in lines.zip(&values) {
            let error = (row[column] - quantized) / factor[0];
            row[column] = *quantized;
            subtract(isa, &mut row[column + 1..block.end], error, &factor[1..block.end - column]);
            errors[place] = error;
        }
    }
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
        fn strips_give_what_rows_give(rows in 1_usize..40, n in 1_usize..150, per_strip in 1_usize..20) {
            struct Column;
            impl StripQuantizer for Column {
                fn quantize(&mut self, _column: usize, values: &mut [f32]) {
                    values.iter_mut().for_each(|value| *value = value.round_ties_even());
                }
            }
            let value = |i: usize| ((i * 7919) % 1013) as f32 / 506.5 - 1.0;
            let at = |j: usize, k: usize| if j == k { 1.5 } else { value(j * n + k) / n as f32 };
            let factor: Vec<f32> = (0..n * n).map(|i| at(i / n, i % n)).collect();
            let mut by_rows: Vec<f32> = (0..rows * n).map(|i| 4.0 * value(3 * i + 1)).collect();
            let mut by_strips = by_rows.clone();
            let mut quantizers: Vec<Integers> = (0..rows).map(|_| Integers).collect();
            sweep(&mut by_rows, &factor, &block_bounds(n, 1), &mut quantizers);
            let mut strips: Vec<Column> = (0..rows.div_ceil(per_strip)).map(|_| Column).collect();
            sweep_strips(&mut by_strips, &factor, &block_bounds(n, 1), per_strip, &mut strips);
            prop_assert_eq!(by_rows, by_strips);
        }

        #[test]
        fn every_group_lies_in_a_block_or_starts_one(columns in 0_usize..700, group in 1_usize..800) {
            let bounds = block_bounds(columns, group);
            prop_assert_eq!((bounds[0], bounds[bounds.len() - 1]), (0, columns));
            prop_assert!(bounds.windows(2).all(|b| b[0] < b[1] && b[1] - b[0] <= BLOCK));
            for start in (0..columns).step_by(group.min(columns).max(1)) {
                let end = columns.min(start + group);
                let inside = bounds.windows(2).any(|b| b[0] <= start && end <= b[1]);
                prop_assert!(inside || bounds.contains(&start));
            }
        }
    }
}
