//! Trellis-coded quantization in the column sweep of GPTQ.
//!
//! After QTIP (Tseng et al., 2024, arXiv 2406.11235): values are coded as sequences by Viterbi's
//! algorithm, near the rate-distortion bound, and each error is spread over the columns still free.
//! Where we differ: a sequence runs down a column, so that the sweep spreads errors column by column
//! as GPTQ does, not sixteen at a time; and instead of rotating the matrix until all columns are
//! alike, columns get their bits by what they matter. With `H⁻¹ = Uᵀ U`, column `j` costs
//! `D_j / U_jj²` where `D_j` is its distortion, and bits go where they lower the sum the most
//! (reverse water-filling). The number of bits a weight may so be any, and is kept exactly, side
//! information included. The few values that lie far outside a Gaussian are stored apart.

use crate::drift::target;
use crate::factor::{InverseFactor, column_order, inverse_factor};
use crate::gptq::{self, Gptq};
use crate::{Encoded, GridParams, Method, MethodError, Needs, Note, ParamError, Site, Tensorwise};
use lapidary_kernels::sweep::{StripQuantizer, block_bounds, sweep_strips};
use lapidary_kernels::trellis::{Room, STATE_BITS, Trellis as Code};
use lapidary_weight::{FloatType, Outline, Places, Sparse, Term, TermOutline, Trellis, Weight};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "sequences of values coded together, bits to each column by need";
pub(crate) const PAPER: &str = "after Tseng et al., 2024, arXiv 2406.11235";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Bits stored for each weight, everything counted; need not be whole.
    #[schemars(range(min = 0.5, max = 8.5))]
    pub bits: f64,
    /// Bits of the register, 12 to 16: each one more doubles the time and lowers the error by 2 to
    /// 4 %.
    #[schemars(range(min = 12, max = 16))]
    pub state_bits: u32,
    /// Share of the values that are stored apart in 16 bits, those furthest from a Gaussian.
    #[schemars(range(min = 0.0, max = 0.1))]
    pub outliers: f64,
    /// Added to the diagonal of the Gram matrix, as a fraction of its mean; raised tenfold, at most
    /// to 1, while the factorization fails.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub dampening_frac: f64,
    /// Visit the columns by falling diagonal of the Gram matrix.
    pub act_order: bool,
    /// How far the layer makes up for what the layers before it lost, from 0 to 1: its target is
    /// what the uncompressed model computes there, not what the layer would from drifted inputs.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub drift_correction: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self { bits: 4.0, state_bits: 14, outliers: 1e-4, dampening_frac: 0.01, act_order: true, drift_correction: 0.0 }
    }
}

/// Below this a matrix has too few rows for sequences.
const FEW_ROWS: usize = 16;

/// Most rows of a sequence: Viterbi's path through one must fit the cache.
const MOST_ROWS: usize = 256;

/// Mean squared error of Gaussian values of variance 1 at 0, 1, … 8 bits, with registers of 12 bits
/// and of 16: measured (`cargo run --example trellis` in the kernels).
const DISTORTION: [[f64; 9]; 2] = [
    [1.0, 0.29, 0.079, 0.0208, 0.005_72, 0.001_54, 0.000_42, 0.000_122, 0.000_036],
    [1.0, 0.279, 0.0728, 0.0191, 0.005_11, 0.001_3, 0.000_327, 0.000_084, 0.000_022],
];

/// The same with a register of `state_bits`: each bit of it lowers them by the same factor.
fn distortion(state_bits: u32) -> [f64; 9] {
    let (least, most) = (*STATE_BITS.start(), *STATE_BITS.end());
    let part = f64::from(state_bits - least) / f64::from(most - least);
    let [of_least, of_most] = DISTORTION;
    std::array::from_fn(|bits| of_least[bits].powf(1.0 - part) * of_most[bits].powf(part))
}

