//! Magnitude pruning: the weights of least absolute value go.
//!
//! Zhu & Gupta, 2017 (arXiv 1710.01878), after Han et al., 2015 (arXiv 1506.02626). Weights are
//! compared over the whole matrix or within each row; by `N:M` in each group of M columns of a row.
//! Matrices are never compared with each other: their scales differ. [`scheduled`] is the paper's
//! schedule for pruning while a model is trained.

use crate::pruning::{Pruning, Sparsity, SparsityParams};
use crate::{Method, MethodError, ParamError, Pruner, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "prunes the weights of least magnitude; alone, or before an encoder";
pub(crate) const PAPER: &str = "Zhu & Gupta, 2017, arXiv 1710.01878";

/// Parameters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// How many go.
    #[serde(flatten)]
    pub sparsity: SparsityParams,
    /// Which weights are compared with each other, where there is no pattern.
    pub scope: Scope,
}

/// Which weights are compared with each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All of a matrix.
    #[default]
    Matrix,
    /// Those of a row.
    Row,
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let sparsity = params.sparsity.settle()?;
    Ok(Method::Pruner(Box::new(Magnitude { sparsity, scope: params.scope })))
}

/// The method.
#[derive(Clone, Copy)]
pub(crate) struct Magnitude {
    pub(crate) sparsity: Sparsity,
    pub(crate) scope: Scope,
}

impl Pruner for Magnitude {
    fn sparsity(&self) -> Sparsity {
        self.sparsity
    }

    fn count(&self, rows: usize, cols: usize) -> usize {
        match self.scope {
            Scope::Matrix => self.sparsity.count(rows * cols),
            Scope::Row => rows * self.sparsity.count(cols),
        }
    }

    fn prune(&self, site: &Site<'_>) -> Result<Pruning, MethodError> {
        site.check_finite()?;
        let scores: Vec<f32> = site.weight.iter().map(|weight| weight.abs()).collect();
        let line = match self.scope {
            Scope::Matrix => scores.len(),
            Scope::Row => site.cols,
        };
        Ok(Pruning { kept: self.sparsity.keep(&scores, line), moved: None, notes: vec![] })
    }

    fn without_statistics(&self) -> Box<dyn Pruner> {
        Box::new(*self)
    }
}

/// The sparsity at a share `progress` of the way from `first` to `last`: the cubic schedule,
/// `last + (first − last) (1 − p)³` with `p` clamped to 0 and 1. It prunes fast while there is much to
/// spare.
pub fn scheduled(first: f64, last: f64, progress: f64) -> f64 {
    last + (first - last) * (1.0 - progress.clamp(0.0, 1.0)).powi(3)
}
