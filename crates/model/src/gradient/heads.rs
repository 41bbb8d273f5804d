//! Importance of attention heads, and of any other channels that linear layers read (Michel, Levy and
//! Neubig, "Are sixteen heads really better than one?", 2019): `E |∂L/∂ξ|`, where `ξ` multiplies the
//! channels of a unit and is 1. By the chain rule that is `Σ x·∂L/∂x` over tokens and channels, so that
//! no mask is needed; the absolute value is of each row of tokens by itself.

use super::{Backward, BlockGradients, Loss};
use crate::ModelError;
use crate::graph::{Graph, Value};
use crate::spec::Op;
use std::ops::Range;

/// What a group of linear layers reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Input {
    /// Index of the block.
    pub block: usize,
    /// The value that the layers read.
    pub value: Value,
}

/// Units of channels that are kept or cut together.
#[derive(Debug, Clone, PartialEq)]
pub struct Units {
    /// Where the channels are: one place, or several where blocks share weights, so that a unit is cut
    /// in all of them.
    pub places: Vec<Input>,
    /// The channels of each unit.
    pub channels: Vec<Vec<usize>>,
}

/// The channels of each query head in a value that an attention makes; `None` for other values. A key
/// head is worth the sum of its query heads.
pub fn heads(graph: &Graph, value: Value) -> Option<Vec<Range<usize>>> {
    match &graph.producer(value)?.op {
        Op::Attention(op) => {
            Some((0..op.heads).map(|h| h * op.head_dim..(h + 1) * op.head_dim).collect())
        }
        _ => None,
    }
}

/// Importance of each unit, in the order they are given: the mean over the rows of tokens of the
/// absolute value of what the loss gains, to first order, when the unit's channels grow.
///
/// # Errors
/// As [`Backward::run`], when there are no rows, or when no linear layer reads a place or it has no
/// such channel.
pub fn unit_importance(
    backward: &Backward<'_>,
    rows: &[Vec<u32>],
    loss: &dyn Loss,
    units: &[Units],
) -> Result<Vec<Vec<f64>>, ModelError> {
    if rows.is_empty() {
        return Err(ModelError::Gradient("importance needs at least one row of tokens".to_owned()));
    }
    for units in units {
        check(backward, units)?;
    }
    let zeros: Vec<Vec<f64>> = units.iter().map(|units| vec![0.0; units.channels.len()]).collect();
    let mut slopes = vec![zeros.clone(); rows.len()];
    let mut visit = |gradients: &BlockGradients<'_>| {
        for (units, slopes) in units.iter().zip(&mut slopes[gradients.row]) {
            for input in &gradients.inputs {
                let place = Input { block: gradients.block, value: input.group.value };
                if !units.places.contains(&place) {
                    continue;
                }
                let of_channel = channel_slopes(&input.input, &input.gradient, input.width());
                for (slope, channels) in slopes.iter_mut().zip(&units.channels) {
                    *slope += channels.iter().map(|channel| of_channel[*channel]).sum::<f64>();
                }
            }
        }
        Ok(())
    };
    backward.run(rows, loss, &mut visit)?;
    let mut importance = zeros;
    for slopes in &slopes {
        for (sums, slopes) in importance.iter_mut().zip(slopes) {
            let parts = slopes.iter().map(|slope| slope.abs() / rows.len() as f64);
            sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        }
    }
    Ok(importance)
}

/// `Σ x·∂L/∂x` over the tokens, for each channel.
fn channel_slopes(input: &[f32], gradient: &[f32], width: usize) -> Vec<f64> {
    let mut slopes = vec![0.0; width];
    for (input, gradient) in input.chunks_exact(width).zip(gradient.chunks_exact(width)) {
        for ((slope, input), gradient) in slopes.iter_mut().zip(input).zip(gradient) {
            *slope += f64::from(*input) * f64::from(*gradient);
        }
    }
    slopes
}

fn check(backward: &Backward<'_>, units: &Units) -> Result<(), ModelError> {
    let most = units.channels.iter().flatten().copied().max();
    for Input { block, value } in &units.places {
        let graph = backward.spec().blocks.get(*block);
        let groups = graph.map(Graph::shared_inputs).unwrap_or_default();
        let group = groups.iter().find(|group| group.value == *value);
        let Some(width) = group.map(|group| group.linears[0].in_features) else {
            let what = format!("block {block} has no linear layer that reads value {value:?}");
            return Err(ModelError::Gradient(what));
        };
        if let Some(channel) = most.filter(|most| *most >= width) {
            let what = format!("channel {channel} of block {block}, where there are {width}");
            return Err(ModelError::Gradient(what));
        }
    }
    Ok(())
}
