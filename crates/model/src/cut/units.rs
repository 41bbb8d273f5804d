//! What of a model can only be removed together, derived from its graphs: neurons of feed-forwards,
//! heads of attentions, channels of the residual stream.
//!
//! Every channel of every value is a node of a union-find. What computes channel by channel unites a
//! channel with the one it comes from; what mixes the channels of a head unites the head. A linear
//! layer mixes everything and so unites nothing: its rows go with the channels it makes, its columns
//! with those it reads. The classes that remain are the dependency groups of LLM-Pruner (Ma et al.,
//! 2023, arXiv 2305.11627), without a list of them for any family.

use crate::graph::{Graph, Node, Value};
use crate::spec::{AttentionOp, LinearOp, Op, Spec};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What units are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnitKind {
    /// Hidden values of a feed-forward, or of an expert.
    Neurons,
    /// Query heads of an attention.
    QueryHeads,
    /// Its key and value heads, each shared by as many query heads as any other.
    KeyHeads,
    /// Channels of the residual stream, the same in the whole model.
    Channels,
}

/// An axis of a tensor; a vector has rows only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Axis {
    /// Output features, or the elements of a bias or gain.
    Rows,
    /// Input features.
    Columns,
}

/// What of one axis of a tensor belongs to units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The tensor.
    pub tensor: String,
    /// The axis.
    pub axis: Axis,
    /// The unit of each index along it; `None` for what belongs to none of these units.
    pub unit_of: Vec<Option<u32>>,
}

/// Units of one kind in one place, of which any can be removed and the others stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Units {
    /// What they are.
    pub kind: UnitKind,
    /// Module of the linear layer whose columns they are (for key heads, their query heads); empty for
    /// channels, which all layers have.
    pub reader: String,
    /// How many there are.
    pub count: usize,
    /// Channels that one of them has in what the reader reads.
    pub width: usize,
    /// Where they are.
    pub shares: Vec<Share>,
    /// Why none of them can be removed without changing what the others do; `None` where they can.
    pub bound: Option<&'static str>,
}

impl Graph {
    /// The units of a block: neurons and heads, in the order of the layers that read them.
    pub fn units(&self, hidden_size: usize) -> Vec<Units> {
        let classes = Classes::of(self, hidden_size);
        let residual = classes.roots(Value::INPUT).chain(classes.roots(self.output));
        let mut taken: BTreeSet<u32> = residual.collect();
        let mut units = vec![];
        for node in &self.nodes {
            let Op::Linear(reader) = &node.op else { continue };
            let roots: Vec<u32> = classes.roots(node.inputs[0]).collect();
            if roots.iter().any(|root| taken.contains(root)) {
                continue;
            }
            taken.extend(&roots);
            match self.attention_behind(&classes, &roots) {
                Some((attention, inputs)) => {
                    let make = |kind, roots| {
                        self.units_of(&classes, kind, reader, roots, attention.head_dim)
                    };
                    units.push(make(UnitKind::QueryHeads, roots));
                    // Keys and values of a head are one class, unless a layer norm holds all together.
                    units.push(make(UnitKind::KeyHeads, classes.roots(inputs[1]).collect()));
                }
                None => units.push(self.units_of(&classes, UnitKind::Neurons, reader, roots, 1)),
            }
        }
        units
    }

    /// The attention whose result these classes are.
    fn attention_behind(
        &self,
        classes: &Classes,
        roots: &[u32],
    ) -> Option<(&AttentionOp, &[Value])> {
        let roots: BTreeSet<u32> = roots.iter().copied().collect();
        self.nodes.iter().enumerate().find_map(|(index, node)| match &node.op {
            Op::Attention(attention) => {
                let mut result = classes.roots(Value::of_node(index));
                result.any(|root| roots.contains(&root)).then_some((attention, &node.inputs[..]))
            }
            _ => None,
        })
    }

