//! `DistilBERT`: BERT with half the layers and without segments, under names of its own.

use super::encoder::{Encoder, HeadNames, Names, top};
use super::fields::activation;
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["distilbert"];

const NAMES: Names = Names {
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    mlp: ["ffn.lin1", "ffn.lin2"],
    norm: "output_layer_norm",
};

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let (prefix, masked) = top(config, "distilbert", "DistilBert");
    let tied = config.flag("tie_word_embeddings", true)?;
    let encoder = Encoder {
        hidden: config.size("dim")?,
        heads: config.size("n_heads")?,
        intermediate: config.size("hidden_dim")?,
        vocab_size: config.size("vocab_size")?,
        context: config.size("max_position_embeddings")?,
        offset: 0,
        eps: 1e-12,
        activation: activation("activation", config.text("activation").unwrap_or("gelu"))?,
    }
    .checked("dim")?;
    let layers = config.layers("n_layers")?;
    let embed = encoder.embed(&format!("{prefix}embeddings"), encoder.hidden, None);
    let block = |layer| encoder.block(format!("{prefix}transformer.layer.{layer}"), &NAMES);
    let blocks = (0..layers).map(block).collect();
    let names = HeadNames {
        name: "",
        dense: "vocab_transform",
        norm: "vocab_layer_norm",
        decoder: "vocab_projector",
        bias: "vocab_projector.bias",
        table: tied.then(|| format!("{prefix}embeddings.word_embeddings.weight")),
    };
    let head = masked.then(|| encoder.head(&names, encoder.hidden));
    let last = embed.last();
    Ok(encoder.spec("distilbert", embed.finish(last), blocks, head, tied))
}
