//! FP8: E4M3 with a scale for each row, for groups of columns, for rectangles, or for the matrix.
//!
//! Micikevicius et al., 2022 (arXiv 2209.05433). Rectangles of 128 × 128 are those of DeepSeek-V3
//! (arXiv 2412.19437, section 3.3.2).

use crate::float_grid::{FloatGrid, ScaleChoice, ScaleKind};
use crate::{Encoded, GroupSize, Method, MethodError, ParamError, Site, Tensorwise};
use lapidary_weight::{FloatType, Grouping, Outline, SmallFloat};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

pub(crate) const SUMMARY: &str = "eight bits: floats with four bits of exponent";
pub(crate) const PAPER: &str = "Micikevicius et al., 2022, arXiv 2209.05433";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Columns that share a scale: a number, "row" (or -1) for one scale a row, "tensor" for one.
    pub group_size: GroupSize,
    /// Rows and columns of the rectangles that share a scale, in place of `group_size`: [128, 128].
    pub block: Option<[NonZeroUsize; 2]>,
    /// How a scale is chosen.
    pub scale: ScaleChoice,
}

impl Default for Params {
    fn default() -> Self {
        Self { group_size: GroupSize::Row, block: None, scale: ScaleChoice::Range }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if params.block.is_some() && params.group_size != GroupSize::Row {
        return Err(ParamError::new("block", "stands in place of group_size; leave one of them out"));
    }
    Ok(Method::Tensorwise(Box::new(Fp8(params))))
}

struct Fp8(Params);

impl Fp8 {
    fn grid(&self, cols: usize) -> FloatGrid {
        let grouping = match self.0.block {
            Some([rows, columns]) => Grouping::Blocks { rows, columns },
            None => self.0.group_size.grouping(cols),
        };
        let (scales, choice) = (ScaleKind::Float, self.0.scale);
        FloatGrid { float: SmallFloat::E4M3, grouping, scales, choice }
    }
}

impl Tensorwise for Fp8 {
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        self.grid(cols).outline(rows, cols, scales)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        self.grid(site.cols).encode(site)
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        let params = Params { group_size: grouping.into(), block: None, scale: self.0.scale };
        Some(Box::new(Self(params)))
    }
}
