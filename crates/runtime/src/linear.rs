//! The weight of a linear layer or table, packed for its products.
//!
//! Affine terms, lookups, planes and blocks of a GGUF reach the kernels as codes; sparse, low-rank and
//! column terms as what they are, plain floats as floats of 16 bits. Trellises, whose states have to be
//! followed down a column, are decoded: to 8 bits with a scale for every 32 columns, which moves a weight
//! by half a hundredth of its size, or to floats where nothing is to be rounded.

use crate::{RuntimeError, load};
use lapidary_formats::Source;
use lapidary_kernels::grid::Levels;
use lapidary_kernels::packed::{self, PackError, Packed, Precision};
use lapidary_weight::{Grouping, Planes, TensorError, Tensors, Term, Weight, Zeros};
use std::sync::{Mutex, PoisonError};

/// Bytes of a plain matrix, as 32-bit floats, that are read at once.
const STRETCH_BYTES: usize = 1 << 20;

/// Columns that share a scale where a trellis is rounded.
const ROUNDED_GROUP: usize = 32;

/// What is said of a model whose layers round their inputs when it is run: the packed products round
/// them in their own way.
pub fn other_rounding(source: &Source, precision: Precision) -> Option<String> {
    let mut inputs = source.tensors().iter().filter_map(|t| source.input_rounding(&t.name));
    let asked = inputs.next()?;
    let here = match precision {
        Precision::Float => "are not rounded",
        Precision::Int16 => "are rounded to 16 bits in blocks of 32",
        Precision::Int8 => "are rounded to 8 bits in blocks of 32, or to bfloat16",
    };
    Some(format!(
        "the inputs of {} layers are to be rounded to {asked}; here they {here} (`eval` rounds \
         them as asked)",
        1 + inputs.count()
    ))
}

/// Packs a matrix of a checkpoint as it is stored.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn pack(
    source: &Source,
    tensor: &str,
    precision: Precision,
) -> Result<Packed, RuntimeError> {
    let wrong = |error| RuntimeError::Pack { tensor: tensor.to_owned(), error };
    if let Some(blocks) = source.blocks(tensor)? {
        let all = packed::Source::Blocks { kind: blocks.kind, bytes: &blocks.bytes };
        return Packed::new(blocks.rows, blocks.cols, precision, &[all]).map_err(wrong);
    }
    if let (true, Some(&[rows, cols])) =
        (source.is_plain_by_rows(tensor), source.shape(tensor).as_deref())
    {
        return pack_rows(source, tensor, (rows, cols), precision);
    }
    pack_weight(&source.weight(tensor)?, precision).map_err(wrong)
}

/// Packs a plain matrix without ever holding all of it in 32 bits: rows are read a few at a time, in
/// the order in which they are packed.
fn pack_rows(
    source: &Source,
    tensor: &str,
    (rows, cols): (usize, usize),
    precision: Precision,
) -> Result<Packed, RuntimeError> {
    let at_once = (STRETCH_BYTES / (4 * cols.max(1))).max(1);
    let stretch = Mutex::new((0..0, vec![]));
    let lost = Mutex::new(None);
    let row = |row: usize, out: &mut [f32]| {
        let mut stretch = stretch.lock().unwrap_or_else(PoisonError::into_inner);
        let (held, values) = &mut *stretch;
        if !held.contains(&row) {
            *held = row..rows.min(row + at_once);
            let wanted: Vec<u32> = held.clone().map(|row| row as u32).collect();
            *values = source.read_rows(tensor, &wanted).unwrap_or_else(|error| {
                *lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                vec![0.0; wanted.len() * cols]
            });
        }
        out.copy_from_slice(&values[(row - held.start) * cols..][..cols]);
    };
    let packed = Packed::new(rows, cols, precision, &[packed::Source::Rows(&row)]);
    if let Some(TensorError(error)) = lost.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(load::lost(error));
    }
    packed.map_err(|error| RuntimeError::Pack { tensor: tensor.to_owned(), error })
}

