//! Predicted memory: one block, its statistics, the activations, and what a step works with.

use super::{Limits, SitePlan};
use crate::EngineError;
use crate::calibration::is_ready;
use crate::recipe::{Calibration, CalibrationPrecision};
use lapidary_formats::Source;
use lapidary_methods::{Inputs, Needs};
use lapidary_model::{Graph, InputGroup, LinearOp, Op, Place, Spec};
use lapidary_weight::{Outline, TermOutline};
use std::path::Path;

/// Tokens that go through a block together: enough for matrix products to be fast, few enough for
/// their intermediate values to be small beside a block.
pub(crate) const CHUNK_TOKENS: usize = 2048;

/// What the program itself takes: code, allocator, tables, threads.
const BASE: u64 = 24 << 20;

/// Where activations are kept between blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationsIn {
    /// In memory.
    Memory,
    /// In a file of the work folder.
    Disk,
}

/// Predicted memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The most that will be resident at once.
    pub peak: u64,
    /// Activations of all calibration rows.
    pub activations: u64,
    /// Where they are kept.
    pub activations_in: ActivationsIn,
    /// Bytes of activations on the disk.
    pub disk_activations: u64,
    /// Weights of the largest block.
    pub block: u64,
    /// Statistics of the largest block.
    pub statistics: u64,
}

/// What the prediction is made from.
pub(super) struct Shapes<'a> {
    pub(super) source: &'a Source,
    pub(super) spec: &'a Spec,
    /// The model before it is cut, where rows go through it to choose what stays, and the tokens of
    /// which gradients are taken.
    pub(super) whole: Option<(&'a Spec, usize)>,
    pub(super) sites: &'a [SitePlan],
    /// Calibration rows, and tokens of a row.
    pub(super) rows: (usize, usize),
    /// What the container takes while the result is written.
    pub(super) writing: u64,
}

