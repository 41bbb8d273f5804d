//! `Σ a bᵀ` over rows of two matrices, gathered batch by batch: how two streams of inputs go together.

use crate::matrix::{PackedMatrix, Precision};
use rayon::prelude::*;

/// Rows multiplied at a time: bounds the memory of the transposes.
const ROWS_PER_ROUND: usize = 2048;

/// `AᵀB` in the making, for A and B of `n` columns.
pub struct Cross {
    n: usize,
    precision: Precision,
    sums: Vec<f32>,
}

impl Cross {
    /// A sum over no rows.
    pub fn new(n: usize, precision: Precision) -> Self {
        Self { n, precision, sums: vec![0.0; n * n] }
    }

    /// Adds `AᵀB` of further rows, both `[rows, n]`.
    ///
    /// # Panics
    /// If the two do not have the same whole number of rows.
    pub fn accumulate(&mut self, a: &[f32], b: &[f32]) {
        assert!(a.len() == b.len() && a.len().is_multiple_of(self.n.max(1)), "shapes differ");
        let mut product = vec![0.0; self.n * self.n];
        let round = (ROWS_PER_ROUND * self.n).max(1);
        for (a, b) in a.chunks(round).zip(b.chunks(round)) {
            let rows = a.len() / self.n;
            let right = PackedMatrix::new(&transposed(b, self.n), self.n, rows, self.precision);
            right.multiply(&transposed(a, self.n), self.n, None, &mut product);
            self.sums.iter_mut().zip(&product).for_each(|(sum, value)| *sum += value);
        }
    }

    /// The sums, row-major `[n, n]`.
    pub fn finish(self) -> Vec<f32> {
        self.sums
    }
}

/// The transpose of a matrix with `columns` columns.
pub fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.len() / columns.max(1);
    let mut result = vec![0.0; matrix.len()];
    // In squares, so that neither side is read or written far apart.
    const SIDE: usize = 32;
    let bands = result.par_chunks_mut((SIDE * rows).max(1)).enumerate();
    bands.for_each(|(band, lines)| {
        let first_column = band * SIDE;
        for first_row in (0..rows).step_by(SIDE) {
            let last_row = rows.min(first_row + SIDE);
            for (column, line) in lines.chunks_exact_mut(rows).enumerate() {
                let from = matrix[first_row * columns + first_column + column..].iter();
                let to = &mut line[first_row..last_row];
                to.iter_mut().zip(from.step_by(columns)).for_each(|(to, from)| *to = *from);
            }
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn it_is_the_sum_of_outer_products(rows in 0_usize..70, n in 1_usize..40, split in 0_usize..70) {
            let value = |i: usize| ((i * 7919) % 1013) as f32 / 506.5 - 1.0;
            let a: Vec<f32> = (0..rows * n).map(value).collect();
            let b: Vec<f32> = (0..rows * n).map(|i| value(3 * i + 5)).collect();
            let mut cross = Cross::new(n, Precision::F32);
            let split = split.min(rows) * n;
            cross.accumulate(&a[..split], &b[..split]);
            cross.accumulate(&a[split..], &b[split..]);
            let sums = cross.finish();
            for i in 0..n {
                for j in 0..n {
                    let products = (0..rows).map(|t| f64::from(a[t * n + i]) * f64::from(b[t * n + j]));
                    let expected: f64 = products.sum();
                    prop_assert!((f64::from(sums[i * n + j]) - expected).abs() < 1e-4);
                }
            }
        }
    }
}
