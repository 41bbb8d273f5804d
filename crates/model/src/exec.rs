//! The executor: runs any graph, with taps on the inputs of linear layers.
//!
//! One interpreter, two arithmetics behind [`Backend`]: [`Fused`], kernels on plain slices, the fast
//! one; and [`Composed`], candle's differentiable primitives, its oracle and the path for gradients
//! and other devices.

mod backend;
mod composed;
mod fused;
mod rotary;
mod weights;

pub use backend::{Backend, Operand};
pub use composed::Composed;
pub use fused::Fused;
pub use rotary::RotaryTables;
pub use weights::GraphWeights;

use crate::ModelError;
use crate::graph::{Graph, Node, Value};
use crate::query::InputGroup;
use crate::spec::{Op, Spec, Table};
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

/// Tokens of a batch, row after row.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// Segment of each token, for models that tell segments apart; all 0 when absent.
    pub types: Option<&'a [u32]>,
}

impl<'a> From<&'a [u32]> for Tokens<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Self { ids, types: None }
    }
}

/// What a tap sees: the input that a group of linear layers shares.
#[derive(Debug)]
pub struct Tap<'a, V = Vec<f32>> {
    /// The layers.
    pub group: &'a InputGroup<'a>,
    /// `[tokens, in_features]`.
    pub input: &'a V,
}

/// A function called with each linear input as it is computed.
pub type OnTap<'a, V = Vec<f32>> = &'a mut dyn FnMut(&Tap<'_, V>) -> Result<(), ModelError>;

/// The same, and what it returns is what the layers of the group read instead. Other readers of the
/// value, a residual for instance, get it as it was.
pub type OnInput<'a, V = Vec<f32>> =
    &'a mut dyn FnMut(&Tap<'_, V>) -> Result<Option<V>, ModelError>;

/// Runs graphs. Holds no weights, only its arithmetic and tables of rotary positions.
#[derive(Debug)]
pub struct Executor<B: Backend = Fused> {
    backend: B,
    rotary: RotaryCache,
}

impl<B: Backend> Executor<B> {
    /// An executor with this arithmetic.
    pub fn new(backend: B) -> Self {
        Self { backend, rotary: RotaryCache::default() }
    }

    /// Its arithmetic.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Tokens (`batch.tokens()` of them) to the residual stream, `[tokens, hidden]`. Only the rows
    /// of the tables that occur are read.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or a table cannot be read.
    pub fn embed(
        &self,
        spec: &Spec,
        tensors: &dyn Tensors,
        batch: Batch,
        tokens: Tokens<'_>,
    ) -> Result<B::Value, ModelError> {
        if let Some(token) = tokens.ids.iter().find(|token| **token as usize >= spec.vocab_size) {
            return Err(ModelError::Token { token: *token, vocab_size: spec.vocab_size });
        }
        if batch.seq_len > spec.context {
            return Err(ModelError::TooLong { tokens: batch.seq_len, context: spec.context });
        }
        let weights = GraphWeights::load(&spec.embed, tensors, &self.backend)?;
        let source = TokenSource { tensors, tokens };
        let run = Run { batch, tokens: Some(&source), taps_only: false };
        self.interpret(&spec.embed, &weights, run, None, None)
    }

    /// Runs a block or head on `input`, `[tokens, channels]`; `on_tap` sees the input of each group
    /// of linear layers, in order.
    ///
    /// # Errors
    /// When the arithmetic refuses, or `on_tap` does.
    pub fn run(
        &self,
        graph: &Graph,
        weights: &GraphWeights<B>,
        batch: Batch,
        input: B::Value,
        on_tap: Option<OnTap<'_, B::Value>>,
    ) -> Result<B::Value, ModelError> {
        let run = Run { batch, tokens: None, taps_only: false };
        match on_tap {
            Some(on_tap) => {
                self.interpret(graph, weights, run, Some(input), Some(&mut see(on_tap)))
            }
            None => self.interpret(graph, weights, run, Some(input), None),
        }
    }

