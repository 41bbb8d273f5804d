//! A graph of operations: a list of nodes in the order they run, each reading earlier values.

use crate::spec::{Activation, AttentionOp, LinearOp, Op, RopeOp, RouteOp, SliceOp, Table};

/// A value of a graph: the input, or the output of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(usize);

impl Value {
    /// The graph's input.
    pub const INPUT: Self = Self(0);

    /// The output of the node at this index.
    pub fn of_node(index: usize) -> Self {
        Self(index + 1)
    }

    /// Index of the node that makes this value; `None` for the graph's input.
    pub fn node(self) -> Option<usize> {
        self.0.checked_sub(1)
    }

    /// Position in a list with a place for the input and one for each node.
    pub fn index(self) -> usize {
        self.0
    }
}

/// An operation and the values it reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What is done.
    pub op: Op,
    /// To what.
    pub inputs: Vec<Value>,
    /// Channels of the result.
    pub width: usize,
}

impl Node {
    /// Tensors it reads, with their shapes.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        match &self.op {
            Op::Embedding(table) | Op::Positions { table, .. } | Op::TokenType(table) => {
                vec![(table.name.clone(), vec![table.rows, table.width])]
            }
            Op::Linear(linear) => {
                let shape = vec![linear.out_features, linear.in_features];
                let bias = linear.bias.iter().map(|bias| (bias.clone(), vec![linear.out_features]));
                std::iter::once((linear.weight.clone(), shape)).chain(bias).collect()
            }
            Op::RmsNorm { gain, width, .. } => vec![(gain.clone(), vec![*width])],
            Op::LayerNorm { gain, bias, .. } => {
                let vector = |name: &String| (name.clone(), vec![self.width]);
                std::iter::once(gain).chain(bias).map(vector).collect()
            }
            Op::Rope(_)
            | Op::Attention(_)
            | Op::Activation(_)
            | Op::Gated(_)
            | Op::Add
            | Op::Scale(_)
            | Op::SoftCap(_)
            | Op::Slice(_)
            | Op::Route(_)
            | Op::Select { .. }
            | Op::Mix => vec![],
        }
    }
}

/// Operations in the order they run.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// Prefix of the tensor names, for instance `model.layers.3`.
    pub name: String,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// What the graph returns.
    pub output: Value,
}

impl Graph {
    /// The linear layers, in the order they run.
    pub fn linears(&self) -> impl Iterator<Item = &LinearOp> {
        self.nodes.iter().filter_map(|node| match &node.op {
            Op::Linear(linear) => Some(linear),
            _ => None,
        })
    }

    /// The operation that makes a value.
    pub fn producer(&self, value: Value) -> Option<&Node> {
        value.node().map(|index| &self.nodes[index])
    }

    /// The nodes that read a value.
    pub fn consumers(&self, value: Value) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.inputs.contains(&value))
    }

    /// Tensors the graph reads, with their shapes.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.nodes.iter().flat_map(Node::tensors).collect()
    }
}

/// Builds a graph node by node; names of tensors are relative to the graph's name.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: Graph,
    input_width: usize,
}

impl GraphBuilder {
    /// A graph whose input has `input_width` channels.
    pub fn new(name: impl Into<String>, input_width: usize) -> Self {
        let graph = Graph { name: name.into(), nodes: vec![], output: Value::INPUT };
        Self { graph, input_width }
    }

    /// The value made last; the input where none was.
    pub fn last(&self) -> Value {
        Value(self.graph.nodes.len())
    }

    /// The graph, returning `output`.
    pub fn finish(mut self, output: Value) -> Graph {
        self.graph.output = output;
        self.graph
    }

    /// A linear layer whose tensors are `{name}.weight` and, with `bias`, `{name}.bias`.
    pub fn linear(&mut self, input: Value, name: &str, out_features: usize, bias: bool) -> Value {
        let module = self.full(name);
        self.linear_named(input, &module, out_features, bias)
    }

    /// The same, the name being whole.
    pub fn linear_named(
        &mut self,
        input: Value,
        module: &str,
        out_features: usize,
        bias: bool,
    ) -> Value {
        let linear = LinearOp {
            weight: format!("{module}.weight"),
            bias: bias.then(|| format!("{module}.bias")),
            module: module.to_owned(),
            in_features: self.width(input),
            out_features,
        };
        self.linear_op(input, linear)
    }

    /// A linear layer with tensors of any names.
    pub fn linear_op(&mut self, input: Value, linear: LinearOp) -> Value {
        let width = linear.out_features;
        self.push(Op::Linear(linear), vec![input], width)
    }

    /// Root-mean-square norm of the whole row.
    pub fn rms_norm(&mut self, input: Value, name: &str, eps: f64) -> Value {
        let width = self.width(input);
        self.head_norm(input, name, width, 0.0, eps)
    }

