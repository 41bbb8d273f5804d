//! The product of panels of bf16 pairs in AMX tile registers.
//!
//! Rust's AMX intrinsics are not stable, so the instructions are written as assembly. One statement
//! holds a whole product, from zeroing the accumulators to storing them: the compiler uses no tile
//! register of its own, and none of ours is live between statements.

use super::{BLOCK, Block, PANEL, Tile};

/// What LDTILECFG reads: palette 1, and the shape of each of the eight tile registers.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static ALL_TILES_FULL: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Sets this thread's eight tile registers to 16 rows of 64 bytes.
pub(super) fn configure() {
    // SAFETY: reached only where `Isa::detect` found AMX and Linux allowed its state. The
    // configuration is a valid one of palette 1, 64 bytes long.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{configuration}]",
            configuration = in(reg) &raw const ALL_TILES_FULL,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// Returns this thread's tile registers to their initial state, which costs nothing to save.
pub(super) fn release() {
    // SAFETY: reached only after `configure` on this thread.
    unsafe { std::arch::asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// See [`super::Session::multiply`].
///
/// # Safety
/// The panels have `tiles` tiles each, and [`configure`] has run on this thread.
pub(super) unsafe fn multiply(
    left: [&[Tile]; 2],
    right: [&[Tile]; 2],
    tiles: usize,
    add: bool,
    product: &mut Block,
) {
    for (left, rows) in left.into_iter().zip(product.0.as_chunks_mut::<PANEL>().0) {
        // SAFETY: as the caller promises.
        unsafe { multiply_rows(left, right, tiles, add, rows) };
    }
}

/// 16 rows of the product, in the first four tile registers: two accumulators, a left and a right
/// factor.
///
/// Twice as many accumulators would halve the loads, and would be no faster where the loads hit the
/// first-level cache. They would be half as fast where another hyperthread works on the same core:
/// it takes half of the registers behind these eight, and then a tile instruction must wait for an
/// earlier one to retire unless few of the eight are in use (measured on Sapphire Rapids).
///
/// # Safety
/// The panels have `tiles` tiles each, and [`configure`] has run on this thread.
unsafe fn multiply_rows(
    left: &[Tile],
    right: [&[Tile]; 2],
    tiles: usize,
    add: bool,
    rows: &mut [[f32; BLOCK]; PANEL],
) {
    // SAFETY: each pass reads 1 KiB through each of the three pointers and moves them on by as
    // much, `tiles` times. The halves of the product lie 64 bytes apart, its rows 128.
    unsafe {
        std::arch::asm!(
            "test {add:e}, {add:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{product} + {row}]",
            "tileloadd tmm1, [{product} + {row} + 64]",
            "3:",
            "test {tiles}, {tiles}",
            "jz 5f",
            "4:",
            "tileloadd tmm2, [{left} + {lanes}]",
            "tileloadd tmm3, [{right0} + {lanes}]",
            "tdpbf16ps tmm0, tmm2, tmm3",
            "tileloadd tmm3, [{right1} + {lanes}]",
            "tdpbf16ps tmm1, tmm2, tmm3",
            "add {left}, 1024",
            "add {right0}, 1024",
            "add {right1}, 1024",
            "dec {tiles}",
            "jnz 4b",
            "5:",
            "tilestored [{product} + {row}], tmm0",
            "tilestored [{product} + {row} + 64], tmm1",
            add = in(reg) u32::from(add),
            tiles = inout(reg) tiles => _,
            left = inout(reg) left.as_ptr() => _,
            right0 = inout(reg) right[0].as_ptr() => _,
            right1 = inout(reg) right[1].as_ptr() => _,
            product = in(reg) rows.as_mut_ptr(),
            row = in(reg) 128_usize,
            lanes = in(reg) 64_usize,
            options(nostack),
        );
    }
}
