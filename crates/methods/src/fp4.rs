//! FP4: four-bit floats with two bits of exponent, scaled by the largest magnitude of each block.
//!
//! The other data type of QLoRA (Dettmers et al., 2023, arXiv 2305.14314); the levels are those of
//! E2M1 as the OCP microscaling formats define it: 0, ½, 1, 1½, 2, 3, 4, 6; or those of bitsandbytes,
//! which has 1/32 in the place of ½.

use crate::blocks::{BlockParams, Blocks};
use crate::codebook::Codebook;
use crate::{Encoded, GroupSize, Method, MethodError, ParamError, Site, Tensorwise};
use lapidary_weight::{FloatType, Grouping, Outline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "four bits: floats with two bits of exponent";
pub(crate) const PAPER: &str = "Dettmers et al., 2023, arXiv 2305.14314";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Columns that share a scale: a number, "row" (or -1) for one scale a row, "tensor" for one.
    pub group_size: GroupSize,
    /// Store scales in 8 bits: a code each, one float for 256 of them, their mean for all.
    pub double_quantization: bool,
    /// Which floats: those of E2M1, or those of bitsandbytes.
    pub levels: Levels,
}

/// Four-bit floats, without signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Levels {
    /// 0, ½, 1, 1½, 2, 3, 4, 6.
    E2m1,
    /// 0, 1/32, 1, 1½, 2, 3, 4, 6.
    Bitsandbytes,
}

impl Default for Params {
    fn default() -> Self {
        let BlockParams { group_size, double_quantization } = BlockParams::default();
        Self { group_size, double_quantization, levels: Levels::E2m1 }
    }
}

impl Params {
    fn blocks(&self, cols: usize, scales: FloatType) -> Blocks {
        let &Self { group_size, double_quantization, .. } = self;
        BlockParams { group_size, double_quantization }.blocks(cols, scales)
    }

    fn book(&self) -> Codebook {
        let least = match self.levels {
            Levels::E2m1 => 0.5,
            Levels::Bitsandbytes => 0.03125,
        };
        Codebook::symmetric(4, &[0.0, least, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    Ok(Method::Tensorwise(Box::new(Fp4(params))))
}

struct Fp4(Params);

impl Tensorwise for Fp4 {
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        self.0.blocks(cols, scales).outline((rows, cols), 4, 0, scales)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        let blocks = self.0.blocks(site.cols, site.scale_type);
        blocks.encode(site, &[], |_| self.0.book())
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(Params { group_size: grouping.into(), ..self.0.clone() })))
    }
}