/// Packs a sum of terms.
///
/// # Errors
/// When a term does not fit the matrix, which no checked weight's does.
pub(crate) fn pack_weight(weight: &Weight, precision: Precision) -> Result<Packed, PackError> {
    let shape = (weight.rows(), weight.cols());
    let is_rounded = |term: &Term| precision == Precision::Int8 && matches!(term, Term::Trellis(_));
    let is_plain =
        |term: &Term| matches!(term, Term::Dense(_) | Term::Trellis(_)) && !is_rounded(term);
    let sum_of = |chosen: &dyn Fn(&Term) -> bool| {
        let terms: Vec<Term> = weight.terms().iter().filter(|t| chosen(t)).cloned().collect();
        (!terms.is_empty()).then(|| Weight::new(shape.0, shape.1, terms).ok()).flatten()
    };
    let (plain, rounded) = (sum_of(&is_plain), sum_of(&is_rounded));
    let row = |row: usize, out: &mut [f32]| {
        if let Some(weight) = &plain {
            weight.add_row(row, out);
        }
    };
    let others = weight.terms().iter().filter(|term| !is_plain(term) && !is_rounded(term));
    let mut owned: Vec<Owned> = others.flat_map(|term| Owned::of(term, shape)).collect();
    owned.extend(rounded.iter().map(Owned::rounded));
    let mut sources: Vec<packed::Source<'_>> = owned.iter().map(Owned::source).collect();
    if plain.is_some() {
        sources.push(packed::Source::Rows(&row));
    }
    Packed::new(shape.0, shape.1, precision, &sources)
}

/// A term, with a scale for each group of each row.
enum Owned<'a> {
    /// As it stands.
    Term(packed::Source<'a>),
    /// Codes with numbers that were spread or made.
    Codes {
        bits: u8,
        codes: std::borrow::Cow<'a, [u8]>,
        group: usize,
        scales: Vec<f32>,
        zeros: OwnedZeros,
    },
    /// Codes to be looked up.
    Lookup { bits: u8, codes: &'a [u8], books: &'a [f32], group: usize, scales: Option<Vec<f32>> },
}

enum OwnedZeros {
    Middle,
    Codes(Vec<u8>),
    Floats(Vec<f32>),
    Minima(Vec<f32>),
}

impl<'a> Owned<'a> {
    fn of(term: &'a Term, (rows, cols): (usize, usize)) -> Vec<Self> {
        match term {
            Term::Dense(_) | Term::Trellis(_) => vec![],
            Term::Affine(affine) => {
                let spread = |numbers: &[f32]| spread(affine.grouping, (rows, cols), numbers);
                vec![Self::Codes {
                    bits: affine.bits,
                    codes: (&affine.codes[..]).into(),
                    group: affine.grouping.width(cols),
                    scales: spread(&affine.scales),
                    zeros: match &affine.zeros {
                        Zeros::Middle => OwnedZeros::Middle,
                        Zeros::Codes(zeros) => {
                            OwnedZeros::Codes(self::spread(affine.grouping, (rows, cols), zeros))
                        }
                        Zeros::Floats(zeros) => OwnedZeros::Floats(spread(zeros)),
                        Zeros::Minima(minima) => OwnedZeros::Minima(spread(minima)),
                    },
                }]
            }
            Term::Lookup(lookup) => {
                let group = lookup.scales.as_ref().map_or(cols, |(group, _)| group.width(cols));
                vec![Self::Lookup {
                    bits: lookup.bits,
                    codes: &lookup.codes,
                    books: &lookup.books,
                    group: group.max(1),
                    scales: lookup
                        .scales
                        .as_ref()
                        .map(|(grouping, scales)| spread(*grouping, (rows, cols), scales)),
                }]
            }
            Term::Planes(planes) => Self::of_planes(planes, rows, cols),
            Term::Sparse(sparse) => vec![Self::Term(packed::Source::Sparse {
                row_starts: &sparse.row_starts,
                columns: &sparse.columns,
                values: &sparse.values,
            })],
            Term::Columns(columns) => vec![Self::Term(packed::Source::Columns {
                columns: &columns.columns,
                values: &columns.values,
            })],
            Term::LowRank(factors) => vec![Self::Term(packed::Source::LowRank {
                rank: factors.rank,
                left: &factors.left,
                right: &factors.right,
            })],
        }
    }

    /// A weight in 8 bits, with a scale for every 32 columns of a row.
    fn rounded(weight: &Weight) -> Self {
        const LEVELS: Levels = Levels { bits: 8, symmetric: true, restricted: true };
        let (rows, cols) = (weight.rows(), weight.cols());
        let mut codes = vec![0; rows * cols];
        let mut scales = Vec::with_capacity(rows * cols.div_ceil(ROUNDED_GROUP));
        let mut values = vec![0.0; cols];
        for (row, codes) in codes.chunks_exact_mut(cols.max(1)).enumerate() {
            values.fill(0.0);
            weight.add_row(row, &mut values);
            let groups = values.chunks(ROUNDED_GROUP).zip(codes.chunks_mut(ROUNDED_GROUP));
            for (values, codes) in groups {
                let grid = LEVELS.fit_range(values, |scale| scale);
                grid.codes(values, codes);
                scales.push(grid.scale);
            }
        }
        let (codes, zeros) = (codes.into(), OwnedZeros::Middle);
        Self::Codes { bits: 8, codes, group: ROUNDED_GROUP, scales, zeros }
    }

