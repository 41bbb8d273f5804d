//! SpQR: small groups whose scales and zeros are in few bits themselves, and a few weights apart.
//!
//! Dettmers et al., 2023 (arXiv 2306.03078). Every `group_size` columns of a row have a scale and a
//! real zero, `ŵ = ŝ (q − ẑ)`; over `stat_rows` consecutive rows of a group of columns the scales,
//! and the zeros, are coded in `stat_bits` with two 16-bit floats (section 4.3 and appendix E). The
//! weights whose absence helps their group most, by the leave-one-out error `Σ ((w − ŵ) / U_jj)²`,
//! are outliers: they are kept out of the group's range, pay no error in GPTQ's sweep, and are stored
//! in 16 bits beside the codes, as what they have beyond the code's value.
//!
//! Where we differ: the number of outliers is asked for, and not a threshold that has to be searched
//! for each model; groups are of the original order of columns, fitted before the sweep, so that
//! columns may be visited by falling diagonal with no index stored; a group's range may shrink for
//! less error, which the paper's does not; a zero is fitted to the scale as it was stored.

use crate::factor::{InverseFactor, column_order, inverse_factor};
use crate::{Encoded, Method, MethodError, Needs, Note, ParamError, Site, Tensorwise};
use lapidary_kernels::sweep::{RowQuantizer, block_bounds, sweep};
use lapidary_weight::{
    Affine, FloatType, GroupFloats, GroupType, Grouping, Origin, Outline, Places, Runs, Sparse, Term,
    TermOutline, TwoLevel, Weight, WeightError, ZeroType, Zeros,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

pub(crate) const SUMMARY: &str = "small groups with scales in few bits, outliers apart, and GPTQ";
pub(crate) const PAPER: &str = "Dettmers et al., 2023, arXiv 2306.03078";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Bits of a weight.
    #[schemars(range(min = 2, max = 8))]
    pub bits: u8,
    /// Columns that share a scale and a zero.
    #[schemars(range(min = 2))]
    pub group_size: usize,
    /// Bits of a scale, and of a zero.
    #[schemars(range(min = 1, max = 8))]
    pub stat_bits: u8,
    /// Rows whose scales (and zeros) of one group of columns share two 16-bit floats.
    #[schemars(range(min = 1))]
    pub stat_rows: usize,
    /// Share of the weights that are stored apart.
    #[schemars(range(min = 0.0, max = 0.1))]
    pub outliers: f64,
    /// Added to the diagonal of the Gram matrix, as a fraction of its mean.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub dampening_frac: f64,
    /// Visit the columns by falling diagonal of the Gram matrix.
    pub act_order: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            bits: 3,
            group_size: 16,
            stat_bits: 3,
            stat_rows: 16,
            outliers: 0.004,
            dampening_frac: 0.01,
            act_order: true,
        }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let wrong = |key: &str, value: &dyn std::fmt::Display, range: &str| {
        Err(ParamError::new(key, format!("{value} is not {range}")))
    };
    if !(2..=8).contains(&params.bits) {
        return wrong("bits", &params.bits, "from 2 to 8");
    }
    if params.group_size < 2 {
        return wrong("group_size", &params.group_size, "at least 2");
    }
    if !(1..=8).contains(&params.stat_bits) {
        return wrong("stat_bits", &params.stat_bits, "from 1 to 8");
    }
    if params.stat_rows == 0 {
        return wrong("stat_rows", &params.stat_rows, "at least 1");
    }
    if !(0.0..=0.1).contains(&params.outliers) {
        return wrong("outliers", &params.outliers, "from 0 to 0.1");
    }
    if !(0.0..=1.0).contains(&params.dampening_frac) {
        return wrong("dampening_frac", &params.dampening_frac, "from 0 to 1");
    }
    Ok(Method::Tensorwise(Box::new(Spqr(params))))
}

/// Type of the coarse numbers and of the outliers.
const FLOAT: FloatType = FloatType::F16;

/// Ratios of a group's range that are tried.
const SPANS: [f32; 9] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6];

struct Spqr(Params);

impl Tensorwise for Spqr {
    fn needs(&self) -> Needs {
        Needs { gram: true, ..Needs::default() }
    }