/// Factor of the table's values at which that is reached: the more bits, the further they reach.
const REACH: [f64; 9] = [1.0, 0.8, 1.0, 1.1, 1.2, 1.2, 1.2, 1.25, 1.25];

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let check = |path, ok: bool, what: String| match ok {
        true => Ok(()),
        false => Err(ParamError::new(path, what)),
    };
    let Params { bits, state_bits, outliers, dampening_frac, .. } = params;
    check("bits", (0.5..=8.5).contains(&bits), format!("{bits} is not from 0.5 to 8.5"))?;
    let is_known = STATE_BITS.contains(&state_bits);
    check("state_bits", is_known, format!("{state_bits} is not from 12 to 16"))?;
    let is_share = (0.0..=0.1).contains(&outliers);
    check("outliers", is_share, format!("{outliers} is not from 0 to 0.1"))?;
    let is_fraction = (0.0..=1.0).contains(&dampening_frac);
    check("dampening_frac", is_fraction, format!("{dampening_frac} is not from 0 to 1"))?;
    let is_share = (0.0..=1.0).contains(&params.drift_correction);
    let what = format!("{} is not from 0 to 1", params.drift_correction);
    check("drift_correction", is_share, what)?;
    Ok(Method::Tensorwise(Box::new(TrellisCoded { params, has_statistics: true })))
}

/// The method; without statistics every column matters the same.
#[derive(Clone)]
struct TrellisCoded {
    params: Params,
    has_statistics: bool,
}

impl TrellisCoded {
    fn nonzeros(&self, rows: usize, cols: usize) -> usize {
        (self.params.outliers * (rows * cols) as f64).ceil() as usize
    }

    /// The order of the columns, and how their errors are spread.
    fn factor(
        &self,
        site: &Site<'_>,
        notes: &mut Vec<Note>,
    ) -> Result<(Vec<usize>, InverseFactor), MethodError> {
        if !self.has_statistics {
            return Ok(((0..site.cols).collect(), InverseFactor::identity(site.cols)));
        }
        let gram = site.gram()?;
        let order = column_order(gram, site.cols, self.params.act_order);
        let factor = inverse_factor(gram, &order, self.params.dampening_frac);
        let factor = factor.unwrap_or_else(|| {
            notes.push(Note::fallback(
                "the Gram matrix cannot be factored; every column is coded for itself",
            ));
            InverseFactor::identity(site.cols)
        });
        Ok((order, factor))
    }

    /// What codes matrices of too few rows: there the scales of the columns would be most of what is
    /// stored, and no sequence is worth its name.
    fn for_few_rows(&self) -> Gptq {
        let bits = self.params.bits.floor().clamp(2.0, 8.0) as u8;
        let grid = GridParams { bits, ..GridParams::default() };
        let Params { dampening_frac, act_order, .. } = self.params;
        Gptq(gptq::Params { grid, dampening_frac, act_order, ..gptq::Params::default() })
    }

    /// Rows of a sequence: equal strips, none longer than [`MOST_ROWS`].
    fn strip(rows: usize) -> usize {
        let strips = rows.div_ceil(MOST_ROWS).max(1);
        rows.div_ceil(strips).max(1)
    }

    /// Bits of a row that are left for codes.
    fn row_bits(&self, rows: usize, cols: usize) -> u32 {
        let sparse = TermOutline::Sparse {
            nonzeros: self.nonzeros(rows, cols),
            values: FloatType::F16,
            places: Places::Listed,
        };
        let apart = if self.params.outliers > 0.0 { sparse.bits(rows, cols) } else { 0 };
        let aside = apart + Trellis::overhead(rows, cols);
        let all = self.params.bits * (rows * cols) as f64;
        let each = (all - aside as f64) / rows.max(1) as f64;
        // No fewer than one bit for four values, even where the side information is more.
        each.clamp(cols as f64 / 4.0, 8.0 * cols as f64) as u32
    }
}

impl Tensorwise for TrellisCoded {
    fn needs(&self) -> Needs {
        let drift = self.has_statistics && self.params.drift_correction > 0.0;
        Needs { gram: self.has_statistics, drift, ..Needs::default() }
    }

    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline {
        if rows < FEW_ROWS {
            return self.for_few_rows().outline(rows, cols, scales);
        }
        let mut terms = vec![TermOutline::Trellis {
            row_bits: self.row_bits(rows, cols),
            state_bits: self.params.state_bits as u8,
            strip: Self::strip(rows),
        }];
        if self.params.outliers > 0.0 {
            let nonzeros = self.nonzeros(rows, cols);
            terms.push(TermOutline::Sparse {
                nonzeros,
                values: FloatType::F16,
                places: Places::Listed,
            });
        }
        Outline { rows, cols, terms }
    }

