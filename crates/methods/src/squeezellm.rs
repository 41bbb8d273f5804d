//! SqueezeLLM: a codebook for each row by k-means, weighted by how much each input matters.
//!
//! Kim et al., 2023 (arXiv 2306.07629): `min Σ_j s_j (w_j − book[code_j])²` a row, with the largest
//! weights taken out into a sparse matrix. The sensitivities `s_j` are the diagonal of the inputs'
//! Gram matrix, the curvature of the layer's own output error; the authors take the squared gradients
//! of the model's loss, which a method does not see.
//!
//! In one dimension clusters are runs of the sorted weights: with prefix sums a round of Lloyd's
//! algorithm costs a few binary searches. It starts from even levels and from quantiles, moves
//! clusters that lost their weights to where the error is largest, and keeps the better result.

use crate::codebook::Codebook;
use crate::{Encoded, Method, MethodError, Needs, ParamError, Site, Tensorwise};
use lapidary_weight::{FloatType, GroupType, Lookup, Outline, Places, Sparse, Term, TermOutline, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "a codebook a row by k-means weighted by the inputs' squares";
pub(crate) const PAPER: &str = "Kim et al., 2023, arXiv 2306.07629";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Bits of a weight, 1 to 8.
    #[schemars(range(min = 1, max = 8))]
    pub bits: u8,
    /// Weigh errors by the mean squares of the inputs; otherwise all count alike, without data.
    pub weighted: bool,
    /// Share of the weights, the largest, that are stored beside the codebooks in a sparse matrix.
    #[schemars(range(min = 0.0, max = 0.5))]
    pub sparse_share: f64,
    /// Most rounds of a start.
    #[schemars(range(min = 0, max = 1000))]
    pub rounds: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { bits: 4, weighted: true, sparse_share: 0.0, rounds: 50 }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if !(1..=8).contains(&params.bits) {
        return Err(ParamError::new("bits", format!("{} is not from 1 to 8", params.bits)));
    }
    if !(0.0..=0.5).contains(&params.sparse_share) {
        let what = format!("{} is not from 0 to 0.5", params.sparse_share);
        return Err(ParamError::new("sparse_share", what));
    }
    if params.rounds > 1000 {
        return Err(ParamError::new("rounds", format!("{} is more than 1000", params.rounds)));
    }
    Ok(Method::Tensorwise(Box::new(SqueezeLlm(params))))
}

struct SqueezeLlm(Params);

impl SqueezeLlm {
    /// How many weights are stored sparsely.
    fn nonzeros(&self, rows: usize, cols: usize) -> usize {
        ((self.0.sparse_share * rows as f64 * cols as f64).round() as usize).min(rows * cols)
    }

    /// What the error of a weight of each column costs.
    fn costs(&self, site: &Site<'_>) -> Result<Vec<f32>, MethodError> {
        if !self.0.weighted {
            return Ok(vec![1.0; site.cols]);
        }
        let diagonal = site.gram_diagonal()?;
        let largest = diagonal.iter().copied().fold(0.0, f32::max);
        // An input that was never there costs a little all the same: its weight is not free.
        let cost = |square: f32| if largest > 0.0 { (square / largest).max(1e-6) } else { 1.0 };
        Ok(diagonal.into_iter().map(cost).collect())
    }
}

impl Tensorwise for SqueezeLlm {
    fn needs(&self) -> Needs {
        Needs { gram: self.0.weighted, ..Needs::default() }
    }

    fn needs_only_diagonal(&self) -> bool {
        true
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        let mut terms = vec![TermOutline::Lookup {
            bits: self.0.bits,
            grouping: None,
            book_per_row: true,
            books: scales.into(),
            scales: GroupType::Plain(scales),
        }];
        if self.0.sparse_share > 0.0 {
            let nonzeros = self.nonzeros(rows, cols);
            terms.push(TermOutline::Sparse { nonzeros, values: scales, places: Places::Listed });
        }
        Outline { rows, cols, terms }
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        use rayon::prelude::*;
        site.check_finite()?;
        let Site { rows, cols, scale_type, .. } = *site;
        let costs = self.costs(site)?;
        let sparse = largest(site.weight, self.nonzeros(rows, cols));
        let (bits, width) = (self.0.bits, cols.max(1));
        let book = |(row, weight): (usize, &[f32])| {
            let first = sparse.partition_point(|place| *place < row * width);
            let end = sparse.partition_point(|place| *place < (row + 1) * width);
            let taken: Vec<usize> = sparse[first..end].iter().map(|p| p % width).collect();
            let line = Line::new(weight, &costs, &taken);
            line.cluster(bits, self.0.rounds, scale_type)
        };
        let books: Vec<Codebook> =
            site.weight.par_chunks_exact(width).enumerate().map(book).collect();
        let mut codes = vec![0; site.weight.len()];
        let of_rows = site.weight.par_chunks_exact(width).zip(codes.par_chunks_exact_mut(width));
        of_rows.zip(&books).for_each(|((weight, codes), book)| {
            book.codes(weight, 1.0, codes);
        });
        let lookup = Lookup {
            bits,
            codes,
            books: books.iter().flat_map(|book| book.levels().iter().copied()).collect(),
            book_per_row: true,
            scales: None,
            book_type: scale_type.into(),
        };
        let mut terms = vec![Term::Lookup(lookup)];
        if self.0.sparse_share > 0.0 {
            let term = rest(site, &books, &sparse);
            terms.push(Term::Sparse(term));
        }
        let weight = Weight::new(rows, cols, terms)
            .map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes: vec![] })
    }

    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        Some(Box::new(Self(Params { weighted: false, ..self.0.clone() })))
    }
}

