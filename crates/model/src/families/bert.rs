//! BERT: an encoder with learned positions and norms after each residual. Without a head it ends
//! in hidden states; `BertForMaskedLM` adds the masked-language-model head.

use super::encoder::{Encoder, HeadNames, Names, no_decoder, top};
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["bert"];

/// Layers of a block, which `RoBERTa` calls the same.
pub(super) const NAMES: Names = Names {
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    mlp: ["intermediate.dense", "output.dense"],
    norm: "output.LayerNorm",
};

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    no_decoder(config)?;
    let (prefix, masked) = top(config, "bert", "Bert");
    let tied = config.flag("tie_word_embeddings", true)?;
    let encoder = Encoder::read(config)?;
    let head = HeadNames {
        name: "cls.predictions",
        dense: "transform.dense",
        norm: "transform.LayerNorm",
        decoder: "cls.predictions.decoder",
        bias: "cls.predictions.bias",
        table: tied.then(|| format!("{prefix}embeddings.word_embeddings.weight")),
    };
    let types = config.optional_size("type_vocab_size")?.unwrap_or(2);
    let layers = config.layers("num_hidden_layers")?;
    let embed = encoder.embed(&format!("{prefix}embeddings"), encoder.hidden, Some(types));
    let block = |layer| encoder.block(format!("{prefix}encoder.layer.{layer}"), &NAMES);
    let blocks = (0..layers).map(block).collect();
    let head = masked.then(|| encoder.head(&head, encoder.hidden));
    let last = embed.last();
    Ok(encoder.spec("bert", embed.finish(last), blocks, head, tied))
}
