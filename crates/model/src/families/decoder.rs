//! The decoder that Llama made common: pre-norm blocks, rotary positions, grouped-query attention,
//! a gated feed-forward. Families are settings of it.

use crate::config::wrong;
use crate::spec::{Activation, AttentionOp, LinearOp, RopeOp, RopeScaling};
use crate::{Config, Graph, GraphBuilder, ModelError, Spec, Value};

/// What a family decides, besides the sizes that all read from the same fields.
#[derive(Debug, Clone, Default)]
pub(super) struct Decoder {
    /// Biases on the query, key and value projections.
    pub(super) qkv_bias: bool,
    /// Bias on the output projection.
    pub(super) o_bias: bool,
    /// Biases in the feed-forward.
    pub(super) mlp_bias: bool,
    /// Root-mean-square norms over each head of queries and keys.
    pub(super) head_norms: bool,
    /// Sliding window.
    pub(super) window: Option<Window>,
}

/// A sliding window, and the layers that have it.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// Positions a position sees, itself included.
    pub(super) width: usize,
    /// The layers from this one on have it, where `layer_types` does not say otherwise.
    pub(super) first_layer: usize,
    /// `layer_types` of the configuration.
    pub(super) layer_types: Vec<String>,
}

impl Window {
    fn of_layer(&self, layer: usize) -> Option<usize> {
        let slides = match self.layer_types.get(layer) {
            Some(kind) => kind == "sliding_attention",
            None => layer >= self.first_layer,
        };
        slides.then_some(self.width)
    }
}

struct Sizes {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    eps: f64,
    activation: Activation,
    theta: f64,
    scaling: RopeScaling,
}

impl Decoder {
    pub(super) fn spec(
        &self,
        family: &'static str,
        config: &Config<'_>,
    ) -> Result<Spec, ModelError> {
        let sizes = Sizes::read(config)?;
        let vocab_size = config.size("vocab_size")?;
        let tied = config.flag("tie_word_embeddings", false)?;
        let layers = config.layers("num_hidden_layers")?;
        let mut embed = GraphBuilder::new("model", 0);
        let tokens = embed.embedding("embed_tokens", vocab_size, sizes.hidden);
        Ok(Spec {
            family,
            vocab_size,
            hidden_size: sizes.hidden,
            context: config.optional_size("max_position_embeddings")?.unwrap_or(2048),
            embed: embed.finish(tokens),
            blocks: (0..layers).map(|layer| self.block(&sizes, layer)).collect(),
            head: Some(head(&sizes, vocab_size, tied)),
            causal: true,
            tied,
        })
    }

    fn block(&self, sizes: &Sizes, layer: usize) -> Graph {
        let mut g = GraphBuilder::new(format!("model.layers.{layer}"), sizes.hidden);
        let normed = g.rms_norm(Value::INPUT, "input_layernorm", sizes.eps);
        let attended = self.attention(&mut g, sizes, layer, normed);
        let residual = g.add(Value::INPUT, attended);
        let normed = g.rms_norm(residual, "post_attention_layernorm", sizes.eps);
        let gate = g.linear(normed, "mlp.gate_proj", sizes.intermediate, self.mlp_bias);
        let up = g.linear(normed, "mlp.up_proj", sizes.intermediate, self.mlp_bias);
        let inner = g.gated(gate, up, sizes.activation);
        let down = g.linear(inner, "mlp.down_proj", sizes.hidden, self.mlp_bias);
        let output = g.add(residual, down);
        g.finish(output)
    }