    /// The shortest register: each bit more lowers all errors alike.
    fn sketch(&self) -> Option<Box<dyn Tensorwise>> {
        let state_bits = *STATE_BITS.start();
        let params = Params { state_bits, ..self.params.clone() };
        let is_shorter = state_bits < self.params.state_bits;
        is_shorter.then(|| Box::new(Self { params, ..*self }) as Box<dyn Tensorwise>)
    }

    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError> {
        if site.rows < FEW_ROWS {
            let gptq = self.for_few_rows();
            let mut encoded = match gptq.without_statistics().filter(|_| !self.has_statistics) {
                Some(rounding) => rounding.encode(site)?,
                None => gptq.encode(site)?,
            };
            let what = format!("{} rows make no sequences; rounded by gptq instead", site.rows);
            encoded.notes.push(Note::fallback(what));
            return Ok(encoded);
        }
        site.check_finite()?;
        let mut notes = vec![];
        let (order, factor) = self.factor(site, &mut notes)?;
        notes.extend(factor.notes(self.params.dampening_frac));
        let weight = target(site, &order, &factor, self.params.drift_correction);
        let site = &Site { weight: &weight, ..*site };
        let job = Job::new(self, site, &order, &factor);
        let weight = job.run();
        let weight =
            weight.map_err(|error| MethodError::Weight { site: site.name.to_owned(), error })?;
        Ok(Encoded { weight, notes })
    }
}

/// One site on its way through the sweep.
struct Job<'a> {
    site: &'a Site<'a>,
    order: &'a [usize],
    factor: &'a InverseFactor,
    code: Code,
    strip: usize,
    /// Bits of each column.
    rates: Vec<u8>,
    scale: f32,
    row_scales: Vec<u8>,
    column_scales: Vec<u8>,
    /// Index of each value that is stored apart, ascending.
    outliers: Vec<usize>,
    /// Whether there is a term for such values.
    has_outliers: bool,
}

impl<'a> Job<'a> {
    fn new(
        method: &TrellisCoded,
        site: &'a Site<'a>,
        order: &'a [usize],
        factor: &'a InverseFactor,
    ) -> Self {
        let Site { rows, cols, .. } = *site;
        let pivots = pivots(factor, order);
        let (scales, outliers) = scales(site.weight, cols, &pivots, method.nonzeros(rows, cols));
        let Scales { row, column } = scales;
        let costs: Vec<f64> =
            column.iter().zip(&pivots).map(|(scale, pivot)| scale * scale * pivot).collect();
        let distortion = distortion(method.params.state_bits);
        let rates = rates(&costs, &distortion, method.row_bits(rows, cols) as usize);
        let losses: Vec<f64> = rates.iter().map(|rate| distortion[usize::from(*rate)]).collect();
        let mut column = with_spread_errors(&column, &losses, order, factor);
        for (scale, rate) in column.iter_mut().zip(&rates) {
            *scale *= REACH[usize::from(*rate)];
        }
        // The common factor brings both kinds of exponents to their middle.
        let middle = |scales: &[f64]| {
            let positive = scales.iter().filter(|scale| **scale > 0.0);
            let (sum, count) =
                positive.fold((0.0, 0), |(sum, count), scale| (sum + scale.ln(), count + 1));
            if count == 0 { 1.0 } else { (sum / f64::from(count)).exp() }
        };
        let (of_rows, of_columns) = (middle(&row), middle(&column));
        let exponents = |scales: &[f64], middle: f64| {
            scales.iter().map(|scale| Trellis::exponent((scale / middle) as f32)).collect()
        };
        Self {
            site,
            order,
            factor,
            code: Code::new(method.params.state_bits),
            strip: TrellisCoded::strip(rows),
            rates,
            scale: (of_rows * of_columns) as f32,
            row_scales: exponents(&row, of_rows),
            column_scales: exponents(&column, of_columns),
            outliers,
            has_outliers: method.params.outliers > 0.0,
        }
    }

    fn run(self) -> Result<Weight, lapidary_weight::WeightError> {
        let Site { rows, cols, weight, .. } = *self.site;
        let mut working: Vec<f32> = weight
            .chunks_exact(cols.max(1))
            .flat_map(|row| self.order.iter().map(|column| row[*column]))
            .collect();
        let mut codes = vec![0; rows * cols];
        let mut strips: Vec<Strip<'_>> = codes
            .chunks_mut((self.strip * cols).max(1))
            .enumerate()
            .map(|(index, codes)| Strip {
                job: &self,
                first: index * self.strip,
                codes,
                line: vec![],
                scales: vec![],
                apart: vec![],
                room: Room::default(),
            })
            .collect();
        let upper = &self.factor.upper;
        sweep_strips(&mut working, upper, &block_bounds(cols, 1), self.strip, &mut strips);
        let mut apart: Vec<(usize, f32)> = strips.into_iter().flat_map(|s| s.apart).collect();
        apart.sort_by_key(|(index, _)| *index);
        let trellis = Trellis {
            state_bits: self.code.state_bits() as u8,
            strip: self.strip,
            rates: self.rates,
            codes,
            row_scales: self.row_scales,
            column_scales: self.column_scales,
            scale: self.scale,
        };
        let mut terms = vec![Term::Trellis(trellis)];
        if self.has_outliers {
            terms.push(Term::Sparse(sparse(rows, cols, &apart)));
        }
        Weight::new(rows, cols, terms)
    }

