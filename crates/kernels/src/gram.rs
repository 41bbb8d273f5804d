//! The Gram matrix XᵀX of a layer's inputs, gathered batch by batch: the Hessian of GPTQ and its kin.
//!
//! Only the blocks on and above the diagonal are computed. A stretch of 384 rows is summed inside the
//! block product, and these sums are added up in f32, which keeps the rounding error that of a few
//! hundred additions over a million rows. Work is divided over blocks of the result, never over
//! rows: the bits do not depend on the number of threads (they do on how the rows are divided into
//! calls).

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::isa::Isa;
use crate::matrix::PackedMatrix;
use crate::shared::SharedSlice;
use crate::simd::vectorized;
use crate::tile::{Arithmetic, BLOCK, Block, PANEL, Precision, Tile};

/// Rows packed at a time; their two packed forms are what `accumulate` needs beside the result.
const ROWS_PER_ROUND: usize = 2048;
/// Rows summed in one product of blocks: three panels of them fit the first-level cache.
const ROWS_PER_SUM: usize = 384;
/// Blocks along the side of a task's square of the result, at most: the square and the panels it
/// needs stay in the second-level cache.
const SIDE: usize = 12;

/// `H = XᵀX` in the making, for X of `n` columns.
pub struct Gram {
    arithmetic: Arithmetic,
    n: usize,
    rows: usize,
    /// Block rows of the upper triangle, one after the other.
    blocks: Vec<Block>,
}

impl Gram {
    /// A sum over no rows.
    pub fn new(n: usize, precision: Precision) -> Self {
        Self::new_with(Isa::detect(), n, precision)
    }

    /// [`new`](Self::new) for a level of instructions, or the machine's own where that is lower.
    pub fn new_with(isa: Isa, n: usize, precision: Precision) -> Self {
        let side = n.div_ceil(BLOCK);
        Self {
            arithmetic: Arithmetic::new(isa, precision),
            n,
            rows: 0,
            blocks: vec![Block::ZERO; side * (side + 1) / 2],
        }
    }

    /// The number of rows added so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns of X, and the side of the result.
    pub fn columns(&self) -> usize {
        self.n
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.blocks.as_slice())
    }

    /// Adds XᵀX of further rows, x `[rows, n]`.
    ///
    /// # Panics
    /// If `x` does not have `rows × n` values.
    pub fn accumulate(&mut self, x: &[f32], rows: usize) {
        assert_eq!(x.len(), rows * self.n, "x has another shape");
        self.rows += rows;
        if x.is_empty() {
            return;
        }
        // Taken, not borrowed: while this thread waits it may run another accumulation.
        let mut packed = PACKED.take();
        for x in x.chunks(ROWS_PER_ROUND * self.n) {
            packed.fill(self.arithmetic, x, self.n);
            self.add(&packed);
        }
        PACKED.set(packed);
    }

    /// Adds the sums of another, as if its rows had been added after these.
    ///
    /// # Panics
    /// If the other has another number of columns.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.n, other.n, "the two differ in columns");
        self.rows += other.rows;
        for (block, other) in self.blocks.iter_mut().zip(&other.blocks) {
            add_block(self.arithmetic.isa(), block, other);
        }
    }

    /// The full matrix, n × n.
    pub fn finish(self) -> Vec<f32> {
        let n = self.n;
        let mut full = vec![0.0; n * n];
        let Some(row_blocks) = (!full.is_empty()).then(|| n.div_ceil(BLOCK)) else {
            return full;
        };
        full.par_chunks_mut(BLOCK * n).enumerate().for_each(|(block_row, rows)| {
            for (row, values) in rows.chunks_exact_mut(n).enumerate() {
                for (column, value) in values.iter_mut().enumerate() {
                    let (block_column, lane) = (column / BLOCK, column % BLOCK);
                    *value = if block_column >= block_row {
                        self.blocks[place(row_blocks, block_row, block_column)].0[row][lane]
                    } else {
                        self.blocks[place(row_blocks, block_column, block_row)].0[lane][row]
                    };
                }
            }
        });
        full
    }

    /// Adds the products of packed rows.
    fn add(&mut self, packed: &Packed) {
        let row_blocks = self.n.div_ceil(BLOCK);
        let squares = squares(row_blocks, rayon::current_num_threads());
        let arithmetic = self.arithmetic;
        let blocks = SharedSlice::new(&mut self.blocks);
        squares.into_par_iter().with_max_len(1).for_each(|square| {
            let session = arithmetic.begin();
            let mut product = Block::ZERO;
            let per_sum = arithmetic.tiles(ROWS_PER_SUM);
            for first in (0..packed.tiles).step_by(per_sum) {
                let stretch = first..(first + per_sum).min(packed.tiles);
                for (row, column) in square.blocks() {
                    let place = place(row_blocks, row, column);
                    let left = packed.pair(&packed.left, row, &stretch);
                    let right = packed.pair(&packed.right, column, &stretch);
                    session.multiply(left, right, false, &mut product);
                    // SAFETY: the squares do not overlap, so no two tasks write one block.
                    let sums = unsafe { blocks.slice_mut(place, 1) };
                    add_block(arithmetic.isa(), &mut sums[0], &product);
                }
            }
        });
    }
}

