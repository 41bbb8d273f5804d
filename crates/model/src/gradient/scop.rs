//! Scientific control (Tang et al., "SCOP: Scientific Control for Reliable Neural Network Pruning",
//! 2020), for the neurons of feed-forwards: each has the choice between its value `a` and that of a
//! knockoff `ã`, `β a + (1 − β) ã`. A neuron to which the loss gives no reason to prefer its own value
//! is redundant.
//!
//! The authors feed a network of convolutions with images of a generator. Text has none, so `ã` is what
//! the layers before the neuron make of a second-order knockoff of the feed-forward's input; and where
//! they take the scale of a batch norm, there is the size of what a neuron adds to the output.

use super::knockoff::{Moments, SecondOrder};
use super::{Backward, BlockGradients, Input, Loss, Reading};
use crate::ModelError;
use crate::exec::{Batch, Executor, Fused, GraphWeights, Tap};
use crate::graph::{Graph, Node, Value};
use crate::spec::{LinearOp, Op, Spec};
use candle_core::{Device, Tensor, Var};
use lapidary_kernels::matrix::Precision;
use lapidary_kernels::random::nth;
use lapidary_weight::Tensors;
use std::collections::{BTreeMap, BTreeSet};

/// A feed-forward: the layers from its input to its hidden neurons.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedForward {
    /// What its first layers read.
    pub input: Input,
    /// The neurons: what its last layers read.
    pub hidden: Input,
    /// The value of which the input is all rows or, for an expert, those that go to it.
    pub source: Value,
    /// From the input to the neurons.
    pub part: Graph,
    /// The layers that read the neurons.
    pub readers: Vec<LinearOp>,
}

impl FeedForward {
    /// How many neurons it has.
    pub fn neurons(&self) -> usize {
        self.readers.first().map_or(0, |linear| linear.in_features)
    }
}

/// The feed-forwards of all blocks: what linear layers read and an activation makes, where no attention,
/// residual or choice of experts lies between that and the linear layers before it.
pub fn feed_forwards(spec: &Spec) -> Vec<FeedForward> {
    let of_block = |(block, graph): (usize, &Graph)| -> Vec<FeedForward> {
        let groups = graph.shared_inputs().into_iter();
        let found = groups.filter_map(|group| {
            let (input, part) = part_before(graph, group.value)?;
            let source = match graph.producer(input) {
                Some(Node { op: Op::Select { .. }, inputs, .. }) => inputs[0],
                _ => input,
            };
            let readers = group.linears.into_iter().cloned().collect();
            let (input, hidden) =
                (Input { block, value: input }, Input { block, value: group.value });
            Some(FeedForward { input, hidden, source, part, readers })
        });
        found.collect()
    };
    spec.blocks.iter().enumerate().flat_map(of_block).collect()
}

/// The one input of the linear layers before `hidden`, and the graph from there.
fn part_before(graph: &Graph, hidden: Value) -> Option<(Value, Graph)> {
    let (mut nodes, mut inputs) = (BTreeSet::new(), BTreeSet::new());
    let (mut pending, mut is_active) = (vec![hidden], false);
    while let Some(value) = pending.pop() {
        let index = value.node()?;
        let node = &graph.nodes[index];
        nodes.insert(index);
        match &node.op {
            Op::Linear(_) => {
                inputs.insert(node.inputs[0]);
                continue;
            }
            Op::Activation(_) | Op::Gated(_) => is_active = true,
            Op::Attention(_) | Op::Route(_) | Op::Select { .. } | Op::Mix => return None,
            _ => {}
        }
        pending.extend(&node.inputs);
    }
    let input = inputs.first().copied().filter(|_| is_active && inputs.len() == 1)?;
    let places: BTreeMap<Value, Value> = std::iter::once((input, Value::INPUT))
        .chain(nodes.iter().enumerate().map(|(to, at)| (Value::of_node(*at), Value::of_node(to))))
        .collect();
    let moved = |index: &usize| {
        let node = &graph.nodes[*index];
        let inputs = node.inputs.iter().map(|value| places.get(value).copied());
        Some(Node { inputs: inputs.collect::<Option<_>>()?, ..node.clone() })
    };
    let nodes = nodes.iter().map(moved).collect::<Option<_>>()?;
    Some((input, Graph { name: graph.name.clone(), nodes, output: *places.get(&hidden)? }))
}

/// Makes knockoffs of the input of a feed-forward, by its index: `[tokens, channels]` of row `row`.
pub type Knockoff<'a> = &'a dyn Fn(usize, usize, &Tensor) -> Result<Tensor, ModelError>;

