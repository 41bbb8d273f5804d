//! SparseGPT: weights are pruned column by column, each error spread over the columns still free.
//!
//! Frantar & Alistarh, 2023 (arXiv 2301.00774): GPTQ's sweep with 0 in place of rounding. With the
//! damped Gram matrix `H` of the inputs and `H⁻¹ = Uᵀ U`, the score of a weight is `w² / U_jj²`, what
//! the sweep will pay for its loss; as each block of 128 columns begins the least of it go, over all
//! rows, by the weights with every update so far. By `N:M` each group of M columns of a row is pruned
//! as it is reached. Before `gptq` both happen in one sweep: what is pruned and what rounding loses
//! is made up for together.
//!
//! Where we differ: blocks have the exact count together, not each its own rounded down; a column whose
//! input was always zero costs nothing, so that its weights go first and nothing else of it is
//! changed, where the authors' code zeroes it whole, whatever the sparsity; `act_order` visits columns
//! (groups of a pattern) by falling diagonal, and `drift_correction` is GPTQ's.

use crate::drift::target;
use crate::factor::{InverseFactor, inverse_factor};
use crate::magnitude::{Magnitude, Scope};
use crate::masked_sweep::{Choice, Float, MaskedSweep, order_of_groups};
use crate::pruning::{Pruning, Selection, Sparsity, SparsityParams};
use crate::{Method, MethodError, Needs, Note, ParamError, Pruner, Site};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str =
    "prunes column by column, errors spread by the inputs' statistics; alone, or before an encoder";
pub(crate) const PAPER: &str = "Frantar & Alistarh, 2023, arXiv 2301.00774";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// How many go.
    #[serde(flatten)]
    pub sparsity: SparsityParams,
    /// Added to the diagonal of the Gram matrix, as a fraction of its mean; raised tenfold, at most
    /// to 1, while the factorization fails.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub dampening_frac: f64,
    /// Visit the columns, or the groups of a pattern, by falling diagonal of the Gram matrix.
    pub act_order: bool,
    /// How far the layer makes up for what the layers before it lost, from 0 to 1, as in gptq.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drift_correction: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            sparsity: SparsityParams::default(),
            dampening_frac: 0.01,
            act_order: false,
            drift_correction: 0.0,
        }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let sparsity = params.sparsity.settle()?;
    let shares = [
        ("dampening_frac", params.dampening_frac),
        ("drift_correction", params.drift_correction),
    ];
    for (key, share) in shares {
        if !(0.0..=1.0).contains(&share) {
            return Err(ParamError::new(key, format!("{share} is not from 0 to 1")));
        }
    }
    Ok(Method::Pruner(Box::new(SparseGpt { sparsity, params })))
}

struct SparseGpt {
    sparsity: Sparsity,
    params: Params,
}

impl Pruner for SparseGpt {
    fn needs(&self) -> Needs {
        Needs { gram: true, drift: self.params.drift_correction > 0.0, ..Needs::default() }
    }

    fn sparsity(&self) -> Sparsity {
        self.sparsity
    }

    fn prune(&self, site: &Site<'_>) -> Result<Pruning, MethodError> {
        let gram = site.gram()?;
        site.check_finite()?;
        let selection = Selection { sparsity: self.sparsity };
        let order = order_of_groups(gram, site.cols, self.params.act_order, selection.width());
        let Some(factor) = inverse_factor(gram, &order, self.params.dampening_frac) else {
            let mut pruning = self.without_statistics().prune(site)?;
            pruning.notes.push(Note::fallback(
                "the Gram matrix could not be factored with any damping; pruned by magnitude instead",
            ));
            return Ok(pruning);
        };
        let weight = target(site, &order, &factor, self.params.drift_correction);
        let mut working = visited(&weight, &order);
        let costs = costs(&factor, &order);
        let sweep = MaskedSweep {
            choice: Choice::BySweep(selection),
            order: &order,
            factor: &factor.upper,
            costs: &costs,
            group: 1,
        };
        let (_, kept) = sweep.run(&mut working, (0..site.rows).map(|_| Float).collect());
        let moved = Some(returned(&working, &order));
        let notes = notes(&factor, self.params.dampening_frac);
        Ok(Pruning { kept, moved, notes })
    }

    fn selection(&self) -> Option<Selection> {
        Some(Selection { sparsity: self.sparsity })
    }

    fn has_own_sweep(&self) -> bool {
        let sparsity = self.params.sparsity.clone();
        self.params != Params { sparsity, ..Params::default() }
    }

    fn without_statistics(&self) -> Box<dyn Pruner> {
        Box::new(Magnitude { sparsity: self.sparsity, scope: Scope::Matrix })
    }
}

/// The rows with their columns in the order of visits.
pub(crate) fn visited(weight: &[f32], order: &[usize]) -> Vec<f32> {
    let rows = weight.chunks_exact(order.len().max(1));
    rows.flat_map(|row| order.iter().map(|column| row[*column])).collect()
}

/// The rows with their columns as in the matrix again.
pub(crate) fn returned(working: &[f32], order: &[usize]) -> Vec<f32> {
    let cols = order.len().max(1);
    let mut weight = vec![0.0; working.len()];
    for (row, visited) in weight.chunks_exact_mut(cols).zip(working.chunks_exact(cols)) {
        order.iter().zip(visited).for_each(|(column, value)| row[*column] = *value);
    }
    weight
}

/// What the sweep pays for an error in each column, in the order of visits; nothing for a column
/// without input.
pub(crate) fn costs(factor: &InverseFactor, order: &[usize]) -> Vec<f32> {
    let n = order.len();
    let cost = |(place, column): (usize, &usize)| match factor.dead.contains(column) {
        true => 0.0,
        false => factor.upper[place * n + place].powi(-2),
    };
    order.iter().enumerate().map(cost).collect()
}

/// What departed from the plain course.
pub(crate) fn notes(factor: &InverseFactor, asked: f64) -> Vec<Note> {
    let mut notes: Vec<Note> = factor.damping_note(asked).into_iter().collect();
    if !factor.dead.is_empty() {
        let count = factor.dead.len();
        notes.push(Note::fact(format!(
            "{count} input columns were zero on all calibration tokens; their weights were pruned first"
        )));
    }
    notes
}
