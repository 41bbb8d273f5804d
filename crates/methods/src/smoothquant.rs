//! SmoothQuant: channels whose inputs stand out are scaled down, and their weights up, so that both
//! sides of a product are easy to round.
//!
//! Xiao et al., 2022 (arXiv 2211.10438): for layers that share an input,
//! `s_j = max|X_j|^α / max|W_j|^(1−α)`, the maxima over all calibration tokens and over all rows of all
//! the layers, each at least 1e-5. The inputs are divided by `s`, which what makes them absorbs, and the
//! columns multiplied. `α = 1/2` makes the two peaks of a channel equal.
//!
//! `alpha: search` is ours, in the manner of Outlier Suppression+ (Wei et al., 2023, arXiv 2304.09145,
//! equation 7): of no scales and those of α = 0, 0.05 .. 1 the ones under which the layers' outputs are
//! nearest, with inputs and weights rounded as the steps of these layers say, on a sample of the
//! calibration tokens. Where key heads are shared, the channels that one value row feeds share a scale,
//! that of their largest peaks. A channel without input, or without weights, is left alone.

use crate::{
    Blockwise, Group, Inputs, Method, MethodError, Needs, Note, ParamError, Rescaled, Statistics,
};
use lapidary_kernels::matrix::{PackedMatrix, Precision};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str =
    "scales that even out the peaks of inputs and weights, before the step that encodes";
pub(crate) const PAPER: &str = "Xiao et al., 2022, arXiv 2211.10438";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// How much of the inputs' peaks goes over to the weights: 0 to 1, or search for the best of each
    /// input.
    pub alpha: Alpha,
}

/// How much of the inputs' peaks goes over to the weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "AlphaText", into = "AlphaText")]
#[schemars(with = "AlphaText")]
pub enum Alpha {
    /// So much everywhere.
    Fixed(f64),
    /// For each input as much as is best.
    Search,
}

/// As it stands in a recipe.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum AlphaText {
    Number(f64),
    Word(String),
}

impl TryFrom<AlphaText> for Alpha {
    type Error = String;

    fn try_from(text: AlphaText) -> Result<Self, String> {
        match text {
            AlphaText::Number(alpha) if (0.0..=1.0).contains(&alpha) => Ok(Self::Fixed(alpha)),
            AlphaText::Number(alpha) => Err(format!("{alpha} is not from 0 to 1")),
            AlphaText::Word(word) if word == "search" => Ok(Self::Search),
            AlphaText::Word(word) => {
                Err(format!("{word:?} is neither a number from 0 to 1 nor search"))
            }
        }
    }
}

impl From<Alpha> for AlphaText {
    fn from(alpha: Alpha) -> Self {
        match alpha {
            Alpha::Fixed(alpha) => Self::Number(alpha),
            Alpha::Search => Self::Word("search".to_owned()),
        }
    }
}

impl Default for Params {
    fn default() -> Self {
        Self { alpha: Alpha::Fixed(0.5) }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    Ok(Method::Blockwise(Box::new(SmoothQuant(params))))
}

struct SmoothQuant(Params);

/// Least peak of a channel of the weights, and least scale, as the authors have it.
const LEAST: f64 = 1e-5;

/// Steps of the search from α = 0 to 1.
const GRID: usize = 20;

impl Blockwise for SmoothQuant {
    fn needs(&self) -> Needs {
        Needs { inputs: true, ..Needs::default() }
    }

    fn rescale(&self, group: &Group<'_>) -> Result<Rescaled, MethodError> {
        let inputs = group.inputs()?;
        let peaks = Peaks::of(group, inputs);
        let (alpha, kept) = match self.0.alpha {
            Alpha::Fixed(alpha) => (alpha, String::new()),
            Alpha::Search => match search(group, inputs, &peaks)? {
                Some((alpha, kept)) => (alpha, format!("; {kept:.3} of the outputs' error")),
                None => {
                    let what = "inputs left as they are: no alpha brings the outputs nearer";
                    let scales = vec![1.0; inputs.peaks.len()];
                    return Ok(Rescaled { scales, notes: vec![Note::fact(what)] });
                }
            },
        };
        let scales = peaks.scales(alpha);
        let after = unevenness(&inputs.scaled(&scales).peaks);
        let before = unevenness(&inputs.peaks);
        let what = format!(
            "inputs smoothed with alpha {alpha:.3}: their largest channel {before:.1} times the \
             median one, then {after:.1}{kept}"
        );
        Ok(Rescaled { scales, notes: vec![Note::fact(what)] })
    }
}

/// The peaks of each channel, taken together with those of the channels that must share its scale.
struct Peaks {
    inputs: Vec<f32>,
    weights: Vec<f32>,
}

impl Peaks {
    fn of(group: &Group<'_>, inputs: &Inputs) -> Self {
        let channels = inputs.peaks.len();
        let mut weights = vec![0.0_f32; channels];
        for reader in &group.readers {
            for row in reader.weight.chunks_exact(channels.max(1)) {
                weights.iter_mut().zip(row).for_each(|(peak, w)| *peak = peak.max(w.abs()));
            }
        }
        let joined = |peaks: &[f32]| -> Vec<f32> {
            let mut most = vec![0.0_f32; channels];
            for (channel, peak) in peaks.iter().enumerate() {
                let first = group.shared.first(channel);
                most[first] = most[first].max(*peak);
            }
            (0..channels).map(|channel| most[group.shared.first(channel)]).collect()
        };
        Self { inputs: joined(&inputs.peaks), weights: joined(&weights) }
    }

