//! Rotations: the same model in another basis, in which no channel stands out.
//!
//! `QuaRot` (Ashkboos et al., 2024, arXiv 2404.00456) without its online parts: the residual stream is
//! multiplied by one random orthogonal matrix `Q`, which goes into the embedding, the readers and the
//! writers of the stream; and the values of each head by another, which goes into the value and the
//! output projection. A root-mean-square norm keeps its function under rotation once its gain is
//! folded into the layers that read it; a layer norm, which subtracts the mean, does not.
//!
//! `Q` is random signs and a Hadamard matrix, with a Hartley matrix for an odd factor of the width
//! (`kernels::hadamard`), so that every width is spread over all its channels. Where the authors'
//! code subtracts the mean of the embedding's rows, nothing is subtracted here: that is no identity.

use crate::{Graphwise, Method, MethodError, Note, ParamError};
use lapidary_kernels::hadamard::Rotation;
use lapidary_model::{Absorber, Graph, LinearOp, Node, Op, Spec, Value};
use lapidary_weight::{Edit, Edits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) const SUMMARY: &str = "the same model in a basis in which no channel stands out";
pub(crate) const PAPER: &str = "Ashkboos et al., 2024, arXiv 2404.00456";

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Params {
    /// Rotate the residual stream; a head that shares the embedding's weight gets its own.
    pub residual: bool,
    /// Rotate the values of each attention head.
    pub value: bool,
    /// Leave values that cannot be rotated as they are, and say so, instead of refusing the model.
    pub where_possible: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { residual: true, value: true, where_possible: false }
    }
}

pub(crate) fn build(params: Params) -> Result<Method, ParamError> {
    if !(params.residual || params.value) {
        return Err(ParamError::new(".", "with neither residual nor value there is nothing to do"));
    }
    Ok(Method::Graphwise(Box::new(Rotate(params))))
}

struct Rotate(Params);

impl Graphwise for Rotate {
    fn unties(&self) -> bool {
        self.0.residual
    }

    fn rewrite(&self, spec: &Spec, seed: u64) -> Result<Edits, MethodError> {
        let mut rewriting = Rewriting::default();
        if self.0.residual {
            let rotation = Arc::new(Rotation::new(spec.hidden_size, key(seed, "residual")));
            let turn = Turn {
                columns: Edit::RotateColumns(Arc::clone(&rotation)),
                rows: Edit::RotateRows(rotation),
            };
            rewriting.residual(spec, &turn)?;
        }
        if self.0.value {
            for block in &spec.blocks {
                match values(block) {
                    Ok(values) => rewriting.values(block, &values, seed),
                    Err(_) if self.0.where_possible => {}
                    Err(what) => {
                        let what = format!("{what}; set value: false to rotate the stream only");
                        return Err(refused(&block.name, &what));
                    }
                }
            }
        }
        Ok(rewriting.0)
    }

    fn notes(&self, spec: &Spec) -> Vec<(String, Note)> {
        let stuck = spec.blocks.iter().filter(|_| self.0.value && self.0.where_possible);
        let stuck = stuck.filter_map(|block| Some((block, values(block).err()?)));
        let note = |what: &str| Note::fallback(format!("not rotated: {what}"));
        stuck.map(|(block, what)| (block.name.clone(), note(what))).collect()
    }
}

/// What makes the values of each attention of a block, with the width of a head; or why they cannot be
/// rotated.
fn values(block: &Graph) -> Result<Vec<(Value, &LinearOp, usize)>, &'static str> {
    let mut made = vec![];
    for (index, node) in block.nodes.iter().enumerate() {
        let (Op::Attention(_), value) = (&node.op, Value::of_node(index)) else { continue };
        let Some(Absorber::Rows { linear, head_dim, .. }) = block.absorber(value) else {
            return Err("has values that something else reads too, or that one layer makes \
                        together with the queries and keys");
        };
        made.push((value, linear, head_dim));
    }
    Ok(made)
}

/// The key of a random choice: one for each place, so that none depends on another.
fn key(seed: u64, place: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    place.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed.rotate_left(32), step)
}

/// Another basis of some channels: what becomes of the columns of who reads them, and of the rows of
/// who makes them.
pub(crate) struct Turn {
    pub(crate) columns: Edit,
    pub(crate) rows: Edit,
}

/// The edits that put the residual stream in another basis, the gains of its norms folded into who
/// reads them.
///
/// # Errors
/// When something stands on the stream that does not commute with it.
pub(crate) fn residual(spec: &Spec, turn: &Turn) -> Result<Edits, MethodError> {
    let mut rewriting = Rewriting::default();
    rewriting.residual(spec, turn)?;
    Ok(rewriting.0)
}

/// The edits so far.
#[derive(Default)]
struct Rewriting(Edits);

impl Rewriting {
    fn add(&mut self, tensor: &str, edit: Edit) {
        self.0.entry(tensor.to_owned()).or_default().push(edit);
    }

    /// Rotates what a linear layer gives, its bias along.
    fn outputs(&mut self, linear: &LinearOp, turn: &Turn) {
        for tensor in std::iter::once(&linear.weight).chain(&linear.bias) {
            self.add(tensor, turn.rows.clone());
        }
    }

