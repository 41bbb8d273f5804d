//! Packed products against sums in f64 of the weights as they decode, at every level of instructions.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{bits, near, numbers};
use lapidary_kernels::ggml::{BlockKind, dequantize};
use lapidary_kernels::isa::Isa;
use lapidary_kernels::packed::planes::{Prepared, SignPlanes, Way};
use lapidary_kernels::packed::{Activations, Forms, Output, Packed, Precision, Source, Zeros};
use proptest::prelude::*;

/// Pseudo-random codes below `2^bits`.
fn codes(count: usize, bits: u8, seed: u64) -> Vec<u8> {
    let levels = f32::from(1_u16 << bits);
    numbers(count, seed)
        .iter()
        .map(|v| ((v + 1.0) * 0.5 * levels).min(levels - 1.0) as u8)
        .collect()
}

/// Positive scales of about 0.02.
fn scales(count: usize, seed: u64) -> Vec<f32> {
    numbers(count, seed).iter().map(|v| 0.02 + 0.015 * v).collect()
}

/// The product as one thread after another computes it, `pieces` of the strips at a time.
fn product(isa: Isa, packed: &Packed, x: &[f32], tokens: usize, pieces: usize) -> Vec<f32> {
    let mut activations = Activations::new();
    let prepare = |activations: &mut Activations| {
        let forms = packed.forms_with(isa, tokens);
        let inner = packed.inner().map(|inner| inner.forms_with(isa, tokens));
        let preparing = activations.begin_with(
            isa,
            tokens,
            packed.cols(),
            inner.map_or(forms, |inner| inner | forms),
        );
        (0..preparing.units()).rev().for_each(|unit| preparing.fill(unit..unit + 1, x));
    };
    prepare(&mut activations);
    let run = |packed: &Packed, inner: &[f32]| {
        let mut y = vec![f32::NAN; tokens * packed.rows()];
        let out = Output::new(&mut y, tokens, packed.rows());
        let each = packed.strips().div_ceil(pieces).max(1);
        for first in (0..packed.strips()).step_by(each).rev() {
            let strips = first..packed.strips().min(first + each);
            packed.multiply_with(isa, &activations, inner, strips, &out);
        }
        y
    };
    let inner = packed.inner().map(|inner| run(inner, &[])).unwrap_or_default();
    run(packed, &inner)
}