/// Feed-forwards whose neurons are mixed with their knockoffs.
pub struct Mixture<'a> {
    feed_forwards: &'a [FeedForward],
    /// `β` of each feed-forward; those with the same weights have the same.
    shares: Vec<Var>,
    knockoff: Knockoff<'a>,
}

impl<'a> Mixture<'a> {
    /// With `shares[i][n]` the part that neuron `n` of feed-forward `i` keeps of its own value.
    ///
    /// # Errors
    /// When they are not the neurons that there are.
    pub fn new(
        feed_forwards: &'a [FeedForward],
        shares: &[Vec<f32>],
        knockoff: Knockoff<'a>,
    ) -> Result<Self, ModelError> {
        let lengths = shares.iter().map(Vec::len);
        if !lengths.eq(feed_forwards.iter().map(FeedForward::neurons)) {
            let what = "there must be a share for each neuron of each feed-forward";
            return Err(ModelError::Gradient(what.to_owned()));
        }
        let variable = |shares: &Vec<f32>| Var::from_slice(shares, (1, shares.len()), &Device::Cpu);
        let shares = shares.iter().map(variable).collect::<Result<_, _>>()?;
        Ok(Self { feed_forwards, shares, knockoff })
    }

    /// What the layers after the neurons read: the mixture. A [`Replace`](super::Replace).
    ///
    /// # Errors
    /// When there is no knockoff.
    pub fn replace(&self, reading: &Reading<'_>) -> Result<Option<Tensor>, ModelError> {
        let place = Input { block: reading.block, value: reading.group.value };
        let Some(index) = self.feed_forwards.iter().position(|ff| ff.hidden == place) else {
            return Ok(None);
        };
        let feed_forward = &self.feed_forwards[index];
        let missing = || ModelError::Graph("neurons are read before their input was".to_owned());
        let input = reading.before.get(&feed_forward.input.value).ok_or_else(missing)?;
        let knockoff = (self.knockoff)(index, reading.row, input)?;
        let other = reading.run(&feed_forward.part, knockoff)?;
        let share = self.shares[index].as_tensor();
        let own = reading.input.broadcast_mul(share)?;
        Ok(Some((own + other.broadcast_mul(&share.affine(-1.0, 1.0)?)?)?))
    }

    /// Adds `∂L/∂β` of a block to `slopes`, a list for each feed-forward.
    ///
    /// # Errors
    /// When the numbers cannot be brought to the host.
    pub fn add_slopes(
        &self,
        gradients: &BlockGradients<'_>,
        slopes: &mut [Vec<f64>],
    ) -> Result<(), ModelError> {
        for (index, feed_forward) in self.feed_forwards.iter().enumerate() {
            if feed_forward.hidden.block == gradients.block {
                let parts = gradients.of(&self.shares[index])?;
                let sums = slopes[index].iter_mut().zip(parts);
                sums.for_each(|(sum, part)| *sum += f64::from(part));
            }
        }
        Ok(())
    }
}

/// How shares are trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Training {
    /// Steps of Adam.
    pub steps: usize,
    /// Rows of tokens of a step, which follow each other through all there are, and again.
    pub rows: usize,
    /// Its learning rate.
    pub rate: f64,
}

impl Default for Training {
    /// The paper's rate, and steps enough for a share to go from the middle to either end, twice.
    fn default() -> Self {
        Self { steps: 300, rows: 4, rate: 4e-3 }
    }
}

/// Adam's decay of the mean and of the mean square, by the authors' program.
const DECAYS: [f64; 2] = [0.5, 0.9];

/// Trains shares by the loss, from a half each: all of `[0, 1]` is allowed, and nothing else of the model
/// changes. `knockoff` is asked by feed-forward and by the number of a row, which goes on from step to
/// step; `on_step` sees each step's number and mean loss, and can stop. Feed-forwards with the same
/// weights have the same shares. A step reads every block's weights twice.
///
/// # Errors
/// As [`Backward::run`], when there are no rows, or when `on_step` refuses.
pub fn train(
    model: (&Spec, &dyn Tensors),
    feed_forwards: &[FeedForward],
    knockoff: Knockoff<'_>,
    (rows, loss): (&[Vec<u32>], &dyn Loss),
    training: Training,
    on_step: &mut dyn FnMut(usize, f64) -> Result<(), ModelError>,
) -> Result<Vec<Vec<f32>>, ModelError> {
    if rows.is_empty() || training.rows == 0 {
        return Err(ModelError::Gradient("shares are trained on at least one row".to_owned()));
    }
    let first = first_of_same(feed_forwards);
    let mut learners: Vec<Learner> = feed_forwards.iter().map(Learner::new).collect();
    let count = training.rows as f64;
    for step in 0..training.steps {
        let from = step * training.rows;
        let batch: Vec<Vec<u32>> =
            (from..from + training.rows).map(|row| rows[row % rows.len()].clone()).collect();
        let at = |index: usize, row: usize, input: &Tensor| knockoff(index, from + row, input);
        let shares: Vec<Vec<f32>> = first.iter().map(|first| learners[*first].shares()).collect();
        let mixture = Mixture::new(feed_forwards, &shares, &at)?;
        let replace = |reading: &Reading<'_>| mixture.replace(reading);
        let mut slopes: Vec<Vec<f64>> =
            feed_forwards.iter().map(|ff| vec![0.0; ff.neurons()]).collect();
        let mut visit = |gradients: &BlockGradients<'_>| mixture.add_slopes(gradients, &mut slopes);
        let backward = Backward::new(model.0, model.1).replacing(&replace);
        let losses = backward.run(&batch, loss, &mut visit)?;
        for (index, learner) in learners.iter_mut().enumerate() {
            let same = first.iter().zip(&slopes).filter(|(first, _)| **first == index);
            let slope = |neuron: usize| same.clone().map(|(_, s)| s[neuron]).sum::<f64>() / count;
            learner.step(slope, training.rate, step);
        }
        on_step(step, losses.iter().sum::<f64>() / count)?;
    }
    Ok(first.iter().map(|first| learners[*first].shares()).collect())
}