/// Places of the `count` weights of largest magnitude, in rising order.
fn largest(weight: &[f32], count: usize) -> Vec<usize> {
    if count == 0 {
        return vec![];
    }
    let mut places: Vec<usize> = (0..weight.len()).collect();
    if count < places.len() {
        places.select_nth_unstable_by(count, |a, b| {
            weight[*b].abs().total_cmp(&weight[*a].abs()).then(a.cmp(b))
        });
        places.truncate(count);
    }
    places.sort_unstable();
    places
}

/// What the codebooks leave of the weights at these places.
fn rest(site: &Site<'_>, books: &[Codebook], places: &[usize]) -> Sparse {
    let cols = site.cols.max(1);
    let value = |place: &usize| {
        let (book, weight) = (&books[place / cols], site.weight[*place]);
        site.scale_type.round(weight - book.levels()[usize::from(book.code(weight))])
    };
    let start = |row: usize| places.partition_point(|place| *place < row * cols) as u32;
    Sparse {
        row_starts: (0..=site.rows).map(start).collect(),
        columns: places.iter().map(|place| (place % cols) as u32).collect(),
        values: places.iter().map(value).collect(),
        dtype: site.scale_type,
        places: Places::Listed,
    }
}

/// The weights of a row in rising order, with sums of cost, cost · w and cost · w² before each.
struct Line {
    values: Vec<f32>,
    sums: Vec<[f64; 3]>,
}

impl Line {
    /// All weights of a row but those in the columns `taken`.
    fn new(weight: &[f32], costs: &[f32], taken: &[usize]) -> Self {
        let mut pairs: Vec<(f32, f32)> =
            weight.iter().copied().zip(costs.iter().copied()).collect();
        for column in taken.iter().rev() {
            pairs.swap_remove(*column);
        }
        pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut sums = vec![[0.0; 3]];
        let mut sum = [0.0; 3];
        for (value, cost) in &pairs {
            let (value, cost) = (f64::from(*value), f64::from(*cost));
            sum = [sum[0] + cost, sum[1] + cost * value, sum[2] + cost * value * value];
            sums.push(sum);
        }
        Self { values: pairs.into_iter().map(|pair| pair.0).collect(), sums }
    }

    /// The better codebook of the two starts, its levels representable in `float`.
    fn cluster(&self, bits: u8, rounds: usize, float: FloatType) -> Codebook {
        if self.values.is_empty() {
            return Codebook::new(bits, vec![0.0]);
        }
        let stored = |levels: Vec<f64>| -> (f64, Vec<f64>) {
            let mut levels: Vec<f64> =
                levels.into_iter().map(|l| f64::from(float.round(l as f32))).collect();
            levels.sort_by(f64::total_cmp);
            (self.error(&levels), levels)
        };
        let even = stored(self.lloyd(self.even(1 << bits), rounds));
        let quantiles = stored(self.lloyd(self.quantiles(1 << bits), rounds));
        let best = if quantiles.0 < even.0 { quantiles.1 } else { even.1 };
        Codebook::new(bits, best.into_iter().map(|level| level as f32).collect())
    }

    /// Levels evenly spaced from the least to the greatest weight.
    fn even(&self, count: usize) -> Vec<f64> {
        let (low, high) = (f64::from(self.values[0]), f64::from(self.values[self.values.len() - 1]));
        let step = (high - low) / (count - 1) as f64;
        (0..count).map(|i| low + step * i as f64).collect()
    }

    /// The middles of equal shares of the weights.
    fn quantiles(&self, count: usize) -> Vec<f64> {
        let at = |i: usize| (2 * i + 1) * self.values.len() / (2 * count);
        (0..count).map(|i| f64::from(self.values[at(i)])).collect()
    }

