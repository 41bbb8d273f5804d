//! LQER: a product of two thin matrices makes up for most of what quantization lost.
//!
//! Of the error `E = W − Q(W)` the part of rank `r` that matters most is kept: `A B` minimises
//! `‖(E − A B) S‖`. With `S = I` it is the singular value decomposition of LoRC (Yao et al., 2023,
//! arXiv 2303.08302); with `S` the root mean square of each input it is LQER (Zhang et al., 2024,
//! arXiv 2402.02446); with `S Sᵀ = H`, the Gram matrix of the inputs, it minimises the error of the
//! layer's outputs (SVD-LLM, arXiv 2403.07378; EoRA, arXiv 2410.21271), which is the default. More
//! rounds encode `W − A B` anew, as LoftQ does (Li et al., 2023, arXiv 2310.08659).
//!
//! All are one computation, that of `low_rank`.

use crate::low_rank::{Metric, factors};
use crate::{Corrected, Correction, Method, MethodError, Needs, ParamError, Site};
use faer::Mat;
use lapidary_weight::{FloatType, Term, TermOutline, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "a low-rank term for what the encoder before it lost";
pub(crate) const PAPER: &str = "Zhang et al., 2024, arXiv 2402.02446";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Inner dimension of the term, at most the smaller side of the weight.
    #[schemars(range(min = 1, max = 65536))]
    pub rank: usize,
    /// What the error is weighted by.
    pub weighting: Weighting,
    /// Times that the weight less its correction is encoded again; the best is kept.
    #[schemars(range(min = 1, max = 100))]
    pub rounds: usize,
}

/// What the error is weighted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// Nothing: the error of the weights.
    None,
    /// The root mean square of each input.
    Rms,
    /// The Gram matrix of the inputs: the error of the outputs.
    Gram,
}

impl Default for Params {
    fn default() -> Self {
        Self { rank: 32, weighting: Weighting::Gram, rounds: 1 }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if !(1..=65536).contains(&params.rank) {
        return Err(ParamError::new("rank", format!("{} is not from 1 to 65536", params.rank)));
    }
    if !(1..=100).contains(&params.rounds) {
        return Err(ParamError::new("rounds", format!("{} is not from 1 to 100", params.rounds)));
    }
    Ok(Method::Correction(Box::new(Lqer(params))))
}

struct Lqer(Params);

impl Correction for Lqer {
    fn needs(&self) -> Needs {
        Needs { gram: self.0.weighting != Weighting::None, ..Needs::default() }
    }

    fn terms(&self, rows: usize, cols: usize, floats: FloatType) -> Vec<TermOutline> {
        vec![TermOutline::LowRank { rank: self.rank(rows, cols), values: floats }]
    }

    fn correct(&self, site: &Site<'_>, encoded: &Weight) -> Result<Corrected, MethodError> {
        site.check_finite()?;
        let wrong = |what: &str| MethodError::Numerical {
            site: site.name.to_owned(),
            what: what.to_owned(),
        };
        let metric = self.metric(site)?;
        let stands = encoded.decode();
        let lost = |r: usize, c: usize| {
            let at = r * site.cols + c;
            f64::from(site.weight[at]) - f64::from(stands[at])
        };
        let error = Mat::from_fn(site.rows, site.cols, lost);
        let rank = self.rank(site.rows, site.cols);
        let (factors, loss) = factors(error.as_ref(), &metric, rank, site.scale_type)
            .ok_or_else(|| wrong("the eigenvalues of its error could not be found"))?;
        Ok(Corrected { terms: vec![Term::LowRank(factors)], loss, notes: vec![] })
    }

    fn rounds(&self) -> usize {
        self.0.rounds
    }
}

impl Lqer {
    fn rank(&self, rows: usize, cols: usize) -> usize {
        self.0.rank.min(rows).min(cols)
    }

    fn metric(&self, site: &Site<'_>) -> Result<Metric, MethodError> {
        Ok(match self.0.weighting {
            Weighting::None => Metric::Plain,
            Weighting::Rms => {
                Metric::Diagonal(site.gram_diagonal()?.into_iter().map(f64::from).collect())
            }
            Weighting::Gram => Metric::full(site.gram()?, site.cols),
        })
    }
}
