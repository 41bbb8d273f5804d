//! Graphs compiled to stages over a few buffers.
//!
//! A stage is either row operations, which take the rows of tokens one by one; or products, all that
//! read one input; or an attention; or a mixture of experts. Values get the buffers of values that are
//! no longer read, and work in place where they are read last.

mod experts;

pub(crate) use experts::Mixture;

use crate::RuntimeError;
use crate::load::Names;
use lapidary_model::{Activation, AttentionOp, Graph, LinearOp, Node, Op, SliceOp, Value};

/// Most products of a stage.
pub(crate) const MOST_PRODUCTS: usize = 4;

/// Stages in their order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) stages: Vec<Stage>,
    /// Width of each buffer.
    pub(crate) widths: Vec<usize>,
    /// The attentions there are, in order: each has a cache.
    pub(crate) attentions: Vec<AttentionOp>,
    /// Widths of the buffers that experts work in, each once.
    pub(crate) layouts: Vec<Vec<usize>>,
    /// Buffer of what the last graph returns.
    pub(crate) output: usize,
}

#[derive(Debug)]
pub(crate) enum Stage {
    Rows(Vec<RowOp>),
    Products(Products),
    Attention { q: usize, k: usize, v: usize, to: usize, index: usize },
    Mixture(Mixture),
}

/// What is done to the row of a token. Numbers are buffers, and places in the lists of [`Names`].
#[derive(Debug)]
pub(crate) enum RowOp {
    LookUp { table: usize, row: TableRow, to: usize },
    Copy { from: usize, to: usize },
    Bias { to: usize, bias: usize },
    RmsNorm { from: usize, to: usize, gain: usize, eps: f32 },
    LayerNorm { from: usize, to: usize, gain: usize, bias: Option<usize>, eps: f32 },
    Rope { to: usize, table: usize, head_dim: usize },
    Activation { to: usize, activation: Activation },
    Gated { gate: usize, up: usize, activation: Activation },
    Add { to: usize, other: usize },
    Scale { to: usize, factor: f32 },
    SoftCap { to: usize, cap: f32 },
    Slice { from: usize, to: usize, slice: SliceOp },
    Route { to: usize, most: usize, normalized: bool },
}

/// Which row of a table a token gets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TableRow {
    Token,
    Position { offset: usize },
    First,
}

/// Products of one input with several matrices.
#[derive(Debug)]
pub(crate) struct Products {
    pub(crate) input: usize,
    pub(crate) width: usize,
    /// Matrix and buffer of each.
    pub(crate) products: Vec<(usize, usize)>,
    /// The buffers alone.
    pub(crate) targets: Vec<usize>,
    /// Product and strips of each unit of work; filled when the matrices are there.
    pub(crate) units: Vec<(usize, std::ops::Range<usize>)>,
}

impl Plan {
    /// Compiles graphs that each read what the one before returns. The input of the first, where it
    /// reads one, is buffer 0.
    ///
    /// # Errors
    /// When there is an operation that the runtime does not have.
    pub(crate) fn new<'a>(
        graphs: impl Iterator<Item = &'a Graph>,
        input: Option<usize>,
        names: &mut Names,
    ) -> Result<Self, RuntimeError> {
        let mut compiler = Compiler { plan: Self::default(), free: vec![], names };
        let mut value = input.map(|width| compiler.buffer(width));
        for graph in graphs {
            value = Some(compiler.graph(graph, value)?);
        }
        compiler.plan.output = value.unwrap_or_default();
        Ok(compiler.plan)
    }
}

struct Compiler<'a> {
    plan: Plan,
    /// Buffers that no value is in.
    free: Vec<usize>,
    names: &'a mut Names,
}

/// Where the values of a graph are, and how often each is still read.
struct Values {
    places: Vec<Option<usize>>,
    reads: Vec<usize>,
}

