//! Terms as ggml's blocks and back: the affine terms and lookups that a block type stores exactly, and
//! floats.

use crate::FormatError;
use lapidary_kernels::ggml::{Block, BlockKind, PACKED, pack, unpack};
use lapidary_store::{Dtype, GgmlType};
use lapidary_weight::{
    Affine, BookType, Dense, FloatType, GroupFloats, GroupType, Grouping, Levels, Lookup, Origin,
    Outline, Runs, SmallCodes, SmallFloat, Table, Term, TermOutline, TwoLevel, Weight, WeightError,
    ZeroType, Zeros,
};
use std::num::NonZeroUsize;

/// What a block type is made of, as a term.
struct Layout {
    bits: u8,
    group: usize,
    has_minima: bool,
    /// Bits of the codes of scales and minima, and groups of a block.
    levels: Option<(u8, usize)>,
    /// What codes are looked up in, where they are no integers.
    book: Option<BookType>,
}

/// The one small float that scales are: `MXFP4`'s.
const POWERS: SmallCodes = SmallCodes { float: SmallFloat::E8M0, divided: false };

fn layout(kind: BlockKind) -> Option<Layout> {
    let (bits, group, has_minima, levels) = match kind {
        BlockKind::Q4_0 => (4, 32, false, None),
        BlockKind::Q4_1 => (4, 32, true, None),
        BlockKind::Q5_0 => (5, 32, false, None),
        BlockKind::Q5_1 => (5, 32, true, None),
        BlockKind::Q8_0 => (8, 32, false, None),
        BlockKind::Q2_K => (2, 16, true, Some((4, 16))),
        BlockKind::Q3_K => (3, 16, false, Some((6, 16))),
        BlockKind::Q4_K => (4, 32, true, Some((6, 8))),
        BlockKind::Q5_K => (5, 32, true, Some((6, 8))),
        BlockKind::Q6_K => (6, 16, false, Some((8, 16))),
        BlockKind::IQ4_NL | BlockKind::MXFP4 => (4, 32, false, None),
        BlockKind::IQ4_XS => (4, 32, false, Some((6, 8))),
        BlockKind::TQ1_0 | BlockKind::TQ2_0 => (2, 256, false, None),
        _ => return None,
    };
    let book = match kind {
        BlockKind::IQ4_NL | BlockKind::IQ4_XS => Some(Table::Iq4Nl.into()),
        BlockKind::TQ1_0 => Some(Table::Trits.into()),
        BlockKind::TQ2_0 => Some(Table::Ternary.into()),
        BlockKind::MXFP4 => Some(SmallFloat::E2M1.into()),
        _ => None,
    };
    Some(Layout { bits, group, has_minima, levels, book })
}

impl Layout {
    fn grouping(&self) -> Grouping {
        NonZeroUsize::new(self.group).map_or(Grouping::Row, Grouping::Columns)
    }

    /// How scales and minima are stored.
    fn floats(&self) -> GroupType {
        if self.book == Some(SmallFloat::E2M1.into()) {
            return GroupType::Small(POWERS);
        }
        let two_level = |(bits, groups)| {
            let origin = if self.has_minima { Origin::Zero } else { Origin::Middle };
            let runs = Runs::Flat(NonZeroUsize::new(groups)?);
            Some(GroupType::TwoLevel(TwoLevel { bits, runs, origin, coarse: FloatType::F16 }))
        };
        self.levels.and_then(two_level).unwrap_or(GroupType::Plain(FloatType::F16))
    }

    fn outline(&self) -> TermOutline {
        if let Some(books) = self.book {
            return TermOutline::Lookup {
                bits: self.bits,
                grouping: Some(self.grouping()),
                book_per_row: false,
                books,
                scales: self.floats(),
            };
        }
        TermOutline::Affine {
            bits: self.bits,
            grouping: self.grouping(),
            zeros: match self.has_minima {
                true => ZeroType::Minima(self.floats()),
                false => ZeroType::Middle,
            },
            scales: self.floats(),
        }
    }

