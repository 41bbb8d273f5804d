//! GPTQ: columns are rounded one after another, each error spread over the columns still free.
//!
//! Frantar et al., 2022 (arXiv 2210.17323): `argmin ‖W X − Ŵ X‖²` for each layer. With the damped
//! Gram matrix `H = X Xᵀ + λ I` and `H⁻¹ = Uᵀ U`, column `j` is rounded, `e = (w_j − q_j) / U_jj`,
//! and `w_k −= e U_jk` for `k > j`. The sweep is `lapidary_kernels::sweep`.
//!
//! Where we differ: a group's grid is fitted when its first column is reached, from values that have
//! every update so far (the authors' code uses stale ones inside a block of columns); it may minimise
//! the error weighted by `1 / U_jj²`, what the sweep itself pays for it; with `act_order` the columns
//! are visited by falling `diag H` while groups stay those of the original order, their grids fitted
//! beforehand (`static_groups`), so that no format needs an index. A column whose input was always
//! zero is rounded to nearest, not zeroed.

use crate::block_grid::{BlockGrids, Fit};
use crate::drift::target;
use crate::factor::{InverseFactor, column_order, inverse_factor};
use crate::magnitude::{Magnitude, Scope};
use crate::masked_sweep::{Choice, MaskedSweep, order_of_groups};
use crate::pruning::without_pruned;
use crate::{
    BlockGrid, Encoded, GridParams, Masked, Method, MethodError, Needs, Note, ParamError, Pruner, Selection, Site,
    Tensorwise, sparsegpt,
};
use lapidary_kernels::grid::{Grid, Levels, Search};
use lapidary_kernels::sweep::{RowQuantizer, block_bounds, sweep};
use lapidary_weight::{FloatType, Grouping, Outline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "rounding column by column, errors spread by the inputs' statistics";
pub(crate) const PAPER: &str = "Frantar et al., 2022, arXiv 2210.17323";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// The grid.
    #[serde(flatten)]
    pub grid: GridParams,
    /// Added to the diagonal of the Gram matrix, as a fraction of its mean; raised tenfold, at most
    /// to 1, while the factorization fails.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub dampening_frac: f64,
    /// Visit the columns by falling diagonal of the Gram matrix. Groups stay in original order.
    pub act_order: bool,
    /// Fit every group's grid on the original weights; always so with `act_order`.
    pub static_groups: bool,
    /// How a group's grid is fitted.
    pub scale: ScaleChoice,
    /// How far the layer makes up for what the layers before it lost, from 0 to 1: its target is
    /// what the uncompressed model computes there, not what the layer would from drifted inputs.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drift_correction: f64,
}

/// How a group's grid is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleChoice {
    /// To span the group.
    MinMax,
    /// For the least squared error.
    Mse,
    /// For the least squared error weighted by what the sweep pays for it, `1 / U_jj²`.
    Weighted,
}

impl ScaleChoice {
    fn block_fit(self) -> Fit {
        if self == Self::MinMax { Fit::Range } else { Fit::Search }
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            grid: GridParams::default(),
            dampening_frac: 0.01,
            act_order: true,
            static_groups: true,
            scale: ScaleChoice::Weighted,
            drift_correction: 0.0,
        }
    }
}

/// Ratios 1.00, 0.99 … 0.30 of the full range.
const SEARCH: Search = Search { steps: 100, floor: 0.3 };

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    params.grid.check()?;
    if !(0.0..=1.0).contains(&params.dampening_frac) {
        let what = format!("{} is not from 0 to 1", params.dampening_frac);
        return Err(ParamError::new("dampening_frac", what));
    }
    if !(0.0..=1.0).contains(&params.drift_correction) {
        let what = format!("{} is not from 0 to 1", params.drift_correction);
        return Err(ParamError::new("drift_correction", what));
    }
    if params.act_order && !params.static_groups {
        let what = "act_order with groups needs static_groups: other formats of a group's columns \
                    cannot be stored";
        return Err(ParamError::new("static_groups", what));
    }
    Ok(Method::Tensorwise(Box::new(Gptq(params))))
}

pub(crate) struct Gptq(pub(crate) Params);

