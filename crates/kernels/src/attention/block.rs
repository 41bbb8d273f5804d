//! One task of the attention: packing, and the loop over blocks of queries and of keys.

use std::ops::Range;

use super::cache::{KeyValues, POSITIONS};
use super::online::{self, KEYS, Rows};
use super::{Inputs, Keys};
use crate::activation::soft_cap_here;
use crate::shared::SharedSlice;
use crate::tile::{BLOCK, Block, PANEL, Session, Tile};

/// What a task works in; kept by its thread.
#[derive(Default)]
pub(super) struct Workspace {
    /// Right panels of 16 keys each, summed over channels.
    keys: Vec<Tile>,
    /// Right panels of 16 channels each, summed over keys.
    values: Vec<Tile>,
    /// A block of a cache.
    block: Vec<f32>,
    /// Two left panels: 32 queries, summed over channels.
    queries: Vec<Tile>,
    /// Two left panels: the probabilities of 32 queries, summed over keys.
    probabilities: Vec<Tile>,
    /// One block per 32 keys.
    scores: Vec<Block>,
    /// One block per 32 channels.
    output: Vec<Block>,
    rows: Rows,
}

/// The keys of a task, and the sizes of their packed form.
struct Packing {
    keys: Range<usize>,
    /// Tiles of a panel summed over channels.
    channel_tiles: usize,
    /// Tiles of a panel summed over keys.
    key_tiles: usize,
    /// Blocks of 32 channels.
    channel_blocks: usize,
}

