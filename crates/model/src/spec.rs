//! The value that a family file makes of `config.json`: graphs of about twenty operations.

use crate::graph::Graph;
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

/// Rotary position embedding of `heads` heads, halves of a head rotated against each other.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeOp {
    /// Heads in the value.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Channels of a head that are rotated, an even number: the first.
    pub rotary: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for a longer context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided by a factor, high ones kept, a smooth blend between.
    Llama3 {
        /// Divides the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` count as low.
        low: f64,
        /// Wavelengths below `original_context / high` count as high.
        high: f64,
        /// Context the model was first trained with.
        original_context: f64,
    },
}

impl RopeOp {
    /// Inverse frequencies of the `rotary / 2` pairs, in radians a position.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let pairs = self.rotary / 2;
        let plain = |pair: usize| self.theta.powf(-2.0 * pair as f64 / self.rotary as f64);
        (0..pairs).map(|pair| self.scaling.stretch(plain(pair)) as f32).collect()
    }
}

impl RopeScaling {
    fn stretch(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, original_context } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength > original_context / low {
                    frequency / factor
                } else if wavelength < original_context / high {
                    frequency
                } else {
                    let smooth = (original_context / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
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
