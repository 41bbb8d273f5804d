//! What methods and the engine ask of a model and its graphs, instead of tables per family.

use crate::graph::{Graph, Value};
use crate::spec::{Activation, LinearOp, Op, Spec, Table};
use std::collections::BTreeSet;

/// Linear layers that read the same value, and so share its statistics.
#[derive(Debug, Clone, PartialEq)]
pub struct InputGroup<'a> {
    /// The value they read.
    pub value: Value,
    /// The layers, in the order they run.
    pub linears: Vec<&'a LinearOp>,
}

/// What can be rescaled per channel to undo a per-channel scale on the input of some linears,
/// leaving the function of the graph as it was.
#[derive(Debug, Clone, PartialEq)]
pub enum Absorber<'a> {
    /// Divide the gain (and the bias) of a norm.
    Norm {
        /// Tensor of gains.
        gain: &'a str,
        /// Added to the gains before they multiply: what is divided is the sum.
        offset: f32,
        /// Tensor of biases of a layer norm.
        bias: Option<&'a str>,
    },
    /// Divide the rows (and the bias) of the linear layer that makes the channels.
    Rows {
        /// The layer.
        linear: &'a LinearOp,
        /// Consumers' channels a row of the layer feeds: above one when key heads are shared, where
        /// row `h · head_dim + i` feeds channel `(h · repeat + r) · head_dim + i` for each `r`.
        repeat: usize,
        /// Width of a head, which the repetition runs over.
        head_dim: usize,
    },
}

/// Where a weight matrix stands in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A table before the blocks, whose rows are looked up by token, position or segment.
    Embedding,
    /// A linear layer of the block of this index.
    Block(usize),
    /// A linear layer after the blocks.
    Head,
}

/// A weight matrix of a model: one, however many operations read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Its names and shape; a table of `rows` rows counts as a layer of `rows` outputs.
    pub linear: LinearOp,
    /// Where it stands.
    pub place: Place,
    /// The module of the head that multiplies by this table.
    pub tied: Option<String>,
    /// Whether it scores the experts that a token may go to.
    pub is_router: bool,
    /// Whether it is a table of positions or segments.
    pub is_positional: bool,
}

impl Spec {
    /// Every weight matrix: the tables, the linear layers of the blocks, those of the head. A table
    /// that the head multiplies by stands among the tables, one that several blocks share in the
    /// first of them.
    pub fn matrices(&self) -> Vec<Matrix> {
        let in_head: Vec<&LinearOp> = self.head.iter().flat_map(Graph::linears).collect();
        let tables = self.embed.nodes.iter().filter_map(|node| match &node.op {
            Op::Embedding(table) | Op::Positions { table, .. } | Op::TokenType(table) => {
                let tied = in_head.iter().find(|linear| linear.weight == table.name);
                let tied = tied.map(|linear| linear.module.clone());
                let (linear, place) = (as_linear(table), Place::Embedding);
                let is_positional = !matches!(node.op, Op::Embedding(_));
                Some(Matrix { linear, place, tied, is_router: false, is_positional })
            }
            _ => None,
        });
        let mut matrices: Vec<Matrix> = tables.collect();
        let plain = |linear: &LinearOp, place, is_router| Matrix {
            linear: linear.clone(),
            place,
            tied: None,
            is_router,
            is_positional: false,
        };
        let mut seen = BTreeSet::new();
        for (index, block) in self.blocks.iter().enumerate() {
            let first: Vec<&LinearOp> =
                block.linears().filter(|linear| seen.insert(linear.weight.as_str())).collect();
            let routers = block.routers();
            let matrix = |linear| plain(linear, Place::Block(index), routers.contains(&linear));
            matrices.extend(first.into_iter().map(matrix));
        }
        let is_table =
            |linear: &LinearOp| matrices.iter().any(|m| m.linear.weight == linear.weight);
        let untied: Vec<&LinearOp> = in_head.into_iter().filter(|l| !is_table(l)).collect();
        matrices.extend(untied.into_iter().map(|linear| plain(linear, Place::Head, false)));
        matrices
    }

