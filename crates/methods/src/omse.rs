//! OMSE: the scale of each group that minimises its squared error.
//!
//! Choukroun et al., 2019 (arXiv 1902.06822), section 3: `min_α ‖T − α · clip(round(T / α))‖²` over a
//! line of candidates, because the error is not convex in `α`. The full range is a candidate, so the
//! error is never above that of round to nearest. With zero points, both ends of the range shrink
//! together. The paper has one scale a row; here any group.

use crate::block_grid::Fit;
use crate::{BlockGrid, Encoded, GridParams, Method, MethodError, ParamError, Site, Tensorwise};
use lapidary_kernels::grid::Search;
use lapidary_weight::{FloatType, Grouping, Outline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "the scale of least squared error for each group";
pub(crate) const PAPER: &str = "Choukroun et al., 2019, arXiv 1902.06822";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// The grid.
    #[serde(flatten)]
    pub grid: GridParams,
    /// Candidates of the search: ratios 1, (steps − 1) / steps, … of the full range.
    #[schemars(range(min = 1, max = 10000))]
    pub steps: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { grid: GridParams::default(), steps: 500 }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    params.grid.check()?;
    if !(1..=10_000).contains(&params.steps) {
        return Err(ParamError::new("steps", format!("{} is not from 1 to 10000", params.steps)));
    }
    Ok(Method::Tensorwise(Box::new(Omse(params))))
}

struct Omse(Params);

impl Tensorwise for Omse {
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        self.0.grid.outline(rows, cols, scales)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        if self.0.grid.blocks != BlockGrid::Plain {
            return self.0.grid.blocks.encode(site, None, Fit::Search);
        }
        let levels = self.0.grid.levels();
        let search = Search { steps: self.0.steps, floor: 0.0 };
        let store = |scale| site.scale_type.round_scale(scale);
        self.0.grid.encode(site, |values| levels.fit_search(values, None, search, store))
    }

    fn draft(&self) -> Option<Box<dyn Tensorwise>> {
        Some(crate::rtn::draft(&self.0.grid))
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        let grid = self.0.grid.regrouped(grouping)?;
        Some(Box::new(Self(Params { grid, ..self.0.clone() })))
    }
}
