//! Wanda: weights are pruned by their magnitude times the size of their input.
//!
//! Sun et al., 2023 (arXiv 2306.11695): the score of a weight is `|W_ij| ‖X_j‖₂`, and within each row
//! the least go; by `N:M` in each group of M columns. Nothing else changes, so that it takes no more
//! than the inputs' sums of squares. `score: ria` is that of Zhang et al., 2024 (ICLR, "Plug-and-play"):
//! `(|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) ‖X_j‖₂^½`, relative to the weights of the same input and
//! the same output, so that no row or column is emptied.

use crate::magnitude::{Magnitude, Scope};
use crate::pruning::{Pruning, Sparsity, SparsityParams};
use crate::{Method, MethodError, Needs, Note, ParamError, Pruner, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str =
    "prunes by magnitude times size of the input; alone, or before an encoder";
pub(crate) const PAPER: &str = "Sun et al., 2023, arXiv 2306.11695";

/// Parameters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// How many go.
    #[serde(flatten)]
    pub sparsity: SparsityParams,
    /// What weights are compared by.
    pub score: Score,
}

/// What weights are compared by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// Magnitude times the root of the input's sum of squares.
    #[default]
    Wanda,
    /// Magnitude relative to its row and its column, times the fourth root.
    Ria,
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let sparsity = params.sparsity.settle()?;
    Ok(Method::Pruner(Box::new(Wanda { sparsity, score: params.score })))
}

struct Wanda {
    sparsity: Sparsity,
    score: Score,
}

impl Pruner for Wanda {
    fn needs(&self) -> Needs {
        Needs { gram: true, ..Needs::default() }
    }

    fn sparsity(&self) -> Sparsity {
        self.sparsity
    }

    fn count(&self, rows: usize, cols: usize) -> usize {
        rows * self.sparsity.count(cols)
    }

    fn prune(&self, site: &Site<'_>) -> Result<Pruning, MethodError> {
        let squares = site.gram_diagonal()?;
        site.check_finite()?;
        let scores = match self.score {
            Score::Wanda => {
                let sizes: Vec<f32> = squares.iter().map(|square| square.sqrt()).collect();
                let rows = site.weight.chunks_exact(site.cols.max(1));
                rows.flat_map(|row| row.iter().zip(&sizes).map(|(w, size)| w.abs() * size)).collect()
            }
            Score::Ria => relative_importance(site, &squares),
        };
        let dead = squares.iter().filter(|square| **square == 0.0).count();
        let note = || {
            let what = format!("{dead} input columns were zero on all calibration tokens");
            Note::fact(format!("{what}; their weights were pruned first"))
        };
        let notes = (dead > 0).then(note).into_iter().collect();
        Ok(Pruning { kept: self.sparsity.keep(&scores, site.cols), moved: None, notes })
    }

    fn without_statistics(&self) -> Box<dyn Pruner> {
        Box::new(Magnitude { sparsity: self.sparsity, scope: Scope::Row })
    }
}

/// RIA's scores. A row or column of zeros has no weight to divide, and scores 0.
fn relative_importance(site: &Site<'_>, squares: &[f32]) -> Vec<f32> {
    let cols = site.cols.max(1);
    let mut of_column = vec![0.0_f64; site.cols];
    for row in site.weight.chunks_exact(cols) {
        of_column.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(w.abs()));
    }
    let share = |part: f64, sum: f64| if sum > 0.0 { part / sum } else { 0.0 };
    let sizes: Vec<f64> = squares.iter().map(|square| f64::from(*square).sqrt().sqrt()).collect();
    let of_row = |row: &[f32]| -> Vec<f32> {
        let sum: f64 = row.iter().map(|w| f64::from(w.abs())).sum();
        let score = |(weight, (column, size)): (&f32, (&f64, &f64))| {
            let weight = f64::from(weight.abs());
            ((share(weight, *column) + share(weight, sum)) * size) as f32
        };
        row.iter().zip(of_column.iter().zip(&sizes)).map(score).collect()
    };
    site.weight.chunks_exact(cols).flat_map(of_row).collect()
}