    fn array(
        &self,
        per_row: usize,
        codes: Vec<u8>,
        floats: Vec<f32>,
    ) -> Result<GroupFloats, WeightError> {
        match self.floats() {
            GroupType::TwoLevel(kind) => {
                let offsets = vec![];
                GroupFloats::two_level(Levels { kind, per_row, codes, coarse: floats, offsets })
            }
            GroupType::Small(SmallCodes { float, .. }) => GroupFloats::small(float, codes, None),
            GroupType::Plain(float) => Ok(GroupFloats::plain(floats, float)),
        }
    }
}

/// What a matrix in blocks of a kind is as a term; `None` for kinds that no term is made of.
pub(crate) fn outline_of(kind: BlockKind, rows: usize, cols: usize) -> Option<Outline> {
    Some(Outline { rows, cols, terms: vec![layout(kind)?.outline()] })
}

/// The type of ggml that holds a weight of this outline exactly.
///
/// # Errors
/// Why there is none, and what to do.
pub(super) fn dtype_of(outline: &Outline) -> Result<Dtype, String> {
    let [term] = &outline.terms[..] else {
        return Err("it holds single terms, no sums".to_owned());
    };
    if let TermOutline::Dense { values } = term {
        return Ok(crate::float_dtype(*values));
    }
    let is_it = |kind: &&BlockKind| layout(**kind).is_some_and(|layout| layout.outline() == *term);
    let Some(kind) = PACKED.iter().find(is_it) else {
        return Err(format!(
            "llama.cpp has no blocks of {}; set grid to one it has: {}",
            outline.describe(),
            PACKED.map(|kind| kind.name().to_lowercase()).join(", ")
        ));
    };
    if !outline.cols.is_multiple_of(kind.elements()) {
        return Err(format!(
            "blocks of {} ({} columns) do not divide {} columns",
            kind.name(),
            kind.elements(),
            outline.cols
        ));
    }
    let ggml = GgmlType::from_id(kind.id());
    ggml.map(Dtype::from_ggml).ok_or_else(|| format!("{} is not known", kind.name()))
}

/// The kind of blocks of a type that [`dtype_of`] gave; `None` for plain floats.
fn packed_kind(dtype: Dtype) -> Option<BlockKind> {
    super::block_kind(dtype).filter(|kind| PACKED.contains(kind))
}

/// The bytes of a weight, its rows in their order.
///
/// # Errors
/// When no type holds it.
pub(super) fn encode(weight: &Weight) -> Result<Vec<u8>, FormatError> {
    let outline = weight.outline();
    let unsupported =
        || FormatError::Unsupported { format: super::format::ID, outline: outline.describe() };
    let kind = packed_kind(dtype_of(&outline).map_err(|_| unsupported())?);
    match (weight.terms(), kind) {
        ([Term::Dense(Dense { values, dtype })], None) => Ok(dtype.encode(values)),
        ([Term::Affine(Affine { codes, scales, zeros, .. })], Some(kind)) => {
            blocks(kind, codes, scales, zeros).ok_or_else(unsupported)
        }
        ([Term::Lookup(Lookup { codes, scales: Some((_, scales)), .. })], Some(kind)) => {
            blocks(kind, codes, scales, &Zeros::Middle).ok_or_else(unsupported)
        }
        _ => Err(unsupported()),
    }
}

fn blocks(kind: BlockKind, codes: &[u8], scales: &GroupFloats, zeros: &Zeros) -> Option<Vec<u8>> {
    let blocks = codes.chunks_exact(kind.elements());
    let mut bytes = Vec::with_capacity(blocks.len() * kind.bytes());
    let none: (&[u8], f32) = (&[], 0.0);
    for (index, codes) in blocks.enumerate() {
        let (scales, scale) = stored(scales, index)?;
        let (minima, minimum) = match zeros {
            Zeros::Minima(minima) => stored(minima, index)?,
            _ => none,
        };
        pack(kind, &Block { codes, scales, minima, scale, minimum }, &mut bytes)?;
    }
    Some(bytes)
}

