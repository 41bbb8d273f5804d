//! What methods and the engine ask of a graph, instead of tables per family.

use crate::graph::{Graph, Value};
use crate::spec::{Activation, LinearOp, Op};

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

impl Graph {
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
            Op::RmsNorm { gain, width, .. } if *width == node.width => {
                Some(Absorber::Norm { gain, bias: None })
            }
            Op::LayerNorm { gain, bias, .. } => Some(Absorber::Norm { gain, bias: Some(bias) }),
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
