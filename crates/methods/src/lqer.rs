//! LQER: a product of two thin matrices makes up for most of what quantization lost.
//!
//! Of the error `E = W − Q(W)` the part of rank `r` that matters most is kept: `A B` minimises
//! `‖(E − A B) S‖`. With `S = I` it is the singular value decomposition of LoRC (Yao et al., 2023,
//! arXiv 2303.08302); with `S` the root mean square of each input it is LQER (Zhang et al., 2024,
//! arXiv 2402.02446); with `S Sᵀ = H`, the Gram matrix of the inputs, it minimises the error of the
//! layer's outputs (SVD-LLM, arXiv 2403.07378; EoRA, arXiv 2410.21271), which is the default. More
//! rounds encode `W − A B` anew, as LoftQ does (Li et al., 2023, arXiv 2310.08659).
//!
//! All are one computation. The best `A B` is `U Uᵀ E`, with `U` the first `r` eigenvectors of
//! `E S Sᵀ Eᵀ`: no inverse, so that a Gram matrix without full rank is harmless. Where that matrix
//! is the larger side, `U` comes from the eigenvectors of `Sᵀ Eᵀ E S`.

use crate::eigen::{Eigen, eigen, product};
use crate::{Corrected, Correction, Method, MethodError, Needs, ParamError, Site};
use faer::{Mat, MatRef};
use lapidary_weight::{FloatType, LowRank, Term, TermOutline, Weight};
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
        let (basis, loss) = metric
            .dominant(error.as_ref(), rank)
            .ok_or_else(|| wrong("the eigenvalues of its error could not be found"))?;
        let right = product(basis.transpose(), error.as_ref());
        let term = Term::LowRank(balanced(basis.as_ref(), right.as_ref(), site.scale_type));
        Ok(Corrected { terms: vec![term], loss, notes: vec![] })
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
        let n = site.cols;
        if self.0.weighting == Weighting::None {
            return Ok(Metric::Plain);
        }
        let missing = || MethodError::MissingStatistics {
            site: site.name.to_owned(),
            what: "the Gram matrix of its inputs",
        };
        let gram = &site.statistics.ok_or_else(missing)?.gram;
        let at = |i: usize, j: usize| f64::from(gram[i * n + j]);
        Ok(match self.0.weighting {
            Weighting::Rms => Metric::Diagonal((0..n).map(|i| at(i, i).max(0.0)).collect()),
            _ => Metric::Full(Mat::from_fn(n, n, at)),
        })
    }
}

/// `D = S Sᵀ`, what an error is weighted by: `‖E S‖² = tr(E D Eᵀ)`.
enum Metric {
    Plain,
    Diagonal(Vec<f64>),
    Full(Mat<f64>),
}

impl Metric {
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
            Self::Full(gram) => {
                product(product(error, gram.as_ref()).as_ref(), error.transpose())
            }
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
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |row, column| matrix[(row, column)] * scale(column))
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
