//! OPT: learned positions that begin at the table's third row, layer norms, ReLU.

use super::fields::activation;
use crate::config::wrong;
use crate::spec::{AttentionOp, LinearOp};
use crate::{Activation, Config, Graph, GraphBuilder, ModelError, Spec, Value};

pub(super) const MODEL_TYPES: &[&str] = &["opt"];

/// Rows of the table of positions before that of the first.
const OFFSET: usize = 2;
/// Not in the configuration.
const EPS: f64 = 1e-5;

struct Sizes {
    hidden: usize,
    intermediate: usize,
    activation: Activation,
    attention: AttentionOp,
    bias: bool,
    /// Whether norms stand before attention and feed-forward, or after the residuals.
    norms_before: bool,
}

pub(super) fn spec(config: &Config<'_>) -> Result<Spec, ModelError> {
    let sizes = Sizes::read(config)?;
    let vocab_size = config.size("vocab_size")?;
    let context = config.size("max_position_embeddings")?;
    let tied = config.flag("tie_word_embeddings", true)?;
    let layers = config.layers("num_hidden_layers")?;
    let mut embed = GraphBuilder::new("model.decoder", 0);
    let tokens = embed.embedding("embed_tokens", vocab_size, sizes.hidden);
    let positions = embed.positions("embed_positions", context + OFFSET, sizes.hidden, OFFSET);
    let sum = embed.add(tokens, positions);
    let mut head = GraphBuilder::new("", sizes.hidden);
    let has_norm = sizes.norms_before && !config.flag("_remove_final_layer_norm", false)?;
    let read = match has_norm {
        true => head.layer_norm(Value::INPUT, "model.decoder.final_layer_norm", EPS),
        false => Value::INPUT,
    };
    let table = if tied { "model.decoder.embed_tokens.weight" } else { "lm_head.weight" };
    let linear = LinearOp {
        module: "lm_head".to_owned(),
        weight: table.to_owned(),
        bias: None,
        in_features: sizes.hidden,
        out_features: vocab_size,
    };
    let logits = head.linear_op(read, linear);
    Ok(Spec {
        family: "opt",
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
        let (hidden, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        if hidden % heads != 0 {
            return Err(wrong("hidden_size", format!("is {hidden}, which {heads} heads do not divide")));
        }
        if let Some(width) = config.optional_size("word_embed_proj_dim")?.filter(|w| *w != hidden) {
            let what = format!("is {width}: tables of another width than {hidden} are not supported");
            return Err(wrong("word_embed_proj_dim", what));
        }
        if !config.flag("layer_norm_elementwise_affine", true)? {
            let what = "is false: norms without gains are not supported";
            return Err(wrong("layer_norm_elementwise_affine", what));
        }
        let head_dim = hidden / heads;
        let name = config.text("activation_function").unwrap_or("relu");
        Ok(Self {
            hidden,
            intermediate: config.size("ffn_dim")?,
            activation: activation("activation_function", name)?,
            attention: AttentionOp {
                heads,
                kv_heads: heads,
                head_dim,
                scale: (head_dim as f32).powf(-0.5),
                soft_cap: None,
                causal: true,
                window: None,
            },
            bias: config.flag("enable_bias", true)?,
            norms_before: config.flag("do_layer_norm_before", true)?,
        })
    }

    fn block(&self, layer: usize) -> Graph {
        let mut g = GraphBuilder::new(format!("model.decoder.layers.{layer}"), self.hidden);
        let before = |g: &mut GraphBuilder, x: Value, name: &str| match self.norms_before {
            true => g.layer_norm(x, name, EPS),
            false => x,
        };
        let after = |g: &mut GraphBuilder, x: Value, name: &str| match self.norms_before {
            true => x,
            false => g.layer_norm(x, name, EPS),
        };
        let x = before(&mut g, Value::INPUT, "self_attn_layer_norm");
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"]
            .map(|name| g.linear(x, &format!("self_attn.{name}"), self.hidden, self.bias));
        let attended = g.attention([q, k, v], self.attention.clone());
        let attended = g.linear(attended, "self_attn.out_proj", self.hidden, self.bias);
        let residual = g.add(Value::INPUT, attended);
        let residual = after(&mut g, residual, "self_attn_layer_norm");
        let x = before(&mut g, residual, "final_layer_norm");
        let inner = g.linear(x, "fc1", self.intermediate, self.bias);
        let inner = g.activation(inner, self.activation);
        let down = g.linear(inner, "fc2", self.hidden, self.bias);
        let output = g.add(residual, down);
        let output = after(&mut g, output, "final_layer_norm");
        g.finish(output)
    }
}