    /// Root-mean-square norm of each run of `width` channels, with one gain for all runs, to which
    /// `offset` is added.
    pub fn head_norm(
        &mut self,
        input: Value,
        name: &str,
        width: usize,
        offset: f32,
        eps: f64,
    ) -> Value {
        let gain = format!("{}.weight", self.full(name));
        let channels = self.width(input);
        self.push(Op::RmsNorm { gain, offset, width, eps: eps as f32 }, vec![input], channels)
    }

    /// Layer norm with a gain and a bias.
    pub fn layer_norm(&mut self, input: Value, name: &str, eps: f64) -> Value {
        let module = self.full(name);
        let (gain, bias) = (format!("{module}.weight"), Some(format!("{module}.bias")));
        let width = self.width(input);
        self.push(Op::LayerNorm { gain, bias, eps: eps as f32 }, vec![input], width)
    }

    /// Rotary position embedding.
    pub fn rope(&mut self, input: Value, rope: RopeOp) -> Value {
        let width = self.width(input);
        self.push(Op::Rope(rope), vec![input], width)
    }

    /// Attention of queries, keys and values.
    pub fn attention(&mut self, [q, k, v]: [Value; 3], attention: AttentionOp) -> Value {
        let width = attention.heads * attention.head_dim;
        self.push(Op::Attention(attention), vec![q, k, v], width)
    }

    /// An element-wise function.
    pub fn activation(&mut self, input: Value, activation: Activation) -> Value {
        let width = self.width(input);
        self.push(Op::Activation(activation), vec![input], width)
    }

    /// `activation(gate) · up`.
    pub fn gated(&mut self, gate: Value, up: Value, activation: Activation) -> Value {
        let width = self.width(up);
        self.push(Op::Gated(activation), vec![gate, up], width)
    }

    /// Sum of two values.
    pub fn add(&mut self, left: Value, right: Value) -> Value {
        let width = self.width(left);
        self.push(Op::Add, vec![left, right], width)
    }

    /// The value times a number; the value itself where that is one.
    pub fn scale(&mut self, input: Value, factor: f32) -> Value {
        if factor == 1.0 {
            return input;
        }
        let width = self.width(input);
        self.push(Op::Scale(factor), vec![input], width)
    }

    /// `cap · tanh(x / cap)`.
    pub fn soft_cap(&mut self, input: Value, cap: f32) -> Value {
        let width = self.width(input);
        self.push(Op::SoftCap(cap), vec![input], width)
    }

    /// Some channels of a value, of which `slice.stride` divides the width.
    pub fn slice(&mut self, input: Value, slice: SliceOp) -> Value {
        let width = self.width(input) / slice.stride * slice.run;
        self.push(Op::Slice(slice), vec![input], width)
    }

    /// Consecutive channels of a value.
    pub fn channels(&mut self, input: Value, start: usize, count: usize) -> Value {
        let stride = self.width(input);
        self.slice(input, SliceOp { start, run: count, stride })
    }

    /// Weights of experts from their scores.
    pub fn route(&mut self, scores: Value, route: RouteOp) -> Value {
        self.push(Op::Route(route), vec![scores], route.experts)
    }

    /// The rows that go to an expert.
    pub fn select(&mut self, input: Value, weights: Value, expert: usize) -> Value {
        let width = self.width(input);
        self.push(Op::Select { expert }, vec![input, weights], width)
    }

    /// The sum of the experts' results, `results` one an expert.
    pub fn mix(&mut self, weights: Value, results: Vec<Value>) -> Value {
        let width = results.first().map_or(0, |result| self.width(*result));
        let inputs = std::iter::once(weights).chain(results).collect();
        self.push(Op::Mix, inputs, width)
    }

    /// Token embedding.
    pub fn embedding(&mut self, name: &str, rows: usize, width: usize) -> Value {
        let table = self.table(name, rows, width);
        self.push(Op::Embedding(table), vec![], width)
    }

    /// Learned position embedding.
    pub fn positions(&mut self, name: &str, rows: usize, width: usize, offset: usize) -> Value {
        let table = self.table(name, rows, width);
        self.push(Op::Positions { table, offset }, vec![], width)
    }

    /// Embedding of token type 0.
    pub fn token_type(&mut self, name: &str, rows: usize, width: usize) -> Value {
        let table = self.table(name, rows, width);
        self.push(Op::TokenType(table), vec![], width)
    }

    fn table(&self, name: &str, rows: usize, width: usize) -> Table {
        Table { name: format!("{}.weight", self.full(name)), rows, width }
    }

    fn full(&self, name: &str) -> String {
        if self.graph.name.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.graph.name)
        }
    }

    fn width(&self, value: Value) -> usize {
        self.graph.producer(value).map_or(self.input_width, |node| node.width)
    }

    fn push(&mut self, op: Op, inputs: Vec<Value>, width: usize) -> Value {
        self.graph.nodes.push(Node { op, inputs, width });
        Value::of_node(self.graph.nodes.len() - 1)
    }
}
