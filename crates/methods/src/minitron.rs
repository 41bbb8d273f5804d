//! Narrower layers by how active their parts are: Minitron (Muralidharan et al., 2024, arXiv 2407.14679;
//! Sreenivas et al., 2024, arXiv 2408.11796), without the distillation after it.
//!
//! Importance is taken where values are read: of neurons at the input of the layer that reads them, of
//! heads at the input of the output projection, of channels behind the norms. Of each row the mean of
//! `|x|` over tokens, of these the root of the sum of squares over rows; a head is the root of the sum of
//! squares of its channels, a key head that of its query heads; a channel the sum over all norms. Behind
//! a router, the tokens of some rows that go to an expert count as one row.

use crate::structural::widths::{Widths, channels, with_channels};
use crate::structural::{Chosen, Seen, Structural, Walk};
use crate::{Method, MethodError, ParamError};
use lapidary_model::Spec;
use lapidary_model::cut::{Axis, UnitKind, Units};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const SUMMARY: &str =
    "narrower layers: cuts neurons, heads and channels that are least active";
pub(crate) const PAPER: &str = "Muralidharan et al., 2024, arXiv 2407.14679";

/// Parameters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// How much goes.
    #[serde(flatten)]
    pub widths: Widths,
    /// Share of the channels of the residual stream that goes. The norms then divide by another mean,
    /// so that a model needs training after it.
    pub channels: f64,
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    params.widths.check()?;
    if !(0.0..1.0).contains(&params.channels) {
        let what = format!("{} is no share from 0 to below 1", params.channels);
        return Err(ParamError::new("channels", what));
    }
    Ok(Method::Structural(Box::new(Minitron(params))))
}

struct Minitron(Params);

impl Structural for Minitron {
    fn provisional(&self, spec: &Spec) -> Result<Chosen, MethodError> {
        let chosen = self.0.widths.cut(spec, None)?;
        Ok(with_channels(chosen, channels(spec, self.0.channels, None)?))
    }

    fn needs_rows(&self) -> bool {
        let Widths { neurons, heads, key_heads, .. } = self.0.widths;
        [neurons, heads, key_heads, self.0.channels].iter().any(|share| *share > 0.0)
    }

    fn choose(&self, walk: &dyn Walk) -> Result<Chosen, MethodError> {
        let activity = activity(walk)?;
        let spec = walk.spec();
        let scores = |_: usize, units: &Units| Ok(of_units(&activity, units));
        let mut chosen = self.0.widths.cut(spec, Some(&scores))?;
        if self.0.channels > 0.0 {
            let scores = of_channels(spec, &activity);
            chosen = with_channels(chosen, channels(spec, self.0.channels, Some(&scores))?);
            chosen.scores.push(("activity of channels".to_owned(), scores));
        }
        Ok(chosen)
    }
}

/// Root of the sum over rows of the squared mean of `|x|`, of every channel that a layer reads, by the
/// layer's module.
type Activity = BTreeMap<String, Vec<f64>>;

/// Goes over the rows once.
fn activity(walk: &dyn Walk) -> Result<Activity, MethodError> {
    let mut sums = Activity::new();
    walk.blocks(&mut |seen| {
        if let Seen::Input { batch, group, values, .. } = seen {
            let width = group.linears.first().map_or(1, |linear| linear.in_features);
            let tokens = values.len() / width.max(1);
            // Rows are whole, but behind a router.
            let of_row = if tokens == batch.tokens() { batch.seq_len } else { tokens };
            for linear in &group.linears {
                let sums = sums.entry(linear.module.clone()).or_insert_with(|| vec![0.0; width]);
                add(sums, values, of_row, width);
            }
        }
        Ok(())
    })?;
    sums.values_mut().flatten().for_each(|sum| *sum = sum.sqrt());
    Ok(sums)
}

/// Adds the squared means of `|x|` over each row of `tokens`.
fn add(sums: &mut [f64], values: &[f32], tokens: usize, width: usize) {
    for row in values.chunks_exact((tokens * width).max(1)) {
        let mut means = vec![0.0_f64; width];
        for token in row.chunks_exact(width) {
            means.iter_mut().zip(token).for_each(|(mean, value)| *mean += f64::from(value.abs()));
        }
        for (sum, mean) in sums.iter_mut().zip(means) {
            *sum += (mean / tokens as f64).powi(2);
        }
    }
}

/// Scores of units: the root of the sum of squares over the channels of each.
fn of_units(activity: &Activity, units: &Units) -> Vec<f64> {
    let Some(channels) = activity.get(&units.reader) else { return vec![0.0; units.count] };
    // A key head stands for the channels of all its query heads.
    let width = match units.kind {
        UnitKind::KeyHeads => channels.len() / units.count.max(1),
        _ => units.width,
    };
    let root = |unit: &[f64]| unit.iter().map(|value| value * value).sum::<f64>().sqrt();
    channels.chunks_exact(width.max(1)).map(root).collect()
}

/// Scores of channels: the sum over the values behind norms.
fn of_channels(spec: &Spec, activity: &Activity) -> Vec<f64> {
    let mut sums = vec![0.0; spec.hidden_size];
    let channels = spec.channels();
    let columns = channels.iter().flat_map(|channels| &channels.shares);
    let readers: BTreeSet<&str> = columns
        .filter(|share| share.axis == Axis::Columns)
        .map(|share| share.tensor.as_str())
        .collect();
    for group in spec.blocks.iter().flat_map(|graph| graph.shared_inputs()) {
        let Some(linear) = group.linears.first() else { continue };
        let is_whole = readers.contains(linear.weight.as_str());
        if let (true, Some(of_group)) = (is_whole, activity.get(&linear.module)) {
            sums.iter_mut().zip(of_group).for_each(|(sum, value)| *sum += value);
        }
    }
    sums
}
