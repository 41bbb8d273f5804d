//! ALBERT: BERT whose blocks share their tensors, with tables narrower than the residual stream.

use super::encoder::{Encoder, HeadNames, Names, top};
use crate::config::wrong;
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["albert"];

const NAMES: Names = Names {
    qkv: ["attention.query", "attention.key", "attention.value"],
    output: "attention.dense",
    attention_norm: "attention.LayerNorm",
    mlp: ["ffn", "ffn_output"],
    norm: "full_layer_layer_norm",
};

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let (prefix, masked) = top(config, "albert", "Albert");
    let tied = config.flag("tie_word_embeddings", true)?;
    let encoder = Encoder::read(config)?;
    let width = config.size("embedding_size")?;
    let types = config.optional_size("type_vocab_size")?.unwrap_or(2);
    let layers = config.layers("num_hidden_layers")?;
    let groups = config.optional_size("num_hidden_groups")?.unwrap_or(1);
    let inner = config.optional_size("inner_group_num")?.unwrap_or(1);
    if groups > layers {
        let what = format!("is {groups}, above the {layers} layers there are");
        return Err(wrong("num_hidden_groups", what));
    }
    if inner > layers {
        return Err(wrong("inner_group_num", format!("is {inner}, above {layers} layers")));
    }
    let mut embed = encoder.embed(&format!("{prefix}embeddings"), width, Some(types));
    let module = format!("{prefix}encoder.embedding_hidden_mapping_in");
    let last = embed.last();
    let widened = embed.linear_named(last, &module, encoder.hidden, true);
    let block = |layer: usize, inner: usize| {
        // As transformers divides: the last group may be shorter.
        let group = (layer as f64 / (layers as f64 / groups as f64)) as usize;
        let name = format!("{prefix}encoder.albert_layer_groups.{group}.albert_layers.{inner}");
        encoder.block(name, &NAMES)
    };
    let places = (0..layers).flat_map(|layer| (0..inner).map(move |inner| (layer, inner)));
    let blocks = places.map(|(layer, inner)| block(layer, inner)).collect();
    let names = HeadNames {
        name: "predictions",
        dense: "dense",
        norm: "LayerNorm",
        decoder: "predictions.decoder",
        bias: "predictions.bias",
        table: tied.then(|| format!("{prefix}embeddings.word_embeddings.weight")),
    };
    let head = masked.then(|| encoder.head(&names, width));
    Ok(encoder.spec("albert", embed.finish(widened), blocks, head, tied))
}
