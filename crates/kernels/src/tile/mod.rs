//! Matrix operands cut into 1 KiB tiles, and the product of two panels of them.
//!
//! A tile is 16 rows of 16 lanes of 32 bits. A lane holds one f32, or two bf16 that follow each other
//! along the summed dimension (the lower half first): 16 or 32 summed steps per tile. A *panel* is
//! the tiles of 16 rows (left operand) or 16 columns (right operand), one after the other along the
//! summed dimension, padded with zeros.
//!
//! - Left form: tile row = row of the matrix, lane = position along the sum.
//! - Right form: tile row = position along the sum, lane = column of the matrix.
//!
//! One form is the other with its tiles transposed. This is the shape AMX wants; AVX-512 and the
//! portable kernel read it as well, so every product in this crate packs its operands the same way.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod fused;
mod pack;

use std::marker::PhantomData;

use crate::convert::round_to_bf16;
use crate::isa::Isa;

/// How the factors of a product are rounded before they are multiplied. Sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Factors as they are.
    F32,
    /// Factors rounded to bfloat16, to nearest, ties to even; their products are exact.
    Bf16,
}

/// Rows of a left panel, and columns of a right one.
pub(crate) const PANEL: usize = 16;
/// Rows and columns of the product of two pairs of panels.
pub(crate) const BLOCK: usize = 2 * PANEL;

/// 16 rows of 16 lanes of 32 bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [[u32; 16]; 16]);

impl Tile {
    pub(crate) const ZERO: Self = Self([[0; 16]; 16]);
}

/// The product of a pair of left panels and a pair of right panels.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Block(pub(crate) [[f32; BLOCK]; BLOCK]);

impl Block {
    pub(crate) const ZERO: Self = Self([[0.0; BLOCK]; BLOCK]);
}

/// What the lanes of a tile hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    F32,
    /// An f32 whose value is a bf16: the bf16 product where no instruction multiplies bf16.
    RoundedF32,
    Bf16Pair,
}

/// Writes 32 factors as a row of the tiles of a left panel, and returns them as they will be
/// multiplied.
#[inline(always)]
pub(crate) fn write_factors(
    lane: Lane,
    mut factors: [f32; BLOCK],
    tiles: &mut [Tile],
    row: usize,
) -> [f32; BLOCK] {
    if lane != Lane::F32 {
        for factor in &mut factors {
            *factor = round_to_bf16(*factor);
        }
    }
    if lane == Lane::Bf16Pair {
        // Only x86 multiplies pairs, where the lower half of a lane is the first in memory.
        let narrow: &mut [u16; BLOCK] = bytemuck::cast_mut(&mut tiles[0].0[row]);
        for (narrow, factor) in narrow.iter_mut().zip(&factors) {
            *narrow = (factor.to_bits() >> 16) as u16;
        }
    } else {
        for (tile, factors) in tiles.iter_mut().zip(factors.as_chunks::<PANEL>().0) {
            tile.0[row] = factors.map(f32::to_bits);
        }
    }
    factors
}

/// One way to multiply: what is in the lanes, and which instructions multiply them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arithmetic {
    isa: Isa,
    lane: Lane,
}

impl Arithmetic {
    pub(crate) fn new(isa: Isa, precision: Precision) -> Self {
        let isa = isa.supported();
        let lane = match precision {
            Precision::F32 => Lane::F32,
            Precision::Bf16 if isa >= Isa::Avx512Bf16 => Lane::Bf16Pair,
            Precision::Bf16 => Lane::RoundedF32,
        };
        Self { isa, lane }
    }

    pub(crate) fn isa(self) -> Isa {
        self.isa
    }

    pub(crate) fn lane(self) -> Lane {
        self.lane
    }

    /// Positions of the sum in one tile: 16 or 32.
    pub(crate) fn depth_per_tile(self) -> usize {
        if self.lane == Lane::Bf16Pair { 32 } else { 16 }
    }

    /// Tiles of a panel whose sum runs over `depth` positions.
    pub(crate) fn tiles(self, depth: usize) -> usize {
        depth.div_ceil(self.depth_per_tile())
    }

    /// Packs up to 16 rows of `depth` values, `stride` apart in `source`, as a left panel.
    pub(crate) fn pack_rows(
        self,
        source: &[f32],
        stride: usize,
        rows: usize,
        depth: usize,
        panel: &mut [Tile],
    ) {
        debug_assert!(rows <= PANEL && panel.len() == self.tiles(depth));
        pack::rows(self, source, stride, rows, depth, panel);
    }

    /// Packs up to 16 columns of a matrix of `depth` rows, `stride` apart, as a right panel.
    pub(crate) fn pack_columns(
        self,
        source: &[f32],
        stride: usize,
        columns: usize,
        depth: usize,
        panel: &mut [Tile],
    ) {
        debug_assert!(columns <= PANEL && panel.len() == self.tiles(depth));
        pack::columns(self, source, stride, columns, depth, panel);
    }

    /// Turns a left panel into a right panel, or back.
    pub(crate) fn transpose(self, panel: &mut [Tile]) {
        pack::transpose(self.isa, panel);
    }

    /// Prepares this thread for [`multiply`](Self::multiply) until the guard is dropped.
    pub(crate) fn begin(self) -> Session {
        #[cfg(target_arch = "x86_64")]
        if self.uses_tile_registers() {
            amx::configure();
        }
        Session { arithmetic: self, on_this_thread: PhantomData }
    }

    #[cfg(target_arch = "x86_64")]
    fn uses_tile_registers(self) -> bool {
        self.isa == Isa::Amx && self.lane == Lane::Bf16Pair
    }
}

/// A thread's licence to multiply: the tile registers are configured while it lives. It must not
/// be held across anything that may run other work on this thread.
pub(crate) struct Session {
    arithmetic: Arithmetic,
    /// Keeps the session from moving to another thread.
    on_this_thread: PhantomData<*const ()>,
}

impl Session {
    /// `product = Σ left × right` over the tiles of the panels, or `product += …` where `add` is
    /// set. All four panels have the same length. A panel may stand twice, where only one is wanted.
    pub(crate) fn multiply(
        &self,
        left: [&[Tile]; 2],
        right: [&[Tile]; 2],
        add: bool,
        product: &mut Block,
    ) {
        let tiles = left[0].len();
        assert!(left[1].len() == tiles && right[0].len() == tiles && right[1].len() == tiles);
        #[cfg(target_arch = "x86_64")]
        if self.arithmetic.lane == Lane::Bf16Pair {
            if self.arithmetic.uses_tile_registers() {
                // SAFETY: the panels have `tiles` tiles each, and `begin` configured this thread's
                // tile registers (a session is neither `Send` nor made elsewhere).
                unsafe { amx::multiply(left, right, tiles, add, product) };
            } else {
                // SAFETY: pairs are chosen only where the processor has AVX-512 BF16.
                unsafe { avx512::multiply_pairs(left, right, add, product) };
            }
            return;
        }
        fused::multiply(self.arithmetic.isa, left, right, add, product);
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Session {
    fn drop(&mut self) {
        if self.arithmetic.uses_tile_registers() {
            amx::release();
        }
    }
}
