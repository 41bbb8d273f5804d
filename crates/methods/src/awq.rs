//! AWQ: input channels that carry much are scaled up before rounding, and their inputs down.
//!
//! Lin et al., 2023 (arXiv 2306.00978): for linear layers that share an input, scales `s = x^α`, `x`
//! the size of each channel, with `α` searched from 0 to 1; `W diag(s)` is encoded and `diag(s)⁻¹`
//! goes into what makes the input, so that the float model is as it was. `α = 0` is a candidate: the
//! search never chooses what is worse than no scale.
//!
//! Where we differ: the size of a channel is the root of its mean square, not its mean magnitude, and
//! the loss is the error of the layers' own outputs, `Σ tr(E H Eᵀ)` with `E = Q(W s) / s − W` and `H`
//! the Gram matrix of the inputs. Both follow from `H`, which holds every calibration token, so that
//! no forward pass is needed for a candidate; the authors run the module on a sample. Where key heads
//! are shared (value to output projection), the channels that one value row feeds share a scale,
//! where the authors leave such layers alone. `α = 1` is tried too.

use crate::{
    Blockwise, Group, Method, MethodError, Needs, Note, ParamError, Rescaled, Statistics,
};
use lapidary_kernels::gram::energy;
use lapidary_kernels::matrix::{PackedMatrix, Precision};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const SUMMARY: &str = "scales of input channels, searched, before the step that encodes";
pub(crate) const PAPER: &str = "Lin et al., 2023, arXiv 2306.00978";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Steps from no scale to scales as large as the channels.
    #[schemars(range(min = 1, max = 1000))]
    pub grid: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { grid: 20 }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if !(1..=1000).contains(&params.grid) {
        return Err(ParamError::new("grid", format!("{} is not from 1 to 1000", params.grid)));
    }
    Ok(Method::Blockwise(Box::new(Awq(params))))
}

struct Awq(Params);

/// Least scale before normalisation, as the authors have it.
const LEAST: f64 = 1e-4;

impl Blockwise for Awq {
    fn needs(&self) -> Needs {
        Needs { gram: true, ..Needs::default() }
    }

    fn rescale(&self, group: &Group<'_>) -> Result<Rescaled, MethodError> {
        let n = group.statistics.side();
        let sizes = sizes(group);
        let gram = PackedMatrix::new(&group.statistics.gram, n, n, Precision::F32);
        let mut best: Option<(f64, usize, Vec<f32>)> = None;
        let mut unscaled = 0.0;
        for step in 0..=self.0.grid {
            let scales = scales(&sizes, step as f64 / self.0.grid as f64);
            let loss = loss(group, &gram, &scales)?;
            if step == 0 {
                unscaled = loss;
            }
            if best.as_ref().is_none_or(|(least, ..)| loss < *least) {
                best = Some((loss, step, scales));
            }
        }
        let (loss, step, scales) = best.unwrap_or_else(|| (0.0, 0, vec![1.0; n]));
        let alpha = step as f64 / self.0.grid as f64;
        let kept = if unscaled > 0.0 { loss / unscaled } else { 1.0 };
        let what = format!("inputs scaled with alpha {alpha:.3}: {kept:.3} of the rounding error");
        Ok(Rescaled { scales, notes: vec![Note::fact(what)] })
    }
}

/// The size of each channel: the root of its mean square, taken together with the channels that
/// must share its scale; that of a channel without any input is nought.
fn sizes(group: &Group<'_>) -> Vec<f64> {
    let n = group.statistics.side();
    let mut sums: Vec<f64> = vec![0.0; n];
    for channel in 0..n {
        let square = group.statistics.gram[channel * n + channel];
        sums[group.shared.first(channel)] += f64::from(square).max(0.0);
    }
    (0..n).map(|channel| sums[group.shared.first(channel)].sqrt()).collect()
}

/// `x^α`, at least [`LEAST`] of the largest, then divided by the geometric mean of the largest and
/// the least; 1 for channels without input.
fn scales(sizes: &[f64], alpha: f64) -> Vec<f32> {
    let largest = sizes.iter().copied().fold(0.0, f64::max);
    let raw = |size: f64| (size / largest).powf(alpha).max(LEAST);
    let live = || sizes.iter().copied().filter(|size| *size > 0.0).map(raw);
    let (least, most) = live().fold((f64::INFINITY, 0.0_f64), |(a, b), s| (a.min(s), b.max(s)));
    let middle = (least * most).sqrt();
    let scale = |size: &f64| if *size > 0.0 { (raw(*size) / middle) as f32 } else { 1.0 };
    sizes.iter().map(scale).collect()
}

/// `Σ tr((Q(W s) / s − W) H (Q(W s) / s − W)ᵀ)` over the layers.
fn loss(group: &Group<'_>, gram: &PackedMatrix, scales: &[f32]) -> Result<f64, MethodError> {
    let mut sum = 0.0;
    let mut statistics: Option<Statistics> = None;
    for reader in &group.readers {
        let mut error = group.rounded(reader, scales, &mut statistics)?;
        for (error, weight) in
            error.chunks_exact_mut(scales.len()).zip(reader.weight.chunks_exact(scales.len()))
        {
            for ((error, weight), scale) in error.iter_mut().zip(weight).zip(scales) {
                *error = *error / scale - weight;
            }
        }
        sum += energy(&error, gram);
    }
    Ok(sum)
}