    /// Runs a graph, and `on_input` may put another value in place of what a group of linear layers
    /// reads.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with(
        &self,
        graph: &Graph,
        weights: &GraphWeights<B>,
        batch: Batch,
        input: B::Value,
        on_input: OnInput<'_, B::Value>,
    ) -> Result<B::Value, ModelError> {
        let run = Run { batch, tokens: None, taps_only: false };
        self.interpret(graph, weights, run, Some(input), Some(on_input))
    }

    /// Runs a graph only as far as its last group of linear layers, for the taps.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn observe(
        &self,
        graph: &Graph,
        weights: &GraphWeights<B>,
        batch: Batch,
        input: B::Value,
        on_tap: OnTap<'_, B::Value>,
    ) -> Result<(), ModelError> {
        let run = Run { batch, tokens: None, taps_only: true };
        self.interpret(graph, weights, run, Some(input), Some(&mut see(on_tap)))?;
        Ok(())
    }

    fn interpret(
        &self,
        graph: &Graph,
        weights: &GraphWeights<B>,
        run: Run<'_>,
        input: Option<B::Value>,
        mut on_input: Option<OnInput<'_, B::Value>>,
    ) -> Result<B::Value, ModelError> {
        let groups = graph.shared_inputs();
        let mut taps: BTreeMap<Value, &InputGroup<'_>> =
            groups.iter().map(|group| (group.value, group)).collect();
        let mut replaced: BTreeMap<Value, B::Value> = BTreeMap::new();
        let mut values = Values::new(graph, input);
        for (index, node) in graph.nodes.iter().enumerate() {
            if let (Some(on_input), Op::Linear(_)) = (on_input.as_deref_mut(), &node.op)
                && let Some(group) = taps.remove(&node.inputs[0])
            {
                if let Some(other) = on_input(&Tap { group, input: values.get(group.value)? })? {
                    replaced.insert(group.value, other);
                }
                if run.taps_only && taps.is_empty() {
                    return values.take(node.inputs[0]);
                }
            }
            let other = node.inputs.first().and_then(|value| replaced.get(value));
            let output = match (&node.op, other) {
                (Op::Linear(linear), Some(other)) => {
                    values.read(&node.inputs)?;
                    let linear = weights.linear(&linear.module)?;
                    self.backend.linear(Operand::Shared(other), linear)?
                }
                _ => self.apply(node, weights, run, &mut values)?,
            };
            values.put(Value::of_node(index), output);
        }
        values.take(graph.output)
    }

    fn apply(
        &self,
        node: &Node,
        weights: &GraphWeights<B>,
        run: Run<'_>,
        values: &mut Values<B::Value>,
    ) -> Result<B::Value, ModelError> {
        let (backend, batch) = (&self.backend, run.batch);
        let mut inputs = values.read(&node.inputs)?.into_iter();
        let mut next = || inputs.next().ok_or_else(not_computed);
        match &node.op {
            Op::Embedding(table) => self.look_up(run, table, |tokens| tokens.ids.to_vec()),
            Op::Positions { table, offset } => self.look_up(run, table, |_| {
                let row = *offset as u32..(*offset + batch.seq_len) as u32;
                (0..batch.rows).flat_map(|_| row.clone()).collect()
            }),
            Op::TokenType(table) => self.look_up(run, table, |tokens| match tokens.types {
                Some(types) => types.to_vec(),
                None => vec![0; tokens.ids.len()],
            }),
            Op::Linear(linear) => {
                let x = match weights.input_rounding(&linear.module) {
                    Some(rounding) => {
                        Operand::Last(backend.round(next()?, rounding, linear.in_features)?)
                    }
                    None => next()?,
                };
                backend.linear(x, weights.linear(&linear.module)?)
            }
            Op::RmsNorm { gain, width, eps, .. } => {
                backend.rms_norm(next()?, weights.vector(gain)?, *width, *eps)
            }
            Op::LayerNorm { gain, bias, eps } => {
                let bias = bias.as_deref().map(|bias| weights.vector(bias)).transpose()?;
                backend.layer_norm(next()?, weights.vector(gain)?, bias, *eps)
            }
            Op::Rope(rope) => {
                let tables = self.rotary.tables(rope, batch.seq_len);
                backend.rope(next()?, rope, batch, &tables)
            }
            Op::Attention(attention) => {
                backend.attention([next()?, next()?, next()?], attention, batch)
            }
            Op::Activation(activation) => backend.activation(next()?, *activation),
            Op::Gated(activation) => backend.gated(next()?, next()?, *activation),
            Op::Add => backend.add(next()?, next()?),
            Op::Scale(factor) => backend.scale(next()?, *factor),
            Op::SoftCap(cap) => backend.soft_cap(next()?, *cap),
            Op::Slice(slice) => backend.slice(next()?, *slice),
            Op::Route(route) => backend.route(next()?, *route),
            Op::Select { expert } => backend.select(next()?, next()?, *expert, batch),
            Op::Mix => backend.mix(next()?, inputs.collect(), batch),
        }
    }

    fn look_up(
        &self,
        run: Run<'_>,
        table: &Table,
        rows: impl Fn(Tokens<'_>) -> Vec<u32>,
    ) -> Result<B::Value, ModelError> {
        let source = run.tokens.ok_or_else(not_computed)?;
        let values = source.tensors.read_rows(&table.name, &rows(source.tokens))?;
        self.backend.value(values, table.width)
    }
}

