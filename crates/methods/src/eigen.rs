//! Eigenvalues and eigenvectors of symmetric matrices in f64.

use dyn_stack::{MemBuffer, MemStack};
use faer::diag::Diag;
use faer::linalg::evd::{
    ComputeEigenvectors, SelfAdjointEvdParams, self_adjoint_evd, self_adjoint_evd_scratch,
};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Spec};

/// Eigenvalues from the greatest to the least, and the eigenvectors as columns in that order.
pub(crate) struct Eigen {
    pub(crate) values: Vec<f64>,
    pub(crate) vectors: Mat<f64>,
}

/// The eigenvectors of a symmetric matrix; `None` when it is not finite or the iteration does not
/// end.
pub(crate) fn eigen(matrix: MatRef<'_, f64>) -> Option<Eigen> {
    let n = matrix.nrows();
    if !(0..n).all(|j| (0..n).all(|i| matrix[(i, j)].is_finite())) {
        return None;
    }
    // Sequential on purpose: the result must not depend on the number of threads.
    let (par, params) = (Par::Seq, Spec::<SelfAdjointEvdParams, f64>::default());
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, par, params);
    let mut buffer = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut buffer);
    let (mut values, mut vectors) = (Diag::<f64>::zeros(n), Mat::<f64>::zeros(n, n));
    let basis = Some(vectors.as_mut());
    self_adjoint_evd(matrix, values.as_mut(), basis, par, stack, params).ok()?;
    let ascending = values.column_vector();
    Some(Eigen {
        values: (0..n).rev().map(|i| ascending[i]).collect(),
        vectors: vectors.reverse_cols().to_owned(),
    })
}

/// `left · right`.
pub(crate) fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    matmul(product.as_mut(), Accum::Replace, left, right, 1.0, Par::Seq);
    product
}