    /// Scale of a value of this column before the row's own.
    fn column_scale(&self, column: usize) -> f32 {
        self.scale * Trellis::stretch(self.column_scales[column])
    }
}

/// A strip of rows as the sweep reaches its columns.
struct Strip<'a> {
    job: &'a Job<'a>,
    /// First row.
    first: usize,
    /// Of the strip's rows.
    codes: &'a mut [u8],
    line: Vec<u8>,
    scales: Vec<f32>,
    /// Values stored apart: index in the matrix, and what is added to the trellis's value.
    apart: Vec<(usize, f32)>,
    room: Room,
}

impl StripQuantizer for Strip<'_> {
    fn quantize(&mut self, column: usize, values: &mut [f32]) {
        let (job, cols) = (self.job, self.job.site.cols);
        let original = job.order[column];
        let bits = u32::from(job.rates[original]);
        let column_scale = job.column_scale(original);
        let is_apart = |row: usize| job.outliers.binary_search(&(row * cols + original)).is_ok();
        self.scales.clear();
        self.scales.extend((self.first..self.first + values.len()).map(|row| {
            // What is stored apart may have any value in the trellis.
            if is_apart(row) { 0.0 } else { column_scale * Trellis::stretch(job.row_scales[row]) }
        }));
        let start = job.code.start(Trellis::sequence(self.first, job.strip, original));
        self.line.clear();
        self.line.resize(values.len(), 0);
        if bits > 0 {
            let (code, line) = (&job.code, &mut self.line);
            code.encode(values, &self.scales, bits, start, line, &mut self.room);
        }
        let mut state = start;
        for (place, value) in values.iter_mut().enumerate() {
            let row = self.first + place;
            let scale = column_scale * Trellis::stretch(job.row_scales[row]);
            state = job.code.next(state, self.line[place], bits);
            let coded = if bits > 0 { scale * job.code.value(state) } else { 0.0 };
            self.codes[place * cols + original] = self.line[place];
            if self.scales[place] == 0.0 && is_apart(row) {
                let added = FloatType::F16.round(*value - coded);
                self.apart.push((row * cols + original, added));
                *value = coded + added;
            } else {
                *value = coded;
            }
        }
    }
}

/// `1 / U_jj²` of each column: what its squared error costs. A column that no calibration token ever
/// used counts as the cheapest of the others.
fn pivots(factor: &InverseFactor, order: &[usize]) -> Vec<f64> {
    let n = order.len();
    let mut pivots = vec![0.0; n];
    for (place, column) in order.iter().enumerate() {
        pivots[*column] = f64::from(factor.upper[place * n + place]).powi(-2);
    }
    let alive = (0..n).filter(|column| factor.dead.binary_search(column).is_err());
    let least = alive.map(|column| pivots[column]).fold(f64::INFINITY, f64::min);
    for column in &factor.dead {
        pivots[*column] = if least.is_finite() { least } else { 1.0 };
    }
    pivots
}

/// Root mean squares.
struct Scales {
    row: Vec<f64>,
    column: Vec<f64>,
}

