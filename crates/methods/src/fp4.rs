//! FP4: four-bit floats with two bits of exponent, scaled by the largest magnitude of each block.
//!
//! The other data type of QLoRA (Dettmers et al., 2023, arXiv 2305.14314); the levels are those of
//! E2M1 as the OCP microscaling formats define it: 0, ½, 1, 1½, 2, 3, 4, 6. bitsandbytes has 1/32 in
//! the place of ½.

use crate::codebook::Codebook;
use crate::{Encoded, Method, MethodError, ParamError, Site, Tensorwise};
use lapidary_weight::{FloatType, Grouping, Outline};

pub(crate) const SUMMARY: &str = "four bits: floats with two bits of exponent";
pub(crate) const PAPER: &str = "Dettmers et al., 2023, arXiv 2305.14314";

pub use crate::blocks::BlockParams as Params;

/// E2M1 without signs.
const LEVELS: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

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
        blocks.encode(site, &[], |_| Codebook::symmetric(4, &LEVELS))
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(self.0.regrouped(grouping))))
    }
}
