//! Bit-split and stitching: the digits of each weight's code are optimised one by one against the
//! layer's own output.
//!
//! Wang et al., 2020 (ICML, "Towards accurate post-training network quantization via bit-split and
//! stitching"): a row's codes are `q = Σ 2^m q_m` with digits `q_m ∈ {−1, 0, 1}`. In turn, the scales
//! take their least-squares value `argmin (w − αq)ᵀ H (w − αq)`, and each digit of each column the
//! value that lowers the same error most. Stitched, the digits make integers of `±(2^(bits−1) − 1)`.
//!
//! Where we differ: a scale for each group, not for each row; two starts, from the full range and
//! from the least squared error of the weights (OMSE), because the first alone may end worse than the
//! second begins; and when the scales are rounded to what is stored, the digits are adjusted to that.

use crate::{
    Encoded, GridParams, GroupSize, Method, MethodError, Needs, ParamError, Site, Tensorwise,
};
use lapidary_kernels::grid::{Grid, Levels, Search};
use lapidary_weight::{FloatType, Grouping, Outline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "digits of the codes optimised against the layer's output";
pub(crate) const PAPER: &str = "Wang et al., 2020, ICML";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Bits of a weight, 2 to 8.
    #[schemars(range(min = 2, max = 8))]
    pub bits: u8,
    /// Columns that share a scale: a number, or "row" (or -1) for one scale a row.
    pub group_size: GroupSize,
    /// Most rounds over scales and digits.
    #[schemars(range(min = 0, max = 1000))]
    pub rounds: usize,
    /// Added to the diagonal of the Gram matrix, as a fraction of its mean.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub dampening_frac: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { bits: 4, group_size: GroupSize::Columns(128), rounds: 20, dampening_frac: 0.01 }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let refuse = |path: &str, what: String| Err(ParamError::new(path, what));
    if !(2..=8).contains(&params.bits) {
        return refuse("bits", format!("{} is not from 2 to 8", params.bits));
    }
    if params.group_size == GroupSize::Tensor {
        return refuse("group_size", "rows are optimised on their own; use row or groups".to_owned());
    }
    if params.rounds > 1000 {
        return refuse("rounds", format!("{} is more than 1000", params.rounds));
    }
    if !(0.0..=1.0).contains(&params.dampening_frac) {
        return refuse("dampening_frac", format!("{} is not from 0 to 1", params.dampening_frac));
    }
    Ok(Method::Tensorwise(Box::new(BitSplit { params, is_plain: false })))
}

struct BitSplit {
    params: Params,
    /// Without statistics every input counts alike, and no digit depends on another.
    is_plain: bool,
}

/// The search of the start of least squared error.
const SEARCH: Search = Search { steps: 100, floor: 0.1 };

/// A round that lowers the error by less than this share is the last.
const WORTHWHILE: f64 = 1e-4;

impl BitSplit {
    fn grid(&self) -> GridParams {
        let Params { bits, group_size, .. } = self.params;
        GridParams { bits, group_size, symmetric: true, ..GridParams::default() }
    }

    fn levels(&self) -> Levels {
        Levels { bits: self.params.bits, symmetric: true, restricted: true }
    }

    /// The Gram matrix over its mean diagonal, with damping.
    fn damped(&self, site: &Site<'_>) -> Result<Vec<f32>, MethodError> {
        let (gram, cols) = (site.gram()?, site.cols);
        let diagonal = site.gram_diagonal()?;
        let mean = diagonal.iter().map(|d| f64::from(*d)).sum::<f64>() / cols.max(1) as f64;
        let mean = if mean > 0.0 { mean } else { 1.0 };
        let mut damped: Vec<f32> = gram.iter().map(|g| (f64::from(*g) / mean) as f32).collect();
        // Without any damping a column whose input was always zero would have no best code.
        let damping = self.params.dampening_frac.max(1e-6) as f32;
        (0..cols).for_each(|i| damped[i * cols + i] = damped[i * cols + i].max(0.0) + damping);
        Ok(damped)
    }
}