/// `tr(M H Mᵀ)` for `M` of `[rows, n]` and a packed Gram matrix `H`: the energy of the outputs of a
/// layer, or of an error of it.
///
/// # Panics
/// If `matrix` does not have whole rows.
pub fn energy(matrix: &[f32], gram: &PackedMatrix) -> f64 {
    let cols = gram.in_features().max(1);
    let mut sum = 0.0;
    let mut product = vec![];
    for rows in matrix.chunks(256 * cols) {
        product.clear();
        product.resize(rows.len(), 0.0);
        gram.multiply(rows, rows.len() / cols, None, &mut product);
        sum += rows.iter().zip(&product).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    }
    sum
}

/// Where block (`row`, `column`) stands, for `row ≤ column < side`.
fn place(side: usize, row: usize, column: usize) -> usize {
    row * side - row * row.saturating_sub(1) / 2 + column - row
}

/// A square of blocks on or above the diagonal.
struct Square {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Square {
    /// Its blocks in the upper triangle, column by column.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        self.columns.clone().flat_map(|column| {
            (self.rows.start..self.rows.end.min(column + 1)).map(move |row| (row, column))
        })
    }
}

/// The squares that cover the upper triangle of `side` blocks, large ones first: enough of them that
/// the threads end at about the same time.
fn squares(side: usize, threads: usize) -> Vec<Square> {
    let mut width = SIDE.min(side);
    while width > 2 && side.div_ceil(width) * (side.div_ceil(width) + 1) / 2 < 3 * threads {
        width -= 1;
    }
    let count = side.div_ceil(width);
    let range = |index: usize| index * width..((index + 1) * width).min(side);
    let mut squares: Vec<_> = (0..count)
        .flat_map(|row| (row..count).map(move |column| (row, column)))
        .map(|(row, column)| Square { rows: range(row), columns: range(column) })
        .collect();
    squares.sort_by_key(|square| std::cmp::Reverse(square.blocks().count()));
    squares
}

vectorized! {
    fn add_block(sums: &mut Block, product: &Block) {
        for (sums, product) in sums.0.as_flattened_mut().iter_mut().zip(product.0.as_flattened()) {
            *sums += product;
        }
    }
}

/// Rows of X packed twice: their columns as the rows of Xᵀ, and as the columns of X.
#[derive(Default)]
struct Packed {
    tiles: usize,
    left: Vec<Tile>,
    right: Vec<Tile>,
}

impl Packed {
    fn fill(&mut self, arithmetic: Arithmetic, x: &[f32], n: usize) {
        let rows = x.len() / n;
        let panels = n.div_ceil(BLOCK) * 2;
        self.tiles = arithmetic.tiles(rows);
        self.left.resize(panels * self.tiles, Tile::ZERO);
        self.right.resize(panels * self.tiles, Tile::ZERO);
        let depth = arithmetic.depth_per_tile();
        let (tiles, left, right) =
            (self.tiles, SharedSlice::new(&mut self.left), SharedSlice::new(&mut self.right));
        x.par_chunks(depth * n).enumerate().for_each(|(tile, x)| {
            for panel in 0..panels {
                let first = (panel * PANEL).min(n);
                let columns = (n - first).min(PANEL);
                // SAFETY: each task has its own tile of every panel.
                let (left, right) = unsafe {
                    let place = panel * tiles + tile;
                    (left.slice_mut(place, 1), right.slice_mut(place, 1))
                };
                arithmetic.pack_columns(&x[first..], n, columns, x.len() / n, right);
                left.copy_from_slice(right);
                arithmetic.transpose(left);
            }
        });
    }

    /// The stretch of tiles of two neighbouring panels.
    fn pair<'a>(&self, form: &'a [Tile], block: usize, stretch: &Range<usize>) -> [&'a [Tile]; 2] {
        let first = &form[2 * block * self.tiles..];
        [&first[stretch.clone()], &first[self.tiles..][stretch.clone()]]
    }
}

thread_local! {
    /// Kept between calls: clearing fresh pages costs as much as packing into them.
    static PACKED: Cell<Packed> = Cell::default();
}