impl Tensorwise for Gptq {
    fn needs(&self) -> Needs {
        Needs { gram: true, drift: self.0.drift_correction > 0.0, ..Needs::default() }
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        self.0.grid.outline(rows, cols, scales)
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        let grid = self.0.grid.regrouped(grouping)?;
        Some(Box::new(Self(Params { grid, ..self.0.clone() })))
    }

    fn draft(&self) -> Option<Box<dyn Tensorwise>> {
        Some(crate::rtn::draft(&self.0.grid))
    }

    /// With the identity for a Gram matrix every column is rounded to nearest.
    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Rounding(self.0.clone())))
    }

    fn masked(&self) -> Option<&dyn Masked> {
        (self.0.grid.blocks == BlockGrid::Plain).then_some(self)
    }

    fn departure(&self, cols: usize) -> Option<Note> {
        self.0.grid.blocks.departure(cols)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        let gram = site.gram()?;
        site.check_finite()?;
        let order = column_order(gram, site.cols, self.0.act_order);
        let Some(factor) = inverse_factor(gram, &order, self.0.dampening_frac) else {
            let mut encoded = round_to_nearest(&self.0, site)?;
            encoded.notes.push(Note::fallback(
                "the Gram matrix could not be factored with any damping; rounded to nearest instead",
            ));
            return Ok(encoded);
        };
        let notes = factor.notes(self.0.dampening_frac);
        let weight = target(site, &order, &factor, self.0.drift_correction);
        let site = &Site { weight: &weight, ..*site };
        let job = Job::new(&self.0, site, &order, &factor);
        if self.0.grid.blocks != BlockGrid::Plain {
            return job.run_blocks(self.0.grid.blocks, notes);
        }
        let (codes, grids) = job.run();
        self.0.grid.assemble(site, codes, &grids, notes)
    }
}

impl Masked for Gptq {
    fn encode_masked(&self, site: &Site<'_>, kept: &[bool]) -> Result<Encoded, MethodError> {
        let gram = site.gram()?;
        site.check_finite()?;
        let order = column_order(gram, site.cols, self.0.act_order);
        self.encode_with(site, &order, Choice::Kept(kept))
    }

    fn encode_selecting(
        &self,
        site: &Site<'_>,
        selection: Selection,
    ) -> Option<Result<Encoded, MethodError>> {
        let encode = || {
            let gram = site.gram()?;
            site.check_finite()?;
            let order = order_of_groups(gram, site.cols, self.0.act_order, selection.width());
            self.encode_with(site, &order, Choice::BySweep(selection))
        };
        Some(encode())
    }

    fn sweeps(&self) -> bool {
        true
    }
}

impl Gptq {
    /// Rounds what a mask leaves, and makes up for what it prunes.
    fn encode_with(
        &self,
        site: &Site<'_>,
        order: &[usize],
        choice: Choice<'_>,
    ) -> Result<Encoded, MethodError> {
        let Some(factor) = inverse_factor(site.gram()?, order, self.0.dampening_frac) else {
            let kept = match choice {
                Choice::Kept(kept) => kept.to_vec(),
                Choice::BySweep(selection) => {
                    let by_size = Magnitude { sparsity: selection.sparsity, scope: Scope::Matrix };
                    by_size.prune(site)?.kept
                }
            };
            let left = without_pruned(site.weight, &kept);
            let mut encoded = round_to_nearest(&self.0, &Site { weight: &left, ..*site })?;
            encoded.notes.push(Note::fallback(
                "the Gram matrix could not be factored with any damping; what is left was rounded \
                 to nearest instead",
            ));
            return Ok(encoded);
        };
        let notes = sparsegpt::notes(&factor, self.0.dampening_frac);
        let weight = target(site, order, &factor, self.0.drift_correction);
        let costs = sparsegpt::costs(&factor, order);
        // Grids are fitted to what is left, as far as it is known beforehand.
        let left = match choice {
            Choice::Kept(kept) => without_pruned(&weight, kept),
            Choice::BySweep(selection) => {
                let visited = sparsegpt::visited(&weight, order);
                let kept = selection.of_blocks(&visited, &costs);
                let left = without_pruned(&visited, &kept);
                sparsegpt::returned(&left, order)
            }
        };
        let site = Site { weight: &left, ..*site };
        let job = Job::new(&self.0, &site, order, &factor);
        let (codes, grids) = job.run_with(sparsegpt::visited(&weight, order), |job, rows, working| {
            let group = if job.is_static { 1 } else { job.grouping.width(site.cols) };
            let factor = job.factor;
            MaskedSweep { choice, order, factor, costs: &costs, group }.run(working, rows);
        });
        self.0.grid.assemble(&site, codes, &grids, notes)
    }
}

