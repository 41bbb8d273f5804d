//! The layers of a block that share an input, as a blockwise method sees them.

use crate::{Encoded, Inputs, MethodError, Note, Site, Statistics, Tensorwise};
use lapidary_weight::{FloatType, InputRounding};

/// Layers that share an input, and will be encoded.
pub struct Group<'a> {
    /// The layers.
    pub readers: Vec<Reader<'a>>,
    /// What was gathered about their input.
    pub statistics: &'a Statistics,
    /// Which channels of the input must have one scale.
    pub shared: Shared,
}

/// A layer of a group.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    /// Name of the module, for messages.
    pub name: &'a str,
    /// Output features.
    pub rows: usize,
    /// Row-major `[rows, channels]`, finite.
    pub weight: &'a [f32],
    /// Type that scales are stored in.
    pub scale_type: FloatType,
    /// What will encode it.
    pub encoder: &'a dyn Tensorwise,
    /// How its inputs are rounded when the model is run.
    pub inputs: Option<InputRounding>,
}

impl Group<'_> {
    /// What was gathered of the inputs themselves.
    pub(crate) fn inputs(&self) -> Result<&Inputs, MethodError> {
        self.statistics.inputs.as_ref().ok_or_else(|| MethodError::MissingStatistics {
            site: self.readers.first().map_or("", |reader| reader.name).to_owned(),
            what: "the peaks of its inputs",
        })
    }

    /// What is stored of a layer when its columns are multiplied by `scales`: `Q(W s)`, by the quickest
    /// stand-in for its encoder. `statistics` keeps what is known of the scaled inputs, from one layer to
    /// the next.
    pub(crate) fn rounded(
        &self,
        reader: &Reader<'_>,
        scales: &[f32],
        statistics: &mut Option<Statistics>,
    ) -> Result<Vec<f32>, MethodError> {
        let draft = reader.encoder.draft();
        let encoder = draft.as_deref().unwrap_or(reader.encoder);
        if encoder.needs().gram && statistics.is_none() {
            *statistics = Some(self.statistics.scaled(scales));
        }
        let rows = reader.weight.chunks_exact(scales.len().max(1));
        let weight: Vec<f32> =
            rows.flat_map(|row| row.iter().zip(scales).map(|(weight, s)| weight * s)).collect();
        let site = Site {
            name: reader.name,
            rows: reader.rows,
            cols: scales.len(),
            weight: &weight,
            statistics: statistics.as_ref(),
            scale_type: reader.scale_type,
            peak: None,
        };
        let Encoded { weight: encoded, .. } = encoder.encode(&site)?;
        Ok(encoded.decode())
    }
}

/// Channels that one row of the layer before them feeds: `repeat` heads of `head_dim` channels in
/// turn are copies of one head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Copies of a head.
    pub repeat: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Default for Shared {
    /// No channel shares its scale.
    fn default() -> Self {
        Self { repeat: 1, head_dim: 1 }
    }
}

impl Shared {
    /// The first of the channels that share the scale of this one.
    pub fn first(self, channel: usize) -> usize {
        let head = channel / self.head_dim;
        head / self.repeat * self.repeat * self.head_dim + channel % self.head_dim
    }
}

/// What a blockwise method chose for a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Rescaled {
    /// A positive scale for each channel, equal where channels share one.
    pub scales: Vec<f32>,
    /// What happened.
    pub notes: Vec<Note>,
}