    fn outline(&self, rows: usize, cols: usize, _scales: FloatType) -> Outline {
        let stats = self.0.stats();
        let affine = TermOutline::Affine {
            bits: self.0.bits,
            grouping: self.0.grouping(cols),
            zeros: ZeroType::Floats(stats),
            scales: stats,
        };
        let sparse = TermOutline::Sparse {
            nonzeros: self.0.count(rows * cols),
            values: FLOAT,
            places: Places::Listed,
        };
        let sparse = (self.0.count(rows * cols) > 0).then_some(sparse);
        Outline { rows, cols, terms: std::iter::once(affine).chain(sparse).collect() }
    }

    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Unweighted(self.0.clone())))
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        let gram = site.gram()?;
        site.check_finite()?;
        let order = column_order(gram, site.cols, self.0.act_order);
        match inverse_factor(gram, &order, self.0.dampening_frac) {
            Some(factor) => {
                let notes = factor.notes(self.0.dampening_frac);
                self.0.encode(site, &order, &factor, notes)
            }
            None => {
                let what = "the Gram matrix could not be factored with any damping; every column \
                            weighs the same instead";
                self.0.encode_unweighted(site, vec![Note::fallback(what)])
            }
        }
    }
}

/// SpQR where inputs have no statistics: the same grids and outliers, columns weighing the same.
struct Unweighted(Params);

impl Tensorwise for Unweighted {
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        Spqr(self.0.clone()).outline(rows, cols, scales)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        site.check_finite()?;
        self.0.encode_unweighted(site, vec![])
    }
}

impl Params {
    fn grouping(&self, cols: usize) -> Grouping {
        match NonZeroUsize::new(self.group_size) {
            Some(width) if width.get() < cols => Grouping::Columns(width),
            _ => Grouping::Row,
        }
    }

    fn stats(&self) -> GroupType {
        let rows = NonZeroUsize::new(self.stat_rows).unwrap_or(NonZeroUsize::MIN);
        GroupType::TwoLevel(TwoLevel {
            bits: self.stat_bits,
            runs: Runs::Rows(rows),
            origin: Origin::Least,
            coarse: FLOAT,
        })
    }

    /// Outliers among so many weights.
    fn count(&self, weights: usize) -> usize {
        (self.outliers * weights as f64).round() as usize
    }

    fn encode_unweighted(&self, site: &Site<'_>, notes: Vec<Note>) -> Result<Encoded, MethodError> {
        let order: Vec<usize> = (0..site.cols).collect();
        self.encode(site, &order, &InverseFactor::identity(site.cols), notes)
    }

    fn encode(
        &self,
        site: &Site<'_>,
        order: &[usize],
        factor: &InverseFactor,
        notes: Vec<Note>,
    ) -> Result<Encoded, MethodError> {
        let cols = site.cols;
        let mut costs = vec![0.0; cols];
        for (place, column) in order.iter().enumerate() {
            costs[*column] = factor.upper[place * cols + place].powi(-2);
        }
        let top = f32::from((1_u16 << self.bits) - 1);
        let width = self.grouping(cols).width(cols);
        let fitter = Fitter { site, width, top, costs: &costs };
        let is_outlier = fitter.outliers(self.count(site.weight.len()));
        let weight = || -> Result<Weight, WeightError> {
            let per_row = self.grouping(cols).per_row(cols);
            let (scales, zeros) = fitter.grids(&is_outlier, self.stats(), per_row)?;
            let mut codes = vec![0; site.weight.len()];
            let mut beyond = vec![0.0; site.weight.len()];
            let mut working: Vec<f32> = site
                .weight
                .chunks_exact(cols.max(1))
                .flat_map(|row| order.iter().map(|column| row[*column]))
                .collect();
            let rows = codes.chunks_exact_mut(cols.max(1)).zip(beyond.chunks_exact_mut(cols.max(1)));
            let flags = is_outlier.chunks_exact(cols.max(1));
            let grids = scales.chunks_exact(per_row.max(1)).zip(zeros.chunks_exact(per_row.max(1)));
            let mut quantizers: Vec<Row<'_>> = rows
                .zip(flags)
                .zip(grids)
                .map(|(((codes, beyond), is_outlier), (scales, zeros))| Row {
                    order,
                    width,
                    top,
                    scales,
                    zeros,
                    is_outlier,
                    codes,
                    beyond,
                })
                .collect();
            sweep(&mut working, &factor.upper, &block_bounds(cols, 1), &mut quantizers);
            drop(quantizers);
            let affine = Affine {
                bits: self.bits,
                grouping: self.grouping(cols),
                codes,
                scales,
                zeros: Zeros::Floats(zeros),
            };
            let sparse = gather(&is_outlier, &beyond, cols);
            let sparse = (!sparse.values.is_empty()).then_some(Term::Sparse(sparse));
            let terms = std::iter::once(Term::Affine(affine)).chain(sparse).collect();
            Weight::new(site.rows, cols, terms)
        };
        let weight = weight().map_err(|error| {
            let what = format!("its values are too large for 16-bit statistics ({error})");
            MethodError::Numerical { site: site.name.to_owned(), what }
        })?;
        Ok(Encoded { weight, notes })
    }
}

/// Scale and zero of one group.
#[derive(Debug, Clone, Copy)]
struct Steps {
    scale: f32,
    zero: f32,
    top: f32,
}

