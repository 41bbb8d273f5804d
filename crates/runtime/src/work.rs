//! Carrying out a plan: the buffers it works in, and one function a kind of stage.

use crate::attention::{Attention, Buffers};
use crate::load::Weights;
use crate::plan::{MOST_PRODUCTS, Mixture, Plan, Products, RowOp, Stage, TableRow};
use lapidary_kernels::activation::soft_cap_here;
use lapidary_kernels::attention::Partials;
use lapidary_kernels::isa::Isa;
use lapidary_kernels::packed::{Activations, Forms, Output, Precision, STRIP};
use lapidary_kernels::pool::Pool;
use lapidary_kernels::rows::{RowBuffers, RowsMut};
use lapidary_kernels::{matrix, norm, rope, route};
use std::cell::Cell;

/// Tokens of a sequence from which on its queries are taken in blocks.
const BLOCK_FROM: usize = 8;
/// Rows that one thread takes at a time.
const ROWS_PER_UNIT: usize = 16;

/// Tokens that are computed together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Token of each row.
    pub(crate) tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub(crate) positions: Vec<usize>,
    /// The rows of each sequence, in order and without gaps.
    pub(crate) spans: Vec<Span>,
    /// Row and sequence of each token whose attention is computed alone.
    pub(crate) singles: Vec<(usize, usize)>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<usize>,
}

/// Consecutive tokens of a sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) sequence: usize,
    /// The first row.
    pub(crate) row: usize,
    pub(crate) count: usize,
    /// Position of the first.
    pub(crate) position: usize,
}

impl Span {
    /// Whether its queries are taken together.
    pub(crate) fn is_block(&self) -> bool {
        self.count >= BLOCK_FROM
    }
}

impl Batch {
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.spans.clear();
        self.singles.clear();
        self.wanted.clear();
    }

    pub(crate) fn add(&mut self, sequence: usize, position: usize, tokens: &[u32]) {
        let (row, count) = (self.tokens.len(), tokens.len());
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(position..position + count);
        let span = Span { sequence, row, count, position };
        if !span.is_block() {
            self.singles.extend((row..row + count).map(|row| (row, sequence)));
        }
        self.spans.push(span);
    }
}

/// What carrying out a plan needs besides the plan and the weights.
pub(crate) struct Work {
    pub(crate) rows: RowBuffers,
    /// Most rows at a time.
    pub(crate) capacity: usize,
    activations: Activations,
    /// The inputs of products inside products.
    inner: Activations,
    /// Their results.
    inner_out: Vec<f32>,
    partials: Partials,
    /// What experts work in, layout by layout.
    experts: Vec<RowBuffers>,
    /// Rows that go to an expert, and its weight in each.
    chosen: Vec<(usize, f32)>,
    isa: Isa,
    precision: Precision,
}

impl Work {
    pub(crate) fn new(
        plan: &Plan,
        weights: &Weights,
        attentions: &[Attention],
        (capacity, context): (usize, usize),
        precision: Precision,
    ) -> Self {
        let partials = attentions.iter().map(|attention| attention.partials(context));
        Self {
            rows: RowBuffers::new(capacity, &plan.widths),
            capacity,
            activations: Activations::new(),
            inner: Activations::new(),
            inner_out: vec![0.0; MOST_PRODUCTS * capacity * weights.widest_inner()],
            partials: partials.max_by_key(Partials::room).unwrap_or_default(),
            experts: plan.layouts.iter().map(|of| RowBuffers::new(capacity, of)).collect(),
            chosen: Vec::with_capacity(capacity),
            isa: Isa::detect(),
            precision,
        }
    }