impl Tensorwise for BitSplit {
    fn needs(&self) -> Needs {
        Needs { gram: !self.is_plain, ..Needs::default() }
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        self.grid().outline(rows, cols, scales)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        use rayon::prelude::*;
        site.check_finite()?;
        let store = |scale| site.scale_type.round_scale(scale);
        if self.is_plain {
            let levels = self.levels();
            return self.grid().encode(site, |v| levels.fit_search(v, None, SEARCH, store));
        }
        let gram = self.damped(site)?;
        let cols = site.cols.max(1);
        let job = Job {
            levels: self.levels(),
            rounds: self.params.rounds,
            gram: &gram,
            cols,
            group: self.grid().grouping(cols).width(cols),
            float: site.scale_type,
        };
        let rows: Vec<Row> = site.weight.par_chunks_exact(cols).map(|row| job.row(row)).collect();
        let middle = 1_i16 << (self.params.bits - 1);
        let code = |q: &i16| (q + middle) as u8;
        let codes = rows.iter().flat_map(|row| row.codes.iter().map(code)).collect();
        let scales = rows.iter().flat_map(|row| &row.scales);
        let grids: Vec<Grid> =
            scales.map(|scale| self.levels().grid(*scale, middle as u8)).collect();
        self.grid().assemble(site, codes, &grids, vec![])
    }

    fn regroup(&self, grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        let params = Params { group_size: grouping.into(), ..self.params.clone() };
        (grouping != Grouping::Tensor)
            .then(|| Box::new(Self { params, ..*self }) as Box<dyn Tensorwise>)
    }

    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self { params: self.params.clone(), is_plain: true }))
    }
}

/// What all rows of a site share.
struct Job<'a> {
    levels: Levels,
    rounds: usize,
    gram: &'a [f32],
    cols: usize,
    group: usize,
    float: FloatType,
}

/// One row on its way: signed codes, their digits, a scale a group.
#[derive(Clone)]
struct Row {
    codes: Vec<i16>,
    /// `[columns, digits]`.
    digits: Vec<i8>,
    scales: Vec<f32>,
    /// `H (w − αq)`.
    pull: Vec<f32>,
    /// `(w − αq)ᵀ H (w − αq)`.
    error: f64,
}