impl Steps {
    fn code(&self, value: f32) -> u8 {
        (value / self.scale + self.zero).round_ties_even().clamp(0.0, self.top) as u8
    }

    fn value(&self, code: u8) -> f32 {
        self.scale * (f32::from(code) - self.zero)
    }

    /// The grid that spans these values, shrunk by `ratio` about its middle; it need not hold zero.
    fn spanning(values: impl Iterator<Item = f32>, ratio: f32, top: f32) -> Self {
        let (low, high) = values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if low > high {
            return Self { scale: 1.0, zero: 0.0, top };
        }
        let (middle, half) = (0.5 * low + 0.5 * high, ratio * (0.5 * high - 0.5 * low));
        // Values that are nearly equal get larger steps than they need: a zero of many steps would
        // take the precision of all zeros that are coded with it.
        let least = low.abs().max(high.abs()) / (2.0 * top);
        let scale = FLOAT.round_scale((2.0 * half / top).max(least));
        Self { scale, zero: 0.5 * top - middle / scale, top }
    }

    fn error(&self, value: f32) -> f32 {
        (value - self.value(self.code(value))).powi(2)
    }
}

/// Fits the groups of a matrix.
struct Fitter<'a> {
    site: &'a Site<'a>,
    /// Columns of a group.
    width: usize,
    /// The largest code.
    top: f32,
    /// `1 / U_jj²` of each column.
    costs: &'a [f32],
}

impl Fitter<'_> {
    /// The weights that gain the most by being stored apart, `count` of them; the first of equals.
    fn outliers(&self, count: usize) -> Vec<bool> {
        let mut is_outlier = vec![false; self.site.weight.len()];
        if count == 0 {
            return is_outlier;
        }
        let rows = self.site.weight.par_chunks_exact(self.site.cols.max(1));
        let gains: Vec<f32> = rows
            .flat_map_iter(|row| {
                let groups = row.chunks(self.width).zip(self.costs.chunks(self.width));
                groups.flat_map(|(values, costs)| self.leave_one_out(values, costs))
            })
            .collect();
        let mut places: Vec<usize> = (0..gains.len()).collect();
        let by_gain = |a: &usize, b: &usize| gains[*b].total_cmp(&gains[*a]).then(a.cmp(b));
        places.select_nth_unstable_by(count - 1, by_gain);
        places[..count].iter().for_each(|place| is_outlier[*place] = true);
        is_outlier
    }

    /// How much a group's weighted error falls without each of its members.
    fn leave_one_out(&self, values: &[f32], costs: &[f32]) -> Vec<f32> {
        let total = |steps: &Steps, without: Option<usize>| -> f32 {
            let pairs = values.iter().zip(costs).enumerate();
            let others = pairs.filter(|(member, _)| Some(*member) != without);
            others.map(|(_, (value, cost))| cost * steps.error(*value)).sum()
        };
        let whole = Steps::spanning(values.iter().copied(), 1.0, self.top);
        let (before, ends) = (total(&whole, None), [f32::min, f32::max].map(|end| {
            values.iter().copied().reduce(end).unwrap_or(0.0)
        }));
        let gain = |(member, value): (usize, &f32)| {
            // Only an end of the range moves the grid of the rest.
            let steps = if ends.contains(value) {
                let rest = values.iter().enumerate().filter(|(other, _)| *other != member);
                Steps::spanning(rest.map(|(_, value)| *value), 1.0, self.top)
            } else {
                whole
            };
            before - total(&steps, Some(member))
        };
        values.iter().enumerate().map(gain).collect()
    }

    /// Scales and zeros of all groups as they are stored, fitted without the outliers.
    fn grids(
        &self,
        is_outlier: &[bool],
        stats: GroupType,
        per_row: usize,
    ) -> Result<(GroupFloats, GroupFloats), WeightError> {
        let groups = self.site.rows * per_row;
        let members = |group: usize| self.members(is_outlier, group / per_row, group % per_row);
        let all = || (0..groups).into_par_iter().map(members);
        let wanted: Vec<f32> = all().map(|members| self.search(&members).scale).collect();
        let scales = GroupFloats::round(stats, per_row, &wanted)?;
        // A run's numbers are coded by the range of all of them: what is nearest to one group's
        // scale may be far off, and another code lose less.
        let scales = refined(&scales, |group, scale| {
            let members = members(group);
            let zero = fitted_zero(&members, scale, self.top);
            error(&members, &Steps { scale, zero, top: self.top })
        })?;
        let zeros: Vec<f32> = all()
            .enumerate()
            .map(|(group, members)| fitted_zero(&members, scales[group], self.top))
            .collect();
        let zeros = refined(&GroupFloats::round(stats, per_row, &zeros)?, |group, zero| {
            error(&members(group), &Steps { scale: scales[group], zero, top: self.top })
        })?;
        Ok((scales, zeros))
    }

    /// The weights of a group that are no outliers, with their costs.
    fn members(&self, is_outlier: &[bool], row: usize, group: usize) -> Vec<(f32, f32)> {
        let columns = group * self.width..self.site.cols.min((group + 1) * self.width);
        let place = |column: usize| row * self.site.cols + column;
        let kept = columns.filter(|column| !is_outlier[place(*column)]);
        kept.map(|column| (self.site.weight[place(column)], self.costs[column])).collect()
    }

    /// The grid of least weighted error among those that span the members' range or less.
    fn search(&self, members: &[(f32, f32)]) -> Steps {
        let spans = SPANS.iter().map(|ratio| {
            let steps = Steps::spanning(members.iter().map(|(value, _)| *value), *ratio, self.top);
            (error(members, &steps), steps)
        });
        let best = spans.reduce(|best, other| if other.0 < best.0 { other } else { best });
        best.map_or(Steps { scale: 1.0, zero: 0.0, top: self.top }, |(_, steps)| steps)
    }
}

