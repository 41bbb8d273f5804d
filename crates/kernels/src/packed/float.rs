//! Products in f32 of weights as they decode: exact but for the order of sums.

use std::cell::Cell;
use std::ops::Range;

use super::activations::TileOf;
use super::dense::{Column, Dense};
use super::{Activations, Output, Packed, STRIP, TILE, Term};
use crate::isa::Isa;
use crate::simd::vectorized;

#[cfg(target_arch = "x86_64")]
use super::dense_avx512 as avx512;

thread_local! {
    /// A decoded strip; kept, because clearing fresh pages costs more than decoding.
    static COLUMNS: Cell<Vec<Column>> = Cell::default();
}

/// See [`Packed::multiply`].
pub(super) fn multiply(
    isa: Isa,
    packed: &Packed,
    x: &Activations,
    inner: &[f32],
    strips: Range<usize>,
    out: &Output<'_>,
) {
    assert!(x.forms().float, "activations were not prepared in f32");
    let mut columns = COLUMNS.take();
    let rank = inner.len() / x.tokens().max(1);
    let mut part = out.claim(strips.clone());
    for strip in strips {
        columns.clear();
        columns.resize(packed.cols + rank, [0.0; STRIP]);
        let (own, outer) = columns.split_at_mut(packed.cols);
        packed.add_columns(isa, strip, 0, own);
        if let Some(dense) = &packed.outer {
            dense.add_columns(isa, strip, 0, outer);
        }
        for index in 0..x.tiles() {
            let tile = x.tile(index);
            let mut sums = [[0.0; STRIP]; TILE];
            multiply_tile(isa, own, &tile, &mut sums);
            for (token, sums) in sums[..tile.tokens].iter_mut().enumerate() {
                let token = index * TILE + token;
                add_inner(outer, &inner[token * rank..][..rank], sums);
            }
            part.write(strip, index * TILE, &sums[..tile.tokens]);
        }
    }
    COLUMNS.set(columns);
}

/// Adds the product of a term that is no grid with a tile of tokens.
pub(super) fn add_term(
    isa: Isa,
    rows: usize,
    term: &Term,
    strip: usize,
    tile: &TileOf<'_>,
    sums: &mut [Column; TILE],
) {
    let tokens = tile.tokens;
    match term {
        Term::Grid(_) => {}
        Term::Dense(dense) => dense.add(isa, strip, tile, sums),
        Term::Bitmap(bitmap) => bitmap.add(isa, strip, tile, sums),
        Term::Columns { columns: places, values } => {
            for (index, place) in places.iter().enumerate() {
                let mut column = [[0.0; STRIP]];
                values.add_columns(isa, strip, index, &mut column);
                let x = &tile.float[*place as usize * tokens..][..tokens];
                for (sums, x) in sums.iter_mut().zip(x) {
                    sums.iter_mut().zip(column[0]).for_each(|(sum, weight)| *sum += weight * x);
                }
            }
        }
        Term::Sparse { row_starts, columns, values } => {
            for row in strip * STRIP..rows.min((strip + 1) * STRIP) {
                let range = row_starts[row] as usize..row_starts[row + 1] as usize;
                for (column, value) in columns[range.clone()].iter().zip(&values[range]) {
                    let x = &tile.float[*column as usize * tokens..][..tokens];
                    for (sums, x) in sums.iter_mut().zip(x) {
                        sums[row % STRIP] += value * x;
                    }
                }
            }
        }
    }
}

/// Adds the left factor's product with the right factor's result `[tokens, rank]`.
pub(super) fn add_outer(
    isa: Isa,
    dense: &Dense,
    strip: usize,
    inner: &[f32],
    tokens: Range<usize>,
    sums: &mut [Column; TILE],
) {
    let rank = dense.cols();
    for index in 0..rank {
        let mut column = [[0.0; STRIP]];
        dense.add_columns(isa, strip, index, &mut column);
        for (token, sums) in tokens.clone().zip(&mut *sums) {
            let x = inner[token * rank + index];
            sums.iter_mut().zip(column[0]).for_each(|(sum, weight)| *sum += weight * x);
        }
    }
}

/// Half-precision numbers as floats.
pub(super) fn widen(halves: &[u16; STRIP]) -> Column {
    halves.map(|bits| half::f16::from_bits(bits).to_f32())
}

/// Adds the product of the columns with each token.
pub(super) fn multiply_tile(
    isa: Isa,
    columns: &[Column],
    tile: &TileOf<'_>,
    sums: &mut [Column; TILE],
) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        assert!(tile.tokens <= TILE && tile.float.len() >= columns.len() * tile.tokens);
        // SAFETY: the processor has the instructions; the lengths were checked.
        return unsafe { avx512::add(columns.as_flattened(), tile.float, tile.tokens, sums) };
    }
    match tile.tokens {
        TILE => tokens_12(isa, columns, tile.float, sums),
        1 => tokens_1(isa, columns, tile.float, sums),
        tokens => some_tokens(isa, columns, tile.float, tokens, sums),
    }
}

fn add_inner(columns: &[Column], values: &[f32], sums: &mut Column) {
    for (column, value) in columns.iter().zip(values) {
        sums.iter_mut().zip(column).for_each(|(sum, weight)| *sum += weight * value);
    }
}

#[inline(always)]
fn tokens<const TOKENS: usize>(columns: &[Column], x: &[f32], sums: &mut [Column; TILE]) {
    let mut own = [[0.0; STRIP]; TOKENS];
    for (column, x) in columns.iter().zip(x.as_chunks::<TOKENS>().0) {
        for (sums, x) in own.iter_mut().zip(x) {
            for (sum, weight) in sums.iter_mut().zip(column) {
                *sum += weight * x;
            }
        }
    }
    for (sums, own) in sums.iter_mut().zip(own) {
        sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    }
}

vectorized! {
    fn tokens_12(columns: &[Column], x: &[f32], sums: &mut [Column; TILE]) {
        tokens::<12>(columns, x, sums);
    }
}

vectorized! {
    fn tokens_1(columns: &[Column], x: &[f32], sums: &mut [Column; TILE]) {
        tokens::<1>(columns, x, sums);
    }
}

vectorized! {
    fn some_tokens(columns: &[Column], x: &[f32], count: usize, sums: &mut [Column; TILE]) {
        for (token, sums) in sums[..count].iter_mut().enumerate() {
            let mut own = [0.0; STRIP];
            for (column, x) in columns.iter().zip(x.chunks_exact(count)) {
                for (sum, weight) in own.iter_mut().zip(column) {
                    *sum += weight * x[token];
                }
            }
            sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
    }
}