/// The shares of one feed-forward, as Adam moves them (Kingma and Ba, 2015).
struct Learner {
    shares: Vec<f64>,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl Learner {
    fn new(feed_forward: &FeedForward) -> Self {
        let list = |value| vec![value; feed_forward.neurons()];
        Self { shares: list(0.5), mean: list(0.0), square: list(0.0) }
    }

    fn shares(&self) -> Vec<f32> {
        self.shares.iter().map(|share| *share as f32).collect()
    }

    fn step(&mut self, slope: impl Fn(usize) -> f64, rate: f64, step: usize) {
        let [decay, square_decay] = DECAYS;
        // Both means begin at 0, which these make up for.
        let [unbias, unbias_square] = DECAYS.map(|decay| 1.0 - decay.powi(step as i32 + 1));
        let state = self.mean.iter_mut().zip(&mut self.square);
        for (neuron, (share, (mean, square))) in self.shares.iter_mut().zip(state).enumerate() {
            let slope = slope(neuron);
            *mean += (1.0 - decay) * (slope - *mean);
            *square += (1.0 - square_decay) * (slope * slope - *square);
            let change = *mean / unbias / ((*square / unbias_square).sqrt() + 1e-8);
            *share = (*share - rate * change).clamp(0.0, 1.0);
        }
    }
}

/// For each feed-forward, the first whose weights are the same.
fn first_of_same(feed_forwards: &[FeedForward]) -> Vec<usize> {
    let name = |ff: &FeedForward| ff.readers.first().map(|linear| linear.weight.clone());
    let names: Vec<_> = feed_forwards.iter().map(name).collect();
    let first = |name| names.iter().position(|other| other == name);
    names.iter().enumerate().map(|(index, name)| first(name).unwrap_or(index)).collect()
}

/// All that the scores depend on beside the model and the rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scop {
    /// How shares are trained.
    pub training: Training,
    /// Share of the correlations that is taken away, [`SecondOrder::new`].
    pub shrinkage: f64,
    /// Seed of the knockoffs.
    pub seed: u64,
}

impl Default for Scop {
    fn default() -> Self {
        Self { training: Training::default(), shrinkage: 0.1, seed: 0 }
    }
}

/// What is known of the neurons of a feed-forward.
#[derive(Debug, Clone, PartialEq)]
pub struct Neurons {
    /// Where they are read: one place, or several where blocks share weights.
    pub places: Vec<Input>,
    /// `β`, the part that each keeps of its own value.
    pub shares: Vec<f32>,
    /// The size of what each adds to the output: the root mean square of its value, over the rows that
    /// it sees, times the length of the columns that read it.
    pub sizes: Vec<f64>,
}

impl Neurons {
    /// `size · (2β − 1)`: below 0 where the knockoff does better.
    pub fn scores(&self) -> Vec<f64> {
        let score = |(size, share): (&f64, &f32)| size * (2.0 * f64::from(*share) - 1.0);
        self.sizes.iter().zip(&self.shares).map(score).collect()
    }
}

