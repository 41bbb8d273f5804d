//! Attention over cached keys and values: token by token, and in blocks of queries.
//!
//! One query at a time, the keys are divided into stretches of 256 positions, each with a softmax of
//! its own; the stretches are joined in their order (Dao et al. 2023, "Flash-Decoding"). How the
//! stretches are divided among threads does not show in the result.

use std::cell::Cell;
use std::ops::Range;

use super::cache::{KeyValues, POSITIONS};
use super::{AttentionShape, Inputs, Keys, WORKSPACE, stretches};
use crate::activation::soft_cap_here;
use crate::isa::Isa;
use crate::math::exp;
use crate::pool::Pool;
use crate::shared::SharedSlice;
use crate::simd::{LANES, add_lanes, vectorized};
use crate::tile::{Arithmetic, Precision};

/// Keys with a softmax of their own.
const STRETCH: usize = 256;
/// Products of queries and keys below which a job is not worth dividing.
const SMALL: usize = 1 << 15;

/// The heads of an attention over a cache; a query sees its own position and those before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CachedShape {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// What the products of queries and keys are multiplied by.
    pub scale: f32,
    /// What the scores are [capped](crate::activation::soft_cap) by, where they are.
    pub soft_cap: Option<f32>,
    /// The sliding window, where there is one.
    pub window: Option<usize>,
}

/// A query, and where its keys are.
#[derive(Clone, Copy, Debug)]
pub struct CachedQuery<'a> {
    /// Its row.
    pub row: usize,
    /// Keys and values, this position's among them.
    pub cache: &'a KeyValues,
    /// The query's position.
    pub position: usize,
}

/// What is known of the queries of some heads after some stretches of keys; kept between calls.
#[derive(Debug, Default)]
pub struct Partials {
    /// For each task, each head's output, largest score and sum.
    values: Vec<f32>,
    /// What each task is.
    tasks: Vec<Task>,
}

/// The query heads of a head of keys of one query, and a stretch of keys.
#[derive(Clone, Copy, Debug)]
struct Task {
    query: usize,
    head: usize,
    stretch: usize,
    /// Whether it is the first of the stretches that its query sees, and how many these are.
    stretches: Option<usize>,
}

impl Partials {
    /// Room for `queries` queries that see up to `positions` positions.
    pub fn new(shape: &CachedShape, queries: usize, positions: usize) -> Self {
        let tasks = queries * shape.kv_heads * (positions.div_ceil(STRETCH) + 1);
        let values = vec![0.0; tasks * shape.partial()];
        Self { values, tasks: Vec::with_capacity(tasks) }
    }

    /// Numbers there is room for.
    pub fn room(&self) -> usize {
        self.values.len()
    }
}

impl CachedShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Numbers that a task leaves.
    fn partial(&self) -> usize {
        self.group() * (self.head_dim + 2)
    }

    /// The positions that a query sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }

    fn check(&self, cache: &KeyValues, position: usize) {
        assert!(cache.kv_heads() == self.kv_heads && cache.head_dim() == self.head_dim);
        assert!(position < cache.capacity(), "a query beyond the cache");
    }
}

/// `out = softmax(scale · q kᵀ) v` for some rows of `q` and `out`, `[rows, heads · head_dim]`: those
/// of `queries` queries of any sequences. Products are f32.
///
/// # Panics
/// If `q` and `out` differ in length, a row is not there, or a cache has another shape.
pub fn attend<'a>(
    pool: &mut Pool,
    shape: &CachedShape,
    queries: usize,
    query: impl Fn(usize) -> CachedQuery<'a> + Sync,
    q: &[f32],
    out: &mut [f32],
    partials: &mut Partials,
) {
    attend_with(Isa::detect(), pool, shape, queries, query, q, out, partials);
}

