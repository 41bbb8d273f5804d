//! NVFP4: E2M1 in groups of 16 columns, with scales in E4M3 under one divisor.
//!
//! NVIDIA, 2025 (arXiv 2509.25149, section 2): the divisor brings the largest scale to the largest
//! E4M3, 448. Layers with a common input have it in common.

use crate::float_grid::{FloatGrid, ScaleKind};
use crate::{Method, ParamError};
use lapidary_weight::SmallFloat;

pub(crate) const SUMMARY: &str = "four bits: E2M1 in groups of 16 with scales in E4M3";
pub(crate) const PAPER: &str = "NVIDIA, 2025, arXiv 2509.25149";

pub use crate::float_grid::FloatParams as Params;

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    Ok(FloatGrid::of_columns(SmallFloat::E2M1, 16, ScaleKind::Divided, &params))
}
