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

    fn needs_only_diagonal(&self) -> bool {
        true
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
                let group = Group::new(&self.0, scale_type, weight, costs);
                let fit = group.fit();
                group.encode(&fit, weight, signs);
                fit
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

/// Scales of a group, the offset last (zero when there is none), and what they lose.
#[derive(Debug, Clone)]
struct Fit {
    scales: Vec<f32>,
    /// The signs of each level, by rising level, and how many weights are nearest to it or to one
    /// below it.
    cuts: Vec<(u8, usize)>,
    error: f64,
}

/// One group to fit. What is nearest to a level is a stretch of the sorted weights, and all that a
/// round needs of a stretch are three sums: a round costs by its levels, not by its weights.
struct Group<'a> {
    params: &'a Params,
    float: FloatType,
    /// The weights, rising, and their costs.
    sorted: Vec<(f32, f32)>,
    /// Sums over the first of the sorted weights, from none to all of them.
    sums: Vec<Sums>,
}

/// Sums over weights.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    /// Of what an error of each costs.
    cost: f64,
    /// Of cost times weight.
    weighted: f64,
    /// Of cost times square.
    squares: f64,
}

impl Sums {
    fn of(&self, weight: f32, cost: f32) -> Self {
        let (weight, cost) = (f64::from(weight), f64::from(cost));
        Self {
            cost: self.cost + cost,
            weighted: self.weighted + cost * weight,
            squares: self.squares + cost * weight * weight,
        }
    }

    /// What is in this sum and not in one over fewer weights.
    fn beyond(&self, fewer: &Self) -> Self {
        Self {
            cost: self.cost - fewer.cost,
            weighted: self.weighted - fewer.weighted,
            squares: self.squares - fewer.squares,
        }
    }
}

impl<'a> Group<'a> {
    fn new(params: &'a Params, float: FloatType, weight: &[f32], costs: &[f32]) -> Self {
        let mut sorted: Vec<_> = weight.iter().copied().zip(costs.iter().copied()).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut sums = vec![Sums::default()];
        for (weight, cost) in &sorted {
            sums.push(sums[sums.len() - 1].of(*weight, *cost));
        }
        Self { params, float, sorted, sums }
    }

    fn fit(&self) -> Fit {
        let greedy = self.alternate(self.greedy());
        let uniform = self.alternate(self.uniform());
        if greedy.error < uniform.error { greedy } else { uniform }
    }

