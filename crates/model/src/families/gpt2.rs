//! GPT-2: learned positions, layer norms, one layer for queries, keys and values. Its checkpoints have
//! the weights of linear layers the other way round, which is undone where they are read
//! (`formats::Source`).

use super::fields::activation;
use crate::config::wrong;
use crate::spec::{AttentionOp, LinearOp};
use crate::{Activation, Config, Graph, GraphBuilder, ModelError, Spec, Value};

pub(super) const MODEL_TYPES: &[&str] = &["gpt2"];

struct Sizes {
    hidden: usize,
    heads: usize,
    intermediate: usize,
    eps: f64,
    activation: Activation,
    /// Whether scores are divided by the root of a head's width.
    scaled: bool,
    /// Whether they are divided by the layer's number too.
    by_layer: bool,
}

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let sizes = Sizes::read(config)?;
    let vocab_size = config.size("vocab_size")?;
    let context = config.size("n_positions")?;
    let tied = config.flag("tie_word_embeddings", true)?;
    let layers = config.layers("n_layer")?;
    let mut embed = GraphBuilder::new("transformer", 0);
    let tokens = embed.embedding("wte", vocab_size, sizes.hidden);
    let positions = embed.positions("wpe", context, sizes.hidden, 0);
    let sum = embed.add(tokens, positions);
    let mut head = GraphBuilder::new("", sizes.hidden);
    let normed = head.layer_norm(Value::INPUT, "transformer.ln_f", sizes.eps);
    let table = if tied { "transformer.wte.weight" } else { "lm_head.weight" };
    let linear = LinearOp {
        module: "lm_head".to_owned(),
        weight: table.to_owned(),
        bias: None,
        in_features: sizes.hidden,
        out_features: vocab_size,
    };
    let logits = head.linear_op(normed, linear);
    Ok(Spec {
        family: "gpt2",
        vocab_size,
        hidden_size: sizes.hidden,
        context,
        embed: embed.finish(sum),
        blocks: (0..layers).map(|layer| sizes.block(layer)).collect(),
        head: Some(head.finish(logits)),
        causal: true,
        tied,
    })
}

impl Sizes {
    fn read(config: &Config<'_>) -> Result<Self, ModelError> {
        let (hidden, heads) = (config.size("n_embd")?, config.size("n_head")?);
        if hidden % heads != 0 {
            return Err(wrong("n_embd", format!("is {hidden}, which {heads} heads do not divide")));
        }
        if config.flag("add_cross_attention", false)? {
            return Err(wrong("add_cross_attention", "is true, which is not supported"));
        }
        let name = config.text("activation_function").unwrap_or("gelu_new");
        Ok(Self {
            hidden,
            heads,
            intermediate: config.optional_size("n_inner")?.unwrap_or(4 * hidden),
            eps: config.optional_number("layer_norm_epsilon")?.unwrap_or(1e-5),
            activation: activation("activation_function", name)?,
            scaled: config.flag("scale_attn_weights", true)?,
            by_layer: config.flag("scale_attn_by_inverse_layer_idx", false)?,
        })
    }

    fn block(&self, layer: usize) -> Graph {
        let Self { hidden, heads, .. } = *self;
        let mut g = GraphBuilder::new(format!("transformer.h.{layer}"), hidden);
        let normed = g.layer_norm(Value::INPUT, "ln_1", self.eps);
        let all = g.linear(normed, "attn.c_attn", 3 * hidden, true);
        let [q, k, v] = [0, 1, 2].map(|part| g.channels(all, part * hidden, hidden));
        let head_dim = hidden / heads;
        let scale = if self.scaled { (head_dim as f32).powf(-0.5) } else { 1.0 };
        let attention = AttentionOp {
            heads,
            kv_heads: heads,
            head_dim,
            scale: if self.by_layer { scale / (layer + 1) as f32 } else { scale },
            soft_cap: None,
            causal: true,
            window: None,
        };
        let attended = g.attention([q, k, v], attention);
        let attended = g.linear(attended, "attn.c_proj", hidden, true);
        let residual = g.add(attended, Value::INPUT);
        let normed = g.layer_norm(residual, "ln_2", self.eps);
        let inner = g.linear(normed, "mlp.c_fc", self.intermediate, true);
        let inner = g.activation(inner, self.activation);
        let down = g.linear(inner, "mlp.c_proj", hidden, true);
        let output = g.add(residual, down);
        g.finish(output)
    }
}
