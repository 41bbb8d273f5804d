//! GPT-NeoX and Pythia: layer norms, attention and feed-forward side by side, and one layer that makes
//! queries, keys and values head by head.

use super::fields::{Rotary, activation, stretching};
use crate::config::wrong;
use crate::spec::{AttentionOp, LinearOp, RopeOp, SliceOp};
use crate::{Config, Graph, GraphBuilder, ModelError, Spec, Value};

pub(super) const MODEL_TYPES: &[&str] = &["gpt_neox"];

struct Sizes {
    hidden: usize,
    intermediate: usize,
    eps: f64,
    activation: crate::Activation,
    attention: AttentionOp,
    rope: RopeOp,
    bias: bool,
    parallel: bool,
}

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let sizes = Sizes::read(config)?;
    let vocab_size = config.size("vocab_size")?;
    let tied = config.flag("tie_word_embeddings", false)?;
    let layers = config.layers("num_hidden_layers")?;
    let mut embed = GraphBuilder::new("gpt_neox", 0);
    let tokens = embed.embedding("embed_in", vocab_size, sizes.hidden);
    let mut head = GraphBuilder::new("", sizes.hidden);
    let normed = head.layer_norm(Value::INPUT, "gpt_neox.final_layer_norm", sizes.eps);
    let table = if tied { "gpt_neox.embed_in.weight" } else { "embed_out.weight" };
    let linear = LinearOp {
        module: "embed_out".to_owned(),
        weight: table.to_owned(),
        bias: None,
        in_features: sizes.hidden,
        out_features: vocab_size,
    };
    let logits = head.linear_op(normed, linear);
    Ok(Spec {
        family: "gpt_neox",
        vocab_size,
        hidden_size: sizes.hidden,
        context: config.size("max_position_embeddings")?,
        embed: embed.finish(tokens),
        blocks: (0..layers).map(|layer| sizes.block(layer)).collect(),
        head: Some(head.finish(logits)),
        causal: true,
        tied,
    })
}

impl Sizes {
    fn read(config: &Config<'_>) -> Result<Self, ModelError> {
        let (hidden, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        if hidden % heads != 0 {
            return Err(wrong("hidden_size", format!("is {hidden}, which {heads} heads do not divide")));
        }
        let head_dim = hidden / heads;
        let rotary = rotary(config)?;
        let (channels, Rotary { theta, scaling, .. }) = (rotary.channels(head_dim)?, rotary);
        Ok(Self {
            hidden,
            intermediate: config.size("intermediate_size")?,
            eps: config.optional_number("layer_norm_eps")?.unwrap_or(1e-5),
            activation: activation("hidden_act", config.text("hidden_act").unwrap_or("gelu"))?,
            attention: AttentionOp {
                heads,
                kv_heads: heads,
                head_dim,
                scale: (head_dim as f32).powf(-0.5),
                soft_cap: None,
                causal: true,
                window: None,
            },
            rope: RopeOp { heads, head_dim, rotary: channels, theta, scaling },
            bias: config.flag("attention_bias", true)?,
            parallel: config.flag("use_parallel_residual", true)?,
        })
    }

    fn block(&self, layer: usize) -> Graph {
        let mut g = GraphBuilder::new(format!("gpt_neox.layers.{layer}"), self.hidden);
        let normed = g.layer_norm(Value::INPUT, "input_layernorm", self.eps);
        let all = g.linear(normed, "attention.query_key_value", 3 * self.hidden, self.bias);
        let run = self.attention.head_dim;
        let [q, k, v] =
            [0, 1, 2].map(|part| g.slice(all, SliceOp { start: part * run, run, stride: 3 * run }));
        let (q, k) = (g.rope(q, self.rope.clone()), g.rope(k, self.rope.clone()));
        let attended = g.attention([q, k, v], self.attention.clone());
        let attended = g.linear(attended, "attention.dense", self.hidden, self.bias);
        let residual = g.add(Value::INPUT, attended);
        let read = if self.parallel { Value::INPUT } else { residual };
        let normed = g.layer_norm(read, "post_attention_layernorm", self.eps);
        let inner = g.linear(normed, "mlp.dense_h_to_4h", self.intermediate, true);
        let inner = g.activation(inner, self.activation);
        let down = g.linear(inner, "mlp.dense_4h_to_h", self.hidden, true);
        let output = g.add(residual, down);
        g.finish(output)
    }
}

/// The names that this family gave its rotary fields come before those that all have.
fn rotary(config: &Config<'_>) -> Result<Rotary, ModelError> {
    let theta = config.optional_number("rotary_emb_base")?.unwrap_or(10_000.0);
    let part = config.optional_number("rotary_pct")?.unwrap_or(0.25);
    if config.has("rope_parameters") {
        return Rotary::read(config, theta, part);
    }
    let scaling = config.object("rope_scaling");
    let scaling = stretching(scaling.as_ref(), config)?;
    Rotary { theta, scaling, part }.checked()
}