/// Scores of the neurons of every feed-forward. Knockoffs are made with the means and covariances that
/// the inputs of feed-forwards have in the unchanged model, those of all its tokens for experts. In
/// memory beside what [`Backward::run`] needs are two matrices of `hidden · hidden` for each block.
///
/// # Errors
/// As [`train`], and when the inputs have no covariance.
pub fn scop(
    model: (&Spec, &dyn Tensors),
    (rows, loss): (&[Vec<u32>], &dyn Loss),
    settings: Scop,
    on_step: &mut dyn FnMut(usize, f64) -> Result<(), ModelError>,
) -> Result<Vec<Neurons>, ModelError> {
    let feed_forwards = feed_forwards(model.0);
    let Measured { mut laws, squares } = measure(model, &feed_forwards, rows)?;
    let mut knockoffs: BTreeMap<Input, SecondOrder> = BTreeMap::new();
    while let Some((place, law)) = laws.pop_first() {
        knockoffs.insert(place, law.knockoffs(settings.shrinkage)?);
    }
    let knockoff = |index: usize, row: usize, input: &Tensor| {
        let FeedForward { input: Input { block, .. }, source, .. } = feed_forwards[index];
        let missing = || ModelError::Graph("the input of a feed-forward never came".to_owned());
        let law = knockoffs.get(&Input { block, value: source }).ok_or_else(missing)?;
        law.sample(input, nth(nth(settings.seed, row as u64), index as u64))
    };
    let shares = train(model, &feed_forwards, &knockoff, (rows, loss), settings.training, on_step)?;
    let first = first_of_same(&feed_forwards);
    let mut scored = vec![];
    for (index, shares) in
        shares.into_iter().enumerate().filter(|(index, _)| first[*index] == *index)
    {
        let same: Vec<usize> = (index..first.len()).filter(|i| first[*i] == index).collect();
        let count = same.iter().map(|i| squares[*i].0).sum::<usize>().max(1) as f64;
        let mut sizes = column_norms(model.1, &feed_forwards[index].readers)?;
        for (neuron, size) in sizes.iter_mut().enumerate() {
            let of_place = same.iter().filter_map(|i| squares[*i].1.get(neuron));
            *size *= (of_place.sum::<f64>() / count).sqrt();
        }
        let places = same.iter().map(|i| feed_forwards[*i].hidden).collect();
        scored.push(Neurons { places, shares, sizes });
    }
    Ok(scored)
}

/// What the unchanged model says of its feed-forwards.
struct Measured {
    /// Of their sources.
    laws: BTreeMap<Input, Moments>,
    /// Rows that each saw, and the sum of squares of each neuron.
    squares: Vec<(usize, Vec<f64>)>,
}

fn measure(
    (spec, tensors): (&Spec, &dyn Tensors),
    feed_forwards: &[FeedForward],
    rows: &[Vec<u32>],
) -> Result<Measured, ModelError> {
    let executor = Executor::new(Fused { precision: Precision::F32 });
    let batch = |row: &Vec<u32>| Batch { rows: 1, seq_len: row.len() };
    let embed = |row: &Vec<u32>| executor.embed(spec, tensors, batch(row), row.as_slice().into());
    let mut states = rows.iter().map(embed).collect::<Result<Vec<_>, _>>()?;
    let zeros = |ff: &FeedForward| (0, vec![0.0; ff.neurons()]);
    let mut measured =
        Measured { laws: BTreeMap::new(), squares: feed_forwards.iter().map(zeros).collect() };
    for (block, graph) in spec.blocks.iter().enumerate() {
        let weights = GraphWeights::load(graph, tensors, executor.backend())?;
        let mut on_tap = |tap: &Tap<'_>| {
            let place = Input { block, value: tap.group.value };
            let is_source = |ff: &FeedForward| ff.input.block == block && ff.source == place.value;
            if feed_forwards.iter().any(is_source) {
                let width = tap.group.linears[0].in_features;
                let law = measured.laws.entry(place);
                law.or_insert_with(|| Moments::new(tap.input, width)).add(tap.input);
            }
            let mut all = feed_forwards.iter().zip(&mut measured.squares);
            if let Some((_, (count, squares))) = all.find(|(ff, _)| ff.hidden == place) {
                for row in tap.input.chunks_exact(squares.len()) {
                    *count += 1;
                    squares.iter_mut().zip(row).for_each(|(s, a)| *s += f64::from(*a).powi(2));
                }
            }
            Ok(())
        };
        for (state, row) in states.iter_mut().zip(rows) {
            let input = std::mem::take(state);
            *state = executor.run(graph, &weights, batch(row), input, Some(&mut on_tap))?;
        }
    }
    Ok(measured)
}

/// Length of each column, through all the layers.
fn column_norms(tensors: &dyn Tensors, linears: &[LinearOp]) -> Result<Vec<f64>, ModelError> {
    let mut squares = vec![0.0; linears.first().map_or(0, |linear| linear.in_features)];
    for linear in linears {
        for row in tensors.read(&linear.weight)?.chunks_exact(linear.in_features) {
            squares.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w).powi(2));
        }
    }
    Ok(squares.into_iter().map(f64::sqrt).collect())
}
