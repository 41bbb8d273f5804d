//! NF4: four bits whose levels are quantiles of the normal distribution, and double quantization.
//!
//! QLoRA (Dettmers et al., 2023, arXiv 2305.14314, section 3): a block's weights over their largest
//! magnitude, each to the nearest of 16 levels that hold equal shares of a normal distribution, with
//! exact −1, 0 and 1. Double quantization stores the scales less their mean in 8 bits, one float for
//! 256 of them; its codes are uniform here where bitsandbytes' are floats of 8 bits, which differ by
//! far less than the four bits of the weights.

use crate::blocks::BlockParams;
use crate::codebook::Codebook;
use crate::{Encoded, Method, MethodError, ParamError, Site, Tensorwise};
use lapidary_weight::{FloatType, Grouping, Outline};

pub(crate) const SUMMARY: &str = "four bits: quantiles of the normal distribution";
pub(crate) const PAPER: &str = "Dettmers et al., 2023, arXiv 2305.14314";

pub use crate::blocks::BlockParams as Params;

/// The levels of bitsandbytes.
const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    Ok(Method::Tensorwise(Box::new(Nf4(params))))
}

struct Nf4(BlockParams);

impl Tensorwise for Nf4 {
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        self.0.blocks(cols, scales).outline((rows, cols), 4, 0, scales)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        let blocks = self.0.blocks(site.cols, site.scale_type);
        blocks.encode(site, &[], |_| Codebook::new(4, LEVELS.to_vec()))
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(self.0.regrouped(grouping))))
    }
}

#[cfg(test)]
mod tests {
    use super::LEVELS;

    /// The inverse of the normal distribution function by bisection.
    fn quantile(share: f64) -> f64 {
        let below = |x: f64| {
            // ∫ of the density from −8 by Simpson's rule.
            let (steps, from) = (4000, -8.0);
            let width = (x - from) / f64::from(steps);
            let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
            let term = |i: i32| {
                let weight = if i == 0 || i == steps { 1.0 } else if i % 2 == 1 { 4.0 } else { 2.0 };
                weight * density(from + width * f64::from(i))
            };
            (0..=steps).map(term).sum::<f64>() * width / 3.0
        };
        let (mut low, mut high) = (-5.0, 5.0);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if below(middle) < share { low = middle } else { high = middle }
        }
        low
    }

    /// The construction of the paper: 8 steps up from ½ to an offset, 7 steps down.
    #[test]
    fn the_levels_are_quantiles() {
        let offset = 0.967_708_3;
        let at = |i: usize, steps: usize| quantile(offset + (0.5 - offset) * i as f64 / steps as f64);
        let largest = at(0, 8);
        for i in 0..8 {
            let (positive, expected) = (f64::from(LEVELS[15 - i]), at(i, 8) / largest);
            assert!((positive - expected).abs() < 1e-5, "{positive} {expected}");
        }
        for (i, level) in LEVELS[..7].iter().enumerate() {
            let (negative, expected) = (f64::from(*level), -at(i, 7) / largest);
            assert!((negative - expected).abs() < 1e-5, "{negative} {expected}");
        }
        assert_eq!((LEVELS[0], LEVELS[7], LEVELS[15]), (-1.0, 0.0, 1.0));
    }
}
