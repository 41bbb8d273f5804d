//! Products of many tokens in bfloat16 tiles: strips are decoded, rounded to bfloat16, and multiplied
//! with panels of activations. With AMX that is several times faster than products with codes, and
//! rounds less; the decoding is shared by all tokens.

use std::cell::Cell;
use std::ops::Range;

use super::dense::Column;
use super::{Activations, Output, Packed, STRIP, Term};
use crate::isa::Isa;
use crate::tile::{Arithmetic, BLOCK as TOKENS, Block, PANEL, Precision, Tile};

#[cfg(target_arch = "x86_64")]
use super::{int8::Strip, tiles};

/// Tokens from which on decoding to tiles pays.
const FROM: usize = 32;
/// Summed tiles of one pass over the tokens: two right panels of them stay in the first-level cache.
const TILES_PER_PASS: usize = 12;

thread_local! {
    /// A pair of decoded strips, and the products of all tokens with them; kept, because clearing
    /// fresh pages costs more than decoding.
    static ROOM: Cell<(Vec<Tile>, Vec<Block>, Vec<Column>)> = Cell::default();
}

/// Whether this is the faster way.
pub(super) fn pays(isa: Isa, packed: &Packed, tokens: usize) -> bool {
    if tokens < FROM || packed.outer.is_some() {
        return false;
    }
    match &packed.terms[..] {
        [Term::Grid(_)] => isa >= Isa::Amx,
        [Term::Dense(_) | Term::Bitmap(_)] => isa >= Isa::Avx512Bf16,
        _ => false,
    }
}

/// See [`Packed::multiply`].
pub(super) fn multiply(
    isa: Isa,
    packed: &Packed,
    x: &Activations,
    strips: Range<usize>,
    out: &Output<'_>,
) {
    let arithmetic = Arithmetic::new(isa, Precision::Bf16);
    let tiles = arithmetic.tiles(packed.cols);
    let left = x.panels(isa);
    let panels = x.tokens().div_ceil(PANEL);
    let (mut right, mut products, mut columns) = ROOM.take();
    right.resize(2 * tiles, Tile::ZERO);
    products.resize(panels.div_ceil(2), Block::ZERO);
    let session = arithmetic.begin();
    let mut part = out.claim(strips.clone());
    for first in strips.clone().step_by(2) {
        let both = [first, (first + 1).min(strips.end - 1)];
        for (strip, right) in both.iter().zip(right.chunks_exact_mut(tiles.max(1))) {
            decode(arithmetic, packed, *strip, &mut columns, right);
        }
        let (right0, right1) = right.split_at(tiles);
        for pass in (0..tiles.max(1)).step_by(TILES_PER_PASS) {
            let range = pass..tiles.min(pass + TILES_PER_PASS);
            for (pair, product) in products.iter_mut().enumerate() {
                let panel = |index: usize| &left[index.min(panels - 1) * tiles..][range.clone()];
                session.multiply(
                    [panel(2 * pair), panel(2 * pair + 1)],
                    [&right0[range.clone()], &right1[range.clone()]],
                    pass > 0,
                    product,
                );
            }
        }
        for (index, strip) in (first..strips.end.min(first + 2)).enumerate() {
            for token in 0..x.tokens() {
                let row = &products[token / TOKENS].0[token % TOKENS];
                part.write(strip, token, &row.as_chunks::<STRIP>().0[index..=index]);
            }
        }
    }
    drop(session);
    ROOM.set((right, products, columns));
}

/// A strip as a right panel.
fn decode(
    arithmetic: Arithmetic,
    packed: &Packed,
    strip: usize,
    columns: &mut Vec<Column>,
    panel: &mut [Tile],
) {
    #[cfg(target_arch = "x86_64")]
    if let [Term::Grid(grid)] = &packed.terms[..]
        && let Some(strip) = Strip::new(grid, strip, None)
        && arithmetic.lane() == crate::tile::Lane::Bf16Pair
    {
        return tiles::decode(&strip, panel);
    }
    columns.clear();
    columns.resize(packed.cols, [0.0; STRIP]);
    packed.add_columns(arithmetic.isa(), strip, 0, columns);
    arithmetic.pack_columns(columns.as_flattened(), STRIP, STRIP, packed.cols, panel);
}