    /// Carries out a plan on the first `tokens` rows.
    pub(crate) fn run(
        &mut self,
        plan: &Plan,
        weights: &Weights,
        attentions: &mut [Attention],
        batch: &Batch,
        tokens: usize,
        pool: &mut Pool,
    ) {
        for (index, stage) in plan.stages.iter().enumerate() {
            match stage {
                Stage::Rows(ops) => self.row_ops(ops, weights, batch, tokens, pool),
                Stage::Products(products) => {
                    self.products(products, weights, tokens, pool);
                    if tokens == 1 {
                        announce_next(&plan.stages[index + 1..], weights, pool);
                    }
                }
                &Stage::Attention { q, k, v, to, index } => {
                    let precision = match self.precision {
                        Precision::Float | Precision::Int16 => matrix::Precision::F32,
                        Precision::Int8 => matrix::Precision::Bf16,
                    };
                    let buffers = Buffers { q, k, v, to };
                    let (rows, partials) = (&mut self.rows, &mut self.partials);
                    attentions[index].run(pool, precision, rows, &buffers, batch, partials);
                }
                Stage::Mixture(mixture) => self.mixture(mixture, weights, batch, tokens, pool),
            }
        }
    }

    fn row_ops(
        &mut self,
        ops: &[RowOp],
        weights: &Weights,
        batch: &Batch,
        tokens: usize,
        pool: &mut Pool,
    ) {
        let isa = self.isa;
        self.rows.divide(pool, tokens, ROWS_PER_UNIT, |rows| {
            for row in rows.rows() {
                for op in ops {
                    row_op(isa, op, weights, batch, row, rows);
                }
            }
        });
    }

    /// Takes each expert's rows through its plan, and adds up what comes out, in the experts' order.
    fn mixture(
        &mut self,
        mixture: &Mixture,
        weights: &Weights,
        batch: &Batch,
        tokens: usize,
        pool: &mut Pool,
    ) {
        let mut chosen = std::mem::take(&mut self.chosen);
        self.rows.get_mut(mixture.to, tokens).fill(0.0);
        for (index, expert) in mixture.experts.iter().enumerate() {
            chosen.clear();
            let shares = (0..tokens).map(|row| self.rows.row(mixture.weights, row)[index]);
            chosen.extend(shares.enumerate().filter(|(_, share)| *share != 0.0));
            if chosen.is_empty() {
                continue;
            }
            for (place, (row, _)) in chosen.iter().enumerate() {
                let from = self.rows.row(mixture.input, *row);
                self.experts[expert.layout].row_mut(0, place).copy_from_slice(from);
            }
            std::mem::swap(&mut self.rows, &mut self.experts[expert.layout]);
            self.run(&expert.plan, weights, &mut [], batch, chosen.len(), pool);
            std::mem::swap(&mut self.rows, &mut self.experts[expert.layout]);
            for (place, (row, share)) in chosen.iter().enumerate() {
                let from = self.experts[expert.layout].row(expert.plan.output, place);
                let to = self.rows.row_mut(mixture.to, *row);
                to.iter_mut().zip(from).for_each(|(to, from)| *to += share * from);
            }
        }
        self.chosen = chosen;
    }

    fn products(&mut self, stage: &Products, weights: &Weights, tokens: usize, pool: &mut Pool) {
        let matrix = |product: usize| &weights.matrices[stage.products[product].0];
        let all = 0..stage.products.len();
        let forms = all.clone().map(|p| matrix(p).forms(tokens));
        let forms = forms.fold(Forms::default(), |all, forms| all | forms);
        let x = self.rows.get(stage.input, tokens);
        let preparing = self.activations.begin(tokens, stage.width, forms);
        pool.run(preparing.units(), |unit| preparing.fill(unit..unit + 1, x));
        drop(preparing);
        let mut rest = &mut self.inner_out[..];
        let inner: [&[f32]; MOST_PRODUCTS] = std::array::from_fn(|product| {
            let matrix = all.contains(&product).then(|| matrix(product).inner()).flatten();
            let Some(matrix) = matrix else { return &[][..] };
            let (out, others) = std::mem::take(&mut rest).split_at_mut(tokens * matrix.rows());
            rest = others;
            self.inner.prepare(x, tokens, stage.width, matrix.forms(tokens));
            let shared = Output::new(out, tokens, matrix.rows());
            pool.run(matrix.strips(), |strip| {
                matrix.multiply(&self.inner, &[], strip..strip + 1, &shared);
            });
            out
        });
        let outs = self.rows.several_mut::<MOST_PRODUCTS>(&stage.targets, tokens);
        let mut product = 0;
        let outs = outs.map(|out| {
            let output = out.map(|out| Output::new(out, tokens, matrix(product).rows()));
            product += 1;
            output
        });
        let activations = &self.activations;
        pool.run(stage.units.len(), |unit| {
            let (product, strips) = &stage.units[unit];
            if let Some(out) = &outs[*product] {
                let (matrix, strips) = (matrix(*product), strips.clone());
                matrix.multiply(activations, inner[*product], strips, out);
            }
        });
    }
}

