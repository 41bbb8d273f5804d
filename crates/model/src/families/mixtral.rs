//! Mixtral: Mistral's decoder with experts instead of feed-forwards.

use super::decoder::{Decoder, Experts, Fields};
use crate::config::wrong;
use crate::spec::RouteOp;
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["mixtral"];

/// More experts than all layers of any model have.
const MOST_EXPERTS: usize = 1 << 16;

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let fields = Fields { theta: 1_000_000.0, ..Fields::default() };
    let mut decoder = Decoder::read(config, fields)?;
    let window = config.optional_size("sliding_window")?;
    let experts = Experts {
        module: "block_sparse_moe",
        names: ["w1", "w3", "w2"],
        intermediate: decoder.intermediate,
        route: route(config, "num_local_experts", decoder.layers.len(), true)?,
    };
    for layer in &mut decoder.layers {
        layer.window = window;
        layer.experts = Some(experts.clone());
    }
    decoder.spec("mixtral")
}

/// How many experts there are, under `key`, and how many a token goes to.
pub(super) fn route(
    config: &Config<'_>,
    key: &str,
    layers: usize,
    normalized: bool,
) -> Result<RouteOp, ModelError> {
    let (experts, top_k) = (config.size(key)?, config.size("num_experts_per_tok")?);
    if experts * layers > MOST_EXPERTS {
        let most = MOST_EXPERTS / layers;
        let what = format!("is {experts}, where {layers} layers can have up to {most}");
        return Err(wrong(key, what));
    }
    if top_k > experts {
        let what = format!("is {top_k}, above the {experts} experts there are");
        return Err(wrong("num_experts_per_tok", what));
    }
    Ok(RouteOp { experts, top_k, normalized })
}