/// `Σ cost · (value − rounded)²`.
fn error(members: &[(f32, f32)], steps: &Steps) -> f32 {
    members.iter().map(|(value, cost)| cost * steps.error(*value)).sum()
}

/// The same two-level array, each code moved by one where that loses less: `error` of a group and
/// the value its number would have.
fn refined(
    array: &GroupFloats,
    error: impl Fn(usize, f32) -> f32 + Sync,
) -> Result<GroupFloats, WeightError> {
    let Some(levels) = array.levels() else { return Ok(array.clone()) };
    let mut levels = levels.clone();
    let top = i16::from(u8::MAX >> (8 - levels.kind.bits));
    let best = |(index, code): (usize, &u8)| {
        let run = levels.kind.runs.of(index, levels.per_row);
        let value = |code: u8| levels.coarse[run] * f32::from(code) + levels.offsets[run];
        let moved = |by: i16| (i16::from(*code) + by).clamp(0, top) as u8;
        let choices = [0, -1, 1].map(|by| (error(index, value(moved(by))), moved(by)));
        let least = choices.into_iter().reduce(|best, other| match other.0 < best.0 {
            true => other,
            false => best,
        });
        least.map_or(*code, |(_, code)| code)
    };
    let codes: Vec<u8> = levels.codes.par_iter().enumerate().map(best).collect();
    levels.codes = codes;
    GroupFloats::two_level(levels)
}

/// The zero of least weighted error at this scale: from the middle of the range on, twice the mean
/// of what the codes are beyond the values.
fn fitted_zero(members: &[(f32, f32)], scale: f32, top: f32) -> f32 {
    let ends = members.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), (value, _)| {
        (low.min(*value), high.max(*value))
    });
    if members.is_empty() {
        return 0.5 * top;
    }
    let bounded = |zero: f32| zero.clamp(-4.0 * top, 5.0 * top);
    let zero = bounded(0.5 * top - (0.5 * ends.0 + 0.5 * ends.1) / scale);
    let mut steps = Steps { scale, zero, top };
    for _ in 0..2 {
        let (mut sum, mut weight) = (0.0_f64, 0.0_f64);
        for (value, cost) in members {
            let beyond = f32::from(steps.code(*value)) - value / scale;
            sum += f64::from(*cost) * f64::from(beyond);
            weight += f64::from(*cost);
        }
        if weight > 0.0 {
            steps.zero = bounded((sum / weight) as f32);
        }
    }
    steps.zero
}

/// The outliers of a matrix, row by row.
fn gather(is_outlier: &[bool], beyond: &[f32], cols: usize) -> Sparse {
    Sparse::of_kept(beyond, is_outlier, cols, FLOAT, Places::Listed)
}

/// One row on its way through the sweep.
struct Row<'a> {
    order: &'a [usize],
    width: usize,
    top: f32,
    scales: &'a [f32],
    zeros: &'a [f32],
    is_outlier: &'a [bool],
    codes: &'a mut [u8],
    /// What an outlier has beyond its code's value.
    beyond: &'a mut [f32],
}

impl RowQuantizer for Row<'_> {
    fn quantize(&mut self, column: usize, rest: &[f32]) -> f32 {
        let original = self.order[column];
        let group = original / self.width;
        let steps = Steps { scale: self.scales[group], zero: self.zeros[group], top: self.top };
        let code = steps.code(rest[0]);
        self.codes[original] = code;
        let value = steps.value(code);
        if !self.is_outlier[original] {
            return value;
        }
        self.beyond[original] = FLOAT.round(rest[0] - value);
        value + self.beyond[original]
    }
}
