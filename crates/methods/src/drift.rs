//! The weight that a layer should have on the inputs it will get, not on those it was trained with.
//!
//! Layers before this one are compressed already, so its inputs `x` differ from the `x̃` of the
//! uncompressed model. `argmin ‖W X̃ − Ŵ X‖²` is rounding `W + W D H⁻¹` instead of `W`, with
//! `D = (X̃ − X) Xᵀ` and `H = X Xᵀ`: the layer makes up for what was lost before it. The objective
//! is that of GPTAQ (Li et al., 2025, arXiv 2504.02692), which changes the sweep where this changes
//! the target, exactly so. Only a share of the way is gone: `D` is an estimate from few tokens.

use crate::Site;
use crate::factor::InverseFactor;
use lapidary_kernels::cross::transposed;
use lapidary_kernels::matrix::{PackedMatrix, Precision};
use std::borrow::Cow;

/// Rows whose target is found together: bounds the memory it takes.
const ROWS: usize = 512;

/// `W + share · W D H⁻¹`, row-major; the weight itself where there is no drift or no share.
/// `order[i]` is the column that the factor's `i`-th stands for.
pub(crate) fn target<'a>(
    site: &Site<'a>,
    order: &[usize],
    factor: &InverseFactor,
    share: f64,
) -> Cow<'a, [f32]> {
    let drift = site.statistics.and_then(|statistics| statistics.drift.as_deref());
    let Some(drift) = drift.filter(|_| share > 0.0) else { return Cow::Borrowed(site.weight) };
    let n = site.cols;
    let pack = |matrix: &[f32]| PackedMatrix::new(matrix, n, n, Precision::F32);
    // A packed matrix multiplies by its transpose. H⁻¹ = Uᵀ U, so first by Uᵀ, then by U.
    let by_drift = pack(&transposed(drift, n));
    let by_transpose = pack(&factor.upper);
    let by_upper = pack(&transposed(&factor.upper, n));
    let mut target = site.weight.to_vec();
    let (mut first, mut second) = (vec![], vec![]);
    for rows in target.chunks_mut(ROWS * n.max(1)) {
        let count = rows.len() / n;
        first.resize(rows.len(), 0.0);
        second.resize(rows.len(), 0.0);
        by_drift.multiply(rows, count, None, &mut second);
        for (line, ordered) in second.chunks_exact(n).zip(first.chunks_exact_mut(n)) {
            ordered.iter_mut().zip(order).for_each(|(value, column)| *value = line[*column]);
        }
        by_transpose.multiply(&first, count, None, &mut second);
        by_upper.multiply(&second, count, None, &mut first);
        for (row, change) in rows.chunks_exact_mut(n).zip(first.chunks_exact(n)) {
            for (change, column) in change.iter().zip(order) {
                row[*column] += share as f32 * change;
            }
        }
    }
    Cow::Owned(target)
}