/// [`attend`] for a level of instructions, or the machine's own where that is lower.
#[expect(clippy::too_many_arguments, reason = "a level beside those of `attend`")]
pub fn attend_with<'a>(
    isa: Isa,
    pool: &mut Pool,
    shape: &CachedShape,
    queries: usize,
    query: impl Fn(usize) -> CachedQuery<'a> + Sync,
    q: &[f32],
    out: &mut [f32],
    partials: &mut Partials,
) {
    assert_eq!(q.len(), out.len(), "q and out differ in length");
    let (width, group) = (shape.heads * shape.head_dim, shape.group() * shape.head_dim);
    let Partials { values, tasks } = partials;
    tasks.clear();
    let mut seen = 0;
    for index in 0..queries {
        let query = query(index);
        shape.check(query.cache, query.position);
        let visible = shape.visible(query.position);
        seen += visible.len();
        let stretches = visible.start / STRETCH..visible.end.div_ceil(STRETCH);
        for head in 0..shape.kv_heads {
            tasks.extend(stretches.clone().map(|stretch| {
                let first = stretch == stretches.start;
                Task { query: index, head, stretch, stretches: first.then_some(stretches.len()) }
            }));
        }
    }
    let used = tasks.len() * shape.partial();
    values.resize(used.max(values.len()), 0.0);
    let task = |index: usize, partial: &mut [f32]| {
        let Task { query: index, head, stretch, .. } = tasks[index];
        let query = query(index);
        let visible = shape.visible(query.position);
        let within = |position: usize| position.clamp(stretch * STRETCH, (stretch + 1) * STRETCH);
        let positions = within(visible.start)..within(visible.end);
        let q = &q[query.row * width + head * group..][..group];
        let mut scratch = SCRATCH.take();
        attend_stretch(isa, shape, query.cache, head, q, positions, partial, &mut scratch);
        SCRATCH.set(scratch);
    };
    if seen * width < SMALL {
        let partials = values[..used].chunks_mut(shape.partial());
        partials.enumerate().for_each(|(index, partial)| task(index, partial));
    } else {
        pool.run_chunks(&mut values[..used], shape.partial(), task);
    }
    for (index, task) in tasks.iter().enumerate() {
        let Some(stretches) = task.stretches else { continue };
        let partials = &values[index * shape.partial()..][..stretches * shape.partial()];
        let first = query(task.query).row * width + task.head * group;
        join(shape, partials, &mut out[first..][..group]);
    }
}

