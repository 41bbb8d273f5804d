//! Fields that a family has not asked for: none may change what the model computes.

use crate::config::wrong;
use crate::{Config, ModelError};
use serde_json::Value;

/// Fields that change the function of some family, and what they say where they do not: `null` is
/// neutral in all of them.
const FUNCTION: &[(&str, Neutral)] = &[
    ("add_cross_attention", Neutral::False),
    ("alibi", Neutral::False),
    ("attention_bias", Neutral::False),
    ("attention_chunk_size", Neutral::Null),
    ("attention_multiplier", Neutral::Null),
    ("attention_sink", Neutral::False),
    ("attn_logit_softcapping", Neutral::Null),
    ("attn_output_gate", Neutral::False),
    ("clip_qkv", Neutral::Null),
    ("dual_chunk_attention_config", Neutral::Null),
    ("embedding_multiplier", Neutral::One),
    ("embedding_size", Neutral::Null),
    ("final_logit_softcapping", Neutral::Null),
    ("first_k_dense_replace", Neutral::Null),
    ("is_decoder", Neutral::False),
    ("layer_types", Neutral::FullAttention),
    ("logit_scale", Neutral::One),
    ("logits_scaling", Neutral::One),
    ("mlp_bias", Neutral::False),
    ("moe_intermediate_size", Neutral::Null),
    ("mup_width_multiplier", Neutral::One),
    ("n_routed_experts", Neutral::Null),
    ("no_rope_layers", Neutral::Null),
    ("num_experts", Neutral::Null),
    ("num_local_experts", Neutral::Null),
    ("parallel_attn", Neutral::False),
    ("partial_rotary_factor", Neutral::One),
    ("position_embedding_type", Neutral::Absolute),
    ("qk_layernorm", Neutral::False),
    ("qk_norm", Neutral::False),
    ("query_pre_attn_scalar", Neutral::Null),
    ("residual_multiplier", Neutral::One),
    ("rope_local_base_freq", Neutral::Null),
    ("rotary_pct", Neutral::One),
    ("scale_depth", Neutral::Null),
    ("scale_emb", Neutral::One),
    ("text_config", Neutral::Null),
    ("use_bidirectional_attention", Neutral::False),
    ("use_parallel_residual", Neutral::False),
    ("use_qk_norm", Neutral::False),
    ("use_qkv_norm", Neutral::False),
];

/// What a field says where it changes nothing.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    Null,
    False,
    One,
    Absolute,
    FullAttention,
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        let says = |text: &str| value.as_str() == Some(text);
        value.is_null()
            || match self {
                Self::Null => false,
                Self::False => value == &Value::Bool(false),
                Self::One => value.as_f64() == Some(1.0),
                Self::Absolute => says("absolute"),
                Self::FullAttention => value.as_array().is_some_and(|kinds| {
                    kinds.iter().all(|k| k.as_str() == Some("full_attention"))
                }),
            }
    }
}

/// Refuses what the family would overlook.
///
/// # Errors
/// When a field that nobody asked for changes what a model computes.
pub(super) fn check(config: &Config<'_>, family: &str) -> Result<(), ModelError> {
    for (key, value) in config.unread() {
        let known = FUNCTION.iter().find(|(name, _)| *name == key);
        if known.is_some_and(|(_, neutral)| !neutral.is(value)) {
            let what =
                format!("is {value}, which changes the model; {family} has no such thing here");
            return Err(wrong(key, what));
        }
    }
    Ok(())
}

/// Fields that say nothing of what a model computes.
const HARMLESS: &[&str] = &[
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// The fields of a configuration without a family that no family would read.
pub(super) fn unknown(config: &Config<'_>) -> String {
    for family in super::families() {
        // What it makes of the fields does not matter, only which it asks for.
        let _ = (family.build)(config);
    }
    let unread = config.unread().into_iter().map(|(key, _)| key);
    let unread: Vec<&str> =
        unread.filter(|key| !HARMLESS.contains(key) && !key.ends_with("dropout")).collect();
    if unread.is_empty() { "none".to_owned() } else { unread.join(", ") }
}