impl Shapes<'_> {
    /// The prediction; activations go to the disk when memory does not suffice for them.
    pub(super) fn plan(
        &self,
        calibration: Option<&Calibration>,
        limits: Limits,
    ) -> Result<MemoryPlan, EngineError> {
        let Some(calibration) = calibration else {
            let peak = BASE + self.tokenizer() + self.encoding(|_| true).max(self.written());
            let plan = MemoryPlan {
                peak,
                activations: 0,
                activations_in: ActivationsIn::Memory,
                disk_activations: 0,
                block: 0,
                statistics: 0,
            };
            return within(plan, limits);
        };
        let factor = match calibration.precision {
            CalibrationPrecision::Bf16 => 2,
            CalibrationPrecision::F32 => 4,
        };
        // Of the head only what its last layers read is computed, and only where a site needs it.
        let head = self.spec.head.as_ref().filter(|graph| self.statistics(graph) > 0);
        let of_head = head.map(observed);
        let graphs = || self.spec.blocks.iter().chain(&of_head);
        let block = largest(graphs(), |graph| factor * weights(graph));
        let statistics =
            largest(self.spec.blocks.iter().chain(head), |graph| self.statistics(graph));
        let tokens = (self.rows.0 * self.rows.1) as u64;
        // Once as the compressed blocks give them, and once as the uncompressed.
        let has_drift = self.sites.iter().any(|site| site.needs().drift);
        let streams = 1 + u64::from(has_drift);
        let activations = streams * 4 * tokens * self.spec.hidden_size as u64;
        let reading = if is_ready(Path::new(&calibration.text)) { 0 } else { self.tokenizing() };
        let forward = largest(graphs(), |graph| self.forward(graph));
        let working = forward.max(self.encoding(|site| site.stage != Place::Embedding));
        let always = BASE + self.tokenizer() + reading + self.unpacked_tables();
        let fixed = always + block + statistics + working;
        // Tables are encoded before there are activations, and looked up in while those are made.
        let tables = always + self.encoding(|site| site.stage == Place::Embedding);
        let looking_up = always + self.stored_tables();
        let writing = BASE + self.tokenizer() + self.written();
        let ends = tables.max(writing);
        let walk = self.whole.map_or(0, |(whole, taped)| {
            let block = largest(&whole.blocks, |graph| factor * weights(graph));
            let walk = block + largest(&whole.blocks, |graph| self.forward(graph));
            // The weights of a block, its gradients, and three sums of either; the residual stream
            // before every block, and all values of one row.
            let states = 4 * (taped * whole.hidden_size * (whole.blocks.len() + 1)) as u64;
            let tape = 6 * 4 * largest(&whole.blocks, weights) + 2 * states;
            always + if taped > 0 { walk.max(tape) } else { walk }
        });
        let running = fixed.max(looking_up).max(walk);
        let peak = |activations: u64| (running + activations).max(ends);
        let in_memory = limits.memory.is_none_or(|limit| peak(activations) <= limit);
        let plan = MemoryPlan {
            peak: peak(if in_memory { activations } else { 0 }),
            activations,
            activations_in: if in_memory { ActivationsIn::Memory } else { ActivationsIn::Disk },
            disk_activations: if in_memory { activations } else { 2 * activations },
            block,
            statistics,
        };
        within(plan, limits)
    }

    /// What is resident while the result is written: what the container makes, and the largest of the
    /// tensors, which come one by one.
    fn written(&self) -> u64 {
        let bytes = |site: &SitePlan| site.outline.bits().div_ceil(8);
        self.writing + 2 * self.sites.iter().map(bytes).max().unwrap_or(0)
    }

    /// The tokenizer that a GGUF source holds, as text and as the metadata it was made from.
    fn tokenizer(&self) -> u64 {
        let made = self.source.files().iter().filter_map(|file| file.made.as_ref());
        made.map(|bytes| 5 * bytes.len() as u64).sum()
    }

    /// What is not given back of the tokenizer's tables, after the calibration text was read.
    fn tokenizing(&self) -> u64 {
        let bytes = self.source.files().iter().find(|file| file.name == "tokenizer.json");
        7 * bytes.map_or(0, |file| file.bytes)
    }

    /// Gram matrices, and samples, of the inputs that some site's method asks for.
    fn statistics(&self, graph: &Graph) -> u64 {
        let needs = |linear: &LinearOp| {
            let site = self.sites.iter().find(|site| site.linear.weight == linear.weight);
            site.map(SitePlan::needs).unwrap_or_default()
        };
        let groups = graph.shared_inputs();
        let of_group = |group: &InputGroup<'_>| {
            let needs = group.linears.iter().map(|l| needs(l)).fold(Needs::default(), Needs::or);
            // The Gram matrix is gathered with whatever else is, for the errors that are reported.
            let matrices = u64::from(needs != Needs::default()) + u64::from(needs.drift);
            let sample = u64::from(needs.inputs) * Inputs::bytes(group.linears[0].in_features);
            4 * matrices * square(group.linears[0].in_features) + sample
        };
        groups.iter().map(of_group).sum()
    }

    /// Intermediate values of a chunk: what is live at the widest node.
    fn forward(&self, graph: &Graph) -> u64 {
        let rows = (CHUNK_TOKENS / self.rows.1.max(1)).max(1);
        let tokens = (rows * self.rows.1) as u64;
        let widest = graph.nodes.iter().map(|node| node.width).max().unwrap_or(0) as u64;
        let hidden = self.spec.hidden_size as u64;
        // What experts make is held until all have.
        let held = graph.nodes.iter().map(|node| match &node.op {
            Op::Route(route) => 4 * tokens * route.top_k as u64 * hidden,
            _ => 0,
        });
        let held: u64 = held.sum();
        // Where drift is wanted, the inputs of all groups are held, and two transposes of one.
        let has_drift = self.sites.iter().any(|site| site.needs().drift);
        let groups = graph.shared_inputs();
        let inputs = groups.iter().map(|group| group.linears[0].in_features as u64).sum::<u64>();
        let drift = if has_drift { 4 * tokens * (inputs + 3 * widest) } else { 0 };
        // Gate, up and the packed copy of an input; the residual stream twice.
        drift + held + tokens * (4 * 2 * widest + 2 * widest + 4 * 2 * hidden)
    }

    /// What encoding the largest site works with: weight, working copy, codes, and with statistics
    /// the factor in f64 twice and in f32.
    fn encoding(&self, among: impl Fn(&SitePlan) -> bool) -> u64 {
        let site = |site: &SitePlan| {
            let weights = (site.linear.in_features * site.linear.out_features) as u64;
            let factor = match site.needs().gram {
                true => (8 + 8 + 4 + 4) * square(site.linear.in_features),
                false => 0,
            };
            // The error and its products in f64, and an eigenproblem of the smaller side.
            let is_low_rank = |term: &TermOutline| matches!(term, TermOutline::LowRank { .. });
            let low_rank = match site.outline.terms.iter().any(is_low_rank) {
                true => {
                    let side = site.linear.in_features.min(site.linear.out_features);
                    24 * weights + 8 * square(site.linear.in_features) + 40 * square(side)
                }
                false => 0,
            };
            weights * (4 + 4 + 1 + 1 + 4) + factor.max(low_rank)
        };
        self.sites.iter().filter(|site| among(site)).map(site).max().unwrap_or(0)
    }

    /// Tables of the result while tokens are looked up in them.
    fn stored_tables(&self) -> u64 {
        let tables = self.sites.iter().filter(|site| site.stage == Place::Embedding);
        tables.map(|site| unpacked(&site.outline)).sum()
    }

    /// Compressed tables of the source, which stay unpacked once they were looked up in.
    fn unpacked_tables(&self) -> u64 {
        let tables = self.spec.embed.tensors();
        let tables = tables.iter().filter_map(|(name, _)| self.source.get(name));
        let compressed = tables.filter(|tensor| tensor.is_compressed());
        compressed.filter_map(|tensor| self.source.outline(tensor)).map(|o| unpacked(&o)).sum()
    }
}

