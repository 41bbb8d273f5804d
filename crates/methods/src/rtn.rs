//! Round to nearest: each group's grid spans its least to its greatest value.
//!
//! The baseline of every paper, and the affine quantizer of Jacob et al., 2017 (arXiv 1712.05877,
//! section 2.1) with one scale a group: `w ≈ s (q − z)`, `q = clamp(round(w / s) + z)`. Symmetric
//! grids span `±max|w|` in `(2^bits − 1) / 2` steps, as compressed-tensors does.

use crate::block_grid::Fit;
use crate::pruning::without_pruned;
use crate::{
    BlockGrid, Encoded, GridParams, Masked, Method, MethodError, Note, ParamError, Site, Tensorwise,
};
use lapidary_weight::{FloatType, Grouping, Outline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "round to nearest on a grid that spans each group";
pub(crate) const PAPER: &str = "Jacob et al., 2017, arXiv 1712.05877";

/// Parameters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// The grid.
    #[serde(flatten)]
    pub grid: GridParams,
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    params.grid.check()?;
    Ok(Method::Tensorwise(Box::new(Rtn(params))))
}

struct Rtn(Params);

/// Rounding to nearest on a grid, in a search for what a slower method will do on it.
pub(crate) fn draft(grid: &GridParams) -> Box<dyn Tensorwise> {
    Box::new(Rtn(Params { grid: grid.clone() }))
}

impl Tensorwise for Rtn {
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        self.0.grid.outline(rows, cols, scales)
    }

    fn departure(&self, cols: usize) -> Option<Note> {
        self.0.grid.blocks.departure(cols)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        if self.0.grid.blocks != BlockGrid::Plain {
            return self.0.grid.blocks.encode(site, None, Fit::Range);
        }
        let levels = self.0.grid.levels();
        let store = |scale| site.scale_type.round_scale(scale);
        self.0.grid.encode(site, |values| levels.fit_range(values, store))
    }

    /// Every plain grid has an exact zero, to which what is pruned is rounded.
    fn masked(&self) -> Option<&dyn Masked> {
        (self.0.grid.blocks == BlockGrid::Plain).then_some(self)
    }

    fn draft(&self) -> Option<Box<dyn Tensorwise>> {
        Some(draft(&self.0.grid))
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(Params { grid: self.0.grid.regrouped(grouping)? })))
    }
}

impl Masked for Rtn {
    fn encode_masked(&self, site: &Site<'_>, kept: &[bool]) -> Result<Encoded, MethodError> {
        self.encode(&Site { weight: &without_pruned(site.weight, kept), ..*site })
    }
}
