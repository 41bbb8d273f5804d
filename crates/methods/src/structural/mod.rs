//! What methods that cut a model smaller have in common: they look at it on its way over the calibration
//! rows, and choose what stays.
//!
//! Layers, heads, neurons and channels are removed by a [`Cut`] of the model as a value; how many go is
//! known beforehand, so that a plan can be made, and which ones only when the rows were seen.

pub(crate) mod gradients;
pub(crate) mod widths;

use crate::{MethodError, Note};
use lapidary_model::cut::Cut;
use lapidary_model::{Batch, InputGroup, Spec};
use lapidary_weight::{Edits, Tensors};
use std::collections::BTreeSet;

/// Cuts a model smaller.
pub trait Structural: Send + Sync {
    /// A cut of the size that [`choose`](Self::choose) will come to, whatever the rows say; with what is
    /// otherwise than it was asked for.
    ///
    /// # Errors
    /// When the model has nothing of what is to be cut, or too little.
    fn provisional(&self, spec: &Spec) -> Result<Chosen, MethodError>;

    /// Whether the choice depends on calibration rows; where not, the provisional cut is the cut.
    fn needs_rows(&self) -> bool {
        true
    }

    /// Tokens that gradients are taken of, all of whose states before every block are held at once; 0
    /// where none are taken.
    fn taped_tokens(&self) -> usize {
        0
    }

    /// Whether the head must have a weight of its own, apart from the embedding's.
    fn unties(&self) -> bool {
        false
    }

    /// Whether tensors are changed before they are cut. What they become is not recorded: a job that is
    /// resumed chooses again.
    fn edits(&self) -> bool {
        false
    }

    /// What stays.
    ///
    /// # Errors
    /// As [`provisional`](Self::provisional), and what the walk is stopped by.
    fn choose(&self, walk: &dyn Walk) -> Result<Chosen, MethodError>;
}

/// A cut, and what is to be said of it.
#[derive(Debug, Clone, Default)]
pub struct Chosen {
    /// The cut.
    pub cut: Cut,
    /// What tensors are changed by before they are cut; no edit reads another tensor.
    pub edits: Edits,
    /// What each of the things it was chosen among is worth: a label, and the scores in their order.
    pub scores: Vec<(String, Vec<f64>)>,
    /// What was done otherwise than it was asked for.
    pub notes: Vec<Note>,
}

/// A model and the calibration rows, to be gone over as often as a method likes.
pub trait Walk {
    /// The model's graphs.
    fn spec(&self) -> &Spec;

    /// Its tensors.
    fn tensors(&self) -> &dyn Tensors;

    /// The rows: their tokens one after another, and the tokens of a row.
    fn rows(&self) -> (&[u32], usize);

    /// Takes all rows through the blocks, and shows what is there on the way, block by block.
    ///
    /// # Errors
    /// When the model cannot be run, a stop is asked for, or `see` refuses.
    fn blocks(
        &self,
        see: &mut dyn FnMut(Seen<'_>) -> Result<(), MethodError>,
    ) -> Result<(), MethodError>;

    /// Tells what is being done, and whether to go on with it.
    ///
    /// # Errors
    /// When a stop is asked for.
    fn go_on(&self, what: &str) -> Result<(), MethodError>;

    /// The mean loss of the first `rows` rows, in nats a token, with some blocks `gone` and each of these
    /// in turn, which are in ascending order, left out beside them.
    ///
    /// # Errors
    /// As [`blocks`](Self::blocks), and for a model without a head that predicts.
    fn losses(
        &self,
        gone: &BTreeSet<usize>,
        each: &[usize],
        rows: usize,
    ) -> Result<Vec<f64>, MethodError>;
}

/// What is seen on the way through the blocks: some whole rows at a time.
pub enum Seen<'a> {
    /// The input of a group of linear layers, `[tokens, in_features]`. Behind a router, only the tokens
    /// that go to the expert.
    Input {
        /// The block.
        block: usize,
        /// The rows.
        batch: Batch,
        /// The layers that read it.
        group: &'a InputGroup<'a>,
        /// The values.
        values: &'a [f32],
    },
    /// The residual stream before and after a block, `[tokens, channels]`.
    Passed {
        /// The block.
        block: usize,
        /// The rows.
        batch: Batch,
        /// Before.
        before: &'a [f32],
        /// After.
        after: &'a [f32],
    },
}

/// The indices of the `count` largest scores, in ascending order; of equal ones the first.
pub(crate) fn largest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// A model that a method cannot cut so.
pub(crate) fn refused(place: impl Into<String>, what: impl Into<String>) -> MethodError {
    MethodError::Structure { place: place.into(), what: what.into() }
}