    /// The units that these classes are, one for each that is different, in the order they come in.
    fn units_of(
        &self,
        classes: &Classes,
        kind: UnitKind,
        reader: &LinearOp,
        roots: Vec<u32>,
        width: usize,
    ) -> Units {
        let unit_of_root = numbered(roots);
        let is_normed = classes.normed.iter().any(|root| unit_of_root.contains_key(root));
        let bound = is_normed.then_some("a norm over all of them sees each");
        let shares = self.shares(classes, &unit_of_root);
        let (count, reader) = (unit_of_root.len(), reader.module.clone());
        Units { kind, reader, count, width, shares, bound }
    }

    /// Where classes are in the tensors of the graph.
    fn shares(&self, classes: &Classes, unit_of_root: &BTreeMap<u32, u32>) -> Vec<Share> {
        let mut shares = vec![];
        let mut add = |tensor: &String, axis, value| {
            let unit_of: Vec<Option<u32>> =
                classes.roots(value).map(|root| unit_of_root.get(&root).copied()).collect();
            if unit_of.iter().any(Option::is_some) {
                shares.push(Share { tensor: tensor.clone(), axis, unit_of });
            }
        };
        for (index, node) in self.nodes.iter().enumerate() {
            let made = Value::of_node(index);
            match &node.op {
                Op::Linear(linear) => {
                    add(&linear.weight, Axis::Rows, made);
                    linear.bias.iter().for_each(|bias| add(bias, Axis::Rows, made));
                    add(&linear.weight, Axis::Columns, node.inputs[0]);
                }
                Op::Embedding(table) | Op::Positions { table, .. } | Op::TokenType(table) => {
                    add(&table.name, Axis::Columns, made);
                }
                Op::RmsNorm { gain, width, .. } if *width == node.width => {
                    add(gain, Axis::Rows, made);
                }
                Op::LayerNorm { gain, bias, .. } => {
                    std::iter::once(gain).chain(bias).for_each(|name| add(name, Axis::Rows, made));
                }
                _ => {}
            }
        }
        shares
    }
}

impl Spec {
    /// The channels of the residual stream, in all tensors of the model; `None` where some graph does
    /// not hand a channel on as the one it came in as.
    pub fn channels(&self) -> Option<Units> {
        let graphs = std::iter::once(&self.embed).chain(&self.blocks).chain(&self.head);
        let mut shares: Vec<Share> = vec![];
        for (index, graph) in graphs.enumerate() {
            let classes = Classes::of(graph, self.hidden_size);
            let (is_embed, is_head) = (index == 0, index > self.blocks.len());
            let stream = if is_embed { graph.output } else { Value::INPUT };
            let roots: Vec<u32> = classes.roots(stream).collect();
            let passes =
                is_embed || is_head || classes.roots(graph.output).eq(roots.iter().copied());
            let unit_of_root = numbered(roots);
            if unit_of_root.len() != self.hidden_size || !passes {
                return None;
            }
            let new = graph.shares(&classes, &unit_of_root).into_iter();
            // A head that shares the embedding's table reads the same channels of it.
            let known = |share: &Share| shares.contains(share);
            let new: Vec<Share> = new.filter(|share| !known(share)).collect();
            shares.extend(new);
        }
        let (kind, reader, count) = (UnitKind::Channels, String::new(), self.hidden_size);
        Some(Units { kind, reader, count, width: 1, shares, bound: None })
    }
}

/// Numbers of the classes, by the order in which they first come.
fn numbered(roots: Vec<u32>) -> BTreeMap<u32, u32> {
    let mut numbers = BTreeMap::new();
    for root in roots {
        let next = numbers.len() as u32;
        numbers.entry(root).or_insert(next);
    }
    numbers
}

/// The classes of the channels of a graph's values.
struct Classes {
    /// First channel of each value; the last entry is the number of all.
    first: Vec<usize>,
    /// The class of each channel.
    root: Vec<u32>,
    /// Classes of channels that a norm of whole rows sees together.
    normed: BTreeSet<u32>,
}

