//! The decoder that Llama made common: blocks of attention and feed-forward beside a residual stream,
//! with norms before them, rotary positions and grouped-query attention. Families are settings of it.

use super::fields::{Rotary, activation};
use crate::config::wrong;
use crate::spec::{Activation, AttentionOp, LinearOp, RopeOp, RouteOp};
use crate::{Config, Graph, GraphBuilder, ModelError, Spec, Value};

/// Everything a decoder of this kind is made of. [`read`](Self::read) gives Llama's; a family changes
/// what is different in it.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    /// Width of the residual stream.
    pub(super) hidden: usize,
    /// Query heads.
    pub(super) heads: usize,
    /// Key and value heads.
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// Width inside the feed-forward.
    pub(super) intermediate: usize,
    /// Added to variances and mean squares.
    pub(super) eps: f64,
    /// Of the feed-forward.
    pub(super) activation: Activation,
    /// Biases on the query, key and value projections.
    pub(super) qkv_bias: bool,
    /// Bias on the output projection.
    pub(super) o_bias: bool,
    /// Biases in the feed-forward.
    pub(super) mlp_bias: bool,
    /// Queries, keys and values are made by one layer, `qkv_proj`.
    pub(super) fused_qkv: bool,
    /// Norms of queries and keys.
    pub(super) qk_norms: QkNorms,
    /// What the norms of the stream compute.
    pub(super) norm: Norm,
    /// Where they stand.
    pub(super) norms: Norms,
    /// The feed-forward of most layers.
    pub(super) feed_forward: FeedForward,
    /// Multiplies the products of queries and keys.
    pub(super) attention_scale: f32,
    /// Cap of the attention's scores.
    pub(super) attention_cap: Option<f32>,
    /// Multiplies the embedding.
    pub(super) embedding_scale: f32,
    /// Multiplies what is added to the stream.
    pub(super) residual_scale: f32,
    /// Multiplies the logits.
    pub(super) logit_scale: f32,
    /// Cap of the logits.
    pub(super) logit_cap: Option<f32>,
    /// Each layer's own.
    pub(super) layers: Vec<Layer>,
    /// Tokens in the vocabulary.
    pub(super) vocab_size: usize,
    /// Longest sequence.
    pub(super) context: usize,
    /// Whether the head multiplies by the embedding table.
    pub(super) tied: bool,
}

/// What may differ from layer to layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// Positions a position sees, itself included.
    pub(super) window: Option<usize>,
    /// Rotary positions, where the layer has them.
    pub(super) rotary: Option<Rotary>,
    /// Experts instead of the one feed-forward.
    pub(super) experts: Option<Experts>,
}

/// Norms of queries and keys, before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorms {
    None,
    /// Of each head, with a gain that all heads share.
    Heads,
    /// Of the whole row.
    Rows,
}

/// The norm of a row of the stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Norm {
    /// Root-mean-square; the offset is added to its gains.
    Rms { offset: f32 },
    /// Layer norm with gains and biases.
    Layer,
}

/// The norms of a block, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Norms {
    pub(super) before_attention: Option<&'static str>,
    /// Of the attention's result, before it is added.
    pub(super) after_attention: Option<&'static str>,
    /// Without one the feed-forward reads what the attention reads, and both are added to what came
    /// in: a parallel residual.
    pub(super) before_mlp: Option<BeforeMlp>,
    pub(super) after_mlp: Option<&'static str>,
}

/// What the feed-forward reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BeforeMlp {
    /// The stream after the attention, through this norm.
    Norm(&'static str),
    /// The stream after the attention as it is.
    Stream,
}

/// The feed-forward of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeedForward {
    /// `down(activation(gate) · up)`.
    Gated,
    /// The same, gate and up made by one layer, `gate_up_proj`.
    FusedGated,
    /// `c_proj(activation(c_fc))`.
    Plain,
}

/// A mixture of experts, each a gated feed-forward.
#[derive(Debug, Clone)]
pub(super) struct Experts {
    /// Name of what holds them in a block.
    pub(super) module: &'static str,
    /// Names of an expert's gate, up and down projections.
    pub(super) names: [&'static str; 3],
    /// Width inside an expert.
    pub(super) intermediate: usize,
    /// Which of them a token goes to.
    pub(super) route: RouteOp,
}

/// What families call the fields that all have, and their defaults.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields {
    /// What is added to variances and mean squares.
    pub(super) eps: &'static str,
    /// Of the feed-forward.
    pub(super) activation: [&'static str; 2],
    /// Where neither is there.
    pub(super) default_activation: &'static str,
    /// Whether the head shares the embedding's weight where `tie_word_embeddings` is absent.
    pub(super) tied: bool,
    /// Base of the rotary frequencies where it is absent.
    pub(super) theta: f64,
    /// The part of a head that is rotated where it is absent; `None` where it must be the whole.
    pub(super) rotary_part: Option<f64>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            eps: "rms_norm_eps",
            activation: ["hidden_act", "hidden_act"],
            default_activation: "silu",
            tied: false,
            theta: 10_000.0,
            rotary_part: None,
        }
    }
}