impl Compiler<'_> {
    fn graph(&mut self, graph: &Graph, input: Option<usize>) -> Result<usize, RuntimeError> {
        let mut values = Values::new(graph, input);
        // What experts do is compiled with the sum of their results.
        let mut done = experts::inside(graph);
        for index in 0..graph.nodes.len() {
            if !done[index] {
                self.node(graph, index, &mut values, &mut done)?;
            }
        }
        Ok(values.place(graph.output))
    }

    fn node(
        &mut self,
        graph: &Graph,
        index: usize,
        values: &mut Values,
        done: &mut [bool],
    ) -> Result<(), RuntimeError> {
        let node = &graph.nodes[index];
        let to = match &node.op {
            Op::Embedding(table) => {
                let table = self.names.table(table);
                self.look_up(table, TableRow::Token, node.width)
            }
            Op::Positions { table, offset } => {
                let table = self.names.table(table);
                self.look_up(table, TableRow::Position { offset: *offset }, node.width)
            }
            Op::TokenType(table) => {
                let table = self.names.table(table);
                self.look_up(table, TableRow::First, node.width)
            }
            Op::Linear(_) => {
                self.linears(graph, node.inputs[0], values, done);
                return Ok(());
            }
            Op::RmsNorm { gain, offset, width, eps } => {
                let gain = self.names.gain(gain, *width, *offset);
                let (from, to) = self.source_and_target(node, values);
                self.push(RowOp::RmsNorm { from, to, gain, eps: *eps });
                to
            }
            Op::LayerNorm { gain, bias, eps } => {
                let gain = self.names.vector(gain, node.width);
                let bias = bias.as_ref().map(|bias| self.names.vector(bias, node.width));
                let (from, to) = (values.place(node.inputs[0]), self.buffer(node.width));
                self.push(RowOp::LayerNorm { from, to, gain, bias, eps: *eps });
                self.read(node.inputs[0], values, None);
                to
            }
            Op::Rope(rope) => {
                let table = self.names.rope(rope);
                let to = self.owned(node.inputs[0], node.width, values);
                self.push(RowOp::Rope { to, table, head_dim: rope.head_dim });
                to
            }
            Op::Attention(attention) => self.attention(node, attention, values),
            Op::Activation(activation) => {
                let to = self.owned(node.inputs[0], node.width, values);
                self.push(RowOp::Activation { to, activation: *activation });
                to
            }
            Op::Gated(activation) => {
                let (up, activation) = (values.place(node.inputs[1]), *activation);
                let gate = self.owned(node.inputs[0], node.width, values);
                self.push(RowOp::Gated { gate, up, activation });
                self.read(node.inputs[1], values, Some(gate));
                gate
            }
            Op::Add => self.add(node, values),
            Op::Scale(factor) => {
                let to = self.owned(node.inputs[0], node.width, values);
                self.push(RowOp::Scale { to, factor: *factor });
                to
            }
            Op::SoftCap(cap) => {
                let to = self.owned(node.inputs[0], node.width, values);
                self.push(RowOp::SoftCap { to, cap: *cap });
                to
            }
            Op::Slice(slice) => {
                let (from, to) = (values.place(node.inputs[0]), self.buffer(node.width));
                self.push(RowOp::Slice { from, to, slice: *slice });
                self.read(node.inputs[0], values, None);
                to
            }
            Op::Route(route) => self.route(node, *route, values),
            Op::Select { .. } => return Err(experts::unknown("their results are not added up")),
            Op::Mix => self.mixture(graph, node, values)?,
        };
        values.places[Value::of_node(index).index()] = Some(to);
        Ok(())
    }

    fn look_up(&mut self, table: usize, row: TableRow, width: usize) -> usize {
        let to = self.buffer(width);
        self.push(RowOp::LookUp { table, row, to });
        to
    }

    /// All linear layers that read a value, as one stage.
    fn linears(&mut self, graph: &Graph, input: Value, values: &mut Values, done: &mut [bool]) {
        let readers = graph.nodes.iter().enumerate().filter_map(|(index, node)| match &node.op {
            Op::Linear(linear) if node.inputs[0] == input => Some((index, linear)),
            _ => None,
        });
        let readers: Vec<(usize, &LinearOp)> = readers.collect();
        let from = values.place(input);
        for readers in readers.chunks(MOST_PRODUCTS) {
            let width = readers[0].1.in_features;
            let (mut products, mut biases) = (vec![], vec![]);
            for (index, linear) in readers {
                let to = self.buffer(linear.out_features);
                products.push((self.names.matrix(linear), to));
                if let Some(bias) = &linear.bias {
                    let bias = self.names.vector(bias, linear.out_features);
                    biases.push(RowOp::Bias { to, bias });
                }
                values.places[Value::of_node(*index).index()] = Some(to);
                done[*index] = true;
            }
            let targets = products.iter().map(|(_, to)| *to).collect();
            let products = Products { input: from, width, products, targets, units: vec![] };
            self.plan.stages.push(Stage::Products(products));
            biases.into_iter().for_each(|bias| self.push(bias));
        }
        readers.iter().for_each(|_| self.read(input, values, None));
    }

    fn attention(&mut self, node: &Node, attention: &AttentionOp, values: &mut Values) -> usize {
        let [q, k, v] = [0, 1, 2].map(|input| values.place(node.inputs[input]));
        let to = self.buffer(node.width);
        let index = self.plan.attentions.len();
        self.plan.attentions.push(attention.clone());
        self.plan.stages.push(Stage::Attention { q, k, v, to, index });
        node.inputs.iter().for_each(|input| self.read(*input, values, None));
        to
    }

    fn add(&mut self, node: &Node, values: &mut Values) -> usize {
        let (mut left, mut right) = (node.inputs[0], node.inputs[1]);
        if values.reads[left.index()] > 1 && values.reads[right.index()] == 1 {
            (left, right) = (right, left);
        }
        let other = values.place(right);
        let to = self.owned(left, node.width, values);
        self.push(RowOp::Add { to, other });
        self.read(right, values, Some(to));
        to
    }

    /// Where a value is and where something made of it goes: the same place if nobody reads it again.
    fn source_and_target(&mut self, node: &Node, values: &mut Values) -> (usize, usize) {
        let input = node.inputs[0];
        let from = values.place(input);
        let to = if values.reads[input.index()] == 1 { from } else { self.buffer(node.width) };
        self.read(input, values, Some(to));
        (from, to)
    }

    /// A buffer with a value that may be written over: its own if nobody reads it again.
    fn owned(&mut self, input: Value, width: usize, values: &mut Values) -> usize {
        let from = values.place(input);
        let to = if values.reads[input.index()] == 1 { from } else { self.buffer(width) };
        if to != from {
            self.push(RowOp::Copy { from, to });
        }
        self.read(input, values, Some(to));
        to
    }

    /// Counts a read; the buffer of a value read for the last time is free, unless `kept` is in it.
    fn read(&mut self, input: Value, values: &mut Values, kept: Option<usize>) {
        values.reads[input.index()] -= 1;
        let place = values.place(input);
        if values.reads[input.index()] == 0 && kept != Some(place) {
            self.free.push(place);
        }
    }

    fn buffer(&mut self, width: usize) -> usize {
        let fits = |buffer: &usize| self.plan.widths[*buffer] == width;
        if let Some(index) = self.free.iter().position(fits) {
            return self.free.swap_remove(index);
        }
        self.plan.widths.push(width);
        self.plan.widths.len() - 1
    }

    fn push(&mut self, op: RowOp) {
        match self.plan.stages.last_mut() {
            Some(Stage::Rows(ops)) => ops.push(op),
            _ => self.plan.stages.push(Stage::Rows(vec![op])),
        }
    }
}

impl Values {
    fn new(graph: &Graph, input: Option<usize>) -> Self {
        let mut reads = vec![0; graph.nodes.len() + 1];
        for value in graph.nodes.iter().flat_map(|node| &node.inputs) {
            reads[value.index()] += 1;
        }
        // Whoever comes after the graph reads what it returns.
        reads[graph.output.index()] += 1;
        let mut places = vec![None; graph.nodes.len() + 1];
        places[Value::INPUT.index()] = input;
        Self { places, reads }
    }

    /// Where a value is. A family's graph reads no value before it is made; if one did, buffer 0 has
    /// the wrong width, which is found when shapes are checked.
    fn place(&self, value: Value) -> usize {
        self.places[value.index()].unwrap_or_default()
    }
}
