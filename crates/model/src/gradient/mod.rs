//! Gradients of a loss, block by block, and the scores of importance that are made of them.
//!
//! [`Backward`] holds one block and its gradients at a time: it keeps the residual stream before each
//! block, and then goes from the last block to the first, where it runs a block again on what was
//! kept, with a tape, and hands what it finds to a visitor, one row of tokens at a time.

mod heads;
mod knockoff;
mod loss;
mod scop;
mod taylor;

pub use heads::{Input, Units, heads, unit_importance};
pub use knockoff::SecondOrder;
pub use loss::{Loss, NextToken, Projection};
pub use scop::{
    FeedForward, Knockoff, Mixture, Neurons, Scop, Training, feed_forwards, scop, train,
};
pub use taylor::{Axes, Importance, taylor};

use crate::ModelError;
use crate::exec::{Batch, Composed, Executor, GraphWeights, Tap};
use crate::graph::{Graph, Value};
use crate::query::InputGroup;
use crate::spec::Spec;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use lapidary_weight::Tensors;
use std::collections::BTreeMap;

/// A group of linear layers that is about to read its input.
pub struct Reading<'a> {
    /// Index of the row of tokens.
    pub row: usize,
    /// Index of the block.
    pub block: usize,
    /// The layers.
    pub group: &'a InputGroup<'a>,
    /// What they would read, `[tokens, in_features]`.
    pub input: &'a Tensor,
    /// What the groups before it read, in this block, by the value they read.
    pub before: &'a BTreeMap<Value, Tensor>,
    weights: &'a GraphWeights<Composed>,
    executor: &'a Executor<Composed>,
}

impl Reading<'_> {
    /// Runs a part of the block, with its weights, on another input `[tokens, channels]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn run(&self, part: &Graph, input: Tensor) -> Result<Tensor, ModelError> {
        let batch = Batch { rows: 1, seq_len: input.dim(0)? };
        self.executor.run(part, self.weights, batch, input, None)
    }
}

/// A function that may put another value in place of what a group of layers reads, in the forward pass
/// and, the same, when the block runs again. Gradients flow through what it computes, and to the
/// variables of its own.
pub type Replace<'a> = &'a dyn Fn(&Reading<'_>) -> Result<Option<Tensor>, ModelError>;

/// What a group of linear layers read, and the gradient with respect to it.
#[derive(Debug)]
pub struct InputGradient<'a> {
    /// The layers.
    pub group: InputGroup<'a>,
    /// What they read, `[tokens, in_features]`.
    pub input: Vec<f32>,
    /// How the loss changes with it, by way of these layers alone.
    pub gradient: Vec<f32>,
}

impl InputGradient<'_> {
    /// Channels of the input.
    pub fn width(&self) -> usize {
        self.group.linears.first().map_or(0, |linear| linear.in_features)
    }
}

/// A tensor of a block, and the gradient with respect to it.
#[derive(Debug)]
pub struct TensorGradient<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers; for the gains of a norm, what the norm multiplies by, its offset included.
    pub value: Vec<f32>,
    /// The gradient, of the same shape; the sum over all who read the tensor in this block.
    pub gradient: Vec<f32>,
}

/// What one block has to do with the loss of one row.
#[derive(Debug)]
pub struct BlockGradients<'a> {
    /// Index of the row of tokens.
    pub row: usize,
    /// Index of the block.
    pub block: usize,
    /// The groups of linear layers, in the order they run.
    pub inputs: Vec<InputGradient<'a>>,
    /// Gradient with respect to the residual stream before the block, `[tokens, hidden]`.
    pub stream: Vec<f32>,
    graph: &'a Graph,
    weights: &'a GraphWeights<Composed>,
    store: GradStore,
}