    /// Each plane the signs of what is left.
    fn greedy(&self) -> Vec<f32> {
        let mut left: Vec<f32> = self.sorted.iter().map(|(weight, _)| *weight).collect();
        let cost = self.sums[self.sorted.len()].cost;
        let mean = |values: &mut dyn Iterator<Item = f32>| {
            let weighted = values.zip(&self.sorted).map(|(v, (_, c))| f64::from(v) * f64::from(*c));
            (weighted.sum::<f64>() / cost) as f32
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
        let ends = [self.sorted.first(), self.sorted.last()].map(|end| end.map_or(0.0, |end| end.0));
        if self.params.offset {
            let levels = Levels { bits, symmetric: false, restricted: false };
            let grid = levels.fit_range(&ends, |scale| self.float.round_scale(scale));
            let (mut scales, offset) =
                Planes::from_uniform(bits, grid.scale, f32::from(grid.zero));
            scales.push(offset);
            return scales;
        }
        let largest = ends[0].abs().max(ends[1].abs());
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
            let Some(scales) = self.least_squares(&current.cuts) else { break };
            let next = self.nearest(&scales);
            let same = next.cuts == current.cuts;
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

    /// What these scales add up to for each choice of signs, by rising level; none if they overflow.
    fn levels(&self, scales: &[f32]) -> Vec<(f32, u8)> {
        let planes = usize::from(self.params.bits);
        let level = |signs: usize| {
            let signed = |plane: usize| {
                if signs >> plane & 1 == 1 { scales[plane] } else { -scales[plane] }
            };
            (1..planes).fold(signed(0), |sum, plane| sum + signed(plane)) + scales[planes]
        };
        let mut levels: Vec<(f32, u8)> =
            (0..1_usize << planes).map(|signs| (level(signs), signs as u8)).collect();
        if levels.iter().any(|(level, _)| !level.is_finite()) {
            return vec![];
        }
        levels.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        levels.dedup_by(|a, b| a.0 == b.0);
        levels
    }

    /// Which weights are nearest to each level, with stored scales, and what is lost.
    fn nearest(&self, scales: &[f32]) -> Fit {
        let scales: Vec<f32> = scales.iter().map(|scale| self.float.round(*scale)).collect();
        let levels = self.levels(&scales);
        if levels.is_empty() {
            return Fit { scales, cuts: vec![], error: f64::INFINITY };
        }
        let (mut begin, mut error) = (0, 0.0);
        let mut cuts = Vec::with_capacity(levels.len());
        for (index, (level, signs)) in levels.iter().enumerate() {
            let end = levels.get(index + 1).map_or(self.sorted.len(), |(next, _)| {
                let middle = level / 2.0 + next / 2.0;
                begin + self.sorted[begin..].partition_point(|(weight, _)| *weight <= middle)
            });
            let sums = self.sums[end].beyond(&self.sums[begin]);
            let level = f64::from(*level);
            error += sums.squares - level * (2.0 * sums.weighted - level * sums.cost);
            cuts.push((*signs, end));
            begin = end;
        }
        // A difference of sums: what is below their rounding is nothing.
        Fit { scales, cuts, error: error.max(0.0) }
    }

    /// The scales (and the offset) of least weighted squared error for these signs; `None` where
    /// they are not determined.
    fn least_squares(&self, cuts: &[(u8, usize)]) -> Option<Vec<f32>> {
        let planes = usize::from(self.params.bits);
        let unknowns = planes + usize::from(self.params.offset);
        let mut system = vec![vec![0.0; unknowns + 1]; unknowns];
        let mut begin = 0;
        for (signs, end) in cuts {
            // Weights with the same signs have the same row of the system: sums over them are enough.
            let sums = self.sums[*end].beyond(&self.sums[std::mem::replace(&mut begin, *end)]);
            let sign = |i: usize| if i == planes || signs >> i & 1 == 1 { 1.0 } else { -1.0 };
            for (i, row) in system.iter_mut().enumerate() {
                for (j, entry) in row[..unknowns].iter_mut().enumerate() {
                    *entry += sums.cost * sign(i) * sign(j);
                }
                row[unknowns] += sums.weighted * sign(i);
            }
        }
        let mut scales: Vec<f32> = solve(system)?.into_iter().map(|scale| scale as f32).collect();
        scales.resize(planes + 1, 0.0);
        Some(scales)
    }

    /// Writes the signs of the weights, in their own order, bit `i` that of plane `i`.
    fn encode(&self, fit: &Fit, weight: &[f32], signs: &mut [u8]) {
        let levels = self.levels(&fit.scales);
        if levels.is_empty() {
            return;
        }
        let book = Codebook::new(self.params.bits, levels.iter().map(|(l, _)| *l).collect());
        for (weight, signs) in weight.iter().zip(signs) {
            *signs = levels[usize::from(book.code(*weight))].1;
        }
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
        let group = Group::new(&params, FloatType::F16, &weight, &[1.0; 4]);
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
            let group = Group::new(&params, FloatType::F32, &weight, &costs);
            let mut fit = group.nearest(&group.greedy());
            for _ in 0..15 {
                let next = group.nearest(&group.least_squares(&fit.cuts).unwrap());
                assert!(next.error <= fit.error * (1.0 + 1e-5), "{} {}", next.error, fit.error);
                fit = next;
            }
        }
    }
}
