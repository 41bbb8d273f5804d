//! What a packed matrix is made of, on plain slices.

use crate::ggml::BlockKind;

/// One addend of a matrix `[rows, cols]`. Slices are row-major; groups are runs of `group` columns of
/// a row, the last of which may be shorter.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Rows as they decode: `rows(row, out)` adds row `row` to `out`. For whatever has no kernel of
    /// its own.
    Rows(&'a (dyn Fn(usize, &mut [f32]) + Sync)),
    /// `scale · (code − zero)`, or `scale · code − minimum`.
    Affine {
        /// Bits of a code, 1 to 8.
        bits: u8,
        /// A code a byte.
        codes: &'a [u8],
        /// Columns of a group.
        group: usize,
        /// One a group.
        scales: &'a [f32],
        /// What stands for zero.
        zeros: Zeros<'a>,
    },
    /// `scale · book[code]`.
    Lookup {
        /// Bits of a code, 1 to 8.
        bits: u8,
        /// A code a byte.
        codes: &'a [u8],
        /// `2^bits` values, or as many for each row.
        books: &'a [f32],
        /// Columns of a group.
        group: usize,
        /// One a group; 1 where there are none.
        scales: Option<&'a [f32]>,
    },
    /// Values at explicit places, in compressed rows.
    Sparse {
        /// `rows + 1` offsets.
        row_starts: &'a [u32],
        /// Column of each value.
        columns: &'a [u32],
        /// The values.
        values: &'a [f32],
    },
    /// Some whole columns.
    Columns {
        /// Which.
        columns: &'a [u32],
        /// `[rows, columns]`.
        values: &'a [f32],
    },
    /// `left · right`.
    LowRank {
        /// Inner dimension.
        rank: usize,
        /// `[rows, rank]`.
        left: &'a [f32],
        /// `[rank, cols]`.
        right: &'a [f32],
    },
    /// Blocks of ggml as they stand in a file.
    Blocks {
        /// Their kind.
        kind: BlockKind,
        /// Rows of whole blocks.
        bytes: &'a [u8],
    },
}

/// What the codes of a group are counted from.
#[derive(Clone, Copy, Debug)]
pub enum Zeros<'a> {
    /// The same code in all groups.
    Constant(u8),
    /// A code a group.
    Codes(&'a [u8]),
    /// A number a group, in steps.
    Floats(&'a [f32]),
    /// A number a group, in the unit of the weights, to be subtracted.
    Minima(&'a [f32]),
}