impl Classes {
    fn of(graph: &Graph, hidden_size: usize) -> Self {
        let widths = std::iter::once(hidden_size).chain(graph.nodes.iter().map(|node| node.width));
        let mut first = vec![0];
        for width in widths {
            first.push(first[first.len() - 1] + width);
        }
        let mut union = Union { first, parent: vec![] };
        union.parent = (0..union.first[union.first.len() - 1] as u32).collect();
        let mut normed = vec![];
        for (index, node) in graph.nodes.iter().enumerate() {
            union.node(node, Value::of_node(index));
            let is_whole = match &node.op {
                Op::RmsNorm { width, .. } => *width == node.width,
                Op::LayerNorm { .. } => true,
                _ => false,
            };
            normed.extend(is_whole.then(|| Value::of_node(index)));
        }
        let channels = 0..union.parent.len();
        let root: Vec<u32> = channels.map(|channel| union.find(channel) as u32).collect();
        let mut classes = Self { first: union.first, root, normed: BTreeSet::new() };
        classes.normed = normed.iter().flat_map(|value| classes.roots(*value)).collect();
        classes
    }

    /// The class of each channel of a value.
    fn roots(&self, value: Value) -> impl Iterator<Item = u32> {
        let channels = self.first[value.index()]..self.first[value.index() + 1];
        self.root[channels].iter().copied()
    }
}

/// Channels that are being united.
struct Union {
    first: Vec<usize>,
    parent: Vec<u32>,
}

impl Union {
    fn width(&self, value: Value) -> usize {
        self.first[value.index() + 1] - self.first[value.index()]
    }

    fn find(&mut self, mut channel: usize) -> usize {
        while self.parent[channel] as usize != channel {
            let above = self.parent[channel] as usize;
            self.parent[channel] = self.parent[above];
            channel = above;
        }
        channel
    }

    fn unite(&mut self, (left, i): (Value, usize), (right, j): (Value, usize)) {
        let left = self.find(self.first[left.index()] + i);
        let right = self.find(self.first[right.index()] + j);
        let (low, high) = (left.min(right), left.max(right));
        self.parent[high] = low as u32;
    }

    /// Channel by channel, as far as both go.
    fn alike(&mut self, left: Value, right: Value) {
        for channel in 0..self.width(left).min(self.width(right)) {
            self.unite((left, channel), (right, channel));
        }
    }

    /// All channels of each run of a value.
    fn runs(&mut self, value: Value, run: usize) {
        for channel in 0..self.width(value) {
            self.unite((value, channel), (value, channel / run.max(1) * run.max(1)));
        }
    }

    fn node(&mut self, node: &Node, made: Value) {
        match &node.op {
            Op::Linear(_) | Op::Embedding(_) | Op::Positions { .. } | Op::TokenType(_) => {}
            Op::RmsNorm { width, .. } => {
                self.alike(node.inputs[0], made);
                if *width < node.width {
                    self.runs(made, *width);
                }
            }
            Op::Rope(rope) => {
                self.alike(node.inputs[0], made);
                self.runs(made, rope.head_dim);
            }
            Op::Attention(attention) => {
                // The scores of a head need all its channels, and mix the values of all its keys.
                self.alike(node.inputs[0], made);
                self.alike(node.inputs[1], node.inputs[2]);
                self.runs(made, attention.head_dim);
                self.runs(node.inputs[1], attention.head_dim);
            }
            Op::Slice(slice) => {
                for channel in 0..self.width(made) {
                    let (run, within) = (channel / slice.run.max(1), channel % slice.run.max(1));
                    let source = run * slice.stride + slice.start + within;
                    self.unite((node.inputs[0], source), (made, channel));
                }
            }
            Op::LayerNorm { .. }
            | Op::Activation(_)
            | Op::Scale(_)
            | Op::SoftCap(_)
            | Op::Route(_)
            | Op::Select { .. } => self.alike(node.inputs[0], made),
            Op::Gated(_) | Op::Add => {
                node.inputs.iter().for_each(|input| self.alike(*input, made));
            }
            Op::Mix => node.inputs[1..].iter().for_each(|input| self.alike(*input, made)),
        }
    }
}
