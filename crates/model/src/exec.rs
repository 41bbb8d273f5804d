//! The executor: runs any graph in floating point, with taps on the inputs of linear layers.
//!
//! Values are candle tensors `[tokens, channels]`. Each operation has two forms (see `ops`): fused
//! kernels on plain slices, and a composition of candle's differentiable primitives, which is
//! their oracle and the path for gradients and other devices.

mod ops;
mod rotary;
mod weights;

pub use weights::GraphWeights;

use crate::graph::{Graph, Node, Value};
use crate::query::InputGroup;
use crate::spec::{Op, Spec, Table};
use crate::{ModelError, Precision};
use candle_core::{Device, Tensor};
use lapidary_weight::Tensors;
use rotary::RotaryCache;
use std::collections::BTreeMap;

/// Rows of tokens of one length, laid one after another; each starts at position 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// Tokens of each row.
    pub seq_len: usize,
}

impl Batch {
    /// Tokens of all rows.
    pub fn tokens(self) -> usize {
        self.rows * self.seq_len
    }
}

/// What a tap sees: the input that a group of linear layers shares.
#[derive(Debug)]
pub struct Tap<'a> {
    /// The layers.
    pub group: &'a InputGroup<'a>,
    /// Row-major `[tokens, in_features]`.
    pub input: &'a [f32],
}

