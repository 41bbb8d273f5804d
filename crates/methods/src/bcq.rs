//! Binary coding: planes of signs with a scale each, fitted by alternating least squares.
//!
//! nuQmm / LUT-GEMM (Park et al., 2022, arXiv 2206.09557), with the solver of Xu et al., 2018 (arXiv
//! 1802.00150). Greedy first: each plane is the signs of what is left, its scale the mean magnitude.
//! Then in turn the least-squares scales of the signs and, for each weight, the nearest of the `2^q`
//! sums. A second start is the uniform grid of round to nearest, which is binary coding too; the
//! better result is kept, so that it is never worse than that grid.

use crate::blocks::lines;
use crate::codebook::Codebook;
use crate::least_squares::solve;
use crate::{Encoded, GroupSize, Method, MethodError, Needs, ParamError, Site, Tensorwise};
use lapidary_kernels::grid::Levels;
use lapidary_weight::{FloatType, Grouping, Outline, Planes, Term, TermOutline, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "binary planes with scales, fitted by alternating least squares";
pub(crate) const PAPER: &str = "Park et al., 2022, arXiv 2206.09557";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Planes of signs, 1 to 8.
    #[schemars(range(min = 1, max = 8))]
    pub bits: u8,
    /// Columns that share a set of scales: a number, "row" (or -1) for one set a row, "tensor".
    pub group_size: GroupSize,
    /// Give each group a number that is added to all of its weights.
    pub offset: bool,
    /// Most rounds of the alternation.
    #[schemars(range(min = 0, max = 1000))]
    pub rounds: usize,
    /// Weigh the errors by the mean squares of the inputs.
    pub weighted: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: GroupSize::Columns(128),
            offset: true,
            rounds: 15,
            weighted: false,
        }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if !(1..=8).contains(&params.bits) {
        return Err(ParamError::new("bits", format!("{} is not from 1 to 8", params.bits)));
    }
    if params.rounds > 1000 {
        return Err(ParamError::new("rounds", format!("{} is more than 1000", params.rounds)));
    }
    Ok(Method::Tensorwise(Box::new(Bcq(params))))
}

struct Bcq(Params);

impl Tensorwise for Bcq {
    fn needs(&self) -> Needs {
        Needs { gram: self.0.weighted, ..Needs::default() }
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        let term = TermOutline::Planes {
            planes: self.0.bits,
            grouping: self.0.group_size.grouping(cols),
            offsets: self.0.offset,
            scales,
        };
        Outline { rows, cols, terms: vec![term] }
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        use rayon::prelude::*;
        site.check_finite()?;
        let Site { rows, cols, scale_type, .. } = *site;
        let grouping = self.0.group_size.grouping(cols);
        let (line, group, _) = lines(grouping, rows, cols);
        let costs = self.costs(site, line)?;
        let of_line = |(weight, signs): (&[f32], &mut [u8])| -> Vec<Fit> {
            let groups = weight.chunks(group).zip(signs.chunks_mut(group)).zip(costs.chunks(group));
            let fit = |((weight, signs), costs): ((&[f32], &mut [u8]), &[f32])| {
                let fit = Group { params: &self.0, float: scale_type, weight, costs }.fit();
                signs.copy_from_slice(&fit.signs);
                Fit { signs: vec![], ..fit }
            };
            groups.map(fit).collect()
        };
        let mut signs = vec![0; site.weight.len()];
        let of_lines = site.weight.par_chunks(line).zip(signs.par_chunks_mut(line));
        let fits: Vec<Fit> = of_lines.flat_map_iter(of_line).collect();
        if fits.iter().any(|fit| !fit.error.is_finite()) {
            let what = "its values are too large for scales of finite numbers".to_owned();
            return Err(MethodError::Numerical { site: site.name.to_owned(), what });
        }
        let planes = usize::from(self.0.bits);
        let alphas = (0..planes).flat_map(|plane| fits.iter().map(move |fit| fit.scales[plane]));
        let planes = Planes {
            planes: self.0.bits,
            grouping,
            signs,
            alphas: alphas.collect(),
            offsets: self.0.offset.then(|| fits.iter().map(|fit| fit.scales[planes]).collect()),
            scale_type,
        };
        let weight = Weight::new(rows, cols, vec![Term::Planes(planes)])
            .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes: vec![] })
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(Params { group_size: grouping.into(), ..self.0.clone() })))
    }

    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(Params { weighted: false, ..self.0.clone() })))
    }
}