    /// Whether blocks share weights, so that what is done in one is done in others.
    pub fn shares_blocks(&self) -> bool {
        let mut seen = BTreeSet::new();
        let mut linears = self.blocks.iter().flat_map(Graph::linears);
        linears.any(|linear| !seen.insert(linear.weight.as_str()))
    }
}

/// A table under the names that a linear layer with the same weight would have.
fn as_linear(table: &Table) -> LinearOp {
    let module = table.name.strip_suffix(".weight").unwrap_or(&table.name).to_owned();
    LinearOp {
        module,
        weight: table.name.clone(),
        bias: None,
        in_features: table.width,
        out_features: table.rows,
    }
}

impl Graph {
    /// The linear layers whose results choose experts.
    pub fn routers(&self) -> Vec<&LinearOp> {
        let scores = self.nodes.iter().filter_map(|node| match &node.op {
            Op::Route(_) => self.producer(node.inputs[0]),
            _ => None,
        });
        let linears = scores.filter_map(|node| match &node.op {
            Op::Linear(linear) => Some(linear),
            _ => None,
        });
        linears.collect()
    }

    /// Whether a value has rows for those tokens only that go to an expert.
    pub fn is_routed(&self, value: Value) -> bool {
        let mut routed = vec![false; self.nodes.len() + 1];
        for (index, node) in self.nodes.iter().enumerate() {
            routed[Value::of_node(index).index()] = match node.op {
                Op::Select { .. } => true,
                Op::Mix => false,
                _ => node.inputs.iter().any(|input| routed[input.index()]),
            };
        }
        routed[value.index()]
    }

    /// Groups of linear layers with a common input, in the order they run.
    pub fn shared_inputs(&self) -> Vec<InputGroup<'_>> {
        let mut groups: Vec<InputGroup<'_>> = vec![];
        for node in &self.nodes {
            if let Op::Linear(linear) = &node.op {
                let value = node.inputs[0];
                match groups.iter_mut().find(|group| group.value == value) {
                    Some(group) => group.linears.push(linear),
                    None => groups.push(InputGroup { value, linears: vec![linear] }),
                }
            }
        }
        groups
    }

    /// What can absorb a per-channel scale of `value`; `None` when something besides linear layers
    /// reads it, or when no linear map makes it.
    pub fn absorber(&self, value: Value) -> Option<Absorber<'_>> {
        let only_linears = self.consumers(value).all(|node| matches!(node.op, Op::Linear(_)));
        if !only_linears || value == self.output {
            return None;
        }
        let node = self.producer(value)?;
        match &node.op {
            Op::RmsNorm { gain, offset, width, .. } if *width == node.width => {
                Some(Absorber::Norm { gain, offset: *offset, bias: None })
            }
            Op::LayerNorm { gain, bias, .. } => {
                Some(Absorber::Norm { gain, offset: 0.0, bias: bias.as_deref() })
            }
            // ReLU commutes with positive scales; no other activation does.
            Op::Activation(Activation::Relu) => self.rows(node.inputs[0], 1, node.width),
            Op::Gated(_) => self.rows(node.inputs[1], 1, node.width),
            Op::Attention(attention) => {
                let repeat = attention.heads / attention.kv_heads;
                self.rows(node.inputs[2], repeat, attention.head_dim)
            }
            Op::Linear(linear) => Some(Absorber::Rows { linear, repeat: 1, head_dim: node.width }),
            _ => None,
        }
    }

    /// The linear layer that makes `value`, when one node reads it, once.
    fn rows(&self, value: Value, repeat: usize, head_dim: usize) -> Option<Absorber<'_>> {
        // Read once, by one node: a node that reads it twice uses it in another place too.
        let reads = self.nodes.iter().flat_map(|node| &node.inputs).filter(|v| **v == value);
        let alone = reads.count() == 1 && value != self.output;
        match &self.producer(value)?.op {
            Op::Linear(linear) if alone => Some(Absorber::Rows { linear, repeat, head_dim }),
            _ => None,
        }
    }
}