impl BlockGradients<'_> {
    /// The tensors of the block, one after another. A tensor that several blocks share is handed out
    /// by each, with the part of its gradient that comes from there.
    ///
    /// # Errors
    /// When the numbers cannot be brought to the host.
    pub fn tensors(
        &self,
    ) -> Result<impl Iterator<Item = Result<TensorGradient<'_>, ModelError>>, ModelError> {
        let by_name = self.weights.by_name(self.graph)?;
        Ok(by_name.into_iter().map(|(name, tensors)| {
            let mut gradient = self.of(tensors[0])?;
            for other in &tensors[1..] {
                gradient.iter_mut().zip(self.of(other)?).for_each(|(sum, other)| *sum += other);
            }
            let shape = tensors[0].dims().to_vec();
            Ok(TensorGradient { name, shape, value: numbers(tensors[0])?, gradient })
        }))
    }

    /// Gradient with respect to a variable, as those that a [`Replace`] brings; 0 where the block does
    /// not depend on it.
    ///
    /// # Errors
    /// When the numbers cannot be brought to the host.
    pub fn of(&self, variable: &Tensor) -> Result<Vec<f32>, ModelError> {
        gradient_of(&self.store, variable)
    }
}

/// Goes through a model forwards and backwards.
pub struct Backward<'a> {
    spec: &'a Spec,
    tensors: &'a dyn Tensors,
    executor: Executor<Composed>,
    replace: Option<Replace<'a>>,
}

impl<'a> Backward<'a> {
    /// The model as it is, in f32.
    pub fn new(spec: &'a Spec, tensors: &'a dyn Tensors) -> Self {
        let executor = Executor::new(Composed { device: Device::Cpu });
        Self { spec, tensors, executor, replace: None }
    }

    /// The model with other inputs of some linear layers.
    #[must_use]
    pub fn replacing(self, replace: Replace<'a>) -> Self {
        Self { replace: Some(replace), ..self }
    }