    /// Where the weights nearest to each of the rising levels begin; one more entry for the end.
    fn bounds(&self, levels: &[f64]) -> Vec<usize> {
        let middle = |pair: &[f64]| {
            let middle = 0.5 * (pair[0] + pair[1]);
            self.values.partition_point(|value| f64::from(*value) <= middle)
        };
        let mut bounds = vec![0];
        bounds.extend(levels.windows(2).map(middle));
        bounds.push(self.values.len());
        bounds
    }

    /// Cost, cost · w and cost · w² of a run.
    fn sum(&self, first: usize, end: usize) -> [f64; 3] {
        let (a, b) = (self.sums[first], self.sums[end]);
        [b[0] - a[0], b[1] - a[1], b[2] - a[2]]
    }

    /// The weighted squared error of a run around a level.
    fn error_of(&self, first: usize, end: usize, level: f64) -> f64 {
        let [cost, sum, squares] = self.sum(first, end);
        (squares - 2.0 * level * sum + level * level * cost).max(0.0)
    }

    fn error(&self, levels: &[f64]) -> f64 {
        let runs = self.bounds(levels);
        let runs = runs.windows(2).zip(levels);
        runs.map(|(run, level)| self.error_of(run[0], run[1], *level)).sum()
    }

    /// Means of the nearest weights, again and again, until nothing moves.
    fn lloyd(&self, mut levels: Vec<f64>, rounds: usize) -> Vec<f64> {
        for _ in 0..rounds {
            let bounds = self.bounds(&levels);
            let mut next = levels.clone();
            let mut empty = vec![];
            for (i, run) in bounds.windows(2).enumerate() {
                if run[0] == run[1] {
                    empty.push(i);
                } else {
                    let [cost, sum, _] = self.sum(run[0], run[1]);
                    next[i] = sum / cost;
                }
            }
            self.reseed(&bounds, &mut next, &empty);
            next.sort_by(f64::total_cmp);
            if next == levels {
                break;
            }
            levels = next;
        }
        levels
    }

    /// Moves levels that are nearest to no weight to the farthest weights of the worst runs.
    fn reseed(&self, bounds: &[usize], levels: &mut [f64], empty: &[usize]) {
        if empty.is_empty() {
            return;
        }
        let run_error = |i: usize| self.error_of(bounds[i], bounds[i + 1], levels[i]);
        let mut worst: Vec<(f64, usize)> =
            (0..levels.len()).map(|i| (run_error(i), i)).filter(|run| run.0 > 0.0).collect();
        worst.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (slot, (_, run)) in empty.iter().zip(worst) {
            let (low, high) = (self.values[bounds[run]], self.values[bounds[run + 1] - 1]);
            let (low, high) = (f64::from(low), f64::from(high));
            levels[*slot] = if levels[run] - low > high - levels[run] { low } else { high };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Card of k-means, must show 6: the error never rises from round to round; and it is what
        /// it is when counted weight by weight.
        #[test]
        fn rounds_never_raise_the_error(
            weight in prop::collection::vec(-2.0_f32..2.0, 1..80), bits in 1_u8..=5, seed: u64,
        ) {
            let costs: Vec<f32> = (0..weight.len() as u64)
                .map(|i| 0.1 + (i.wrapping_mul(seed | 1) >> 7) as f32 % 9.0).collect();
            let line = Line::new(&weight, &costs, &[]);
            for start in [line.even(1 << bits), line.quantiles(1 << bits)] {
                let mut before = f64::INFINITY;
                for rounds in 0..12 {
                    let levels = line.lloyd(start.clone(), rounds);
                    let error = line.error(&levels);
                    prop_assert!(error <= before * (1.0 + 1e-9) + 1e-9, "{error} {before}");
                    let direct: f64 = weight.iter().zip(&costs).map(|(w, c)| {
                        let nearest = levels.iter().map(|l| (l - f64::from(*w)).powi(2));
                        f64::from(*c) * nearest.fold(f64::INFINITY, f64::min)
                    }).sum();
                    prop_assert!((error - direct).abs() <= 1e-6 * (1.0 + direct));
                    before = error;
                }
            }
        }
    }

    #[test]
    fn few_values_are_their_own_levels() {
        let weight = [0.5, -1.0, 0.5, 2.0, 0.5, -1.0, 7.0];
        let line = Line::new(&weight, &[1.0; 7], &[6]);
        let book = line.cluster(2, 50, FloatType::F32);
        for value in &weight[..6] {
            assert_eq!(book.levels()[usize::from(book.code(*value))], *value);
        }
        assert!(!book.levels().contains(&7.0));
    }
}