impl Decoder {
    /// Llama's decoder of the sizes in a configuration.
    pub(super) fn read(config: &Config<'_>, fields: Fields) -> Result<Self, ModelError> {
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
        let rotary = Rotary::read(config, fields.theta, fields.rotary_part.unwrap_or(1.0))?;
        if fields.rotary_part.is_none() && rotary.part != 1.0 {
            return Err(wrong("partial_rotary_factor", "is not supported by this family"));
        }
        rotary.channels(head_dim)?;
        let key = fields.activation.into_iter().find(|key| config.text(key).is_some());
        let key = key.unwrap_or(fields.activation[0]);
        let name = config.text(key).unwrap_or(fields.default_activation);
        let layers = config.layers("num_hidden_layers")?;
        let layer = Layer { window: None, rotary: Some(rotary), experts: None };
        Ok(Self {
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate: config.size("intermediate_size")?,
            eps: config.positive(fields.eps)?,
            activation: activation(key, name)?,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            fused_qkv: false,
            qk_norms: QkNorms::None,
            norm: Norm::Rms { offset: 0.0 },
            norms: Norms {
                before_attention: Some("input_layernorm"),
                after_attention: None,
                before_mlp: Some(BeforeMlp::Norm("post_attention_layernorm")),
                after_mlp: None,
            },
            feed_forward: FeedForward::Gated,
            attention_scale: (head_dim as f32).powf(-0.5),
            attention_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: None,
            layers: vec![layer; layers],
            vocab_size: config.size("vocab_size")?,
            context: config.optional_size("max_position_embeddings")?.unwrap_or(2048),
            tied: config.flag("tie_word_embeddings", fields.tied)?,
        })
    }

    /// Gives a window to the layers that are listed so.
    pub(super) fn slide(&mut self, width: Option<usize>, slides: &[bool]) {
        for (layer, slides) in self.layers.iter_mut().zip(slides) {
            layer.window = width.filter(|_| *slides);
        }
    }

    /// The model.
    pub(super) fn spec(&self, family: &'static str) -> Result<Spec, ModelError> {
        let mut embed = GraphBuilder::new("model", 0);
        let tokens = embed.embedding("embed_tokens", self.vocab_size, self.hidden);
        let scaled = embed.scale(tokens, self.embedding_scale);
        let blocks = (0..self.layers.len()).map(|layer| self.block(layer));
        Ok(Spec {
            family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden,
            context: self.context,
            embed: embed.finish(scaled),
            blocks: blocks.collect::<Result<_, _>>()?,
            head: Some(self.head()),
            causal: true,
            tied: self.tied,
        })
    }

    fn block(&self, index: usize) -> Result<Graph, ModelError> {
        let (layer, norms) = (&self.layers[index], self.norms);
        let mut g = GraphBuilder::new(format!("model.layers.{index}"), self.hidden);
        let x = Value::INPUT;
        let normed = norms.before_attention.map_or(x, |name| self.norm(&mut g, x, name));
        let attended = self.attention(&mut g, layer, normed)?;
        let attended = norms.after_attention.map_or(attended, |n| self.norm(&mut g, attended, n));
        let attended = g.scale(attended, self.residual_scale);
        let residual = g.add(x, attended);
        let read = match norms.before_mlp {
            Some(BeforeMlp::Norm(name)) => self.norm(&mut g, residual, name),
            Some(BeforeMlp::Stream) => residual,
            None => normed,
        };
        let mixed = match &layer.experts {
            Some(experts) => self.experts(&mut g, experts, read),
            None => self.feed_forward(&mut g, read),
        };
        let mixed = norms.after_mlp.map_or(mixed, |name| self.norm(&mut g, mixed, name));
        let mixed = g.scale(mixed, self.residual_scale);
        let output = g.add(residual, mixed);
        Ok(g.finish(output))
    }

    fn norm(&self, g: &mut GraphBuilder, x: Value, name: &str) -> Value {
        match self.norm {
            Norm::Rms { offset } => g.head_norm(x, name, self.hidden, offset, self.eps),
            Norm::Layer => g.layer_norm(x, name, self.eps),
        }
    }