    /// Each plane as codes of one bit: `alpha · sign = 2·alpha · bit − alpha`, the offset subtracted
    /// from the last minimum.
    fn of_planes(planes: &Planes, rows: usize, cols: usize) -> Vec<Self> {
        let count = usize::from(planes.planes);
        let groups = planes.alphas.len() / count.max(1);
        let plane = |plane: usize| {
            let alphas = &planes.alphas[plane * groups..][..groups];
            let doubled: Vec<f32> = alphas.iter().map(|alpha| 2.0 * alpha).collect();
            let mut minima = alphas.to_vec();
            if let (true, Some(offsets)) = (plane + 1 == count, &planes.offsets) {
                minima.iter_mut().zip(offsets).for_each(|(minimum, offset)| *minimum -= offset);
            }
            Self::Codes {
                bits: 1,
                codes: planes
                    .signs
                    .iter()
                    .map(|signs| signs >> plane & 1)
                    .collect::<Vec<_>>()
                    .into(),
                group: planes.grouping.width(cols),
                scales: spread(planes.grouping, (rows, cols), &doubled),
                zeros: OwnedZeros::Minima(spread(planes.grouping, (rows, cols), &minima)),
            }
        };
        (0..count).map(plane).collect()
    }

    fn source(&self) -> packed::Source<'_> {
        match self {
            Self::Term(source) => *source,
            Self::Codes { bits, codes, group, scales, zeros } => packed::Source::Affine {
                bits: *bits,
                codes,
                group: *group,
                scales,
                zeros: match zeros {
                    OwnedZeros::Middle => packed::Zeros::Constant(1 << (bits - 1)),
                    OwnedZeros::Codes(zeros) => packed::Zeros::Codes(zeros),
                    OwnedZeros::Floats(zeros) => packed::Zeros::Floats(zeros),
                    OwnedZeros::Minima(minima) => packed::Zeros::Minima(minima),
                },
            },
            Self::Lookup { bits, codes, books, group, scales } => packed::Source::Lookup {
                bits: *bits,
                codes,
                books,
                group: *group,
                scales: scales.as_deref(),
            },
        }
    }
}