/// What is left where there is no usable Gram matrix: rounding to nearest on the grid asked for,
/// every column weighing the same.
fn round_to_nearest(params: &Params, site: &Site<'_>) -> Result<Encoded, MethodError> {
    if params.grid.blocks != BlockGrid::Plain {
        return params.grid.blocks.encode(site, None, params.scale.block_fit());
    }
    let levels = params.grid.levels();
    let store = |scale| site.scale_type.round_scale(scale);
    params.grid.encode(site, |values| match params.scale {
        ScaleChoice::MinMax => levels.fit_range(values, store),
        ScaleChoice::Mse | ScaleChoice::Weighted => {
            levels.fit_search(values, None, SEARCH, store)
        }
    })
}

/// GPTQ where inputs have no statistics.
struct Rounding(Params);

impl Tensorwise for Rounding {
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        self.0.grid.outline(rows, cols, scales)
    }

    fn departure(&self, cols: usize) -> Option<Note> {
        self.0.grid.blocks.departure(cols)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        round_to_nearest(&self.0, site)
    }

    fn masked(&self) -> Option<&dyn Masked> {
        (self.0.grid.blocks == BlockGrid::Plain).then_some(self)
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        let grid = self.0.grid.regrouped(grouping)?;
        Some(Box::new(Self(Params { grid, ..self.0.clone() })))
    }
}

impl Masked for Rounding {
    fn encode_masked(&self, site: &Site<'_>, kept: &[bool]) -> Result<Encoded, MethodError> {
        self.encode(&Site { weight: &without_pruned(site.weight, kept), ..*site })
    }
}

/// One site on its way through the sweep.
struct Job<'a> {
    site: &'a Site<'a>,
    levels: Levels,
    scale: ScaleChoice,
    is_static: bool,
    grouping: Grouping,
    order: &'a [usize],
    factor: &'a [f32],
    /// `1 / U_jj²` of the column visited `j`-th.
    costs: Vec<f32>,
}

impl<'a> Job<'a> {
    fn new(
        params: &Params,
        site: &'a Site<'a>,
        order: &'a [usize],
        factor: &'a InverseFactor,
    ) -> Self {
        let pivot = |j: usize| factor.upper[j * site.cols + j];
        let grouping = params.grid.grouping(site.cols);
        Self {
            site,
            levels: params.grid.levels(),
            scale: params.scale,
            // One scale for the whole matrix cannot be fitted row by row as the sweep goes.
            is_static: params.static_groups || grouping == Grouping::Tensor,
            grouping,
            order,
            factor: &factor.upper,
            costs: (0..site.cols).map(|j| pivot(j).powi(-2)).collect(),
        }
    }

    fn run(&self) -> (Vec<u8>, Vec<Grid>) {
        self.run_with(self.permuted(self.site.weight), |job, mut rows, working| {
            let group = if job.is_static { 1 } else { job.grouping.width(job.site.cols) };
            sweep(working, job.factor, &block_bounds(job.site.cols, group), &mut rows);
        })
    }