/// Lets the workers that wait for the next products look at their weights: all but the first unit's,
/// which is begun by whoever is awake.
fn announce_next(stages: &[Stage], weights: &Weights, pool: &Pool) {
    let next = stages.iter().find_map(|stage| match stage {
        Stage::Products(products) => Some(products),
        _ => None,
    });
    if let Some(Products { products, units, .. }) = next
        && let [_, (product, strips), ..] = &units[..]
    {
        let matrix = &weights.matrices[products[*product].0];
        matrix.announce(strips.start..matrix.strips(), pool);
    }
}

thread_local! {
    /// A strip of a table, decoded.
    static TABLE_STRIP: Cell<Vec<[f32; STRIP]>> = Cell::default();
}

fn row_op(
    isa: Isa,
    op: &RowOp,
    weights: &Weights,
    batch: &Batch,
    row: usize,
    rows: &mut RowsMut<'_>,
) {
    match *op {
        RowOp::LookUp { table, row: which, to } => {
            let index = match which {
                TableRow::Token => batch.tokens[row] as usize,
                TableRow::Position { offset } => offset + batch.positions[row],
                TableRow::First => 0,
            };
            let mut strip = TABLE_STRIP.take();
            weights.look_up(table, index, &mut strip, rows.row(to, [], row).0);
            TABLE_STRIP.set(strip);
        }
        RowOp::Copy { from, to } => {
            let (to, [from]) = rows.row(to, [from], row);
            to.copy_from_slice(from);
        }
        RowOp::Bias { to, bias } => add(rows.row(to, [], row).0, &weights.vectors[bias]),
        RowOp::RmsNorm { from, to, gain, eps } if from == to => {
            let (to, []) = rows.row(to, [], row);
            norm::rms_norm_in_place_here(isa, to, &weights.vectors[gain], eps);
        }
        RowOp::RmsNorm { from, to, gain, eps } => {
            let (to, [from]) = rows.row(to, [from], row);
            norm::rms_norm_here(isa, from, &weights.vectors[gain], eps, to);
        }
        RowOp::LayerNorm { from, to, gain, bias, eps } => {
            let (to, [from]) = rows.row(to, [from], row);
            let bias = bias.map(|bias| weights.vectors[bias].as_slice());
            norm::layer_norm_here(isa, from, &weights.vectors[gain], bias, eps, to);
        }
        RowOp::Rope { to, table, head_dim } => {
            let (cos, sin) = weights.angles[table].at(batch.positions[row]);
            rope::turn_row(isa, rows.row(to, [], row).0, head_dim, cos, sin);
        }
        RowOp::Activation { to, activation } => {
            activation.apply_here(isa, rows.row(to, [], row).0);
        }
        RowOp::Gated { gate, up, activation } => {
            let (gate, [up]) = rows.row(gate, [up], row);
            activation.gate_multiply_here(isa, gate, up);
        }
        RowOp::Add { to, other } => {
            let (to, [other]) = rows.row(to, [other], row);
            add(to, other);
        }
        RowOp::Route { to, most, normalized } => {
            route::choose(rows.row(to, [], row).0, most, normalized);
        }
        RowOp::Scale { to, factor } => {
            rows.row(to, [], row).0.iter_mut().for_each(|value| *value *= factor);
        }
        RowOp::SoftCap { to, cap } => soft_cap_here(isa, rows.row(to, [], row).0, cap),
        RowOp::Slice { from, to, slice } => {
            let (to, [from]) = rows.row(to, [from], row);
            let runs = from.chunks_exact(slice.stride).zip(to.chunks_exact_mut(slice.run));
            runs.for_each(|(from, to)| to.copy_from_slice(&from[slice.start..][..slice.run]));
        }
    }
}

fn add(to: &mut [f32], other: &[f32]) {
    to.iter_mut().zip(other).for_each(|(to, other)| *to += other);
}