/// A tap that changes nothing.
fn see<V>(on_tap: OnTap<'_, V>) -> impl FnMut(&Tap<'_, V>) -> Result<Option<V>, ModelError> + '_ {
    move |tap| on_tap(tap).map(|()| None)
}

/// What stays the same through one run of a graph.
#[derive(Clone, Copy)]
struct Run<'a> {
    batch: Batch,
    tokens: Option<&'a TokenSource<'a>>,
    taps_only: bool,
}

/// Tokens, and where their embeddings are.
struct TokenSource<'a> {
    tensors: &'a dyn Tensors,
    tokens: Tokens<'a>,
}

/// The values computed so far. A value is given up to its last reader: memory is what is live, not
/// the whole graph, and the last reader may work in place.
struct Values<V> {
    values: Vec<Option<V>>,
    reads_left: Vec<usize>,
}

impl<V> Values<V> {
    fn new(graph: &Graph, input: Option<V>) -> Self {
        let mut reads_left = vec![0; graph.nodes.len() + 1];
        for value in graph.nodes.iter().flat_map(|node| &node.inputs) {
            reads_left[value.index()] += 1;
        }
        reads_left[graph.output.index()] += 1;
        let mut values: Vec<Option<V>> = (0..=graph.nodes.len()).map(|_| None).collect();
        values[Value::INPUT.index()] = input;
        Self { values, reads_left }
    }

    fn put(&mut self, value: Value, content: V) {
        self.values[value.index()] = Some(content);
    }

    fn get(&self, value: Value) -> Result<&V, ModelError> {
        self.values[value.index()].as_ref().ok_or_else(not_computed)
    }

    fn take(&mut self, value: Value) -> Result<V, ModelError> {
        self.values[value.index()].take().ok_or_else(not_computed)
    }

    /// The operands of a node, owned where this is their last read.
    fn read(&mut self, inputs: &[Value]) -> Result<Vec<Operand<'_, V>>, ModelError> {
        let mut owned: Vec<Option<V>> = vec![];
        for (place, value) in inputs.iter().enumerate() {
            let left = &mut self.reads_left[value.index()];
            *left -= 1;
            // An operand that this node reads again stays until that read.
            let again = inputs[place + 1..].contains(value) || inputs[..place].contains(value);
            owned.push(if *left == 0 && !again { self.values[value.index()].take() } else { None });
        }
        let operand = |(owned, value): (Option<V>, &Value)| match owned {
            Some(content) => Ok(Operand::Last(content)),
            None => Ok(Operand::Shared(self.get(*value)?)),
        };
        owned.into_iter().zip(inputs).map(operand).collect()
    }
}

fn not_computed() -> ModelError {
    ModelError::Graph("a node reads a value that no earlier node makes".to_owned())
}
