//! The product of panels of f32 lanes by multiply-add, for levels below AVX-512.
//!
//! The arrays below are vector registers once the compiler has unrolled the loops; the sizes are
//! chosen so that they fit. Each element of the product is one chain of additions along the sum, so
//! that AVX2 and AVX-512 (and NEON) agree bit for bit; the x86 baseline, which has no fused
//! multiply-add, rounds once more per step.

use super::{BLOCK, Block, PANEL, Tile};
use crate::isa::Isa;

pub(super) fn multiply(
    isa: Isa,
    left: [&[Tile]; 2],
    right: [&[Tile]; 2],
    add: bool,
    product: &mut Block,
) {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Portable => {}
        // SAFETY: `isa` is at most what the processor has.
        Isa::Avx2 => return unsafe { multiply_avx2(left, right, add, product) },
        // SAFETY: as above.
        _ => return unsafe { super::avx512::multiply_f32(left, right, add, product) },
    }
    let _ = isa;
    multiply_portable(left, right, add, product);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_avx2(left: [&[Tile]; 2], right: [&[Tile]; 2], add: bool, product: &mut Block) {
    blocks::<4, 1, 16, true>(left, right, add, product);
}

#[cfg(target_arch = "aarch64")]
fn multiply_portable(left: [&[Tile]; 2], right: [&[Tile]; 2], add: bool, product: &mut Block) {
    blocks::<4, 1, 16, true>(left, right, add, product);
}

#[cfg(not(target_arch = "aarch64"))]
fn multiply_portable(left: [&[Tile]; 2], right: [&[Tile]; 2], add: bool, product: &mut Block) {
    blocks::<4, 1, 8, false>(left, right, add, product);
}

/// The whole product in sub-blocks of `ROWS` rows and `WIDTH` columns of `PANELS` panels.
#[inline(always)]
fn blocks<const ROWS: usize, const PANELS: usize, const WIDTH: usize, const FUSED: bool>(
    left: [&[Tile]; 2],
    right: [&[Tile]; 2],
    add: bool,
    product: &mut Block,
) {
    for (half, left) in left.into_iter().enumerate() {
        for group in 0..PANEL / ROWS {
            for first_panel in (0..2).step_by(PANELS) {
                for part in 0..PANEL / WIDTH {
                    let mut sums = [[[0.0; WIDTH]; PANELS]; ROWS];
                    let row = half * PANEL + group * ROWS;
                    let column = first_panel * PANEL + part * WIDTH;
                    let rows = &mut product.0[row..row + ROWS];
                    if add {
                        load(&mut sums, rows, column);
                    }
                    let right: [&[Tile]; PANELS] =
                        std::array::from_fn(|panel| right[first_panel + panel]);
                    accumulate::<ROWS, PANELS, WIDTH, FUSED>(&mut sums, left, right, group, part);
                    store(&sums, rows, column);
                }
            }
        }
    }
}

#[inline(always)]
fn accumulate<const ROWS: usize, const PANELS: usize, const WIDTH: usize, const FUSED: bool>(
    sums: &mut [[[f32; WIDTH]; PANELS]; ROWS],
    left: &[Tile],
    right: [&[Tile]; PANELS],
    group: usize,
    part: usize,
) {
    for (index, tile) in left.iter().enumerate() {
        let rows = &tile.0.as_chunks::<ROWS>().0[group];
        let tiles: [&Tile; PANELS] = std::array::from_fn(|panel| &right[panel][index]);
        #[expect(clippy::needless_range_loop, reason = "two arrays are walked by the same index")]
        for step in 0..PANEL {
            let lanes: [&[u32; WIDTH]; PANELS] =
                std::array::from_fn(|panel| &tiles[panel].0[step].as_chunks().0[part]);
            for row in 0..ROWS {
                let factor = f32::from_bits(rows[row][step]);
                for panel in 0..PANELS {
                    for lane in 0..WIDTH {
                        let other = f32::from_bits(lanes[panel][lane]);
                        let sum = &mut sums[row][panel][lane];
                        *sum =
                            if FUSED { factor.mul_add(other, *sum) } else { factor * other + *sum };
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn load<const ROWS: usize, const PANELS: usize, const WIDTH: usize>(
    sums: &mut [[[f32; WIDTH]; PANELS]; ROWS],
    rows: &[[f32; BLOCK]],
    column: usize,
) {
    for (sums, row) in sums.iter_mut().zip(rows) {
        for (panel, sums) in sums.iter_mut().enumerate() {
            sums.copy_from_slice(&row[column + panel * PANEL..][..WIDTH]);
        }
    }
}

#[inline(always)]
fn store<const ROWS: usize, const PANELS: usize, const WIDTH: usize>(
    sums: &[[[f32; WIDTH]; PANELS]; ROWS],
    rows: &mut [[f32; BLOCK]],
    column: usize,
) {
    for (sums, row) in sums.iter().zip(rows) {
        for (panel, sums) in sums.iter().enumerate() {
            row[column + panel * PANEL..][..WIDTH].copy_from_slice(sums);
        }
    }
}
