//! The product of a linear layer: y = x Wᵀ + b, with the weight packed once.
//!
//! Work is divided over blocks of the output only, never along the sum: every element is one chain
//! of additions in a fixed order, so that the result is the same bits on any number of threads and
//! for any number of other rows.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::isa::Isa;
use crate::shared::SharedSlice;
use crate::simd::vectorized;
use crate::tile::{Arithmetic, BLOCK, Block, PANEL, Session, Tile};

pub use crate::tile::Precision;

/// Summed tiles of one pass over a block of rows: two right panels of them (36 KiB) stay in the
/// first-level cache while the rows go by.
const TILES_PER_PASS: usize = 12;
/// Most rows of one task: their left panels stay in the second-level cache beside the weight.
const ROWS_PER_TASK: usize = 256;
/// Blocks of 32 rows that go through all columns of a chunk together: enough to use each right panel
/// several times while it is near, few enough that the rows of y are written along.
const BLOCKS_PER_STRIP: usize = 2;
const PAIRS_PER_GROUP: usize = 8;
/// Weights of a chunk of columns, which stay in the second-level cache while the strips go by.
const CHUNK_BYTES: usize = 700 << 10;
/// Right panels (16 output features each) of one task, at least.
const COLUMN_PANELS_PER_TASK: usize = 16;

/// The weight `[out_features, in_features]` of a linear layer, ready to multiply.
pub struct PackedMatrix {
    arithmetic: Arithmetic,
    out_features: usize,
    in_features: usize,
    /// An even number of right panels of `tiles` tiles each.
    panels: Vec<Tile>,
    tiles: usize,
}

impl PackedMatrix {
    /// Packs a weight stored row by row. The bf16 copy takes 2 bytes per weight where the processor
    /// multiplies bf16, else 4.
    ///
    /// # Panics
    /// If `weight` does not have `out_features × in_features` values.
    pub fn new(
        weight: &[f32],
        out_features: usize,
        in_features: usize,
        precision: Precision,
    ) -> Self {
        Self::new_with(Isa::detect(), weight, out_features, in_features, precision)
    }

    /// [`new`](Self::new) for a level of instructions, or the machine's own where that is lower.
    pub fn new_with(
        isa: Isa,
        weight: &[f32],
        out_features: usize,
        in_features: usize,
        precision: Precision,
    ) -> Self {
        assert_eq!(weight.len(), out_features * in_features, "the weight has another shape");
        let arithmetic = Arithmetic::new(isa, precision);
        let tiles = arithmetic.tiles(in_features);
        let panel_count = out_features.div_ceil(BLOCK) * 2;
        let mut panels = vec![Tile::ZERO; panel_count * tiles];
        if tiles > 0 {
            panels.par_chunks_mut(tiles).enumerate().for_each(|(index, panel)| {
                let first = index * PANEL;
                let rows = out_features.saturating_sub(first).min(PANEL);
                let weight = &weight[first.min(out_features) * in_features..];
                arithmetic.pack_rows(weight, in_features, rows, in_features, panel);
                arithmetic.transpose(panel);
            });
        }
        Self { arithmetic, out_features, in_features, panels, tiles }
    }