/// What a task works in; kept by its thread.
#[derive(Default)]
struct Scratch {
    /// A block of keys or values.
    tile: Vec<f32>,
    /// Scores of each head, then their exponentials.
    scores: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

#[expect(clippy::too_many_arguments, reason = "the parts of one task, borrowed apart")]
fn attend_stretch(
    isa: Isa,
    shape: &CachedShape,
    cache: &KeyValues,
    head: usize,
    q: &[f32],
    positions: Range<usize>,
    partial: &mut [f32],
    scratch: &mut Scratch,
) {
    let (group, dim) = (shape.group(), shape.head_dim);
    scratch.tile.resize(dim * POSITIONS, 0.0);
    scratch.scores.resize(group * STRETCH, 0.0);
    let blocks = positions.start / POSITIONS..positions.end.div_ceil(POSITIONS);
    for (index, block) in blocks.clone().enumerate() {
        cache.keys(isa, head, block, &mut scratch.tile);
        score(isa, &scratch.tile, q, &mut scratch.scores[index * POSITIONS..], shape.scale);
    }
    let (first, used) = (blocks.start * POSITIONS, blocks.len() * POSITIONS);
    let seen = positions.start - first..positions.end - first;
    let (out, sums) = partial.split_at_mut(group * dim);
    for (scores, sums) in scratch.scores.chunks_exact_mut(STRETCH).zip(sums.as_chunks_mut::<2>().0)
    {
        if let Some(cap) = shape.soft_cap {
            soft_cap_here(isa, &mut scores[..used], cap);
        }
        let (maximum, sum) = soften(isa, &mut scores[..used], seen.start, seen.end);
        *sums = [maximum, sum];
    }
    out.fill(0.0);
    for (index, block) in blocks.enumerate() {
        cache.values(isa, head, block, &mut scratch.tile);
        // What lies beyond the last position is not of this sequence, and may not even be finite.
        let count = (used - index * POSITIONS).min(seen.end - index * POSITIONS).min(POSITIONS);
        let tile = &scratch.tile[..count * dim];
        weigh(isa, tile, &scratch.scores[index * POSITIONS..], dim, out);
    }
}

vectorized! {
    /// `scores[head][lane] = scale · Σ q[head][channel] · keys[channel][lane]`, heads [`STRETCH`]
    /// apart.
    fn score(keys: &[f32], q: &[f32], scores: &mut [f32], scale: f32) {
        let keys = keys.as_chunks::<POSITIONS>().0;
        for (q, scores) in q.chunks_exact(keys.len()).zip(scores.chunks_mut(STRETCH)) {
            let mut sums = [0.0; POSITIONS];
            for (q, keys) in q.iter().zip(keys) {
                for lane in 0..POSITIONS {
                    sums[lane] += q * keys[lane];
                }
            }
            for (score, sum) in scores.iter_mut().zip(sums) {
                *score = sum * scale;
            }
        }
    }
}

vectorized! {
    /// Replaces the scores from `start` to `end` by `exp(score - maximum)`, the others by zero;
    /// returns the maximum and the sum.
    fn soften(scores: &mut [f32], start: usize, end: usize) -> (f32, f32) {
        scores[..start].fill(f32::NEG_INFINITY);
        scores[end..].fill(f32::NEG_INFINITY);
        let (chunks, _) = scores.as_chunks_mut::<LANES>();
        let mut largest = [f32::MIN; LANES];
        for chunk in &*chunks {
            for lane in 0..LANES {
                largest[lane] = if chunk[lane] > largest[lane] { chunk[lane] } else { largest[lane] };
            }
        }
        let maximum = largest.iter().fold(f32::MIN, |a, b| if *b > a { *b } else { a });
        let mut sums = [0.0; LANES];
        for chunk in chunks {
            for lane in 0..LANES {
                chunk[lane] = exp(chunk[lane] - maximum);
                sums[lane] += chunk[lane];
            }
        }
        (maximum, add_lanes(sums))
    }
}

vectorized! {
    /// `out[head] += Σ weight[head][position] · values[position]`, weights [`STRETCH`] apart.
    fn weigh(values: &[f32], weights: &[f32], dim: usize, out: &mut [f32]) {
        for (weights, out) in weights.chunks(STRETCH).zip(out.chunks_exact_mut(dim)) {
            let (chunks, rest) = out.as_chunks_mut::<{ 4 * LANES }>();
            for (index, out) in chunks.iter_mut().enumerate() {
                let mut sums = *out;
                for (values, weight) in values.chunks_exact(dim).zip(weights) {
                    let values = &values[index * 4 * LANES..][..4 * LANES];
                    for lane in 0..4 * LANES {
                        sums[lane] += weight * values[lane];
                    }
                }
                *out = sums;
            }
            let first = dim - rest.len();
            for (values, weight) in values.chunks_exact(dim).zip(weights) {
                for (out, value) in rest.iter_mut().zip(&values[first..]) {
                    *out += weight * value;
                }
            }
        }
    }
}

/// Joins the stretches of a head of keys, in their order.
fn join(shape: &CachedShape, partials: &[f32], out: &mut [f32]) {
    let (group, dim) = (shape.group(), shape.head_dim);
    let sums = |partial: &[f32], head: usize| {
        let at = group * dim + 2 * head;
        (partial[at], partial[at + 1])
    };
    for (head, out) in out.chunks_exact_mut(dim).enumerate() {
        let partials = partials.chunks_exact(shape.partial());
        let maximum = partials.clone().map(|p| sums(p, head).0).fold(f32::MIN, f32::max);
        let factor = |partial: &[f32]| (sums(partial, head).0 - maximum).exp();
        let total: f32 = partials.clone().map(|p| sums(p, head).1 * factor(p)).sum();
        out.fill(0.0);
        for partial in partials {
            let factor = factor(partial) / total;
            for (out, value) in out.iter_mut().zip(&partial[head * dim..][..dim]) {
                *out += factor * value;
            }
        }
    }
}

/// The same for the queries at `first` and the positions after it, one row each of `q` and `out`, in
/// blocks; with [`Precision::Bf16`], factors of the products are rounded to bf16.
///
/// # Panics
/// If a slice has another length, or the cache another shape.
pub fn attend_block(
    pool: &mut Pool,
    shape: &CachedShape,
    precision: Precision,
    cache: &KeyValues,
    first: usize,
    q: &[f32],
    out: &mut [f32],
) {
    attend_block_with(Isa::detect(), pool, shape, precision, cache, first, q, out);
}

/// [`attend_block`] for a level of instructions, or the machine's own where that is lower.
#[expect(clippy::too_many_arguments, reason = "a level beside those of `attend_block`")]
pub fn attend_block_with(
    isa: Isa,
    pool: &mut Pool,
    shape: &CachedShape,
    precision: Precision,
    cache: &KeyValues,
    first: usize,
    q: &[f32],
    out: &mut [f32],
) {
    let queries = q.len() / (shape.heads * shape.head_dim);
    assert_eq!(q.len(), out.len(), "q and out differ in length");
    if queries == 0 {
        return;
    }
    shape.check(cache, first + queries - 1);
    let shape = AttentionShape {
        batch: 1,
        seq: queries,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        scale: shape.scale,
        soft_cap: shape.soft_cap,
        causal: true,
        window: shape.window,
    };
    let arithmetic = Arithmetic::new(isa, precision);
    let inputs = Inputs { shape: &shape, arithmetic, isa, q, first, keys: Keys::Cached(cache) };
    let out = SharedSlice::new(out);
    let (stretches, length) = stretches(&shape, pool.threads());
    pool.run(shape.kv_heads * stretches, |task| {
        // The last stretches see the most keys: they go first.
        let begin = (stretches - 1 - task / shape.kv_heads) * length;
        let queries = first + begin..first + (begin + length).min(shape.seq);
        if queries.is_empty() {
            return;
        }
        let mut workspace = WORKSPACE.take();
        inputs.task(0, task % shape.kv_heads, queries, &mut workspace, &out);
        WORKSPACE.set(workspace);
    });
}
