//! Singular values of a matrix in a measure of errors, found without any of the library's algebra.

use lapidary_methods::Statistics;

/// Squares of the singular values of `[rows, cols]`, the greatest first: one-sided Jacobi.
pub(crate) fn singular_squares(matrix: &[f64], cols: usize) -> Vec<f64> {
    let mut columns: Vec<Vec<f64>> =
        (0..cols).map(|c| matrix.iter().skip(c).step_by(cols).copied().collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for _ in 0..40 {
        for p in 0..cols {
            for q in p + 1..cols {
                let (a, b) = (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]));
                let c = dot(&columns[p], &columns[q]);
                if c.abs() <= 1e-15 * (a * b).sqrt() {
                    continue;
                }
                let zeta = (b - a) / (2.0 * c);
                let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / t.hypot(1.0);
                for row in 0..columns[p].len() {
                    let (x, y) = (columns[p][row], columns[q][row]);
                    columns[p][row] = cosine * (x - t * y);
                    columns[q][row] = cosine * (t * x + y);
                }
            }
        }
    }
    let mut squares: Vec<f64> = columns.iter().map(|column| dot(column, column)).collect();
    squares.sort_by(|a, b| b.total_cmp(a));
    squares
}

/// The lower factor of a positive definite matrix.
fn cholesky(matrix: &[f32], n: usize) -> Vec<f64> {
    let mut lower = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| lower[i * n + k] * lower[j * n + k]).sum();
            let rest = f64::from(matrix[i * n + j]) - known;
            lower[i * n + j] = if i == j { rest.sqrt() } else { rest / lower[j * n + j] };
        }
    }
    lower
}

/// `E S` for `S Sᵀ` the weighting.
pub(crate) fn weighted(
    weight: &[f32],
    cols: usize,
    weighting: &str,
    statistics: &Statistics,
) -> Vec<f64> {
    let root: Vec<f64> = match weighting {
        "gram" => cholesky(&statistics.gram, cols),
        _ => (0..cols * cols)
            .map(|at| match (at / cols == at % cols, weighting) {
                (false, _) => 0.0,
                (true, "rms") => f64::from(statistics.gram[at]).sqrt(),
                (true, _) => 1.0,
            })
            .collect(),
    };
    let product = |row: &[f32], j: usize| -> f64 {
        (0..cols).map(|k| f64::from(row[k]) * root[k * cols + j]).sum()
    };
    weight.chunks_exact(cols).flat_map(|row| (0..cols).map(|j| product(row, j))).collect()
}
