//! The upper triangular factor `U` of a damped Gram matrix's inverse, `H⁻¹ = Uᵀ U`.

use dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltParams, LltRegularization, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, Par, Spec};

/// A factor, and what it took to get it.
#[derive(Debug)]
pub(crate) struct InverseFactor {
    /// `U`, row-major `[n, n]`; below its diagonal it is zero.
    pub(crate) upper: Vec<f32>,
    /// The damping that worked, as a multiple of the mean diagonal.
    pub(crate) damping: f64,
    /// Columns whose input was always zero.
    pub(crate) dead: Vec<usize>,
}

/// Largest damping tried.
const MOST_DAMPING: f64 = 1.0;

/// Factors the inverse of `H + damping · mean(diag H) · I` in f64, multiplying the damping by ten
/// until it succeeds, at most up to the mean diagonal itself. `order[i]` is the column that comes
/// `i`-th. A column whose input was always zero gets the mean diagonal: it is decoupled from the
/// others, so that it is rounded to nearest. `None` when no damping helps.
pub(crate) fn inverse_factor(gram: &[f32], order: &[usize], damping: f64) -> Option<InverseFactor> {
    let n = order.len();
    let diagonal = |i: usize| f64::from(gram[i * n + i]);
    let dead: Vec<usize> = (0..n).filter(|i| gram[i * n + i] <= 0.0).collect();
    let mean = (0..n).map(diagonal).sum::<f64>() / n.max(1) as f64;
    if !mean.is_finite() {
        return None;
    }
    // Without any input at all every column is as good as every other.
    let mean = if mean > 0.0 { mean } else { 1.0 };
    let mut damping = damping;
    loop {
        // With rows and columns reversed, the lower factor of `H` is the upper one of this order,
        // and its inverse is `U`: one factorization instead of two and an inverse.
        let at = |i: usize, j: usize| (order[n - 1 - i], order[n - 1 - j]);
        let mut reversed = Mat::<f64>::from_fn(n, n, |i, j| {
            let (row, column) = at(i, j);
            let value = f64::from(gram[row * n + column]);
            let on_diagonal = if i != j {
                0.0
            } else if gram[row * n + row] <= 0.0 {
                mean
            } else {
                damping * mean
            };
            value + on_diagonal
        });
        if let Some(upper) = invert_cholesky(&mut reversed) {
            return Some(InverseFactor { upper, damping, dead });
        }
        if damping >= MOST_DAMPING {
            return None;
        }
        damping = (damping * 10.0).clamp(1e-4, MOST_DAMPING);
    }
}

/// `(J L J)⁻¹` row-major, where `L Lᵀ` is the matrix and `J` reverses: an upper triangle.
fn invert_cholesky(matrix: &mut Mat<f64>) -> Option<Vec<f32>> {
    let n = matrix.nrows();
    // Sequential on purpose: the result must not depend on the number of threads.
    let (par, params) = (Par::Seq, Spec::<LltParams, f64>::default());
    let mut buffer = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, par, params));
    let stack = MemStack::new(&mut buffer);
    let regularization = LltRegularization::default();
    cholesky_in_place(matrix.as_mut(), regularization, par, stack, params).ok()?;
    let mut inverse = Mat::<f64>::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), matrix.as_ref(), par);
    let mut upper = vec![0.0_f32; n * n];
    for i in 0..n {
        for j in i..n {
            upper[i * n + j] = inverse[(n - 1 - i, n - 1 - j)] as f32;
        }
    }
    upper.iter().all(|value| value.is_finite()).then_some(upper)
}