/// A function called with each linear input as it is computed.
pub type OnTap<'a> = &'a mut dyn FnMut(&Tap<'_>) -> Result<(), ModelError>;

/// Runs graphs. Holds no weights, only the precision and tables of rotary positions.
#[derive(Debug)]
pub struct Executor {
    precision: Precision,
    rotary: RotaryCache,
}

impl Executor {
    /// An executor whose matrix products round their factors to `precision`.
    pub fn new(precision: Precision) -> Self {
        Self { precision, rotary: RotaryCache::default() }
    }

    /// The precision of its matrix products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Tokens (`batch.tokens()` of them) to the residual stream, `[tokens, hidden]`. Only the rows
    /// of the tables that occur are read.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or a table cannot be read.
    pub fn embed(
        &self,
        spec: &Spec,
        tensors: &dyn Tensors,
        batch: Batch,
        tokens: &[u32],
    ) -> Result<Vec<f32>, ModelError> {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= spec.vocab_size) {
            return Err(ModelError::Token { token: *token, vocab_size: spec.vocab_size });
        }
        let weights = GraphWeights::load(&spec.embed, tensors, self.precision)?;
        let source = TokenSource { tensors, tokens };
        let output = self.run_graph(&spec.embed, &weights, batch, None, Some(&source), None)?;
        ops::into_vec(&output)
    }

    /// Runs a block or head on `input`, `[tokens, channels]` row-major; `on_tap` sees the input of
    /// each group of linear layers, in order.
    ///
    /// # Errors
    /// When the tensor library refuses, or `on_tap` does.
    pub fn run(
        &self,
        graph: &Graph,
        weights: &GraphWeights,
        batch: Batch,
        input: Vec<f32>,
        on_tap: Option<OnTap<'_>>,
    ) -> Result<Vec<f32>, ModelError> {
        let channels = input.len() / batch.tokens().max(1);
        let input = Tensor::from_vec(input, (batch.tokens(), channels), &Device::Cpu)?;
        ops::into_vec(&self.run_graph(graph, weights, batch, Some(input), None, on_tap)?)
    }

    fn run_graph(
        &self,
        graph: &Graph,
        weights: &GraphWeights,
        batch: Batch,
        input: Option<Tensor>,
        tokens: Option<&TokenSource<'_>>,
        mut on_tap: Option<OnTap<'_>>,
    ) -> Result<Tensor, ModelError> {
        let groups = graph.shared_inputs();
        let mut taps: BTreeMap<Value, &InputGroup<'_>> =
            groups.iter().map(|group| (group.value, group)).collect();
        let mut remaining_reads = reads(graph);
        let mut values: Vec<Option<Tensor>> = vec![None; graph.nodes.len() + 1];
        values[0] = input;
        for (index, node) in graph.nodes.iter().enumerate() {
            if let (Some(on_tap), Op::Linear(_)) = (on_tap.as_deref_mut(), &node.op)
                && let Some(group) = taps.remove(&node.inputs[0])
            {
                let input = operand(&values, node.inputs[0])?;
                ops::with_slice(input, |input| on_tap(&Tap { group, input }))??;
            }
            let output = self.apply(node, weights, batch, &values, tokens)?;
            values[Value::of_node(index).index()] = Some(output);
            // A value is dropped after its last reader: memory is what is live, not the whole graph.
            for read in &node.inputs {
                remaining_reads[read.index()] -= 1;
                if remaining_reads[read.index()] == 0 {
                    values[read.index()] = None;
                }
            }
        }
        Ok(operand(&values, graph.output)?.clone())
    }

    fn apply(
        &self,
        node: &Node,
        weights: &GraphWeights,
        batch: Batch,
        values: &[Option<Tensor>],
        tokens: Option<&TokenSource<'_>>,
    ) -> Result<Tensor, ModelError> {
        let input = |place: usize| operand(values, node.inputs[place]);
        match &node.op {
            Op::Embedding(table) => look_up(tokens, table, |source| source.tokens.to_vec()),
            Op::Positions { table, offset } => look_up(tokens, table, |_| {
                let row = *offset as u32..(*offset + batch.seq_len) as u32;
                (0..batch.rows).flat_map(|_| row.clone()).collect()
            }),
            Op::TokenType(table) => look_up(tokens, table, |source| vec![0; source.tokens.len()]),
            Op::Linear(linear) => ops::linear(input(0)?, weights.linear(&linear.module)?),
            Op::RmsNorm { gain, width, eps } => {
                ops::rms_norm(input(0)?, weights.vector(gain)?, *width, *eps)
            }
            Op::LayerNorm { gain, bias, eps } => {
                ops::layer_norm(input(0)?, weights.vector(gain)?, weights.vector(bias)?, *eps)
            }
            Op::Rope(rope) => {
                ops::rope(input(0)?, rope, batch, &self.rotary.tables(rope, batch.seq_len))
            }
            Op::Attention(attention) => {
                let qkv = [input(0)?, input(1)?, input(2)?];
                ops::attention(qkv, attention, batch, self.precision)
            }
            Op::Activation(activation) => ops::activation(input(0)?, *activation),
            Op::Gated(activation) => ops::gated(input(0)?, input(1)?, *activation),
            Op::Add => Ok((input(0)? + input(1)?)?),
        }
    }
}

/// Tokens, and where their embeddings are.
struct TokenSource<'a> {
    tensors: &'a dyn Tensors,
    tokens: &'a [u32],
}

fn look_up(
    source: Option<&TokenSource<'_>>,
    table: &Table,
    rows: impl Fn(&TokenSource<'_>) -> Vec<u32>,
) -> Result<Tensor, ModelError> {
    let missing = || ModelError::MissingTensor { name: table.name.clone() };
    let source = source.ok_or_else(missing)?;
    let rows = rows(source);
    let values = source.tensors.read_rows(&table.name, &rows)?;
    Ok(Tensor::from_vec(values, (rows.len(), table.width), &Device::Cpu)?)
}

fn operand(values: &[Option<Tensor>], value: Value) -> Result<&Tensor, ModelError> {
    let missing = || candle_core::Error::Msg(format!("value {} was not computed", value.index()));
    Ok(values[value.index()].as_ref().ok_or_else(missing)?)
}

/// How often each value is read, the graph's output once more.
fn reads(graph: &Graph) -> Vec<usize> {
    let mut reads = vec![0; graph.nodes.len() + 1];
    for value in graph.nodes.iter().flat_map(|node| &node.inputs) {
        reads[value.index()] += 1;
    }
    reads[graph.output.index()] += 1;
    reads
}
