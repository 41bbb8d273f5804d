//! BERT: an encoder with learned positions and norms after each residual. Without a head it ends
//! in hidden states; `BertForMaskedLM` adds the masked-language-model head.

use super::decoder::activation;
use crate::config::wrong;
use crate::spec::{Activation, AttentionOp, LinearOp};
use crate::{Config, Graph, GraphBuilder, ModelError, Spec, Value};

pub(super) const MODEL_TYPES: &[&str] = &["bert"];

struct Sizes {
    hidden: usize,
    heads: usize,
    intermediate: usize,
    vocab_size: usize,
    eps: f64,
    activation: Activation,
}

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let masked_lm = config.architectures().iter().any(|name| name == "BertForMaskedLM");
    let tied = config.flag("tie_word_embeddings", true)?;
    // Models with a head on top keep the encoder under `bert.`.
    let has_top = config.architectures().iter().any(|name| name != "BertModel");
    let prefix = if has_top { "bert." } else { "" };
    let positions = config.text("position_embedding_type").unwrap_or("absolute");
    if positions != "absolute" {
        return Err(wrong("position_embedding_type", format!("{positions:?} is not supported")));
    }
    let sizes = Sizes::read(config)?;
    let context = config.size("max_position_embeddings")?;
    let types = config.optional_size("type_vocab_size")?.unwrap_or(2);
    let layers = config.layers("num_hidden_layers")?;
    Ok(Spec {
        family: "bert",
        vocab_size: sizes.vocab_size,
        hidden_size: sizes.hidden,
        context,
        embed: embed(prefix, &sizes, context, types),
        blocks: (0..layers).map(|layer| block(prefix, &sizes, layer)).collect(),
        head: masked_lm.then(|| head(&sizes, tied)),
        causal: false,
        tied: masked_lm && tied,
    })
}

impl Sizes {
    fn read(config: &Config<'_>) -> Result<Self, ModelError> {
        let hidden = config.size("hidden_size")?;
        let heads = config.size("num_attention_heads")?;
        if hidden % heads != 0 {
            return Err(wrong("hidden_size", format!("is {hidden}, which {heads} heads do not divide")));
        }
        Ok(Self {
            hidden,
            heads,
            intermediate: config.size("intermediate_size")?,
            vocab_size: config.size("vocab_size")?,
            eps: config.optional_number("layer_norm_eps")?.unwrap_or(1e-12),
            activation: activation("hidden_act", config.text("hidden_act").unwrap_or("gelu"))?,
        })
    }
}

fn embed(prefix: &str, sizes: &Sizes, context: usize, types: usize) -> Graph {
    let mut g = GraphBuilder::new(format!("{prefix}embeddings"), 0);
    let words = g.embedding("word_embeddings", sizes.vocab_size, sizes.hidden);
    let positions = g.positions("position_embeddings", context, sizes.hidden, 0);
    let types = g.token_type("token_type_embeddings", types, sizes.hidden);
    let sum = g.add(words, types);
    let sum = g.add(sum, positions);
    let normed = g.layer_norm(sum, "LayerNorm", sizes.eps);
    g.finish(normed)
}

fn block(prefix: &str, sizes: &Sizes, layer: usize) -> Graph {
    let mut g = GraphBuilder::new(format!("{prefix}encoder.layer.{layer}"), sizes.hidden);
    let [q, k, v] = ["query", "key", "value"]
        .map(|name| g.linear(Value::INPUT, &format!("attention.self.{name}"), sizes.hidden, true));
    let head_dim = sizes.hidden / sizes.heads;
    let attention = AttentionOp {
        heads: sizes.heads,
        kv_heads: sizes.heads,
        head_dim,
        scale: (head_dim as f32).powf(-0.5),
        causal: false,
        window: None,
    };
    let attended = g.attention([q, k, v], attention);
    let projected = g.linear(attended, "attention.output.dense", sizes.hidden, true);
    let residual = g.add(projected, Value::INPUT);
    let residual = g.layer_norm(residual, "attention.output.LayerNorm", sizes.eps);
    let inner = g.linear(residual, "intermediate.dense", sizes.intermediate, true);
    let inner = g.activation(inner, sizes.activation);
    let down = g.linear(inner, "output.dense", sizes.hidden, true);
    let output = g.add(down, residual);
    let output = g.layer_norm(output, "output.LayerNorm", sizes.eps);
    g.finish(output)
}

fn head(sizes: &Sizes, tied: bool) -> Graph {
    let mut g = GraphBuilder::new("cls.predictions", sizes.hidden);
    let x = g.linear(Value::INPUT, "transform.dense", sizes.hidden, true);
    let x = g.activation(x, sizes.activation);
    let x = g.layer_norm(x, "transform.LayerNorm", sizes.eps);
    let table = if tied {
        "bert.embeddings.word_embeddings.weight"
    } else {
        "cls.predictions.decoder.weight"
    };
    let decoder = LinearOp {
        module: "cls.predictions.decoder".to_owned(),
        weight: table.to_owned(),
        bias: Some("cls.predictions.bias".to_owned()),
        in_features: sizes.hidden,
        out_features: sizes.vocab_size,
    };
    let logits = g.linear_op(x, decoder);
    g.finish(logits)
}