impl Bcq {
    /// What the error of each weight of a line costs: 1, or the sum of squares of its input.
    fn costs(&self, site: &Site<'_>, line: usize) -> Result<Vec<f32>, MethodError> {
        if !self.0.weighted {
            return Ok(vec![1.0; line]);
        }
        let diagonal = site.gram_diagonal()?;
        let largest = diagonal.iter().copied().fold(0.0, f32::max);
        // An input that was never there costs a little all the same: its weight is not free.
        let cost = |square: f32| if largest > 0.0 { (square / largest).max(1e-6) } else { 1.0 };
        let costs: Vec<f32> = diagonal.into_iter().map(cost).collect();
        Ok(costs.repeat(line / site.cols.max(1)))
    }
}

/// Signs of a group, and its scales with the offset last (zero when there is none).
#[derive(Debug, Clone)]
struct Fit {
    signs: Vec<u8>,
    scales: Vec<f32>,
    error: f64,
}

/// One group to fit.
struct Group<'a> {
    params: &'a Params,
    float: FloatType,
    weight: &'a [f32],
    costs: &'a [f32],
}

impl Group<'_> {
    fn fit(&self) -> Fit {
        let greedy = self.alternate(self.greedy());
        let uniform = self.alternate(self.uniform());
        if greedy.error < uniform.error { greedy } else { uniform }
    }

    /// Each plane the signs of what is left.
    fn greedy(&self) -> Vec<f32> {
        let mut left = self.weight.to_vec();
        let cost: f64 = self.costs.iter().map(|cost| f64::from(*cost)).sum();
        let mean = |values: &mut dyn Iterator<Item = f32>| {
            let sum: f64 = values.zip(self.costs).map(|(v, c)| f64::from(v) * f64::from(*c)).sum();
            (sum / cost) as f32
        };
        let offset = if self.params.offset { mean(&mut left.iter().copied()) } else { 0.0 };
        left.iter_mut().for_each(|value| *value -= offset);
        let mut scales = vec![];
        for _ in 0..self.params.bits {
            let scale = mean(&mut left.iter().map(|value| value.abs()));
            let sign = |value: f32| if value < 0.0 { -scale } else { scale };
            left.iter_mut().for_each(|value| *value -= sign(*value));
            scales.push(scale);
        }
        scales.push(offset);
        scales
    }

    /// The grid of round to nearest; without an offset, the one whose middle is zero.
    fn uniform(&self) -> Vec<f32> {
        let bits = self.params.bits;
        let grid = |symmetric| {
            let levels = Levels { bits, symmetric, restricted: false };
            levels.fit_range(self.weight, |scale| self.float.round_scale(scale))
        };
        if self.params.offset {
            let grid = grid(false);
            let (mut scales, offset) =
                Planes::from_uniform(bits, grid.scale, f32::from(grid.zero));
            scales.push(offset);
            return scales;
        }
        let largest = self.weight.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
        let scale = largest / (f32::from((1_u16 << bits) - 1) / 2.0);
        let (mut scales, _) = Planes::from_uniform(bits, scale, 0.0);
        scales.push(0.0);
        scales
    }

    /// Nearest signs and least-squares scales in turn, from these scales on; the best on the way,
    /// judged with the scales as they are stored.
    fn alternate(&self, start: Vec<f32>) -> Fit {
        let mut best = self.nearest(&start);
        let mut current = best.clone();
        for _ in 0..self.params.rounds {
            let Some(scales) = self.least_squares(&current.signs) else { break };
            let next = self.nearest(&scales);
            let same = next.signs == current.signs;
            current = next;
            if current.error < best.error {
                best = current.clone();
            }
            if same {
                break;
            }
        }
        best
    }

    /// The signs whose sum is nearest to each weight, with stored scales.
    fn nearest(&self, scales: &[f32]) -> Fit {
        let planes = usize::from(self.params.bits);
        let scales: Vec<f32> = scales.iter().map(|scale| self.float.round(*scale)).collect();
        let level = |signs: usize| {
            let signed = |plane: usize| {
                if signs >> plane & 1 == 1 { scales[plane] } else { -scales[plane] }
            };
            (1..planes).fold(signed(0), |sum, plane| sum + signed(plane)) + scales[planes]
        };
        let mut levels: Vec<(f32, u8)> =
            (0..1_usize << planes).map(|signs| (level(signs), signs as u8)).collect();
        if levels.iter().any(|(level, _)| !level.is_finite()) {
            let signs = vec![0; self.weight.len()];
            return Fit { signs, scales, error: f64::INFINITY };
        }
        levels.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        levels.dedup_by(|a, b| a.0 == b.0);
        let book = Codebook::new(self.params.bits, levels.iter().map(|(l, _)| *l).collect());
        let codes = self.weight.iter().map(|weight| usize::from(book.code(*weight)));
        let codes: Vec<usize> = codes.collect();
        let error = |((code, weight), cost): ((&usize, &f32), &f32)| {
            let error = f64::from(*weight) - f64::from(levels[*code].0);
            f64::from(*cost) * error * error
        };
        let error = codes.iter().zip(self.weight).zip(self.costs).map(error).sum();
        Fit { signs: codes.iter().map(|code| levels[*code].1).collect(), scales, error }
    }

    /// The scales (and the offset) of least weighted squared error for these signs; `None` where
    /// they are not determined.
    fn least_squares(&self, signs: &[u8]) -> Option<Vec<f32>> {
        let planes = usize::from(self.params.bits);
        let unknowns = planes + usize::from(self.params.offset);
        // Weights with the same signs have the same row of the system: sums over them are enough.
        let mut sums = vec![(0.0_f64, 0.0_f64); 1 << planes];
        for ((signs, weight), cost) in signs.iter().zip(self.weight).zip(self.costs) {
            let (costs, weighted) = &mut sums[usize::from(*signs)];
            *costs += f64::from(*cost);
            *weighted += f64::from(*cost) * f64::from(*weight);
        }
        let mut system = vec![vec![0.0; unknowns + 1]; unknowns];
        for (signs, (cost, weighted)) in sums.iter().enumerate().filter(|(_, sum)| sum.0 > 0.0) {
            let sign = |i: usize| if i == planes || signs >> i & 1 == 1 { 1.0 } else { -1.0 };
            for (i, row) in system.iter_mut().enumerate() {
                for (j, entry) in row[..unknowns].iter_mut().enumerate() {
                    *entry += cost * sign(i) * sign(j);
                }
                row[unknowns] += weighted * sign(i);
            }
        }
        let mut scales: Vec<f32> = solve(system)?.into_iter().map(|scale| scale as f32).collect();
        scales.resize(planes + 1, 0.0);
        Some(scales)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(bits: u8, offset: bool) -> Params {
        Params { bits, offset, ..Params::default() }
    }

    /// Card of nuQmm, must show 1: greedy alone is exact here.
    #[test]
    fn greedy_finds_two_planes_exactly() {
        let params = group(2, false);
        let weight = [-3.0, -1.0, 1.0, 3.0];
        let group =
            Group { params: &params, float: FloatType::F16, weight: &weight, costs: &[1.0; 4] };
        assert_eq!(group.greedy(), [2.0, 1.0, 0.0]);
        assert_eq!(group.nearest(&[2.0, 1.0, 0.0]).error, 0.0);
    }

    /// Must show 4: each round lowers the error.
    #[test]
    fn the_error_falls_with_every_round() {
        let weight: Vec<f32> = (0..128).map(|i| ((i * i * 7 + 3) % 101) as f32 / 50.0 - 1.0).collect();
        for bits in 1..=5 {
            let params = group(bits, bits % 2 == 0);
            let costs: Vec<f32> = (0..128).map(|i| 0.5 + (i % 5) as f32).collect();
            let group =
                Group { params: &params, float: FloatType::F32, weight: &weight, costs: &costs };
            let mut fit = group.nearest(&group.greedy());
            for _ in 0..15 {
                let next = group.nearest(&group.least_squares(&fit.signs).unwrap());
                assert!(next.error <= fit.error * (1.0 + 1e-5), "{} {}", next.error, fit.error);
                fit = next;
            }
        }
    }
}