/// One number a group of each row, where several rows, or all, may share theirs.
fn spread<T: Copy>(grouping: Grouping, (rows, cols): (usize, usize), numbers: &[T]) -> Vec<T> {
    let per_row = grouping.per_row(cols);
    let of_row = |row: usize| &numbers[grouping.row_start(row, cols)..][..per_row];
    (0..rows).flat_map(of_row).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_kernels::packed::Activations;
    use lapidary_weight::{
        Affine, Dense, FloatType, GroupFloats, Lookup, LowRank, Places, Sparse, Trellis,
        WeightError,
    };
    use std::num::NonZeroUsize;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            FloatType::F16.round((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..count).map(|_| next()).collect()
    }

    fn codes(count: usize, bits: u8, seed: u32) -> Vec<u8> {
        let levels = f32::from(1_u16 << bits);
        numbers(count, seed).iter().map(|v| ((v + 1.0) * levels / 2.001) as u8).collect()
    }

    /// The packed matrix decodes to what the weight does: exactly in floats, nearly in 8 bits.
    fn check(rows: usize, cols: usize, terms: Vec<Term>) -> Result<(), WeightError> {
        let weight = Weight::new(rows, cols, terms)?;
        let want = weight.decode();
        for (precision, tolerance) in [(Precision::Float, 1e-6), (Precision::Int8, 2e-3)] {
            let packed = pack_weight(&weight, precision).unwrap();
            let size = want.iter().map(|w| w * w).sum::<f32>().sqrt();
            let got = packed.decode();
            let error: f32 = got.iter().zip(&want).map(|(g, w)| (g - w).powi(2)).sum();
            assert!(error.sqrt() <= tolerance * size, "{precision:?}: {} of {size}", error.sqrt());
            // And what it asks of the activations can be prepared.
            let x = numbers(3 * cols, 7);
            Activations::new().prepare(&x, 3, cols, packed.forms(3));
        }
        Ok(())
    }

    #[test]
    fn every_term_reaches_the_kernels_as_it_decodes() -> Result<(), WeightError> {
        let (rows, cols) = (21, 96);
        let columns = |width| NonZeroUsize::new(width).map_or(Grouping::Row, Grouping::Columns);
        let [Some(height), Some(width)] = [8, 40].map(NonZeroUsize::new) else { return Ok(()) };
        let blocks = Grouping::Blocks { rows: height, columns: width };
        for grouping in [Grouping::Tensor, Grouping::Row, columns(32), columns(20), blocks] {
            let groups = grouping.count(rows, cols);
            let floats = |seed| {
                GroupFloats::plain(
                    numbers(groups, seed).iter().map(|v| v.abs()).collect(),
                    FloatType::F16,
                )
            };
            for zeros in [
                Zeros::Middle,
                Zeros::Codes(codes(groups, 4, 2)),
                Zeros::Floats(floats(3)),
                Zeros::Minima(floats(4)),
            ] {
                let affine = Affine {
                    bits: 4,
                    grouping,
                    codes: codes(rows * cols, 4, 1),
                    scales: floats(5),
                    zeros,
                };
                check(rows, cols, vec![Term::Affine(affine)])?;
            }
            let lookup = |book_per_row: bool, bits: u8| Lookup {
                bits,
                codes: codes(rows * cols, bits, 1),
                books: numbers(if book_per_row { rows } else { 1 } << bits, 6),
                book_per_row,
                scales: (!book_per_row).then(|| (grouping, floats(7))),
                book_type: FloatType::F16.into(),
            };
            check(rows, cols, vec![Term::Lookup(lookup(false, 4))])?;
            check(rows, cols, vec![Term::Lookup(lookup(true, 3))])?;
            let planes = |offsets| Planes {
                planes: 3,
                grouping,
                signs: codes(rows * cols, 3, 1),
                alphas: numbers(3 * groups, 8),
                offsets,
                scale_type: FloatType::F16,
            };
            check(rows, cols, vec![Term::Planes(planes(None))])?;
            check(rows, cols, vec![Term::Planes(planes(Some(numbers(groups, 9))))])?;
        }
        let dense = Dense { values: numbers(rows * cols, 1), dtype: FloatType::F16 };
        let factors = LowRank {
            rank: 2,
            left: numbers(rows * 2, 2),
            right: numbers(2 * cols, 3),
            dtype: FloatType::F16,
        };
        let sparse = |each: usize| Sparse {
            row_starts: (0..=rows).map(|row| (row * each) as u32).collect(),
            columns: (0..rows * each).map(|i| (i % each * 2) as u32).collect(),
            values: numbers(rows * each, 4),
            dtype: FloatType::F16,
            places: Places::Listed,
        };
        check(rows, cols, vec![Term::LowRank(factors.clone())])?;
        check(rows, cols, vec![Term::Dense(dense), Term::LowRank(factors)])?;
        check(rows, cols, vec![Term::Sparse(sparse(3)), Term::Sparse(sparse(40))])
    }

    #[test]
    fn a_trellis_takes_a_byte_a_weight_and_hardly_moves() -> Result<(), WeightError> {
        let (rows, cols) = (40, 96);
        let trellis = Trellis {
            state_bits: 12,
            strip: 32,
            rates: (0..cols).map(|column| (column % 5) as u8).collect(),
            codes: (0..rows * cols).map(|at| (at * 7 % (1 << (at % cols % 5))) as u8).collect(),
            row_scales: (0..rows).map(|row| 120 + (row % 16) as u8).collect(),
            column_scales: (0..cols).map(|column| 124 + (column % 8) as u8).collect(),
            scale: 0.02,
        };
        let weight = Weight::new(rows, cols, vec![Term::Trellis(trellis)])?;
        let want = weight.decode();
        let exact = pack_weight(&weight, Precision::Float).unwrap().decode();
        assert!(exact.iter().zip(&want).all(|(have, want)| (have - want).abs() < 1e-6));
        let packed = pack_weight(&weight, Precision::Int8).unwrap();
        let have = packed.decode();
        for (have, want) in have.chunks(ROUNDED_GROUP).zip(want.chunks(ROUNDED_GROUP)) {
            let greatest = want.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            for (have, want) in have.iter().zip(want) {
                assert!((have - want).abs() <= 0.51 / 127.0 * greatest + 1e-6, "{have} {want}");
            }
        }
        // A byte a weight, and two for the scale of 32; rows in whole strips.
        assert_eq!(packed.bytes(), rows.next_multiple_of(16) * (cols + 2 * cols / 32));
        Ok(())
    }
}
