//! Multi-head attention, block by block, with the softmax kept online (Milakov and Gimelshein 2018;
//! Dao et al. 2022): no more than 32 × 256 scores exist at a time for each thread.
//!
//! A task is a key-value head of one sequence and a stretch of its queries; it packs the keys and
//! values that these can see, and takes its query heads one after the other. Every output row is
//! computed the same way whatever the division, so that the bits do not depend on the number of
//! threads.

mod block;
mod cache;
mod cached;
mod online;

pub use cache::{CacheType, KeyValues};
pub use cached::{
    CachedQuery, CachedShape, Partials, attend, attend_block, attend_block_with, attend_with,
};

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::isa::Isa;
use crate::shared::SharedSlice;
use crate::tile::{Arithmetic, BLOCK, Precision};
use block::Workspace;

/// The sizes of an attention, and which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Positions of each sequence, for queries and keys alike.
    pub seq: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` consecutive query heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// What the products of queries and keys are multiplied by, usually `1 / √head_dim`.
    pub scale: f32,
    /// What the scores are [capped](crate::activation::soft_cap) by, where they are.
    pub soft_cap: Option<f32>,
    /// Whether a query sees only its own position and those before it.
    pub causal: bool,
    /// The sliding window, where there is one: query `i` sees key `j` only if `i - j < window`.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// The keys that query `query` sees.
    fn visible(&self, query: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (query + 1).saturating_sub(window));
        first..if self.causal { query + 1 } else { self.seq }
    }

    /// The keys that some query of a range, not empty, sees.
    fn visible_to_any(&self, queries: &Range<usize>) -> Range<usize> {
        self.visible(queries.start).start..self.visible(queries.end - 1).end
    }
}

/// `out = softmax(scale · q kᵀ) v` for each head, the scores capped where the shape says so.
///
/// `q` and `out` are `[batch · seq, heads · head_dim]`, `k` and `v` `[batch · seq, kv_heads ·
/// head_dim]`. With [`Precision::Bf16`] queries, keys, values and probabilities are rounded to bf16
/// before they are multiplied; scores, the softmax and all sums are f32.
///
/// # Panics
/// If a slice has another length than the shape says, `heads` is no multiple of `kv_heads`, or the
/// window is 0.
pub fn attention(
    shape: &AttentionShape,
    precision: Precision,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
) {
    attention_with(Isa::detect(), shape, precision, q, k, v, out);
}

/// [`attention`] for a level of instructions, or the machine's own where that is lower.
pub fn attention_with(
    isa: Isa,
    shape: &AttentionShape,
    precision: Precision,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
) {
    let rows = shape.batch * shape.seq;
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    assert_eq!(q.len(), rows * width, "q has another shape");
    assert_eq!(out.len(), rows * width, "out has another shape");
    assert_eq!(k.len(), rows * kv_width, "k has another shape");
    assert_eq!(v.len(), rows * kv_width, "v has another shape");
    assert_ne!(shape.window, Some(0), "a window of 0 hides every key");
    if out.is_empty() {
        return;
    }
    assert!(shape.heads.is_multiple_of(shape.kv_heads), "heads and kv_heads do not fit");
    let arithmetic = Arithmetic::new(isa, precision);
    let inputs = Inputs { shape, arithmetic, isa, q, first: 0, keys: Keys::Rows { k, v } };
    let out = SharedSlice::new(out);
    let (stretches, length) = stretches(shape, rayon::current_num_threads());
    let tasks = shape.batch * shape.kv_heads * stretches;
    (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
        // The last stretches see the most keys: they go first.
        let first = (stretches - 1 - task % stretches) * length;
        let queries = first..(first + length).min(shape.seq);
        if queries.is_empty() {
            return;
        }
        let kv_head = task / stretches % shape.kv_heads;
        let sequence = task / stretches / shape.kv_heads;
        let mut workspace = WORKSPACE.take();
        inputs.task(sequence, kv_head, queries, &mut workspace, &out);
        WORKSPACE.set(workspace);
    });
}

/// Into how many stretches the queries of a sequence are divided, and their length: one where there
/// are heads enough for the threads, since each stretch packs the keys anew.
fn stretches(shape: &AttentionShape, threads: usize) -> (usize, usize) {
    const SHORTEST: usize = 4 * BLOCK;
    let heads = shape.batch * shape.kv_heads;
    let wanted = (4 * threads).div_ceil(heads).min(shape.seq.div_ceil(SHORTEST));
    let length = shape.seq.div_ceil(wanted).next_multiple_of(BLOCK);
    (shape.seq.div_ceil(length), length)
}

struct Inputs<'a> {
    shape: &'a AttentionShape,
    arithmetic: Arithmetic,
    isa: Isa,
    q: &'a [f32],
    /// Position of the first row of `q` in its sequence.
    first: usize,
    keys: Keys<'a>,
}

/// Where keys and values come from.
enum Keys<'a> {
    /// Rows of as many positions as there are queries.
    Rows { k: &'a [f32], v: &'a [f32] },
    /// A cache, which holds the positions of the queries and all before them.
    Cached(&'a KeyValues),
}

thread_local! {
    static WORKSPACE: Cell<Box<Workspace>> = Cell::default();
}
