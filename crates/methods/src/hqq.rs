//! HQQ: the real zero point of each group that makes the errors least, outliers counting less.
//!
//! Badri and Shaji, 2023 (mobiusml.github.io/hqq_blog): with the scale fixed, the zero point solves
//! `min ‖W − Ŵ‖_p^p`, p < 1, by half-quadratic splitting: shrink the errors, set the zero to the mean
//! that fits the rest, and again with a larger β, while the mean of the magnitudes of the errors
//! falls. The best zero is kept, not the last. No data.
//!
//! Where we differ: every group stops on its own; errors are taken in steps of the scale, so that the
//! same constants serve weights of any size; scales and zeros are rounded to what is stored before
//! they are judged; and the integer zero of round to nearest is a second start, so that the result is
//! never worse than that.

use crate::blocks::lines;
use crate::{Encoded, GroupSize, Method, MethodError, ParamError, Site, Tensorwise};
use lapidary_kernels::grid::Levels;
use lapidary_kernels::half_quadratic::{RealGrid, step};
use lapidary_weight::{
    Affine, FloatType, GroupFloats, Grouping, Outline, Term, TermOutline, Weight, ZeroType, Zeros,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "a real zero point a group, found by half-quadratic splitting";
pub(crate) const PAPER: &str = "Badri and Shaji, 2023, mobiusml.github.io/hqq_blog";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Bits of a weight, 2 to 8.
    #[schemars(range(min = 2, max = 8))]
    pub bits: u8,
    /// Columns that share a scale: a number, "row" (or -1) for one scale a row, "tensor" for one.
    pub group_size: GroupSize,
    /// Most steps of a group.
    #[schemars(range(min = 0, max = 1000))]
    pub iterations: usize,
    /// The p of the norm, above 0 and at most 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lp_norm: f32,
    /// The first β, positive.
    pub beta: f32,
    /// What β is multiplied by after each step, at least 1.
    pub kappa: f32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: GroupSize::Columns(64),
            iterations: 20,
            lp_norm: 0.7,
            beta: 10.0,
            kappa: 1.01,
        }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let refuse = |path: &str, what: String| Err(ParamError::new(path, what));
    if !(2..=8).contains(&params.bits) {
        return refuse("bits", format!("{} is not from 2 to 8", params.bits));
    }
    if params.iterations > 1000 {
        return refuse("iterations", format!("{} is more than 1000", params.iterations));
    }
    if !(params.lp_norm > 0.0 && params.lp_norm <= 1.0) {
        return refuse("lp_norm", format!("{} is not above 0 and at most 1", params.lp_norm));
    }
    if !(params.beta > 0.0 && params.beta.is_finite()) {
        return refuse("beta", format!("{} is not positive", params.beta));
    }
    if !(params.kappa >= 1.0 && params.kappa.is_finite()) {
        return refuse("kappa", format!("{} is not at least 1", params.kappa));
    }
    Ok(Method::Tensorwise(Box::new(Hqq(params))))
}

struct Hqq(Params);

impl Tensorwise for Hqq {
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        let term = TermOutline::Affine {
            bits: self.0.bits,
            grouping: self.0.group_size.grouping(cols),
            zeros: ZeroType::Floats(scales.into()),
            scales: scales.into(),
        };
        Outline { rows, cols, terms: vec![term] }
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        use rayon::prelude::*;
        site.check_finite()?;
        let Site { rows, cols, scale_type, .. } = *site;
        let grouping = self.0.group_size.grouping(cols);
        let (line, group, per_row) = lines(grouping, rows, cols);
        let groups = grouping.count(rows, cols);
        let mut codes = vec![0; site.weight.len()];
        let (mut scales, mut zeros) = (vec![1.0; groups], vec![0.0; groups]);
        let of_lines = site.weight.par_chunks(line).zip(codes.par_chunks_mut(line));
        let found = scales.par_chunks_mut(per_row).zip(zeros.par_chunks_mut(per_row));
        of_lines.zip(found).for_each(|((weight, codes), (scales, zeros))| {
            let groups = weight.chunks(group).zip(codes.chunks_mut(group));
            for ((weight, codes), (scale, zero)) in groups.zip(scales.iter_mut().zip(zeros)) {
                let grid = self.fit(weight, scale_type);
                grid.codes(weight, codes);
                (*scale, *zero) = (grid.scale, grid.zero);
            }
        });
        // Values near the end of f32's range have no grid of finite numbers around them.
        let reach = |scale: &f32| scale * f32::from(u8::MAX);
        if scales.iter().any(|scale| !reach(scale).is_finite()) {
            let what = "its values are too large for a grid of finite numbers".to_owned();
            return Err(MethodError::Numerical { site: site.name.to_owned(), what });
        }
        let affine = Affine {
            bits: self.0.bits,
            grouping,
            codes,
            scales: GroupFloats::plain(scales, scale_type),
            zeros: Zeros::Floats(GroupFloats::plain(zeros, scale_type)),
        };
        let weight = Weight::new(rows, cols, vec![Term::Affine(affine)])
            .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes: vec![] })
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(Params { group_size: grouping.into(), ..self.0.clone() })))
    }
}

impl Hqq {
    /// The better of what the two starts lead to, errors compared in the unit of the weights.
    fn fit(&self, values: &[f32], float: FloatType) -> RealGrid {
        let (integer, mut least) = self.improve(values, self.integer_start(values, float), float);
        let Some(start) = self.real_start(values, float) else { return integer };
        let mut best = integer;
        let (real, error) = self.improve(values, start, float);
        if error < least {
            (best, least) = (real, error);
        }
        debug_assert!(least >= 0.0);
        best
    }

    /// Round to nearest's grid: its range includes zero, its zero is a code.
    fn integer_start(&self, values: &[f32], float: FloatType) -> RealGrid {
        let levels = Levels { bits: self.0.bits, symmetric: false, restricted: false };
        let grid = levels.fit_range(values, |scale| float.round_scale(scale));
        RealGrid { scale: grid.scale, zero: f32::from(grid.zero), highest: levels.highest() }
    }

    /// The authors' grid: it spans the values, its zero is anywhere. `None` where there is no such
    /// grid, or its zero is so far away that its rounding would be felt.
    fn real_start(&self, values: &[f32], float: FloatType) -> Option<RealGrid> {
        let highest = u8::MAX >> (8 - self.0.bits);
        let low = values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let width = high - low;
        if !(width > 0.0 && width.is_finite()) {
            return None;
        }
        let scale = float.round_scale(width / f32::from(highest));
        let zero = float.round(-low / scale);
        (zero.abs() <= 1024.0).then_some(RealGrid { scale, zero, highest })
    }

    /// Steps from `start` while the error falls; the best grid on the way, with its error.
    fn improve(&self, values: &[f32], start: RealGrid, float: FloatType) -> (RealGrid, f32) {
        let (mut best, mut least) = (start, f32::INFINITY);
        let (mut grid, mut beta) = (start, self.0.beta);
        for _ in 0..=self.0.iterations {
            let (error, zero) = step(values, grid, self.0.lp_norm - 1.0, beta);
            if error >= least {
                break;
            }
            (best, least) = (grid, error);
            let zero = float.round(zero);
            if !zero.is_finite() || zero == grid.zero {
                break;
            }
            grid.zero = zero;
            beta *= self.0.kappa;
        }
        (best, least * start.scale)
    }
}
