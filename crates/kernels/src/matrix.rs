//! The product of a linear layer: y = x Wᵀ + b, with the weight packed once.
//!
//! Work is divided over blocks of the output only, never along the sum: every element is one chain
//! of additions in a fixed order, so that the result is the same bits on any number of threads and
//! for any number of other rows.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::isa::Isa;
use crate::shared::SharedSlice;
use crate::tile::{Arithmetic, BLOCK, Block, PANEL, Session, Tile};

pub use crate::tile::Precision;

/// Summed tiles of one pass over a block of rows: two right panels of them (36 KiB) stay in the
/// first-level cache while the rows go by.
const TILES_PER_PASS: usize = 18;
/// Most rows of one task: their left panels stay in the second-level cache beside the weight.
const ROWS_PER_TASK: usize = 256;
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
            LEFT.with_borrow_mut(|left| self.task(x, rows, pairs, bias, &y, left));
        });
    }

    /// The rows `rows` and pairs of panels `pairs` of the product.
    fn task(
        &self,
        x: &[f32],
        rows: std::ops::Range<usize>,
        pairs: std::ops::Range<usize>,
        bias: Option<&[f32]>,
        y: &SharedSlice<f32>,
        scratch: &mut Scratch,
    ) {
        let row_blocks = rows.len().div_ceil(BLOCK);
        scratch.left.resize(2 * row_blocks * self.tiles, Tile::ZERO);
        scratch.products.resize(row_blocks, Block::ZERO);
        if self.tiles > 0 {
            for (index, panel) in scratch.left.chunks_mut(self.tiles).enumerate() {
                let first = (rows.start + index * PANEL).min(rows.end);
                let count = (rows.end - first).min(PANEL);
                let x = &x[first * self.in_features..];
                self.arithmetic.pack_rows(x, self.in_features, count, self.in_features, panel);
            }
        }
        let session = self.arithmetic.begin();
        for pair in pairs {
            self.column_pair(&session, pair, &scratch.left, &mut scratch.products);
            for (block, product) in scratch.products.iter().enumerate() {
                let first = rows.start + block * BLOCK;
                self.write(product, first..(first + BLOCK).min(rows.end), pair, bias, y);
            }
        }
    }

    /// The products of all row blocks with one pair of right panels.
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
        product: &Block,
        rows: std::ops::Range<usize>,
        pair: usize,
        bias: Option<&[f32]>,
        y: &SharedSlice<f32>,
    ) {
        let first = pair * BLOCK;
        let width = (self.out_features - first).min(BLOCK);
        for (row, values) in rows.zip(&product.0) {
            // SAFETY: tasks differ in rows or in pairs of panels, so no two write one element.
            let y = unsafe { y.slice_mut(row * self.out_features + first, width) };
            match bias {
                Some(bias) => {
                    for ((y, value), bias) in y.iter_mut().zip(values).zip(&bias[first..]) {
                        *y = value + bias;
                    }
                }
                None => y.copy_from_slice(&values[..width]),
            }
        }
    }
}

/// What a task works in; kept by its thread, because clearing fresh pages costs more than packing.
#[derive(Default)]
struct Scratch {
    left: Vec<Tile>,
    products: Vec<Block>,
}

thread_local! {
    static LEFT: RefCell<Scratch> = RefCell::default();
}