fn within(plan: MemoryPlan, limits: Limits) -> Result<MemoryPlan, EngineError> {
    match limits.memory {
        Some(limit) if plan.peak > limit => Err(EngineError::Refused(format!(
            "the job needs {} MB even with activations on the disk, and the limit is {} MB; raise \
             --memory or use shorter rows (--seq-len)",
            plan.peak.div_ceil(1_000_000),
            limit / 1_000_000
        ))),
        _ => Ok(plan),
    }
}

/// Bytes of a weight in memory: floats in 32 bits, codes in 8.
fn unpacked(outline: &Outline) -> u64 {
    let Outline { rows, cols, ref terms } = *outline;
    let term = |term: &TermOutline| match term {
        TermOutline::Affine { grouping, .. } => rows * cols + 5 * grouping.count(rows, cols),
        TermOutline::Lookup { .. } => 2 * rows * cols,
        _ => 4 * rows * cols,
    };
    terms.iter().map(|outline| term(outline) as u64).sum()
}

/// What runs of a graph so that the inputs of all its linear layers are seen: nothing from the last
/// group of them on.
fn observed(graph: &Graph) -> Graph {
    let last = graph.shared_inputs().pop().map_or(vec![], |group| group.linears);
    let is_before = |op: &Op| !matches!(op, Op::Linear(linear) if last.contains(&linear));
    let nodes = graph.nodes.iter().take_while(|node| is_before(&node.op)).cloned().collect();
    Graph { name: graph.name.clone(), nodes, output: graph.output }
}

/// Numbers in the linear layers of a graph.
fn weights(graph: &Graph) -> u64 {
    let numbers = |op: &Op| match op {
        Op::Linear(linear) => linear.in_features * linear.out_features,
        _ => 0,
    };
    graph.nodes.iter().map(|node| numbers(&node.op) as u64).sum()
}

fn largest<'a>(graphs: impl IntoIterator<Item = &'a Graph>, bytes: impl Fn(&Graph) -> u64) -> u64 {
    graphs.into_iter().map(bytes).max().unwrap_or(0)
}

fn square(n: usize) -> u64 {
    (n as u64) * (n as u64)
}