    fn attention(&self, g: &mut GraphBuilder, sizes: &Sizes, layer: usize, x: Value) -> Value {
        let Sizes { heads, kv_heads, head_dim, .. } = *sizes;
        let mut q = g.linear(x, "self_attn.q_proj", heads * head_dim, self.qkv_bias);
        let mut k = g.linear(x, "self_attn.k_proj", kv_heads * head_dim, self.qkv_bias);
        let v = g.linear(x, "self_attn.v_proj", kv_heads * head_dim, self.qkv_bias);
        if self.head_norms {
            q = g.head_norm(q, "self_attn.q_norm", head_dim, sizes.eps);
            k = g.head_norm(k, "self_attn.k_norm", head_dim, sizes.eps);
        }
        let q = g.rope(q, sizes.rope(heads));
        let k = g.rope(k, sizes.rope(kv_heads));
        let attention = AttentionOp {
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            causal: true,
            window: self.window.as_ref().and_then(|window| window.of_layer(layer)),
        };
        let attended = g.attention([q, k, v], attention);
        g.linear(attended, "self_attn.o_proj", sizes.hidden, self.o_bias)
    }
}

fn head(sizes: &Sizes, vocab_size: usize, tied: bool) -> Graph {
    let mut g = GraphBuilder::new("", sizes.hidden);
    let normed = g.rms_norm(Value::INPUT, "model.norm", sizes.eps);
    let table = if tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let logits = g.linear_op(
        normed,
        LinearOp {
            module: "lm_head".to_owned(),
            weight: table.to_owned(),
            bias: None,
            in_features: sizes.hidden,
            out_features: vocab_size,
        },
    );
    g.finish(logits)
}

impl Sizes {
    fn read(config: &Config<'_>) -> Result<Self, ModelError> {
        let hidden = config.size("hidden_size")?;
        let heads = config.size("num_attention_heads")?;
        let kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            let what = format!("is {kv_heads}, which does not divide the {heads} attention heads");
            return Err(wrong("num_key_value_heads", what));
        }
        let head_dim = match config.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                let what =
                    format!("is {hidden}, which {heads} heads do not divide, without head_dim");
                return Err(wrong("hidden_size", what));
            }
        };
        if head_dim % 2 != 0 {
            return Err(wrong("head_dim", format!("is {head_dim}; rotary positions need pairs")));
        }
        let (theta, scaling) = rope(config)?;
        let name = config.text("hidden_act").unwrap_or("silu");
        Ok(Self {
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate: config.size("intermediate_size")?,
            eps: config.positive("rms_norm_eps")?,
            activation: activation("hidden_act", name)?,
            theta,
            scaling,
        })
    }

    fn rope(&self, heads: usize) -> RopeOp {
        RopeOp { heads, head_dim: self.head_dim, theta: self.theta, scaling: self.scaling }
    }
}

/// An activation by its name in `config.json`.
pub(super) fn activation(key: &str, name: &str) -> Result<Activation, ModelError> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        _ => {
            let known = "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast and relu";
            Err(wrong(key, format!("{name:?} is not supported; known are {known}")))
        }
    }
}

/// Base and scaling of the rotary frequencies, from `rope_parameters` (transformers 5) or from
/// `rope_theta` and `rope_scaling` (before).
fn rope(config: &Config<'_>) -> Result<(f64, RopeScaling), ModelError> {
    let parameters = config.object("rope_parameters");
    let scaling = parameters.or_else(|| config.object("rope_scaling"));
    let theta = match parameters.map(|p| p.optional_number("rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => config.optional_number("rope_theta")?.unwrap_or(10_000.0),
    };
    if theta <= 0.0 {
        return Err(wrong("rope_theta", format!("is {theta}, where a positive number is needed")));
    }
    let Some(scaling) = scaling else { return Ok((theta, RopeScaling::None)) };
    let kind = scaling.text("rope_type").or_else(|| scaling.text("type")).unwrap_or("default");
    if scaling.optional_number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(wrong("partial_rotary_factor", "is not supported by this family"));
    }
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: scaling.positive("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: scaling.positive("factor")?,
            low: scaling.positive("low_freq_factor")?,
            high: scaling.positive("high_freq_factor")?,
            original_context: scaling.positive("original_max_position_embeddings")?,
        },
        _ => {
            let what = format!("{kind:?} is not supported; known are default, linear and llama3");
            return Err(wrong("rope_scaling.rope_type", what));
        }
    };
    Ok((theta, scaling))
}
