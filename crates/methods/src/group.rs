//! The layers of a block that share an input, as a blockwise method sees them.

use crate::{Note, Statistics, Tensorwise};
use lapidary_weight::FloatType;

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
