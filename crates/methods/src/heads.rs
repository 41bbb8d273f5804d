//! Attention heads by how the loss depends on a mask of them.
//!
//! "Are sixteen heads really better than one?" (Michel, Levy and Neubig, 2019, arXiv 1905.10650): a head
//! is worth the mean over rows of `|∂L/∂ξ|`, `ξ` being a factor of what it contributes, at `ξ = 1`. The
//! absolute value is of each row's sum over tokens, so that rows of opposite sign do not cancel. A key
//! head is worth the sum of its query heads. Heads are compared within their layer, since engines load
//! the same number in all.

use crate::structural::gradients::{Sample, failed, loss};
use crate::structural::widths::Widths;
use crate::structural::{Chosen, Structural, Walk};
use crate::{Method, MethodError, ParamError};
use lapidary_model::Spec;
use lapidary_model::cut::{UnitKind, Units};
use lapidary_model::gradient::{Backward, Input, Units as Masked, heads, unit_importance};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) const SUMMARY: &str =
    "cuts attention heads that the loss depends on least, by its gradient";
pub(crate) const PAPER: &str = "Michel et al., 2019, arXiv 1905.10650";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Share of the query heads that goes: as many of each group that shares a key head; whole heads
    /// with their keys and values where each has its own.
    pub share: f64,
    /// Share of the key heads that goes, with all query heads that share them.
    pub key_heads: f64,
    /// What gradients are taken of.
    #[serde(flatten)]
    pub sample: Sample,
}

impl Default for Params {
    fn default() -> Self {
        Self { share: 0.25, key_heads: 0.0, sample: Sample::default() }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    let Params { share, key_heads, sample } = params;
    sample.check()?;
    let widths = Widths { neurons: 0.0, heads: share, key_heads, multiple: None };
    widths.check().map_err(|error| match error.path.as_str() {
        "heads" => ParamError::new("share", error.what),
        _ => error,
    })?;
    Ok(Method::Structural(Box::new(Heads { widths, sample })))
}

struct Heads {
    widths: Widths,
    sample: Sample,
}

impl Structural for Heads {
    fn provisional(&self, spec: &Spec) -> Result<Chosen, MethodError> {
        self.widths.cut(spec, None)
    }

    fn needs_rows(&self) -> bool {
        self.widths.heads > 0.0 || self.widths.key_heads > 0.0
    }

    fn taped_tokens(&self) -> usize {
        self.sample.tokens()
    }

    fn choose(&self, walk: &dyn Walk) -> Result<Chosen, MethodError> {
        let spec = walk.spec();
        let mut readers = vec![];
        for (block, graph) in spec.blocks.iter().enumerate() {
            for group in graph.shared_inputs() {
                let channels = heads(graph, group.value).into_iter().flatten();
                let channels: Vec<Vec<usize>> = channels.map(Iterator::collect).collect();
                if !channels.is_empty() {
                    let places = vec![Input { block, value: group.value }];
                    readers.push((group.linears[0].module.clone(), Masked { places, channels }));
                }
            }
        }
        let (modules, units): (Vec<String>, Vec<Masked>) = readers.into_iter().unzip();
        let backward = Backward::new(spec, walk.tensors());
        let rows = self.sample.of(walk);
        let found = unit_importance(&backward, &rows, &*loss(walk)?, &units).map_err(failed)?;
        let importance: BTreeMap<String, Vec<f64>> = modules.into_iter().zip(found).collect();
        let of_units = |_: usize, units: &Units| {
            let heads = importance.get(&units.reader).cloned().unwrap_or_default();
            Ok(match units.kind {
                UnitKind::KeyHeads => {
                    let group = (heads.len() / units.count.max(1)).max(1);
                    heads.chunks_exact(group).map(|group| group.iter().sum()).collect()
                }
                _ => heads,
            })
        };
        let mut chosen = self.widths.cut(spec, Some(&of_units))?;
        chosen.scores.extend(importance);
        Ok(chosen)
    }
}