    /// The model.
    pub fn spec(&self) -> &'a Spec {
        self.spec
    }

    /// The loss of each row, without gradients.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn losses(&self, rows: &[Vec<u32>], loss: &dyn Loss) -> Result<Vec<f64>, ModelError> {
        let last = self.forward(rows, &mut |_| {})?;
        rows.iter().zip(&last).map(|(row, hidden)| Ok(seed(row, hidden, loss)?.0)).collect()
    }

    /// Hands `visit` the gradients of each row's own loss: all rows of the last block, then all of the
    /// one before it. Returns the losses. Memory is a block with its gradients, the tape of one row,
    /// and `rows · tokens · hidden · (blocks + 1)` numbers of the residual stream.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape, a token or row does not fit the model, a loss or
    /// gradient is not finite, or `visit` refuses.
    pub fn run(
        &self,
        rows: &[Vec<u32>],
        loss: &dyn Loss,
        visit: &mut dyn FnMut(&BlockGradients<'_>) -> Result<(), ModelError>,
    ) -> Result<Vec<f64>, ModelError> {
        let mut streams: Vec<Vec<Tensor>> = vec![];
        let last = self.forward(rows, &mut |states| streams.push(states.to_vec()))?;
        let seeds = rows.iter().zip(&last).map(|(row, hidden)| seed(row, hidden, loss));
        let (losses, mut seeds): (Vec<f64>, Vec<Tensor>) =
            seeds.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        for (block, (graph, states)) in self.spec.blocks.iter().zip(streams).enumerate().rev() {
            let weights = GraphWeights::load(graph, self.tensors, self.executor.backend())?;
            let weights = weights.into_variables()?;
            for (row, (state, seed)) in states.iter().zip(&mut seeds).enumerate() {
                let run = BlockRun { row, block, graph, weights: &weights };
                let gradients = self.backward(run, state, seed)?;
                *seed = Tensor::from_slice(&gradients.stream, state.shape(), state.device())?;
                visit(&gradients)?;
            }
        }
        Ok(losses)
    }

    /// Last hidden states of the rows; `keep` sees the states before each block.
    fn forward(
        &self,
        rows: &[Vec<u32>],
        keep: &mut dyn FnMut(&[Tensor]),
    ) -> Result<Vec<Tensor>, ModelError> {
        let embed = |row: &Vec<u32>| {
            let batch = Batch { rows: 1, seq_len: row.len() };
            self.executor.embed(self.spec, self.tensors, batch, row.as_slice().into())
        };
        let mut states = rows.iter().map(embed).collect::<Result<Vec<_>, _>>()?;
        for (block, graph) in self.spec.blocks.iter().enumerate() {
            keep(&states);
            let weights = GraphWeights::load(graph, self.tensors, self.executor.backend())?;
            for (row, state) in states.iter_mut().enumerate() {
                let run = BlockRun { row, block, graph, weights: &weights };
                // Detached, so that no tape holds the block.
                *state = self.run_block(run, state.clone(), &mut Probes::new())?.detach();
            }
        }
        Ok(states)
    }

    fn backward<'b>(
        &self,
        run: BlockRun<'b>,
        state: &Tensor,
        seed: &Tensor,
    ) -> Result<BlockGradients<'b>, ModelError> {
        let BlockRun { row, block, graph, weights } = run;
        let input = Var::from_tensor(state)?;
        let mut probes = Probes::new();
        let output = self.run_block(run, input.as_tensor().clone(), &mut probes)?;
        let store = (output * seed)?.sum_all()?.backward()?;
        let of_group = |group: InputGroup<'b>| {
            let missing = || ModelError::Graph("a group of linear layers never ran".to_owned());
            let (input, probe) = probes.get(&group.value).ok_or_else(missing)?;
            let gradient = gradient_of(&store, probe)?;
            Ok(InputGradient { group, input: numbers(input)?, gradient })
        };
        let inputs = graph.shared_inputs().into_iter().map(of_group);
        let inputs = inputs.collect::<Result<_, ModelError>>()?;
        let stream = gradient_of(&store, &input)?;
        if stream.iter().any(|number| !number.is_finite()) {
            let what = format!("of row {row} before block {block} is not finite");
            return Err(ModelError::Gradient(what));
        }
        Ok(BlockGradients { row, block, inputs, stream, graph, weights, store })
    }

    /// Runs a block, whose groups of layers read what they read plus a variable that is 0: the tape
    /// keeps gradients of variables only.
    fn run_block(
        &self,
        run: BlockRun<'_>,
        input: Tensor,
        probes: &mut Probes,
    ) -> Result<Tensor, ModelError> {
        let BlockRun { row, block, graph, weights } = run;
        let batch = Batch { rows: 1, seq_len: input.dim(0)? };
        let taped = input.is_variable();
        let mut before = BTreeMap::new();
        let mut on_input = |tap: &Tap<'_, Tensor>| {
            let Tap { group, input } = *tap;
            let executor = &self.executor;
            let reading = Reading { row, block, group, input, before: &before, weights, executor };
            let other = self.replace.map(|replace| replace(&reading)).transpose()?.flatten();
            let read = other.clone().unwrap_or_else(|| input.clone());
            before.insert(group.value, read.clone());
            if !taped {
                return Ok(other);
            }
            let probe = Var::zeros(read.shape(), read.dtype(), read.device())?;
            probes.insert(group.value, (read.clone(), probe.as_tensor().clone()));
            Ok(Some((read + probe.as_tensor())?))
        };
        self.executor.run_with(graph, weights, batch, input, &mut on_input)
    }
}

/// What each group read, and the zero that was added.
type Probes = BTreeMap<Value, (Tensor, Tensor)>;

/// One row in one block.
#[derive(Clone, Copy)]
struct BlockRun<'a> {
    row: usize,
    block: usize,
    graph: &'a Graph,
    weights: &'a GraphWeights<Composed>,
}

fn seed(tokens: &[u32], hidden: &Tensor, loss: &dyn Loss) -> Result<(f64, Tensor), ModelError> {
    let (value, seed) = loss.seed(tokens, &numbers(hidden)?)?;
    if !value.is_finite() || seed.iter().any(|number| !number.is_finite()) {
        let what = "the loss of a row is not finite; is a weight damaged? `verify` reads them all";
        return Err(ModelError::Gradient(what.to_owned()));
    }
    Ok((value, Tensor::from_vec(seed, hidden.shape(), hidden.device())?))
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// 0 where nothing that was differentiated depends on the variable.
fn gradient_of(store: &GradStore, variable: &Tensor) -> Result<Vec<f32>, ModelError> {
    match store.get(variable) {
        Some(gradient) => numbers(gradient),
        None => Ok(vec![0.0; variable.elem_count()]),
    }
}