    /// Rotates what a linear layer reads.
    fn inputs(&mut self, linear: &LinearOp, turn: &Turn) {
        self.add(&linear.weight, turn.columns.clone());
    }

    fn residual(&mut self, spec: &Spec, turn: &Turn) -> Result<(), MethodError> {
        if spec.tied {
            return Err(refused("head", "shares the embedding's weight, which is rotated alone"));
        }
        for node in &spec.embed.nodes {
            match &node.op {
                Op::Embedding(table) | Op::Positions { table, .. } | Op::TokenType(table) => {
                    self.add(&table.name, turn.columns.clone());
                }
                Op::Add | Op::Scale(_) => {}
                op => return Err(unrotatable(&spec.embed, op)),
            }
        }
        for block in &spec.blocks {
            if !self.stream(block, turn)?.contains(&block.output) {
                return Err(refused(&block.name, "does not end in the residual stream"));
            }
        }
        match &spec.head {
            Some(head) if self.stream(head, turn)?.contains(&head.output) => {
                Err(refused("head", "ends in the residual stream"))
            }
            Some(_) => Ok(()),
            None => Err(refused("head", "is missing: the hidden states are the result")),
        }
    }

    /// Rotates the stream through a graph that it enters; returns the values that are the stream.
    fn stream(
        &mut self,
        graph: &Graph,
        turn: &Turn,
    ) -> Result<BTreeSet<Value>, MethodError> {
        let mut stream = BTreeSet::from([Value::INPUT]);
        let mut normed: BTreeMap<Value, Edit> = BTreeMap::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            let value = Value::of_node(index);
            let reads = |values: &dyn Fn(&Value) -> bool| node.inputs.iter().any(values);
            match &node.op {
                Op::RmsNorm { gain, offset, width, .. } if stream.contains(&node.inputs[0]) => {
                    if *width != node.width {
                        return Err(refused(gain, "norms parts of the residual stream"));
                    }
                    self.add(gain, Edit::Fill(1.0 - offset));
                    normed.insert(value, Edit::FoldGain { gain: gain.clone(), offset: *offset });
                }
                Op::Linear(linear) => {
                    let fold = normed.get(&node.inputs[0]);
                    if let Some(fold) = fold {
                        self.add(&linear.weight, fold.clone());
                    }
                    if fold.is_some() || stream.contains(&node.inputs[0]) {
                        self.inputs(linear, turn);
                    }
                }
                Op::Add if reads(&|input| stream.contains(input)) => {
                    for input in node.inputs.iter().filter(|input| !stream.contains(input)) {
                        for linear in writers(graph, *input)? {
                            self.outputs(linear, turn);
                        }
                    }
                    stream.insert(value);
                }
                // A multiple of a rotated row is the rotated multiple.
                Op::Scale(_) if stream.contains(&node.inputs[0]) => {
                    stream.insert(value);
                }
                // Rows are left out whole.
                Op::Select { .. } if normed.contains_key(&node.inputs[0]) => {
                    normed.insert(value, normed[&node.inputs[0]].clone());
                }
                op if reads(&|v| stream.contains(v) || normed.contains_key(v)) => {
                    return Err(unrotatable(graph, op));
                }
                _ => {}
            }
        }
        Ok(stream)
    }

    /// Rotates the [values] of each head of a block.
    fn values(&mut self, block: &Graph, values: &[(Value, &LinearOp, usize)], seed: u64) {
        for &(value, linear, head_dim) in values {
            // One for all heads: query heads that share a key head read the same values.
            let rotation = Arc::new(Rotation::new(head_dim, key(seed, &linear.module)));
            let turn = Turn {
                columns: Edit::RotateColumns(Arc::clone(&rotation)),
                rows: Edit::RotateRows(rotation),
            };
            self.outputs(linear, &turn);
            for reader in block.consumers(value) {
                if let Op::Linear(linear) = &reader.op {
                    self.inputs(linear, &turn);
                }
            }
        }
    }
}

/// The linear layers that make a value which only an addition to the stream reads: one, or the
/// experts', whose results are mixed.
fn writers(graph: &Graph, value: Value) -> Result<Vec<&LinearOp>, MethodError> {
    let alone = graph.consumers(value).count() == 1 && value != graph.output;
    match graph.producer(value).filter(|_| alone) {
        Some(Node { op: Op::Linear(linear), .. }) => Ok(vec![linear]),
        Some(Node { op: Op::Scale(_), inputs, .. }) => writers(graph, inputs[0]),
        Some(Node { op: Op::Mix, inputs, .. }) => {
            let experts = inputs[1..].iter().map(|expert| writers(graph, *expert));
            Ok(experts.collect::<Result<Vec<_>, _>>()?.concat())
        }
        _ => Err(refused(&graph.name, "adds something to the residual stream that is no layer's")),
    }
}

fn unrotatable(graph: &Graph, op: &Op) -> MethodError {
    let what = match op {
        Op::LayerNorm { .. } => {
            "has layer norms, which subtract the mean, and so have another result in a rotated \
             basis; set residual: false to rotate the values only"
        }
        _ => "has an operation on the residual stream that does not commute with a rotation",
    };
    refused(&graph.name, what)
}

fn refused(place: &str, what: &str) -> MethodError {
    let place = if place.is_empty() { "head" } else { place };
    MethodError::Structure { place: place.to_owned(), what: what.to_owned() }
}
