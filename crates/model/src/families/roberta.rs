//! `RoBERTa`: BERT whose positions begin after the padding token's, with a head of its own.

use super::bert::NAMES;
use super::encoder::{Encoder, HeadNames, no_decoder, top};
use crate::config::wrong;
use crate::spec::Activation;
use crate::{Config, ModelError, Spec};

pub(super) const MODEL_TYPES: &[&str] = &["roberta", "xlm-roberta"];

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    no_decoder(config)?;
    let class = if config.text("model_type") == Some("xlm-roberta") { "XLMRoberta" } else { "Roberta" };
    let (prefix, masked) = top(config, "roberta", class);
    let tied = config.flag("tie_word_embeddings", true)?;
    let mut encoder = Encoder::read(config)?;
    // The padding token's number is the row of no position, and those before it are not used.
    let offset = config.get("pad_token_id").map_or(Some(1), serde_json::Value::as_u64);
    let rows = encoder.context;
    encoder.offset = match offset {
        Some(padding) if padding < rows as u64 - 1 => padding as usize + 1,
        _ => {
            let what = format!("is no number below the {rows} positions there are");
            return Err(wrong("pad_token_id", what));
        }
    };
    encoder.context = rows - encoder.offset;
    let types = config.optional_size("type_vocab_size")?.unwrap_or(2);
    let layers = config.layers("num_hidden_layers")?;
    let embed = encoder.embed(&format!("{prefix}embeddings"), encoder.hidden, Some(types));
    let block = |layer| encoder.block(format!("{prefix}encoder.layer.{layer}"), &NAMES);
    let blocks = (0..layers).map(block).collect();
    let names = HeadNames {
        name: "lm_head",
        dense: "dense",
        norm: "layer_norm",
        decoder: "lm_head.decoder",
        bias: "lm_head.bias",
        table: tied.then(|| format!("{prefix}embeddings.word_embeddings.weight")),
    };
    // Whatever the blocks' activation is, the head's is GELU.
    let of_head = Encoder { activation: Activation::Gelu, ..encoder };
    let head = masked.then(|| of_head.head(&names, encoder.hidden));
    let last = embed.last();
    Ok(encoder.spec("roberta", embed.finish(last), blocks, head, tied))
}