/// Scales of rows and columns that make a matrix one of variance 1 all over, and the indices of the
/// `count` values that then lie the furthest out, weighted by what they cost; these are left out of
/// the scales.
fn scales(weight: &[f32], cols: usize, pivots: &[f64], count: usize) -> (Scales, Vec<usize>) {
    let rows = weight.len() / cols.max(1);
    let mut outliers: Vec<usize> = vec![];
    let mut scales = root_mean_squares(weight, rows, cols, &outliers);
    if count == 0 {
        return (scales, outliers);
    }
    // Those that lie far out hide others in the first scales.
    for _ in 0..2 {
        let excess = |index: usize| {
            let (row, column) = (index / cols, index % cols);
            let scale = scales.row[row] * scales.column[column];
            let beyond = f64::from(weight[index].abs()) - GAUSSIAN_REACH * scale;
            beyond.max(0.0).powi(2) * pivots[column]
        };
        let mut ranked: Vec<(f64, usize)> = (0..weight.len())
            .map(|index| (excess(index), index))
            .filter(|(excess, _)| *excess > 0.0)
            .collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        outliers = ranked.into_iter().take(count).map(|(_, index)| index).collect();
        outliers.sort_unstable();
        scales = root_mean_squares(weight, rows, cols, &outliers);
    }
    // The number is promised; what is missing are the first values, which lose nothing by it.
    let mut fill = 0;
    while outliers.len() < count {
        if outliers.binary_search(&fill).is_err() {
            outliers.push(fill);
            outliers.sort_unstable();
        }
        fill += 1;
    }
    (scales, outliers)
}

/// Standard deviations that a trellis of a few bits reaches.
const GAUSSIAN_REACH: f64 = 3.5;

fn root_mean_squares(weight: &[f32], rows: usize, cols: usize, without: &[usize]) -> Scales {
    let mut scales = Scales { row: vec![1.0; rows], column: vec![1.0; cols] };
    let mut kept = weight.to_vec();
    without.iter().for_each(|index| kept[*index] = 0.0);
    // Alternating: rows with the columns' scales divided out, then columns with the rows'.
    for _ in 0..3 {
        for (line, scale) in kept.chunks_exact(cols.max(1)).zip(&mut scales.row) {
            let sum: f64 = line
                .iter()
                .zip(&scales.column)
                .map(|(value, column)| ratio(f64::from(*value), *column).powi(2))
                .sum();
            *scale = (sum / cols as f64).sqrt();
        }
        let mut sums = vec![0.0; cols];
        for (line, row) in kept.chunks_exact(cols.max(1)).zip(&scales.row) {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum += ratio(f64::from(*value), *row).powi(2);
            }
        }
        for (scale, sum) in scales.column.iter_mut().zip(sums) {
            *scale = (sum / rows as f64).sqrt();
        }
    }
    scales
}

/// `value / scale`, 0 for a scale of 0.
fn ratio(value: f64, scale: f64) -> f64 {
    if scale > 0.0 { value / scale } else { 0.0 }
}

/// Bits of each column, `total` together: each bit goes where it lowers `Σ cost · distortion` the
/// most, which is optimal since each bit of a column helps less than the one before it.
fn rates(costs: &[f64], distortion: &[f64; 9], total: usize) -> Vec<u8> {
    let gain = |cost: f64, bits: usize| cost * (distortion[bits] - distortion[bits + 1]);
    let mut gains: Vec<(f64, usize)> = vec![];
    for (column, cost) in costs.iter().enumerate() {
        gains.extend((0..8).map(|bits| (gain(*cost, bits), column)));
    }
    gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut rates = vec![0; costs.len()];
    gains.iter().take(total).for_each(|(_, column)| rates[*column] += 1);
    rates
}

/// The columns' scales when the sweep reaches them: the errors spread onto them, for each column its
/// share of the column's variance, add to theirs.
fn with_spread_errors(
    scales: &[f64],
    losses: &[f64],
    order: &[usize],
    factor: &InverseFactor,
) -> Vec<f64> {
    let n = order.len();
    let mut variances: Vec<f64> = order.iter().map(|column| scales[*column].powi(2)).collect();
    for place in 0..n {
        let row = &factor.upper[place * n..][..n];
        let error = variances[place] * losses[order[place]] / f64::from(row[place]).powi(2);
        for (variance, factor) in variances[place + 1..].iter_mut().zip(&row[place + 1..]) {
            *variance += error * f64::from(*factor).powi(2);
        }
    }
    let mut grown = vec![0.0; n];
    for (place, column) in order.iter().enumerate() {
        grown[*column] = variances[place].sqrt();
    }
    grown
}

/// Values by ascending index as compressed rows.
fn sparse(rows: usize, cols: usize, values: &[(usize, f32)]) -> Sparse {
    let starts = (0..=rows).map(|row| values.partition_point(|(index, _)| index / cols.max(1) < row));
    Sparse {
        row_starts: starts.map(|start| start as u32).collect(),
        columns: values.iter().map(|(index, _)| (index % cols.max(1)) as u32).collect(),
        values: values.iter().map(|(_, value)| *value).collect(),
        dtype: FloatType::F16,
        places: Places::Listed,
    }
}
