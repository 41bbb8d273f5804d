//! What a result would have: parameters, and bytes that a token reads.

use super::{Plan, SitePlan};
use crate::EngineError;
use lapidary_formats::Source;
use lapidary_model::{Graph, Spec, spec};
use std::collections::BTreeSet;

impl Plan {
    /// Parameters of the result that are not pruned.
    pub fn parameters(&self) -> u64 {
        let size = |(_, shape): (String, Vec<usize>)| shape.iter().product::<usize>() as u64;
        let all: u64 = self.spec.tensors().into_iter().map(size).sum();
        let pruned = self.sites.iter().map(|site| self.pruned(site));
        all.saturating_sub(pruned.sum())
    }

    /// Weights of a site that are pruned.
    pub(crate) fn pruned(&self, site: &SitePlan) -> u64 {
        let count = site.method.pruned(site.outline.rows, site.outline.cols);
        count.unwrap_or(0) as u64
    }

    /// How many times as fast as its source the result writes tokens, by the bytes of weights that a
    /// token reads: those of the layers of blocks and head, but not of tables that are only looked up
    /// in.
    ///
    /// # Errors
    /// When the source is of no family.
    pub fn expected_speedup(&self, whole: &Source) -> Result<f64, EngineError> {
        let before = read_by_a_token(&spec(whole.config())?, |weight| {
            whole.get(weight).map_or(0, |tensor| whole.stored_bytes(tensor))
        });
        let after = read_by_a_token(&self.spec, |weight| self.stored_bytes(weight));
        Ok(before as f64 / after.max(1) as f64)
    }

    /// Bytes that the result stores of a weight.
    pub(crate) fn stored_bytes(&self, weight: &str) -> u64 {
        if let Some(site) = self.sites.iter().find(|site| site.linear.weight == weight) {
            return self.site_bytes(site);
        }
        let stored = self.tensors.iter().find(|tensor| tensor.name == weight);
        stored.and_then(|tensor| tensor.byte_len().ok()).unwrap_or(0)
    }
}

/// Bytes of the weights that every token is multiplied by, each counted once.
pub(crate) fn read_by_a_token(spec: &Spec, bytes: impl Fn(&str) -> u64) -> u64 {
    let graphs = spec.blocks.iter().chain(&spec.head);
    let weights: BTreeSet<String> =
        graphs.flat_map(Graph::linears).map(|linear| linear.weight.clone()).collect();
    weights.iter().map(|weight| bytes(weight)).sum()
}
