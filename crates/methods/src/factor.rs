//! The upper triangular factor `U` of a damped Gram matrix's inverse, `H⁻¹ = Uᵀ U`.

use crate::Note;
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

impl InverseFactor {
    /// What spreads no error.
    pub(crate) fn identity(n: usize) -> Self {
        let upper = (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
        Self { upper, damping: 0.0, dead: vec![] }
    }

    /// That more damping was needed than `asked`.
    pub(crate) fn damping_note(&self, asked: f64) -> Option<Note> {
        (self.damping > asked).then(|| {
            let damping = self.damping;
            Note::fallback(format!(
                "the Gram matrix needed a damping of {damping} instead of {asked}"
            ))
        })
    }

    /// What departed from the plain course, where a damping of `asked` was wanted.
    pub(crate) fn notes(&self, asked: f64) -> Vec<Note> {
        let mut notes: Vec<Note> = self.damping_note(asked).into_iter().collect();
        if !self.dead.is_empty() {
            notes.push(Note::fact(format!(
                "{} input columns were zero on all calibration tokens and were rounded by themselves",
                self.dead.len()
            )));
        }
        notes
    }
}

/// The order in which columns are visited: as they stand, or by falling diagonal of the Gram matrix.
pub(crate) fn column_order(gram: &[f32], cols: usize, by_diagonal: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..cols).collect();
    if by_diagonal {
        let diagonal = |i: &usize| gram[i * cols + i];
        order.sort_by(|a, b| diagonal(b).total_cmp(&diagonal(a)).then(a.cmp(b)));
    }
    order
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
        let reversed = Mat::<f64>::from_fn(n, n, |i, j| {
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
        if let Some(upper) = invert_cholesky(reversed) {
            return Some(InverseFactor { upper, damping, dead });
        }
        if damping >= MOST_DAMPING {
            return None;
        }
        damping = (damping * 10.0).clamp(1e-4, MOST_DAMPING);
    }
}

/// `(J L J)⁻¹` row-major, where `L Lᵀ` is the matrix and `J` reverses: an upper triangle.
fn invert_cholesky(mut matrix: Mat<f64>) -> Option<Vec<f32>> {
    let n = matrix.nrows();
    // Sequential on purpose: the result must not depend on the number of threads.
    let (par, params) = (Par::Seq, Spec::<LltParams, f64>::default());
    let mut buffer = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, par, params));
    let stack = MemStack::new(&mut buffer);
    let regularization = LltRegularization::default();
    cholesky_in_place(matrix.as_mut(), regularization, par, stack, params).ok()?;
    let mut inverse = Mat::<f64>::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), matrix.as_ref(), par);
    drop(matrix);
    let mut upper = vec![0.0_f32; n * n];
    for i in 0..n {
        for j in i..n {
            upper[i * n + j] = inverse[(n - 1 - i, n - 1 - j)] as f32;
        }
    }
    upper.iter().all(|value| value.is_finite()).then_some(upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Uᵀ U (H + λ I) = I`, columns in the given order.
    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let n = 23;
        let mut gram = vec![0.0_f32; n * n];
        for token in 0..200_usize {
            let x: Vec<f32> = (0..n)
                .map(|i| ((token * (i + 3) * 7919 + i) % 1000) as f32 / 500.0 - 1.0)
                .collect();
            for i in 0..n {
                for j in 0..n {
                    gram[i * n + j] += x[i] * x[j];
                }
            }
        }
        let order: Vec<usize> = (0..n).map(|i| (i * 5 + 2) % n).collect();
        let factor = inverse_factor(&gram, &order, 0.05).unwrap();
        let mean = (0..n).map(|i| f64::from(gram[i * n + i])).sum::<f64>() / n as f64;
        let h = |i: usize, j: usize| {
            let damped = if i == j { 0.05 * mean } else { 0.0 };
            f64::from(gram[order[i] * n + order[j]]) + damped
        };
        let u = |i: usize, j: usize| f64::from(factor.upper[i * n + j]);
        for i in 0..n {
            for j in 0..n {
                let inverse = |a: usize| (0..n).map(|k| u(k, i) * u(k, a)).sum::<f64>();
                let product: f64 = (0..n).map(|a| inverse(a) * h(a, j)).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 1e-4, "{i} {j}: {product}");
            }
            assert!(u(i, i) > 0.0 && (0..i).all(|j| u(i, j) == 0.0));
        }
    }

    /// Card of GPTQ, must show 4: `Σ e² = tr((W − Ŵ) (H + λ I) (W − Ŵ)ᵀ)`.
    #[test]
    fn the_sweeps_loss_is_the_weighted_error() {
        use lapidary_kernels::sweep::{RowQuantizer, block_bounds, sweep};
        struct Halves;
        impl RowQuantizer for Halves {
            fn quantize(&mut self, _column: usize, rest: &[f32]) -> f32 {
                (rest[0] * 2.0).round_ties_even() / 2.0
            }
        }
        let n = 200;
        let value = |i: usize, j: usize| (((i * 31 + j * 17) * 7919) % 997) as f32 / 498.5 - 1.0;
        let mut gram = vec![0.0_f32; n * n];
        for token in 0..600 {
            for i in 0..n {
                for j in 0..n {
                    gram[i * n + j] += value(token, i) * value(token, j);
                }
            }
        }
        let order: Vec<usize> = (0..n).collect();
        let factor = inverse_factor(&gram, &order, 0.01).unwrap();
        let mean = (0..n).map(|i| f64::from(gram[i * n + i])).sum::<f64>() / n as f64;
        let weight: Vec<f32> = (0..3 * n).map(|i| 3.0 * value(i, 5)).collect();
        let mut swept = weight.clone();
        let losses =
            sweep(&mut swept, &factor.upper, &block_bounds(n, 1), &mut [Halves, Halves, Halves]);
        for (row, loss) in losses.iter().enumerate() {
            let at = |j: usize| f64::from(weight[row * n + j] - swept[row * n + j]);
            let mut error = 0.0;
            for i in 0..n {
                for j in 0..n {
                    let damped = if i == j { 0.01 * mean } else { 0.0 };
                    error += at(i) * (f64::from(gram[i * n + j]) + damped) * at(j);
                }
            }
            assert!((error / loss - 1.0).abs() < 1e-3, "row {row}: {error} {loss}");
        }
    }

    /// Card of GPTQ, must show 1: the second weight moves to 0.76 and is rounded up.
    #[test]
    fn two_correlated_columns_make_up_for_each_other() {
        use lapidary_kernels::sweep::{RowQuantizer, block_bounds, sweep};
        #[derive(Default)]
        struct Whole(Vec<f32>);
        impl RowQuantizer for Whole {
            fn quantize(&mut self, _column: usize, rest: &[f32]) -> f32 {
                self.0.push(rest[0]);
                rest[0].round_ties_even()
            }
        }
        let factor = inverse_factor(&[1.0, 0.9, 0.9, 1.0], &[0, 1], 0.0).unwrap();
        let (mut weight, mut rounded) = ([0.4, 0.4], [Whole::default()]);
        let losses = sweep(&mut weight, &factor.upper, &block_bounds(2, 1), &mut rounded);
        assert_eq!(weight, [0.0, 1.0]);
        assert!((rounded[0].0[1] - 0.76).abs() < 1e-6, "{:?}", rounded[0].0);
        assert!((losses[0] - 0.088).abs() < 1e-6, "{losses:?}");
    }

    #[test]
    fn damping_is_raised_tenfold_until_it_helps() {
        // Its least eigenvalue is −0.05, of a mean diagonal of 1.
        let gram = [1.0, 1.05, 1.05, 1.0];
        for (asked, needed) in [(0.0, 0.1), (0.01, 0.1), (0.1, 0.1), (0.06, 0.06), (0.5, 0.5)] {
            let factor = inverse_factor(&gram, &[0, 1], asked).unwrap();
            assert!((factor.damping - needed).abs() < 1e-12, "{asked}: {}", factor.damping);
        }
        // −2 is more than the mean diagonal can make up for.
        assert!(inverse_factor(&[1.0, 3.0, 3.0, 1.0], &[0, 1], 0.01).is_none());
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(inverse_factor(&[bad, 0.0, 0.0, 1.0], &[0, 1], 0.01).is_none());
            assert!(inverse_factor(&[1.0, bad, bad, 1.0], &[0, 1], 0.01).is_none());
        }
    }

    #[test]
    fn dead_columns_stand_apart_and_change_nothing_for_the_others() {
        let gram = [4.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 2.0];
        let order = [2, 1, 0];
        let factor = inverse_factor(&gram, &order, 0.0).unwrap();
        assert_eq!(factor.dead, [1]);
        assert_eq!((factor.upper[1], factor.upper[5]), (0.0, 0.0));
        let alone = inverse_factor(&[4.0, 1.0, 1.0, 2.0], &[1, 0], 0.0).unwrap();
        for (whole, part) in [(0, 0), (2, 1), (8, 3)] {
            assert!((factor.upper[whole] - alone.upper[part]).abs() < 1e-7);
        }
        // Without any input every column is rounded to nearest.
        let nothing = inverse_factor(&[0.0; 9], &order, 0.01).unwrap();
        assert_eq!(nothing.dead, [0, 1, 2]);
        assert_eq!(nothing.upper, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    }
}