    /// `max|X_j|^α / max|W_j|^(1−α)`; 1 for channels where either side is nothing.
    fn scales(&self, alpha: f64) -> Vec<f32> {
        let scale = |(input, weight): (&f32, &f32)| {
            if *input == 0.0 || *weight == 0.0 {
                return 1.0;
            }
            let weight = f64::from(*weight).max(LEAST);
            (f64::from(*input).powf(alpha) / weight.powf(1.0 - alpha)).max(LEAST) as f32
        };
        self.inputs.iter().zip(&self.weights).map(scale).collect()
    }
}

/// The best α, with the share that it leaves of the error there is without scales; `None` where none
/// is better than that.
fn search(
    group: &Group<'_>,
    inputs: &Inputs,
    peaks: &Peaks,
) -> Result<Option<(f64, f64)>, MethodError> {
    let outputs = Outputs::of(group, inputs);
    let plain = outputs.loss(group, &vec![1.0; inputs.peaks.len()])?;
    let (mut best, mut least) = (None, plain);
    for step in 0..=GRID {
        let alpha = step as f64 / GRID as f64;
        let loss = outputs.loss(group, &peaks.scales(alpha))?;
        if loss < least {
            (best, least) = (Some((alpha, loss / plain)), loss);
        }
    }
    Ok(best)
}

/// A sample of inputs, and what the layers make of it.
struct Outputs<'a> {
    sample: &'a [f32],
    tokens: usize,
    /// Of each layer, `[tokens, rows]`.
    exact: Vec<Vec<f32>>,
}

impl<'a> Outputs<'a> {
    fn of(group: &Group<'_>, inputs: &'a Inputs) -> Self {
        let tokens = inputs.sample.len() / inputs.peaks.len().max(1);
        let exact = group.readers.iter().map(|reader| {
            multiply(&inputs.sample, tokens, reader.weight, reader.rows, inputs.peaks.len())
        });
        Self { exact: exact.collect(), sample: &inputs.sample, tokens }
    }

    /// `Σ ‖Q(X / s) Q(W s)ᵀ − X Wᵀ‖²` over the layers.
    fn loss(&self, group: &Group<'_>, scales: &[f32]) -> Result<f64, MethodError> {
        let channels = scales.len();
        let rows = self.sample.chunks_exact(channels.max(1));
        let divided: Vec<f32> =
            rows.flat_map(|row| row.iter().zip(scales).map(|(x, scale)| x / scale)).collect();
        let mut statistics: Option<Statistics> = None;
        let mut sum = 0.0;
        for (reader, exact) in group.readers.iter().zip(&self.exact) {
            let weight = group.rounded(reader, scales, &mut statistics)?;
            let mut inputs = divided.clone();
            if let Some(rounding) = &reader.inputs {
                rounding.apply(&mut inputs, channels);
            }
            let outputs = multiply(&inputs, self.tokens, &weight, reader.rows, channels);
            let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
            sum += outputs.iter().zip(exact).map(square).sum::<f64>();
        }
        Ok(sum)
    }
}

/// `X Wᵀ`, `[tokens, rows]`.
fn multiply(inputs: &[f32], tokens: usize, weight: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut outputs = vec![0.0; tokens * rows];
    PackedMatrix::new(weight, rows, cols, Precision::F32).multiply(
        inputs,
        tokens,
        None,
        &mut outputs,
    );
    outputs
}

/// The largest peak by the median of those that are not nought.
fn unevenness(peaks: &[f32]) -> f32 {
    let mut live: Vec<f32> = peaks.iter().copied().filter(|peak| *peak > 0.0).collect();
    live.sort_by(f32::total_cmp);
    match live.last() {
        Some(largest) => largest / live[live.len() / 2],
        None => 1.0,
    }
}
