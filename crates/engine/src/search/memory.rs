//! Predicted memory of a search: what the job itself takes, and what its divergences take beside it.

use super::Survey;
use crate::EngineError;
use lapidary_model::{Graph, Place};

/// Rows that divergences are measured on, and how many of their tokens.
pub(crate) const PROBE_ROWS: usize = 8;
pub(crate) const PROBE_TOKENS: usize = 256;

/// Rows of logits that are compared at a time.
pub(crate) const LOGIT_ROWS: usize = 128;

/// Weights of the blocks up to this many numbers stay in memory for the passes through the rest of
/// the model, where the limit allows it.
const RESIDENT_NUMBERS: u64 = 500_000_000;

/// What measuring takes at the most, in bytes.
pub(super) fn peak(survey: &Survey<'_>) -> u64 {
    let resident = if is_resident(survey) { weights(survey) } else { survey.plan().memory.block };
    job(survey) + streams(survey) + resident
}

/// What it takes beside the job, when the weights of the blocks are not all kept.
pub(super) fn beside_the_job(survey: &Survey<'_>) -> u64 {
    streams(survey) + survey.plan().memory.block
}

/// Whether the weights of all blocks are kept.
pub(crate) fn is_resident(survey: &Survey<'_>) -> bool {
    let need = job(survey) + streams(survey) + weights(survey);
    let fits = survey.limits.memory.is_none_or(|limit| need <= limit);
    fits && weights(survey) <= 4 * RESIDENT_NUMBERS
}

/// Why the limit of memory does not allow the search.
pub(super) fn excess(survey: &Survey<'_>) -> Option<EngineError> {
    let (peak, limit) = (peak(survey), survey.limits.memory?);
    (peak > limit).then(|| {
        EngineError::Refused(format!(
            "the search needs {} MB even with activations on the disk, and the limit is {} MB; raise \
             --memory",
            peak.div_ceil(1_000_000),
            limit / 1_000_000
        ))
    })
}

/// The most that the job of any candidate takes.
fn job(survey: &Survey<'_>) -> u64 {
    let peaks = survey.candidates.iter().map(|candidate| candidate.plan.memory.peak);
    peaks.max().unwrap_or(0)
}

/// Weights of all blocks, at four bytes.
fn weights(survey: &Survey<'_>) -> u64 {
    let linears = survey.plan().spec.blocks.iter().flat_map(Graph::linears);
    linears.map(|linear| 4 * (linear.in_features * linear.out_features) as u64).sum()
}

/// The probes' residual streams, two for each unit of a block, and their logits, with the head.
fn streams(survey: &Survey<'_>) -> u64 {
    let spec = &survey.plan().spec;
    let units = |place| survey.units.iter().filter(|unit| unit.place == place).count();
    let most = (0..spec.blocks.len()).map(|block| units(Place::Block(block))).max();
    let most = most.unwrap_or(0) as u64;
    // Methods that need no statistics are measured with them all the same.
    let squares = |graph: &Graph| -> u64 {
        let widths = graph.shared_inputs().into_iter().map(|g| g.linears[0].in_features as u64);
        widths.map(|width| 4 * width * width).sum()
    };
    let statistics = spec.blocks.iter().chain(&spec.head).map(squares).max().unwrap_or(0);
    let statistics = statistics.saturating_sub(survey.plan().memory.statistics);
    let (hidden, vocabulary) = (spec.hidden_size as u64, spec.vocab_size as u64);
    let logits = match &spec.head {
        Some(_) => 8 * LOGIT_ROWS as u64 * vocabulary + 12 * hidden * vocabulary,
        None => 0,
    };
    4 * (2 * most + 3) * (PROBE_ROWS * PROBE_TOKENS) as u64 * hidden + logits + statistics
}
