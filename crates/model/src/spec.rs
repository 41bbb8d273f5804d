//! The value that a family file makes of `config.json`: graphs of about twenty operations.

use crate::graph::Graph;
pub use crate::rope::{RopeOp, RopeScaling};
pub use lapidary_kernels::activation::Activation;

/// A whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Id of the family, for instance `llama`.
    pub family: &'static str,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest sequence the model was made for.
    pub context: usize,
    /// Tokens to the residual stream.
    pub embed: Graph,
    /// The layers, each from residual stream to residual stream.
    pub blocks: Vec<Graph>,
    /// Residual stream to logits; `None` for an encoder without a language-model head.
    pub head: Option<Graph>,
    /// Whether logits predict the next token (and not the token in place).
    pub causal: bool,
    /// Whether the head multiplies by the embedding table.
    pub tied: bool,
}

/// An operation; its inputs are values of the graph.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Tokens to rows of a table. No input value: it reads the batch's tokens.
    Embedding(Table),
    /// Row `offset + position` of a table. No input value.
    Positions {
        /// The table.
        table: Table,
        /// Row of position 0.
        offset: usize,
    },
    /// The row of each token's segment in a table. No input value.
    TokenType(Table),
    /// `y = x Wᵀ + b`.
    Linear(LinearOp),
    /// `x / rms(x) · (gain + offset)` over runs of `width` channels.
    RmsNorm {
        /// Tensor with `width` gains.
        gain: String,
        /// Added to the gains: 1 where the checkpoint has what they differ from one by.
        offset: f32,
        /// Channels normalised together: the whole row, or a head.
        width: usize,
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x − mean) / std · gain + bias` over a row.
    LayerNorm {
        /// Tensor of gains.
        gain: String,
        /// Tensor of biases, where there are any.
        bias: Option<String>,
        /// Added to the variance.
        eps: f32,
    },
    /// Rotary position embedding.
    Rope(RopeOp),
    /// Softmax attention of inputs q, k, v.
    Attention(AttentionOp),
    /// An element-wise function.
    Activation(Activation),
    /// `activation(first) · second`.
    Gated(Activation),
    /// Sum of two values.
    Add,
    /// The value times a number.
    Scale(f32),
    /// `cap · tanh(x / cap)`.
    SoftCap(f32),
    /// Some channels of a value: how a layer that makes several things at once is taken apart.
    Slice(SliceOp),
    /// Scores of experts to the weights of those that a token goes to; 0 for the others.
    Route(RouteOp),
    /// The rows of the first value whose tokens go to an expert, by the second, the weights that
    /// [`Route`](Self::Route) made. Every other row is left out.
    Select {
        /// The expert.
        expert: usize,
    },
    /// The sum of the experts' results, each times its weight: the first value has the weights, the
    /// others are the results for the rows that were selected, expert by expert.
    Mix,
}

/// Of every `stride` channels, the `run` channels from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceOp {
    /// The first of them.
    pub start: usize,
    /// How many.
    pub run: usize,
    /// Channels from one run to the next.
    pub stride: usize,
}

/// The choice of experts: a softmax of all scores, of which the `top_k` largest are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteOp {
    /// Experts there are.
    pub experts: usize,
    /// Experts that a token goes to.
    pub top_k: usize,
    /// Whether the weights that are kept are made to add up to one.
    pub normalized: bool,
}

/// A lookup table `[rows, width]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The tensor.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
}

/// A linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearOp {
    /// Name of the module, what patterns of a recipe match.
    pub module: String,
    /// Tensor of the weight, `[out_features, in_features]`.
    pub weight: String,
    /// Tensor of the bias.
    pub bias: Option<String>,
    /// Input features.
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
}

/// Multi-head attention; `heads / kv_heads` query heads share a key head.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionOp {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// What the scaled scores are capped by, as by [`Op::SoftCap`].
    pub soft_cap: Option<f32>,
    /// Whether a position sees only itself and those before it.
    pub causal: bool,
    /// A position sees at most this many positions back, itself included.
    pub window: Option<usize>,
}

impl Spec {
    /// Every linear layer, in order: the blocks' and the head's.
    pub fn linears(&self) -> impl Iterator<Item = &LinearOp> {
        self.blocks.iter().chain(&self.head).flat_map(Graph::linears)
    }

    /// Names of all tensors that the graphs read, with the shapes they must have.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let graphs = std::iter::once(&self.embed).chain(&self.blocks).chain(&self.head);
        let mut tensors: Vec<_> = graphs.flat_map(Graph::tensors).collect();
        let mut seen = std::collections::BTreeSet::new();
        tensors.retain(|(name, _)| seen.insert(name.clone()));
        tensors
    }
}