/// `W x` in f64.
fn definition(weight: &[f32], x: &[f32], cols: usize) -> Vec<f64> {
    let dot = |row: &[f32], x: &[f32]| -> f64 {
        row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
    };
    let token = |x: &[f32]| weight.chunks_exact(cols).map(|row| dot(row, x)).collect::<Vec<_>>();
    x.chunks_exact(cols).flat_map(token).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// `|got − want|` in units of the size that products of such weights and inputs have on average
/// over their signs: what rounding errors are in proportion to, also where terms cancel. Where codes
/// cancel with what they are counted from, to weights of zero, errors of inputs of 1 are left.
fn relative(got: &[f32], want: &[f64], weight: &[f32], x: &[f32], cols: usize) -> f64 {
    let size = norm(weight.iter().map(|w| f64::from(*w))) * norm(x.iter().map(|x| f64::from(*x)))
        / (cols as f64).sqrt();
    norm(got.iter().zip(want).map(|(g, w)| f64::from(*g) - w)) / size.max(1e-6)
}

/// Holds a matrix of these sources to `weight` at every level and precision.
fn check(sources: &[Source<'_>], weight: &[f32], (rows, cols): (usize, usize), tokens: usize) {
    let x = numbers(tokens * cols, 99);
    let want = definition(weight, &x, cols);
    // Inputs uniform in ±1 in steps of 1/127 are off by 0.0039 of their size, weights of more than
    // seven bits by less. A mean of few sums strays from that.
    let int8 = 0.007 * (1.0 + 2.0 / (want.len() as f64).sqrt());
    // Two digits are off by a 127th of that, scales and minima in half precision by up to 2⁻¹¹.
    let precisions =
        [(Precision::Float, 2e-6), (Precision::Int16, int8 / 8.0), (Precision::Int8, int8)];
    for (precision, tolerance) in precisions {
        let packed = Packed::new(rows, cols, precision, sources).unwrap();
        for isa in Isa::available() {
            let got = product(isa, &packed, &x, tokens, 1);
            let error = relative(&got, &want, weight, &x, cols);
            assert!(error < tolerance, "{precision:?} {isa:?} {rows}x{cols} {tokens}: {error}");
            for pieces in [2, 5] {
                let again = product(isa, &packed, &x, tokens, pieces);
                assert_eq!(bits(&again), bits(&got), "{isa:?}, {pieces} pieces");
            }
            // Whoever shares a batch does not show, but where many tokens are rounded otherwise.
            if !packed.forms_with(isa, tokens).brain {
                let alone = |x: &[f32]| product(isa, &packed, x, 1, 1);
                let alone: Vec<f32> = x.chunks_exact(cols).flat_map(alone).collect();
                assert_eq!(bits(&alone), bits(&got), "{precision:?} {isa:?}, token by token");
            }
        }
    }
}

fn affine(bits: u8, rows: usize, cols: usize, group: usize, kind: usize, tokens: usize) {
    let groups = rows * cols.div_ceil(group);
    let (codes, scales) = (codes(rows * cols, bits, 1), scales(groups, 2));
    let zero_codes = self::codes(groups, bits, 3);
    let zero_floats: Vec<f32> =
        zero_codes.iter().zip(numbers(groups, 4)).map(|(z, n)| f32::from(*z) + n).collect();
    let minima: Vec<f32> = zero_floats.iter().zip(&scales).map(|(z, s)| z * s).collect();
    let middle = 1 << (bits - 1);
    let zeros = match kind {
        0 => Zeros::Constant(middle),
        1 => Zeros::Codes(&zero_codes),
        2 => Zeros::Floats(&zero_floats),
        _ => Zeros::Minima(&minima),
    };
    let mut weight = vec![];
    for (index, code) in codes.iter().enumerate() {
        let group = index / cols * cols.div_ceil(group) + index % cols / group;
        let code = f32::from(*code);
        weight.push(match kind {
            0 => scales[group] * (code - f32::from(middle)),
            1 => scales[group] * (code - f32::from(zero_codes[group])),
            2 => scales[group] * (code - zero_floats[group]),
            _ => scales[group] * code - minima[group],
        });
    }
    let source = Source::Affine { bits, codes: &codes, group, scales: &scales, zeros };
    check(&[source], &weight, (rows, cols), tokens);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn affine_of_any_shape(
        bits in 1_u8..=8,
        rows in 1_usize..50,
        cols in 1_usize..300,
        group in prop::sample::select(vec![8, 16, 20, 32, 48, 64, 96, 128, 1000]),
        kind in 0_usize..4,
        tokens in 1_usize..40,
    ) {
        affine(bits, rows, cols, group, kind, tokens);
    }

    #[test]
    fn lookup_of_any_shape(
        bits in 1_u8..=8,
        rows in 1_usize..50,
        cols in 1_usize..300,
        group in prop::sample::select(vec![16, 32, 64, 1000]),
        book_per_row: bool,
        scaled: bool,
        tokens in 1_usize..30,
    ) {
        let size = 1 << bits;
        let books = numbers(if book_per_row { rows * size } else { size }, 5);
        let codes = codes(rows * cols, bits, 6);
        let per_row = cols.div_ceil(group);
        let scales = scales(rows * per_row, 7);
        let value = |index: usize| {
            let (row, column) = (index / cols, index % cols);
            let book = if book_per_row { row * size } else { 0 };
            let scale = if scaled { scales[row * per_row + column / group] } else { 1.0 };
            scale * books[book + usize::from(codes[index])]
        };
        let weight: Vec<f32> = (0..rows * cols).map(value).collect();
        let scales = scaled.then_some(&scales[..]);
        let source = Source::Lookup { bits, codes: &codes, books: &books, group, scales };
        check(&[source], &weight, (rows, cols), tokens);
    }

    #[test]
    fn planes_by_tables_and_bit_by_bit(
        planes in 1_usize..5,
        rows in 1_usize..70,
        cols in 1_usize..300,
        group in prop::sample::select(vec![32, 64, 1000]),
    ) {
        let signs = codes(rows * cols, planes as u8, 20);
        let groups = cols.div_ceil(group);
        let alphas = numbers(planes * rows * groups, 21);
        let x = numbers(cols, 22);
        let mut activations = Activations::new();
        activations.prepare(&x, 1, cols, Forms { int8: true, ..Forms::default() });
        let value = |index: usize| {
            let (row, column) = (index / cols, index % cols);
            let alpha = |plane: usize| alphas[(plane * rows + row) * groups + column / group];
            let sign = |plane: usize| if signs[index] >> plane & 1 == 1 { 1.0 } else { -1.0 };
            (0..planes).map(|plane| alpha(plane) * sign(plane)).sum()
        };
        let weight: Vec<f32> = (0..rows * cols).map(value).collect();
        let want = definition(&weight, &x, cols);
        let size = (weight.iter().map(|w| w * w).sum::<f32>() / cols as f32).sqrt();
        let mut first: Option<Vec<f32>> = None;
        for way in [Way::Table, Way::Serial] {
            let packed = SignPlanes::new(way, (rows, cols), planes, group, &signs, &alphas);
            let mut prepared = Prepared::default();
            prepared.prepare(way, &activations);
            for isa in Isa::available() {
                let mut y = vec![f32::NAN; rows];
                packed.multiply(isa, &prepared, &mut y);
                // The rounding of activations: steps of 1/127, a few of them by chance.
                let error = y.iter().zip(&want).map(|(y, w)| (f64::from(*y) - w).powi(2));
                let bound = 0.02 * f64::from(size) * (cols as f64).sqrt();
                prop_assert!(error.sum::<f64>().sqrt() <= bound, "{way:?} {isa:?}");
                // And the same codes as every other way: integers agree, sums in f32 nearly.
                let first = first.get_or_insert_with(|| y.clone());
                for (y, first) in y.iter().zip(first) {
                    prop_assert!((*y - *first).abs() <= 1e-5 * size * cols as f32, "{way:?} {isa:?}");
                }
            }
        }
    }

    #[test]
    fn sums_of_terms(
        rows in 1_usize..40,
        cols in 1_usize..200,
        rank in 1_usize..9,
        tokens in 1_usize..30,
    ) {
        let dense = numbers(rows * cols, 8);
        let (left, right) = (numbers(rows * rank, 9), numbers(rank * cols, 10));
        let (mut row_starts, mut places, mut values) = (vec![0], vec![], vec![]);
        for (index, value) in numbers(rows * cols, 11).into_iter().enumerate() {
            if value > 0.9 {
                places.push((index % cols) as u32);
                values.push(3.0 * value);
            }
            if (index + 1) % cols == 0 {
                row_starts.push(places.len() as u32);
            }
        }
        let columns = [cols as u32 - 1, 0];
        let of_columns = numbers(rows * 2, 12);
        let mut weight = dense.clone();
        for row in 0..rows {
            let weight = &mut weight[row * cols..][..cols];
            for at in row_starts[row] as usize..row_starts[row + 1] as usize {
                weight[places[at] as usize] += values[at];
            }
            weight[cols - 1] += of_columns[2 * row];
            weight[0] += of_columns[2 * row + 1];
            for k in 0..rank {
                for (weight, right) in weight.iter_mut().zip(&right[k * cols..]) {
                    *weight += left[row * rank + k] * right;
                }
            }
        }
        let row = |row: usize, out: &mut [f32]| {
            out.iter_mut().zip(&dense[row * cols..]).for_each(|(o, v)| *o += v);
        };
        let sources = [
            Source::Rows(&row),
            Source::LowRank { rank, left: &left, right: &right },
            Source::Sparse { row_starts: &row_starts, columns: &places, values: &values },
            Source::Columns { columns: &columns, values: &of_columns },
        ];
        check(&sources, &weight, (rows, cols), tokens);
    }

    /// From a few values to nearly all: single values, bitmaps, floats for all elements.
    #[test]
    fn sparse_matrices_of_every_share(
        rows in 1_usize..70,
        cols in 1_usize..200,
        tokens in 1_usize..50,
        share in 0.0_f32..1.0,
        bits in 0_usize..3,
    ) {
        let (mut row_starts, mut places, mut values) = (vec![0], vec![], vec![]);
        let mut weight = vec![0.0; rows * cols];
        let chance = numbers(rows * cols, 21);
        for (index, value) in numbers(rows * cols, 22).into_iter().enumerate() {
            if chance[index] < 2.0 * share - 1.0 {
                // In bfloat16, in half precision, and in neither.
                let value = match bits {
                    0 => half::bf16::from_f32(value).to_f32(),
                    1 => half::f16::from_f32(value).to_f32(),
                    _ => value,
                };
                weight[index] = value;
                places.push((index % cols) as u32);
                values.push(value);
            }
            if (index + 1) % cols == 0 {
                row_starts.push(places.len() as u32);
            }
        }
        let source = Source::Sparse { row_starts: &row_starts, columns: &places, values: &values };
        check(&[source], &weight, (rows, cols), tokens);
        for precision in [Precision::Float, Precision::Int16, Precision::Int8] {
            let packed = Packed::new(rows, cols, precision, &[source]).unwrap();
            if precision == Precision::Float || bits < 2 {
                prop_assert_eq!(&packed.decode(), &weight);
            }
            let (mut strip, mut out) = (vec![], vec![0.0; cols]);
            packed.row(rows - 1, &mut strip, &mut out);
            prop_assert_eq!(&out, &packed.decode()[(rows - 1) * cols..]);
            let all = rows.div_ceil(16) * 16 * cols * if bits == 2 { 4 } else { 2 };
            let room = 64 + 4 * (rows + 1);
            prop_assert!(packed.bytes() <= all + room, "{} of {all}", packed.bytes());
        }
    }

    #[test]
    fn blocks_of_ggml(
        kind in prop::sample::select(BLOCKS.to_vec()),
        rows in 1_usize..40,
        blocks in 1_usize..3,
        tokens in 1_usize..30,
    ) {
        let cols = blocks * kind.elements();
        let bytes = block_bytes(kind, rows * blocks);
        let mut weight = vec![0.0; rows * cols];
        dequantize(kind, &bytes, &mut weight).unwrap();
        check(&[Source::Blocks { kind, bytes: &bytes }], &weight, (rows, cols), tokens);
    }
}

const BLOCKS: [BlockKind; 16] = [
    BlockKind::Q4_0,
    BlockKind::Q4_1,
    BlockKind::Q5_0,
    BlockKind::Q5_1,
    BlockKind::Q8_0,
    BlockKind::Q2_K,
    BlockKind::Q3_K,
    BlockKind::Q4_K,
    BlockKind::Q5_K,
    BlockKind::Q6_K,
    BlockKind::IQ4_NL,
    BlockKind::IQ4_XS,
    BlockKind::TQ1_0,
    BlockKind::TQ2_0,
    BlockKind::MXFP4,
    BlockKind::F16,
];

/// Random blocks whose floats are scales of weights, not NaN.
fn block_bytes(kind: BlockKind, count: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = codes(count * kind.bytes(), 8, 13);
    let floats: &[usize] = match kind {
        BlockKind::Q4_1 | BlockKind::Q5_1 | BlockKind::Q4_K | BlockKind::Q5_K => &[0, 2],
        BlockKind::Q2_K => &[80, 82],
        BlockKind::Q3_K => &[108],
        BlockKind::Q6_K => &[208],
        BlockKind::TQ1_0 => &[52],
        BlockKind::TQ2_0 => &[64],
        BlockKind::MXFP4 => &[],
        _ => &[0],
    };
    for (block, value) in bytes.chunks_exact_mut(kind.bytes()).zip(numbers(count, 14)) {
        for at in floats {
            let value = half::f16::from_f32(0.01 + 0.005 * value);
            block[*at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        if kind == BlockKind::MXFP4 {
            block[0] = 118 + block[0] % 8;
        }
    }
    bytes
}

#[test]
fn what_is_packed_decodes_to_itself_in_float() {
    let (rows, cols, rank) = (37, 70, 3);
    let (left, right) = (numbers(rows * rank, 1), numbers(rank * cols, 2));
    let source = Source::LowRank { rank, left: &left, right: &right };
    let packed = Packed::new(rows, cols, Precision::Float, &[source]).unwrap();
    for (index, got) in packed.decode().into_iter().enumerate() {
        let (row, column) = (index / cols, index % cols);
        let product = |k| f64::from(left[row * rank + k]) * f64::from(right[k * cols + column]);
        near(got, (0..rank).map(product).sum(), 1e-6);
    }
}

#[test]
fn slices_of_another_shape_are_refused() {
    let (codes, scales) = (vec![0; 64], vec![1.0; 3]);
    let zeros = Zeros::Constant(8);
    let source = Source::Affine { bits: 4, codes: &codes, group: 16, scales: &scales, zeros };
    let error = Packed::new(2, 32, Precision::Int8, &[source]).err().unwrap();
    assert_eq!((error.part, error.have, error.need), ("scales", 3, 4));
    let source = Source::Blocks { kind: BlockKind::Q4_0, bytes: &[0; 18] };
    assert!(Packed::new(1, 33, Precision::Int8, &[source]).is_err());
}

#[test]
#[should_panic(expected = "written twice")]
fn a_strip_is_written_once() {
    let row = |_: usize, _: &mut [f32]| {};
    let packed = Packed::new(16, 4, Precision::Float, &[Source::Rows(&row)]).unwrap();
    let mut x = Activations::new();
    x.prepare(&[1.0; 4], 1, 4, packed.forms(1));
    let mut y = [0.0; 16];
    let out = Output::new(&mut y, 1, 16);
    packed.multiply(&x, &[], 0..1, &out);
    packed.multiply(&x, &[], 0..1, &out);
}