/// Codes and float of one block of an array.
fn stored(array: &GroupFloats, block: usize) -> Option<(&[u8], f32)> {
    if let Some((codes, _)) = array.small_codes() {
        return Some((codes.get(block..)?.get(..1)?, 0.0));
    }
    let Some(levels) = array.levels() else { return Some((&[], *array.get(block)?)) };
    let groups = levels.codes.len().checked_div(levels.coarse.len())?;
    Some((levels.codes.get(block * groups..)?.get(..groups)?, *levels.coarse.get(block)?))
}

/// The weight of this outline from its bytes: what [`encode`] stored.
///
/// # Errors
/// When no type holds it, or there are not as many bytes, or a float is not finite.
pub(crate) fn decode(module: &str, outline: &Outline, bytes: &[u8]) -> Result<Weight, FormatError> {
    let unsupported =
        || FormatError::Unsupported { format: super::format::ID, outline: outline.describe() };
    let wrong = |error| FormatError::Weight { module: module.to_owned(), error };
    let dtype = dtype_of(outline).map_err(|_| unsupported())?;
    let (rows, cols) = (outline.rows, outline.cols);
    let term = match (packed_kind(dtype), &outline.terms[..]) {
        (Some(kind), _) => {
            if bytes.len() != rows * (cols / kind.elements()) * kind.bytes() {
                let what = format!("{} bytes are not {rows} rows of {cols}", bytes.len());
                return Err(FormatError::malformed(module, what));
            }
            term(kind, cols, bytes).map_err(wrong)?.ok_or_else(unsupported)?
        }
        (None, [TermOutline::Dense { values }]) => {
            Term::Dense(Dense { values: values.decode(bytes), dtype: *values })
        }
        _ => return Err(unsupported()),
    };
    Weight::new(rows, cols, vec![term]).map_err(wrong)
}

