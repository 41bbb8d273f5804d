//! Low-rank factorization: a matrix becomes the product of two thin ones, and nothing else.
//!
//! `W ≈ A B` with `A` of `[m, r]` and `B` of `[r, n]` takes `r (m + n)` numbers in place of `m n`, in the
//! bytes and in the multiplications. Of the matrices of rank `r` it is the one nearest to `W` in the
//! measure that is asked for: of the weights themselves (`plain`, Eckart and Young's); of the weights
//! times the size of their input to the power `α` (`activations`, ASVD, Yuan et al., 2023, arXiv
//! 2312.05821: the authors take the mean of `|x|` where we have the root mean square); of the layer's
//! outputs, `‖(W − W′) X‖` (`gram`, SVD-LLM, Wang et al., 2024, arXiv 2403.07378). Theirs is the
//! singular value decomposition of `W S` with `S Sᵀ = X Xᵀ`, multiplied by `S⁻¹`; that is `U Uᵀ W`, which
//! needs neither `S` nor its inverse.

use crate::low_rank::{Metric, factors};
use crate::{Encoded, Method, MethodError, Needs, Note, ParamError, Site, Tensorwise};
use faer::Mat;
use lapidary_weight::{FloatType, Outline, Term, TermOutline, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "a product of two thin matrices in place of each";
pub(crate) const PAPER: &str =
    "Yuan et al., 2023, arXiv 2312.05821; Wang et al., 2024, arXiv 2403.07378";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Share of a matrix's numbers that its two factors have, above 0 and below 1: the rank is
    /// `share · m n / (m + n)`, rounded down.
    pub share: f64,
    /// The rank itself, in place of the share.
    #[schemars(range(min = 1, max = 65536))]
    pub rank: Option<usize>,
    /// What the factors are nearest in.
    pub objective: Objective,
    /// Power of the inputs' sizes, for `activations`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub alpha: f64,
}

/// What the product is nearest to the matrix in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// The weights.
    Plain,
    /// The weights times a power of the size of their input.
    Activations,
    /// The outputs on the calibration text.
    Gram,
}

impl Default for Params {
    fn default() -> Self {
        Self { share: 0.5, rank: None, objective: Objective::Gram, alpha: 0.5 }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let Params { share, alpha, .. } = params;
    if !(share > 0.0 && share < 1.0) {
        let what = format!("{share} is not above 0 and below 1; a layer that stays whole has no step");
        return Err(ParamError::new("share", what));
    }
    if let Some(rank) = params.rank.filter(|rank| !(1..=65536).contains(rank)) {
        return Err(ParamError::new("rank", format!("{rank} is not from 1 to 65536")));
    }
    if !(0.0..=1.0).contains(&alpha) {
        return Err(ParamError::new("alpha", format!("{alpha} is not from 0 to 1")));
    }
    Ok(Method::Tensorwise(Box::new(Svd(params))))
}

struct Svd(Params);

impl Svd {
    /// The rank for a matrix of this shape, which may be none at all.
    fn rank(&self, rows: usize, cols: usize) -> usize {
        let share = || self.0.share * (rows * cols) as f64 / (rows + cols).max(1) as f64;
        self.0.rank.unwrap_or_else(|| share() as usize)
    }

    /// What errors are measured by, and whether it is less than was asked for: without any input all
    /// matrices have the same outputs.
    fn metric(&self, site: &Site<'_>) -> Result<(Metric, Option<Note>), MethodError> {
        let plain = self.0.objective == Objective::Plain;
        if !plain && site.gram_diagonal()?.iter().all(|square| *square == 0.0) {
            let what = "all inputs were zero on all calibration tokens; factored by its weights alone";
            return Ok((Metric::Plain, Some(Note::fallback(what))));
        }
        let metric = match self.0.objective {
            Objective::Plain => Metric::Plain,
            Objective::Activations => {
                // The root of a sum of squares to the power α, squared; how many tokens it is summed
                // over is one factor of all columns.
                let weight = |square: f32| f64::from(square).powf(self.0.alpha);
                Metric::Diagonal(site.gram_diagonal()?.into_iter().map(weight).collect())
            }
            Objective::Gram => Metric::full(site.gram()?, site.cols),
        };
        Ok((metric, None))
    }
}

impl Tensorwise for Svd {
    fn needs(&self) -> Needs {
        Needs { gram: self.0.objective != Objective::Plain, ..Needs::default() }
    }

    fn needs_only_diagonal(&self) -> bool {
        self.0.objective == Objective::Activations
    }

    fn outline(&self, rows: usize, cols: usize, floats: FloatType) -> Outline {
        let rank = self.rank(rows, cols);
        Outline { rows, cols, terms: vec![TermOutline::LowRank { rank, values: floats }] }
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        site.check_finite()?;
        let Site { rows, cols, weight, .. } = *site;
        let (metric, note) = self.metric(site)?;
        let matrix = Mat::from_fn(rows, cols, |r, c| f64::from(weight[r * cols + c]));
        let wrong = || MethodError::Numerical {
            site: site.name.to_owned(),
            what: "its singular values could not be found".to_owned(),
        };
        let (product, _) =
            factors(matrix.as_ref(), &metric, self.rank(rows, cols), site.scale_type)
                .ok_or_else(wrong)?;
        let weight = Weight::new(rows, cols, vec![Term::LowRank(product)])
            .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes: note.into_iter().collect() })
    }

    /// Two factors are to be smaller than the matrix.
    fn check_shape(&self, rows: usize, cols: usize) -> Result<(), String> {
        let rank = self.rank(rows, cols);
        if rank == 0 {
            let share = self.0.share;
            return Err(format!(
                "a share of {share} of {rows} x {cols} is not even a rank of 1; raise share, or \
                 leave the layer out with ignore"
            ));
        }
        if rank * (rows + cols) >= rows * cols {
            let most = (rows * cols).saturating_sub(1) / (rows + cols).max(1);
            return Err(format!(
                "factors of rank {rank} have no fewer numbers than the matrix of {rows} x {cols} \
                 itself; the largest rank that saves any is {most}, or leave the layer out with \
                 ignore"
            ));
        }
        Ok(())
    }

    fn keeps_floats(&self) -> bool {
        true
    }

    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(Params { objective: Objective::Plain, ..self.0.clone() })))
    }
}