impl Job<'_> {
    /// The better of the two starts' results.
    fn row(&self, weight: &[f32]) -> Row {
        let store = |scale| self.float.round_scale(scale);
        let range = |values: &[f32]| self.levels.fit_range(values, store);
        let search = |values: &[f32]| self.levels.fit_search(values, None, SEARCH, store);
        let from_range = self.optimise(weight, self.start(weight, range));
        let from_search = self.optimise(weight, self.start(weight, search));
        if from_range.error < from_search.error { from_range } else { from_search }
    }

    fn start(&self, weight: &[f32], fit: impl Fn(&[f32]) -> Grid) -> Row {
        let grids: Vec<Grid> = weight.chunks(self.group).map(fit).collect();
        let groups = weight.chunks(self.group).zip(&grids);
        let code = |grid: &Grid, w: f32| i16::from(grid.code(w)) - i16::from(grid.zero);
        let codes = groups.flat_map(|(values, grid)| values.iter().map(move |w| code(grid, *w)));
        let codes: Vec<i16> = codes.collect();
        let count = i16::from(self.levels.bits) - 1;
        let digit = |q: i16, m: i16| (q.signum() * (q.abs() >> m & 1)) as i8;
        let digits = codes.iter().flat_map(|q| (0..count).map(move |m| digit(*q, m))).collect();
        let scales = grids.iter().map(|grid| grid.scale).collect();
        let mut row = Row { codes, digits, scales, pull: vec![], error: 0.0 };
        self.measure(weight, &mut row);
        row
    }

    /// Computes `pull` and `error` anew.
    fn measure(&self, weight: &[f32], row: &mut Row) {
        let scale = |column: usize| row.scales[column / self.group];
        let left: Vec<f32> = (0..self.cols)
            .map(|column| weight[column] - scale(column) * f32::from(row.codes[column]))
            .collect();
        row.pull = vec![0.0; self.cols];
        for (left, gram) in left.iter().zip(self.gram.chunks_exact(self.cols)) {
            if *left != 0.0 {
                row.pull.iter_mut().zip(gram).for_each(|(pull, g)| *pull += left * g);
            }
        }
        let products = left.iter().zip(&row.pull).map(|(l, p)| f64::from(*l) * f64::from(*p));
        row.error = products.sum();
    }

    /// Rounds over scales and digits while they pay; then with the scales as they are stored.
    fn optimise(&self, weight: &[f32], start: Row) -> Row {
        let mut best = start.clone();
        let mut row = start;
        for _ in 0..self.rounds {
            let before = row.error;
            self.rescale(&mut row);
            self.sweep(&mut row);
            self.measure(weight, &mut row);
            if row.error >= before * (1.0 - WORTHWHILE) {
                break;
            }
        }
        for scale in &mut row.scales {
            *scale = self.float.round_scale(*scale);
        }
        self.measure(weight, &mut row);
        for _ in 0..2 {
            self.sweep(&mut row);
        }
        self.measure(weight, &mut row);
        if row.error < best.error {
            best = row;
        }
        best
    }

    /// The least-squares scale of each group in turn, the others being as they are.
    fn rescale(&self, row: &mut Row) {
        for group in 0..row.scales.len() {
            let first = group * self.group;
            let codes: Vec<f32> = row.codes[first..self.cols.min(first + self.group)]
                .iter()
                .map(|q| f32::from(*q))
                .collect();
            // H q, of the group's columns.
            let mut product = vec![0.0; self.cols];
            for (index, q) in codes.iter().enumerate().filter(|(_, q)| **q != 0.0) {
                let gram = &self.gram[(first + index) * self.cols..][..self.cols];
                product.iter_mut().zip(gram).for_each(|(p, g)| *p += q * g);
            }
            let along = |values: &[f32]| -> f64 {
                let pairs = codes.iter().zip(&values[first..]);
                pairs.map(|(q, v)| f64::from(*q) * f64::from(*v)).sum()
            };
            let (force, stiffness) = (along(&row.pull), along(&product));
            let change = (force / stiffness) as f32;
            // A group of zeros has no best scale, and a scale stays positive.
            if stiffness > 0.0 && row.scales[group] + change > 0.0 && change.is_finite() {
                row.scales[group] += change;
                row.pull.iter_mut().zip(&product).for_each(|(pull, p)| *pull -= change * p);
            }
        }
    }

    /// Each digit of each column, from the least, takes the value that lowers the error most.
    fn sweep(&self, row: &mut Row) {
        let count = usize::from(self.levels.bits) - 1;
        for m in 0..count {
            for column in 0..self.cols {
                let step = row.scales[column / self.group] * f32::from(1_u8 << m);
                let stiffness = self.gram[column * self.cols + column];
                let digit = row.digits[column * count + m];
                // Changing the digit by δ changes the error by (δ step)² H − 2 δ step pull.
                let ideal = row.pull[column] / (step * stiffness);
                let wanted = (f32::from(digit) + ideal).round().clamp(-1.0, 1.0) as i8;
                let change = wanted - digit;
                if change == 0 {
                    continue;
                }
                row.digits[column * count + m] = wanted;
                row.codes[column] += i16::from(change) << m;
                let by = f32::from(change) * step;
                let gram = &self.gram[column * self.cols..][..self.cols];
                row.pull.iter_mut().zip(gram).for_each(|(pull, g)| *pull -= by * g);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Must show 1 and 2: no step raises the error, and codes keep to their range.
    #[test]
    fn no_step_raises_the_error() {
        let cols = 24;
        let noise = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0;
        let inputs: Vec<f32> = (0..60 * cols).map(|i| noise(i) + noise(i / cols * 31)).collect();
        let mut gram = vec![0.0; cols * cols];
        for x in inputs.chunks_exact(cols) {
            for i in 0..cols {
                (0..cols).for_each(|j| gram[i * cols + j] += x[i] * x[j]);
            }
        }
        (0..cols).for_each(|i| gram[i * cols + i] += 0.1);
        let weight: Vec<f32> = (0..cols).map(|i| noise(i * i + 5)).collect();
        for bits in 2..=5 {
            let levels = Levels { bits, symmetric: true, restricted: true };
            let job =
                Job { levels, rounds: 9, gram: &gram, cols, group: 10, float: FloatType::F32 };
            let mut row = job.start(&weight, |values| levels.fit_range(values, |scale| scale));
            for round in 0..9 {
                for step in [Job::rescale, Job::sweep] {
                    let before = row.error;
                    step(&job, &mut row);
                    let kept = row.pull.clone();
                    job.measure(&weight, &mut row);
                    assert!(row.error <= before * (1.0 + 1e-5), "{round}: {} {before}", row.error);
                    let drift = kept.iter().zip(&row.pull).map(|(a, b)| (a - b).abs());
                    assert!(drift.fold(0.0, f32::max) < 1e-3);
                }
                let highest = (1 << (bits - 1)) - 1;
                assert!(row.codes.iter().all(|q| q.abs() <= highest));
            }
        }
    }
}
