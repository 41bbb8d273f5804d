//! The encoder that BERT made common: learned positions, a norm after each residual, and for masked
//! language models a head that transforms a row before it meets the vocabulary.

use crate::config::wrong;
use crate::spec::{Activation, AttentionOp, LinearOp};
use crate::{Config, Graph, GraphBuilder, ModelError, Spec, Value};

/// Sizes of an encoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoder {
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) intermediate: usize,
    pub(super) vocab_size: usize,
    /// Positions there are.
    pub(super) context: usize,
    /// Rows of the table of positions before that of the first.
    pub(super) offset: usize,
    /// Added to variances.
    pub(super) eps: f64,
    pub(super) activation: Activation,
}

/// What families call the layers of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// Query, key and value projections.
    pub(super) qkv: [&'static str; 3],
    pub(super) output: &'static str,
    pub(super) attention_norm: &'static str,
    /// The two layers of the feed-forward.
    pub(super) mlp: [&'static str; 2],
    pub(super) norm: &'static str,
}

/// What families call the parts of the head of a masked language model.
#[derive(Debug, Clone)]
pub(super) struct HeadNames {
    /// The module that holds all of them.
    pub(super) name: &'static str,
    pub(super) dense: &'static str,
    pub(super) norm: &'static str,
    /// The module that multiplies by the table, its name whole.
    pub(super) decoder: &'static str,
    /// Its bias, the name whole.
    pub(super) bias: &'static str,
    /// The embedding's tensor where it is the decoder's weight too.
    pub(super) table: Option<String>,
}

impl Encoder {
    /// The sizes under the names that BERT gave them.
    pub(super) fn read(config: &Config<'_>) -> Result<Self, ModelError> {
        let positions = config.text("position_embedding_type").unwrap_or("absolute");
        if positions != "absolute" {
            return Err(wrong(
                "position_embedding_type",
                format!("{positions:?} is not supported"),
            ));
        }
        Self {
            hidden: config.size("hidden_size")?,
            heads: config.size("num_attention_heads")?,
            intermediate: config.size("intermediate_size")?,
            vocab_size: config.size("vocab_size")?,
            context: config.size("max_position_embeddings")?,
            offset: 0,
            eps: config.optional_number("layer_norm_eps")?.unwrap_or(1e-12),
            activation: super::fields::activation(
                "hidden_act",
                config.text("hidden_act").unwrap_or("gelu"),
            )?,
        }
        .checked("hidden_size")
    }

    /// The same, if the heads divide the width, which is the field `hidden`.
    pub(super) fn checked(self, hidden: &str) -> Result<Self, ModelError> {
        match self.hidden % self.heads {
            0 => Ok(self),
            _ => {
                let what = format!("is {}, which {} heads do not divide", self.hidden, self.heads);
                Err(wrong(hidden, what))
            }
        }
    }

    /// Tables `width` wide, added up and normed; `types` segments where there are any.
    pub(super) fn embed(&self, name: &str, width: usize, types: Option<usize>) -> GraphBuilder {
        let mut g = GraphBuilder::new(name, 0);
        let mut sum = g.embedding("word_embeddings", self.vocab_size, width);
        let rows = self.context + self.offset;
        let positions = g.positions("position_embeddings", rows, width, self.offset);
        if let Some(types) = types {
            let types = g.token_type("token_type_embeddings", types, width);
            sum = g.add(sum, types);
        }
        let sum = g.add(sum, positions);
        g.layer_norm(sum, "LayerNorm", self.eps);
        g
    }

    /// A block.
    pub(super) fn block(&self, name: String, names: &Names) -> Graph {
        let mut g = GraphBuilder::new(name, self.hidden);
        let [q, k, v] = names.qkv.map(|name| g.linear(Value::INPUT, name, self.hidden, true));
        let head_dim = self.hidden / self.heads;
        let attention = AttentionOp {
            heads: self.heads,
            kv_heads: self.heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            soft_cap: None,
            causal: false,
            window: None,
        };
        let attended = g.attention([q, k, v], attention);
        let projected = g.linear(attended, names.output, self.hidden, true);
        let residual = g.add(projected, Value::INPUT);
        let residual = g.layer_norm(residual, names.attention_norm, self.eps);
        let inner = g.linear(residual, names.mlp[0], self.intermediate, true);
        let inner = g.activation(inner, self.activation);
        let down = g.linear(inner, names.mlp[1], self.hidden, true);
        let output = g.add(down, residual);
        let output = g.layer_norm(output, names.norm, self.eps);
        g.finish(output)
    }

    /// A head whose table is `width` wide.
    pub(super) fn head(&self, names: &HeadNames, width: usize) -> Graph {
        let mut g = GraphBuilder::new(names.name, self.hidden);
        let x = g.linear(Value::INPUT, names.dense, width, true);
        let x = g.activation(x, self.activation);
        let x = g.layer_norm(x, names.norm, self.eps);
        let own = || format!("{}.weight", names.decoder);
        let decoder = LinearOp {
            module: names.decoder.to_owned(),
            weight: names.table.clone().unwrap_or_else(own),
            bias: Some(names.bias.to_owned()),
            in_features: width,
            out_features: self.vocab_size,
        };
        let logits = g.linear_op(x, decoder);
        g.finish(logits)
    }

    /// The model.
    pub(super) fn spec(
        &self,
        family: &'static str,
        embed: Graph,
        blocks: Vec<Graph>,
        head: Option<Graph>,
        tied: bool,
    ) -> Spec {
        Spec {
            family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden,
            context: self.context,
            embed,
            blocks,
            tied: head.is_some() && tied,
            head,
            causal: false,
        }
    }
}

/// The prefix of the encoder's tensors, which models with a head on top keep under `name`; and
/// whether that head is the one for masked language models.
pub(super) fn top(config: &Config<'_>, name: &str, class: &str) -> (String, bool) {
    let architectures = config.architectures();
    let masked = architectures.iter().any(|name| *name == format!("{class}ForMaskedLM"));
    let has_top = architectures.iter().any(|name| *name != format!("{class}Model"));
    (if has_top { format!("{name}.") } else { String::new() }, masked)
}

/// Refuses a decoder that is configured as an encoder is.
pub(super) fn no_decoder(config: &Config<'_>) -> Result<(), ModelError> {
    for key in ["is_decoder", "add_cross_attention"] {
        if config.flag(key, false)? {
            return Err(wrong(key, "is true: only encoders of this family are supported"));
        }
    }
    Ok(())
}
