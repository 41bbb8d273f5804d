//! MXFP4: E2M1 in groups of 32 columns that share a power of two.
//!
//! Rouhani et al., 2023 (arXiv 2310.10537). The power of two of the largest magnitude over that of 4,
//! rounded up from a fraction of ¾ on, as compressed-tensors does; the paper rounds down.

use crate::float_grid::{FloatGrid, ScaleKind};
use crate::{Method, ParamError};
use lapidary_weight::SmallFloat;

pub(crate) const SUMMARY: &str = "four bits: E2M1 in groups of 32 with powers of two";
pub(crate) const PAPER: &str = "Rouhani et al., 2023, arXiv 2310.10537";

pub use crate::float_grid::FloatParams as Params;

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    Ok(FloatGrid::of_columns(SmallFloat::E2M1, 32, ScaleKind::PowerOfTwo, &params))
}