    fn attention(
        &self,
        g: &mut GraphBuilder,
        layer: &Layer,
        x: Value,
    ) -> Result<Value, ModelError> {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        let [mut q, mut k, v] = self.queries_keys_values(g, x);
        let offset = match self.norm {
            Norm::Rms { offset } => offset,
            Norm::Layer => 0.0,
        };
        let widths = match self.qk_norms {
            QkNorms::None => None,
            QkNorms::Heads => Some([head_dim; 2]),
            QkNorms::Rows => Some([heads * head_dim, kv_heads * head_dim]),
        };
        if let Some([q_width, k_width]) = widths {
            q = g.head_norm(q, "self_attn.q_norm", q_width, offset, self.eps);
            k = g.head_norm(k, "self_attn.k_norm", k_width, offset, self.eps);
        }
        if let Some(given) = &layer.rotary {
            let (rotary, theta) = (given.channels(head_dim)?, given.theta);
            let scaling = || given.scaling.clone();
            let rope = |heads| RopeOp { heads, head_dim, rotary, theta, scaling: scaling() };
            (q, k) = (g.rope(q, rope(heads)), g.rope(k, rope(kv_heads)));
        }
        let attention = AttentionOp {
            heads,
            kv_heads,
            head_dim,
            scale: self.attention_scale,
            soft_cap: self.attention_cap,
            causal: true,
            window: layer.window,
        };
        let attended = g.attention([q, k, v], attention);
        Ok(g.linear(attended, "self_attn.o_proj", self.hidden, self.o_bias))
    }

    fn queries_keys_values(&self, g: &mut GraphBuilder, x: Value) -> [Value; 3] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        if !self.fused_qkv {
            return [("q", q), ("k", kv), ("v", kv)].map(|(name, width)| {
                g.linear(x, &format!("self_attn.{name}_proj"), width, self.qkv_bias)
            });
        }
        let all = g.linear(x, "self_attn.qkv_proj", q + 2 * kv, self.qkv_bias);
        [(0, q), (q, kv), (q + kv, kv)].map(|(start, count)| g.channels(all, start, count))
    }

    fn feed_forward(&self, g: &mut GraphBuilder, x: Value) -> Value {
        let (width, bias) = (self.intermediate, self.mlp_bias);
        let (inner, down) = match self.feed_forward {
            FeedForward::Gated => {
                let gate = g.linear(x, "mlp.gate_proj", width, bias);
                let up = g.linear(x, "mlp.up_proj", width, bias);
                (g.gated(gate, up, self.activation), "mlp.down_proj")
            }
            FeedForward::FusedGated => {
                let both = g.linear(x, "mlp.gate_up_proj", 2 * width, bias);
                let gate = g.channels(both, 0, width);
                let up = g.channels(both, width, width);
                (g.gated(gate, up, self.activation), "mlp.down_proj")
            }
            FeedForward::Plain => {
                let inner = g.linear(x, "mlp.c_fc", width, bias);
                (g.activation(inner, self.activation), "mlp.c_proj")
            }
        };
        g.linear(inner, down, self.hidden, bias)
    }

    /// Every expert sees the rows of the tokens that go to it.
    fn experts(&self, g: &mut GraphBuilder, experts: &Experts, x: Value) -> Value {
        let Experts { module, names: [gate, up, down], intermediate, route } = *experts;
        let scores = g.linear(x, &format!("{module}.gate"), route.experts, false);
        let weights = g.route(scores, route);
        let mut results = vec![];
        for expert in 0..route.experts {
            let rows = g.select(x, weights, expert);
            let name = |projection: &str| format!("{module}.experts.{expert}.{projection}");
            let gate = g.linear(rows, &name(gate), intermediate, false);
            let up = g.linear(rows, &name(up), intermediate, false);
            let inner = g.gated(gate, up, self.activation);
            results.push(g.linear(inner, &name(down), self.hidden, false));
        }
        g.mix(weights, results)
    }

    fn head(&self) -> Graph {
        let mut g = GraphBuilder::new("", self.hidden);
        let normed = self.norm(&mut g, Value::INPUT, "model.norm");
        let table = if self.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let linear = LinearOp {
            module: "lm_head".to_owned(),
            weight: table.to_owned(),
            bias: None,
            in_features: self.hidden,
            out_features: self.vocab_size,
        };
        let logits = g.linear_op(normed, linear);
        let logits = g.scale(logits, self.logit_scale);
        let logits = self.logit_cap.map_or(logits, |cap| g.soft_cap(logits, cap));
        g.finish(logits)
    }
}