    /// The codes and grids of a sweep over `working`, whose columns are in the order of visits.
    fn run_with(
        &self,
        mut working: Vec<f32>,
        sweep: impl FnOnce(&Self, Vec<Row<'_>>, &mut [f32]),
    ) -> (Vec<u8>, Vec<Grid>) {
        let Site { rows, cols, .. } = *self.site;
        let mut grids = if self.is_static {
            self.static_grids()
        } else {
            vec![self.levels.grid(1.0, 0); self.grouping.count(rows, cols)]
        };
        let mut codes = vec![0; rows * cols];
        let per_row = self.grouping.per_row(cols);
        let group = self.grouping.width(cols);
        if self.grouping == Grouping::Tensor {
            // Every row has a copy of the one grid; only the first is kept.
            grids = vec![grids[0]; rows];
        }
        let rows_of_codes = codes.chunks_exact_mut(cols.max(1));
        let rows_of_grids = grids.chunks_exact_mut(per_row.max(1));
        let quantizers: Vec<Row<'_>> = rows_of_codes
            .zip(rows_of_grids)
            .map(|(codes, grids)| Row { job: self, group, codes, grids })
            .collect();
        sweep(self, quantizers, &mut working);
        if self.grouping == Grouping::Tensor {
            grids.truncate(1);
        }
        (codes, grids)
    }

    /// The columns in the order they are visited.
    fn permuted(&self, weight: &[f32]) -> Vec<f32> {
        sparsegpt::visited(weight, self.order)
    }

    /// Sweeps on the grids of blocks, which are fitted beforehand.
    fn run_blocks(&self, kind: BlockGrid, notes: Vec<Note>) -> Result<Encoded, MethodError> {
        let costs = match self.scale {
            ScaleChoice::Weighted => Some(self.costs_by_column()),
            ScaleChoice::MinMax | ScaleChoice::Mse => None,
        };
        let Some(grids) = kind.fit(self.site, costs.as_deref(), self.scale.block_fit()) else {
            return kind.plain(self.site);
        };
        let cols = self.site.cols;
        let mut codes = vec![0; self.site.weight.len()];
        let mut working = self.permuted(self.site.weight);
        let mut quantizers: Vec<BlockRow<'_>> = codes
            .chunks_exact_mut(cols.max(1))
            .enumerate()
            .map(|(row, codes)| BlockRow { row, order: self.order, grids: &grids, codes })
            .collect();
        sweep(&mut working, self.factor, &block_bounds(cols, 1), &mut quantizers);
        grids.assemble(self.site, codes, notes)
    }

    /// What the sweep pays for an error in each column, in the order of the matrix.
    fn costs_by_column(&self) -> Vec<f32> {
        let mut costs = vec![0.0; self.site.cols];
        for (cost, column) in self.costs.iter().zip(self.order) {
            costs[*column] = *cost;
        }
        costs
    }

    /// Every group's grid from the original weights.
    fn static_grids(&self) -> Vec<Grid> {
        use rayon::prelude::*;
        let cols = self.site.cols.max(1);
        let costs = self.costs_by_column();
        if self.grouping == Grouping::Tensor {
            let costs = costs.repeat(self.site.rows);
            return vec![self.fit(self.site.weight, &costs)];
        }
        let group = self.grouping.width(cols);
        let fit_row = |row: &[f32]| -> Vec<Grid> {
            let groups = row.chunks(group).zip(costs.chunks(group));
            groups.map(|(values, costs)| self.fit(values, costs)).collect()
        };
        self.site.weight.par_chunks_exact(cols).flat_map_iter(fit_row).collect()
    }

    fn fit(&self, values: &[f32], costs: &[f32]) -> Grid {
        let store = |scale| self.site.scale_type.round_scale(scale);
        match self.scale {
            ScaleChoice::MinMax => self.levels.fit_range(values, store),
            ScaleChoice::Mse => self.levels.fit_search(values, None, SEARCH, store),
            ScaleChoice::Weighted => self.levels.fit_search(values, Some(costs), SEARCH, store),
        }
    }
}

/// One row's codes and grids as the sweep reaches them.
struct Row<'a> {
    job: &'a Job<'a>,
    group: usize,
    codes: &'a mut [u8],
    grids: &'a mut [Grid],
}

impl RowQuantizer for Row<'_> {
    fn quantize(&mut self, column: usize, rest: &[f32]) -> f32 {
        let original = self.job.order[column];
        let group = original / self.group;
        if !self.job.is_static && column.is_multiple_of(self.group) {
            let width = self.group.min(rest.len());
            let costs = &self.job.costs[column..][..width];
            self.grids[group] = self.job.fit(&rest[..width], costs);
        }
        let grid = self.grids[group];
        let code = grid.code(rest[0]);
        self.codes[original] = code;
        grid.value(code)
    }
}

/// One row's codes on the grids of blocks.
struct BlockRow<'a> {
    row: usize,
    order: &'a [usize],
    grids: &'a BlockGrids,
    codes: &'a mut [u8],
}

impl RowQuantizer for BlockRow<'_> {
    fn quantize(&mut self, column: usize, rest: &[f32]) -> f32 {
        let original = self.order[column];
        let steps = self.grids.steps(self.row, original);
        let code = steps.code(rest[0]);
        self.codes[original] = code;
        steps.value(code)
    }
}