impl Inputs<'_> {
    pub(super) fn task(
        &self,
        sequence: usize,
        kv_head: usize,
        queries: Range<usize>,
        workspace: &mut Workspace,
        out: &SharedSlice<f32>,
    ) {
        let shape = self.shape;
        let visible = shape.visible_to_any(&queries);
        // From a whole block on, so that a query's keys fall into the same blocks in any task.
        let keys = visible.start / KEYS * KEYS..visible.end;
        let packing = Packing {
            channel_tiles: self.arithmetic.tiles(shape.head_dim),
            key_tiles: self.arithmetic.tiles(keys.len().next_multiple_of(BLOCK)),
            channel_blocks: shape.head_dim.div_ceil(BLOCK),
            keys,
        };
        self.pack_keys(sequence, kv_head, &packing, workspace);
        let session = self.arithmetic.begin();
        let group = shape.heads / shape.kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            for first in queries.clone().step_by(BLOCK) {
                let block = first..(first + BLOCK).min(queries.end);
                self.pack_queries(sequence, head, &block, &packing, workspace);
                self.query_block(&session, &block, &packing, workspace);
                self.write(sequence, head, &block, workspace, out);
            }
        }
    }

    fn pack_keys(&self, sequence: usize, kv_head: usize, p: &Packing, w: &mut Workspace) {
        let (arithmetic, dim) = (self.arithmetic, self.shape.head_dim);
        let (k, v) = match self.keys {
            Keys::Rows { k, v } => (k, v),
            Keys::Cached(cache) => return self.pack_cached(cache, kv_head, p, w),
        };
        let stride = self.shape.kv_heads * dim;
        let from = |key: usize| (sequence * self.shape.seq + key) * stride + kv_head * dim;
        let key_panels = p.keys.len().div_ceil(BLOCK) * 2;
        w.keys.resize(key_panels * p.channel_tiles, Tile::ZERO);
        for (index, panel) in w.keys.chunks_exact_mut(p.channel_tiles).enumerate() {
            let first = (p.keys.start + index * PANEL).min(p.keys.end);
            let count = (p.keys.end - first).min(PANEL);
            let source = k.get(from(first)..).unwrap_or_default();
            arithmetic.pack_rows(source, stride, count, dim, panel);
            arithmetic.transpose(panel);
        }
        w.values.resize(p.channel_blocks * 2 * p.key_tiles, Tile::ZERO);
        let used = arithmetic.tiles(p.keys.len());
        for (index, panel) in w.values.chunks_exact_mut(p.key_tiles).enumerate() {
            let first = (index * PANEL).min(dim);
            let count = (dim - first).min(PANEL);
            let source = &v[from(p.keys.start) + first..];
            let (panel, rest) = panel.split_at_mut(used);
            arithmetic.pack_columns(source, stride, count, p.keys.len(), panel);
            rest.fill(Tile::ZERO);
        }
    }

    /// The same from a cache, block by block.
    fn pack_cached(&self, cache: &KeyValues, kv_head: usize, p: &Packing, w: &mut Workspace) {
        let (arithmetic, dim) = (self.arithmetic, self.shape.head_dim);
        w.keys.resize(p.keys.len().div_ceil(BLOCK) * 2 * p.channel_tiles, Tile::ZERO);
        w.values.resize(p.channel_blocks * 2 * p.key_tiles, Tile::ZERO);
        w.block.resize(dim * POSITIONS, 0.0);
        let tiles = arithmetic.tiles(POSITIONS);
        let pairs = w.keys.chunks_exact_mut(2 * p.channel_tiles);
        for (index, panels) in pairs.enumerate() {
            let first = p.keys.start + index * POSITIONS;
            let count = (p.keys.end - first).min(POSITIONS);
            cache.keys(self.isa, kv_head, first / POSITIONS, &mut w.block);
            for (half, panel) in panels.chunks_exact_mut(p.channel_tiles).enumerate() {
                let count = count.saturating_sub(half * PANEL).min(PANEL);
                let source = &w.block[half * PANEL..];
                arithmetic.pack_columns(source, POSITIONS, count, dim, panel);
            }
            cache.values(self.isa, kv_head, first / POSITIONS, &mut w.block);
            for (channels, panel) in w.values.chunks_exact_mut(p.key_tiles).enumerate() {
                let channel = (channels * PANEL).min(dim);
                let columns = (dim - channel).min(PANEL);
                let panel = &mut panel[index * tiles..][..tiles];
                let (panel, rest) = panel.split_at_mut(arithmetic.tiles(count));
                let source = w.block.get(channel..).unwrap_or_default();
                arithmetic.pack_columns(source, dim, columns, count, panel);
                rest.fill(Tile::ZERO);
            }
        }
    }

    fn pack_queries(
        &self,
        sequence: usize,
        head: usize,
        queries: &Range<usize>,
        p: &Packing,
        w: &mut Workspace,
    ) {
        let dim = self.shape.head_dim;
        let stride = self.shape.heads * dim;
        w.queries.resize(2 * p.channel_tiles, Tile::ZERO);
        for (index, panel) in w.queries.chunks_exact_mut(p.channel_tiles).enumerate() {
            let first = (queries.start + index * PANEL).min(queries.end);
            let count = (queries.end - first).min(PANEL);
            let row = sequence * self.shape.seq + first - self.first;
            let at = row * stride + head * dim;
            let source = self.q.get(at..).unwrap_or_default();
            self.arithmetic.pack_rows(source, stride, count, dim, panel);
        }
    }

    /// The attention of the packed queries, left in `output` and `rows`.
    fn query_block(
        &self,
        session: &Session,
        queries: &Range<usize>,
        p: &Packing,
        w: &mut Workspace,
    ) {
        let visible = self.shape.visible_to_any(queries);
        w.output.resize(p.channel_blocks, Block::ZERO);
        w.rows = Rows::default();
        let first_block = visible.start / KEYS * KEYS;
        for first in (first_block..visible.end).step_by(KEYS) {
            let keys = first..(first + KEYS).min(visible.end);
            self.score(session, &keys, p, w);
            let seen = std::array::from_fn(|row| {
                let query = (queries.start + row).min(queries.end - 1);
                let seen = self.shape.visible(query);
                let within = |key: usize| (key.clamp(first, keys.end) - first) as u32;
                within(seen.start)..within(seen.end)
            });
            let tiles = self.arithmetic.tiles(BLOCK) * w.scores.len();
            w.probabilities.resize(2 * tiles, Tile::ZERO);
            let (scale, lane) = (self.cap(&mut w.scores), self.arithmetic.lane());
            let (scores, weights) = (&mut w.scores, &mut w.probabilities);
            online::softmax(self.isa, lane, scores, &seen, scale, &mut w.rows, weights);
            if first > first_block {
                online::rescale(self.isa, &mut w.output, &w.rows);
            }
            self.weigh(session, &keys, first > first_block, p, w);
        }
    }

    /// Caps the scores where that is asked for; returns what they are still to be multiplied by.
    fn cap(&self, scores: &mut [Block]) -> f32 {
        let scale = self.shape.scale;
        let Some(cap) = self.shape.soft_cap else { return scale };
        for row in scores.iter_mut().flat_map(|block| &mut block.0) {
            row.iter_mut().for_each(|score| *score *= scale);
            soft_cap_here(self.isa, row, cap);
        }
        1.0
    }

    /// The products of the queries with a range of keys.
    fn score(&self, session: &Session, keys: &Range<usize>, p: &Packing, w: &mut Workspace) {
        let blocks = keys.len().div_ceil(BLOCK);
        w.scores.resize(blocks, Block::ZERO);
        let (left0, left1) = w.queries.split_at(p.channel_tiles);
        let first = (keys.start - p.keys.start) / PANEL * p.channel_tiles;
        let panels = w.keys[first..].chunks_exact(2 * p.channel_tiles);
        for (scores, panels) in w.scores.iter_mut().zip(panels) {
            let (right0, right1) = panels.split_at(p.channel_tiles);
            session.multiply([left0, left1], [right0, right1], false, scores);
        }
    }

    /// Adds the values of a range of keys, weighted by their probabilities.
    fn weigh(
        &self,
        session: &Session,
        keys: &Range<usize>,
        add: bool,
        p: &Packing,
        w: &mut Workspace,
    ) {
        let tiles = w.probabilities.len() / 2;
        let (left0, left1) = w.probabilities.split_at(tiles);
        let first = self.arithmetic.tiles(keys.start - p.keys.start);
        for (output, panels) in w.output.iter_mut().zip(w.values.chunks_exact(2 * p.key_tiles)) {
            let (right0, right1) = panels.split_at(p.key_tiles);
            let right = [&right0[first..][..tiles], &right1[first..][..tiles]];
            session.multiply([left0, left1], right, add, output);
        }
    }

    fn write(
        &self,
        sequence: usize,
        head: usize,
        queries: &Range<usize>,
        w: &Workspace,
        out: &SharedSlice<f32>,
    ) {
        let dim = self.shape.head_dim;
        let stride = self.shape.heads * dim;
        let first = sequence * self.shape.seq + queries.start - self.first;
        let first = first * stride + head * dim;
        for row in 0..queries.len() {
            // SAFETY: tasks differ in sequence, head or queries, so no two write one element.
            let out = unsafe { out.slice_mut(first + row * stride, dim) };
            online::normalize(self.isa, &w.output, row, 1.0 / w.rows.sum[row], out);
        }
    }
}