    /// The number of output features.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The number of input features.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.panels.as_slice())
    }

    /// y = x Wᵀ + bias, with x `[rows, in_features]` and y `[rows, out_features]`.
    ///
    /// # Panics
    /// If `x`, `bias` or `y` has another length than these shapes say.
    pub fn multiply(&self, x: &[f32], rows: usize, bias: Option<&[f32]>, y: &mut [f32]) {
        assert_eq!(x.len(), rows * self.in_features, "x has another shape");
        assert_eq!(y.len(), rows * self.out_features, "y has another shape");
        assert!(bias.is_none_or(|bias| bias.len() == self.out_features), "bias: another length");
        if y.is_empty() {
            return;
        }
        let threads = rayon::current_num_threads();
        let row_tasks = rows.div_ceil(ROWS_PER_TASK);
        let rows_per_task = rows.div_ceil(row_tasks).next_multiple_of(BLOCK);
        let pairs = self.out_features.div_ceil(BLOCK);
        let column_tasks =
            (4 * threads).div_ceil(row_tasks).min(pairs.div_ceil(COLUMN_PANELS_PER_TASK / 2));
        let pairs_per_task = pairs.div_ceil(column_tasks);
        let y = SharedSlice::new(y);
        (0..row_tasks * column_tasks).into_par_iter().for_each(|task| {
            let first_row = task % row_tasks * rows_per_task;
            let first_pair = task / row_tasks * pairs_per_task;
            let rows = first_row.min(rows)..(first_row + rows_per_task).min(rows);
            let pairs = first_pair.min(pairs)..(first_pair + pairs_per_task).min(pairs);
            let mut left = LEFT.take();
            self.task(x, rows, pairs, bias, &y, &mut left);
            LEFT.set(left);
        });
    }

    /// The rows `rows` and pairs of panels `pairs` of the product.
    fn task(
        &self,
        x: &[f32],
        rows: Range<usize>,
        pairs: Range<usize>,
        bias: Option<&[f32]>,
        y: &SharedSlice<f32>,
        left: &mut Vec<Tile>,
    ) {
        let blocks = rows.len().div_ceil(BLOCK);
        left.resize(2 * blocks * self.tiles, Tile::ZERO);
        if self.tiles > 0 {
            for (index, panel) in left.chunks_mut(self.tiles).enumerate() {
                let first = (rows.start + index * PANEL).min(rows.end);
                let count = (rows.end - first).min(PANEL);
                let x = &x[first * self.in_features..];
                self.arithmetic.pack_rows(x, self.in_features, count, self.in_features, panel);
            }
        }
        let session = self.arithmetic.begin();
        let mut products = [Block::ZERO; BLOCKS_PER_STRIP * PAIRS_PER_GROUP];
        let pairs_per_chunk = (CHUNK_BYTES / size_of::<Tile>() / 2 / self.tiles.max(1)).max(1);
        for first in pairs.clone().step_by(pairs_per_chunk) {
            let chunk = first..(first + pairs_per_chunk).min(pairs.end);
            for strip in (0..blocks).step_by(BLOCKS_PER_STRIP) {
                let first = rows.start + strip * BLOCK;
                let rows = first..(first + BLOCKS_PER_STRIP * BLOCK).min(rows.end);
                let left = &left[2 * strip * self.tiles..];
                let blocks = rows.len().div_ceil(BLOCK);
                for first in chunk.clone().step_by(PAIRS_PER_GROUP) {
                    let group = first..(first + PAIRS_PER_GROUP).min(chunk.end);
                    for (pair, products) in
                        group.clone().zip(products.chunks_exact_mut(BLOCKS_PER_STRIP))
                    {
                        self.column_pair(&session, pair, left, &mut products[..blocks]);
                    }
                    self.write(&products, rows.clone(), group, bias, y);
                }
            }
        }
    }

    /// The products of a strip of row blocks with one pair of right panels.
    fn column_pair(&self, session: &Session, pair: usize, left: &[Tile], products: &mut [Block]) {
        let right = &self.panels[2 * pair * self.tiles..][..2 * self.tiles];
        let (right0, right1) = right.split_at(self.tiles);
        let passes = self.tiles.div_ceil(TILES_PER_PASS).max(1);
        let per_pass = self.tiles.div_ceil(passes);
        for pass in 0..passes {
            let range = pass * per_pass..((pass + 1) * per_pass).min(self.tiles);
            for (block, product) in products.iter_mut().enumerate() {
                let left = &left[2 * block * self.tiles..][..2 * self.tiles];
                let (left0, left1) = left.split_at(self.tiles);
                session.multiply(
                    [&left0[range.clone()], &left1[range.clone()]],
                    [&right0[range.clone()], &right1[range.clone()]],
                    pass > 0,
                    product,
                );
            }
        }
    }

    fn write(
        &self,
        products: &[Block],
        rows: Range<usize>,
        pairs: Range<usize>,
        bias: Option<&[f32]>,
        y: &SharedSlice<f32>,
    ) {
        let columns = pairs.start * BLOCK..(pairs.end * BLOCK).min(self.out_features);
        let bias = bias.map(|bias| &bias[columns.clone()]);
        for (index, row) in rows.enumerate() {
            let start = row * self.out_features + columns.start;
            // SAFETY: tasks differ in rows or in pairs of panels, so no two write one element.
            let y = unsafe { y.slice_mut(start, columns.len()) };
            let products = &products[index / BLOCK..];
            write_row(self.arithmetic.isa(), products, index % BLOCK, bias, y);
        }
    }
}

vectorized! {
    /// Writes one row of a group of blocks, and adds the bias.
    fn write_row(products: &[Block], row: usize, bias: Option<&[f32]>, y: &mut [f32]) {
        for (index, y) in y.chunks_mut(BLOCK).enumerate() {
            let values = &products[index * BLOCKS_PER_STRIP].0[row];
            let mut added = [0.0; BLOCK];
            if let Some(bias) = bias {
                let bias = &bias[index * BLOCK..];
                let count = bias.len().min(BLOCK);
                added[..count].copy_from_slice(&bias[..count]);
            }
            // Whole blocks have a loop of known length, which becomes a few vector instructions.
            match y.first_chunk_mut::<BLOCK>() {
                Some(y) => {
                    for lane in 0..BLOCK {
                        y[lane] = values[lane] + added[lane];
                    }
                }
                None => {
                    for (lane, y) in y.iter_mut().enumerate() {
                        *y = values[lane] + added[lane];
                    }
                }
            }
        }
    }
}

thread_local! {
    /// The packed rows of a task; kept, because clearing fresh pages costs more than packing.
    static LEFT: Cell<Vec<Tile>> = Cell::default();
}
