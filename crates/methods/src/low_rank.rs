//! The best approximation of a matrix by a product of two thin ones, in a measure of errors.
//!
//! Of all matrices of rank `r` it is `U Uᵀ E` that minimises `‖(E − A B) S‖`, with `U` the first `r`
//! eigenvectors of `E S Sᵀ Eᵀ`: no inverse, so that a Gram matrix without full rank is harmless. Where
//! that matrix is the larger side, `U` comes from the eigenvectors of `Sᵀ Eᵀ E S`. What is left is the
//! sum of the squares of the singular values of `E S` after the first `r` (Eckart and Young, 1936).

use crate::eigen::{Eigen, eigen, product};
use faer::{Mat, MatRef};
use lapidary_weight::{FloatType, LowRank};

/// The two factors of rank `rank` that stand for a matrix, and the error that is left in the measure;
/// `None` when the eigenvalues cannot be found.
pub(crate) fn factors(
    matrix: MatRef<'_, f64>,
    metric: &Metric,
    rank: usize,
    dtype: FloatType,
) -> Option<(LowRank, f64)> {
    let (basis, loss) = metric.dominant(matrix, rank)?;
    let right = product(basis.transpose(), matrix);
    Some((balanced(basis.as_ref(), right.as_ref(), dtype), loss))
}

/// `D = S Sᵀ`, what an error is weighted by: `‖E S‖² = tr(E D Eᵀ)`.
pub(crate) enum Metric {
    Plain,
    Diagonal(Vec<f64>),
    Full(Mat<f64>),
}

impl Metric {
    /// A Gram matrix `[n, n]`, row-major.
    pub(crate) fn full(gram: &[f32], n: usize) -> Self {
        Self::Full(Mat::from_fn(n, n, |i, j| f64::from(gram[i * n + j])))
    }

    /// The first `rank` left singular vectors of `E S`, as columns, and the sum of the squares of
    /// the other singular values.
    fn dominant(&self, error: MatRef<'_, f64>, rank: usize) -> Option<(Mat<f64>, f64)> {
        let (m, n) = (error.nrows(), error.ncols());
        if m <= n {
            let Eigen { values, vectors } = eigen(self.of_outputs(error).as_ref())?;
            return Some((vectors.subcols(0, rank).to_owned(), rest(&values, rank)));
        }
        let weighted = self.rooted(error)?;
        let square = product(weighted.transpose(), weighted.as_ref());
        let Eigen { values, vectors } = eigen(square.as_ref())?;
        let mut basis = product(weighted.as_ref(), vectors.subcols(0, rank));
        // What is left of directions without error is rounding, and no basis of anything.
        let least = 1e-14 * n as f64 * values.first().map_or(0.0, |value| value.max(0.0));
        for (column, value) in values.iter().take(rank).enumerate() {
            let length = if *value > least { value.sqrt() } else { f64::INFINITY };
            (0..m).for_each(|row| basis[(row, column)] /= length);
        }
        Some((basis, rest(&values, rank)))
    }

    /// `E D Eᵀ`.
    fn of_outputs(&self, error: MatRef<'_, f64>) -> Mat<f64> {
        match self {
            Self::Plain => product(error, error.transpose()),
            Self::Diagonal(diagonal) => {
                let weighted = scaled(error, |column| diagonal[column]);
                product(weighted.as_ref(), error.transpose())
            }
            Self::Full(gram) => product(product(error, gram.as_ref()).as_ref(), error.transpose()),
        }
    }

    /// `E S`.
    fn rooted(&self, error: MatRef<'_, f64>) -> Option<Mat<f64>> {
        Some(match self {
            Self::Plain => error.to_owned(),
            Self::Diagonal(diagonal) => scaled(error, |column| diagonal[column].sqrt()),
            Self::Full(gram) => {
                let Eigen { values, vectors } = eigen(gram.as_ref())?;
                let root = scaled(vectors.as_ref(), |column| values[column].max(0.0).sqrt());
                product(error, root.as_ref())
            }
        })
    }
}

fn scaled(matrix: MatRef<'_, f64>, scale: impl Fn(usize) -> f64) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |row, column| {
        matrix[(row, column)] * scale(column)
    })
}

fn rest(values: &[f64], rank: usize) -> f64 {
    values.iter().skip(rank).map(|value| value.max(0.0)).sum()
}

/// `left · right` as a term whose two factors are of equal length in each of the inner dimensions,
/// so that 16 bits hold both.
fn balanced(left: MatRef<'_, f64>, right: MatRef<'_, f64>, dtype: FloatType) -> LowRank {
    let (rows, rank, cols) = (left.nrows(), left.ncols(), right.ncols());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let scales: Vec<f64> = (0..rank)
        .map(|k| {
            let of_left = squares(&mut (0..rows).map(|row| left[(row, k)])).sqrt();
            let of_right = squares(&mut (0..cols).map(|column| right[(k, column)])).sqrt();
            if of_left > 0.0 && of_right > 0.0 { (of_right / of_left).sqrt() } else { 0.0 }
        })
        .collect();
    let round = |value: f64| dtype.round(value as f32);
    let divided = |value: f64, scale: f64| if scale > 0.0 { value / scale } else { 0.0 };
    LowRank {
        rank,
        left: (0..rows * rank)
            .map(|at| round(left[(at / rank, at % rank)] * scales[at % rank]))
            .collect(),
        right: (0..rank * cols)
            .map(|at| round(divided(right[(at / cols, at % cols)], scales[at / cols])))
            .collect(),
        dtype,
    }
}