/// The term that blocks of a kind stand for.
fn term(kind: BlockKind, cols: usize, bytes: &[u8]) -> Result<Option<Term>, WeightError> {
    let Some(layout) = layout(kind) else { return Ok(None) };
    let count = bytes.len() / kind.bytes();
    let mut codes = Vec::with_capacity(count * kind.elements());
    let (mut scales, mut minima) = ((vec![], vec![]), (vec![], vec![]));
    for block in bytes.chunks_exact(kind.bytes()) {
        let Some(block) = unpack(kind, block) else { return Ok(None) };
        codes.extend(block.codes);
        scales.0.extend(block.scales);
        scales.1.push(block.scale);
        minima.0.extend(block.minima);
        minima.1.push(block.minimum);
    }
    let per_row = cols / layout.group;
    if let Some(book) = layout.book {
        return Ok(Some(Term::Lookup(Lookup {
            bits: layout.bits,
            codes,
            books: book.fixed().unwrap_or_default(),
            book_per_row: false,
            scales: Some((layout.grouping(), layout.array(per_row, scales.0, scales.1)?)),
            book_type: book,
        })));
    }
    Ok(Some(Term::Affine(Affine {
        bits: layout.bits,
        grouping: layout.grouping(),
        codes,
        scales: layout.array(per_row, scales.0, scales.1)?,
        zeros: match layout.has_minima {
            true => Zeros::Minima(layout.array(per_row, minima.0, minima.1)?),
            false => Zeros::Middle,
        },
    })))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use lapidary_kernels::ggml::{Unpacked, dequantize};
    use proptest::prelude::*;

    fn outline(kind: BlockKind, rows: usize, blocks: usize) -> Outline {
        let terms = vec![layout(kind).unwrap().outline()];
        Outline { rows, cols: blocks * kind.elements(), terms }
    }

    /// Blocks of any bytes whose halves are finite: `seed` fills them.
    fn any_blocks(kind: BlockKind, count: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
            (state >> 33) as u8
        };
        let mut bytes: Vec<u8> = (0..count * kind.bytes()).map(|_| byte()).collect();
        let halves: &[usize] = match kind {
            BlockKind::Q4_0 | BlockKind::Q5_0 | BlockKind::Q8_0 => &[0],
            BlockKind::IQ4_NL | BlockKind::IQ4_XS => &[0],
            BlockKind::TQ1_0 => &[52],
            BlockKind::TQ2_0 => &[64],
            BlockKind::MXFP4 => &[],
            BlockKind::Q2_K => &[80, 82],
            BlockKind::Q3_K => &[108],
            BlockKind::Q6_K => &[208],
            _ => &[0, 2],
        };
        for block in bytes.chunks_exact_mut(kind.bytes()) {
            for at in halves {
                // An exponent below the largest.
                block[at + 1] &= 0b1011_1111;
            }
            match kind {
                // The exponent that is no number.
                BlockKind::MXFP4 => block[0] = block[0].min(254),
                // The code that stands for nothing.
                BlockKind::TQ2_0 => {
                    block[..64].iter_mut().for_each(|byte| *byte &= !(*byte >> 1 & 0x55));
                }
                // Bytes that are none of five digits.
                BlockKind::TQ1_0 => {
                    let Unpacked { codes, scale, .. } = unpack(kind, block).unwrap();
                    let scaled =
                        Block { codes: &codes, scales: &[], minima: &[], scale, minimum: 0.0 };
                    let mut packed = vec![];
                    pack(kind, &scaled, &mut packed).unwrap();
                    block.copy_from_slice(&packed);
                }
                _ => {}
            }
        }
        bytes
    }

    proptest! {
        /// Any blocks are the same bytes again, and the term's values are what ggml reads.
        #[test]
        fn blocks_to_terms_and_back(
            which in 0..PACKED.len(), rows in 0_usize..4, blocks in 1_usize..4, seed: u64,
        ) {
            let kind = PACKED[which];
            let outline = outline(kind, rows, blocks);
            let bytes = any_blocks(kind, rows * blocks, seed);
            let weight = decode("m", &outline, &bytes).unwrap();
            prop_assert_eq!(weight.outline(), outline.clone());
            prop_assert_eq!(encode(&weight).unwrap(), bytes.clone());
            let mut want = vec![0.0; rows * outline.cols];
            dequantize(kind, &bytes, &mut want).unwrap();
            prop_assert_eq!(weight.decode(), want);
        }
    }

    #[test]
    fn what_no_block_holds_is_refused_with_the_cure() {
        let three = TermOutline::Affine {
            bits: 3,
            grouping: Grouping::Row,
            zeros: ZeroType::Middle,
            scales: GroupType::Plain(FloatType::F16),
        };
        let refused = dtype_of(&Outline { rows: 2, cols: 64, terms: vec![three.clone()] });
        assert!(refused.unwrap_err().contains("set grid to one it has: q4_0"));
        let sum = Outline { rows: 2, cols: 64, terms: vec![three.clone(), three] };
        assert!(dtype_of(&sum).is_err());
        let ragged = Outline { cols: 576, ..outline(BlockKind::Q4_K, 2, 1) };
        assert!(dtype_of(&ragged).unwrap_err().contains("do not divide 576"));
    }

    #[test]
    fn hostile_bytes_are_errors() {
        for kind in PACKED {
            let outline = outline(kind, 2, 2);
            assert!(decode("m", &outline, &[]).is_err());
            assert!(decode("m", &outline, &vec![0; 4 * kind.bytes() - 1]).is_err());
            // Every half is a NaN.
            assert!(decode("m", &outline, &vec![0xff; 4 * kind.bytes()]).is_err(), "{kind:?}");
        }
    }
}
