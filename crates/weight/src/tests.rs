//! Each term against its formula element by element, parts round trips, sizes, hostile parts.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::num::NonZeroUsize;

const FLOATS: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

fn grouping() -> impl Strategy<Value = Grouping> {
    prop_oneof![
        Just(Grouping::Tensor),
        Just(Grouping::Row),
        (1_usize..20)
            .prop_map(|width| Grouping::Columns(NonZeroUsize::new(width).expect("positive"))),
        (1_usize..9, 1_usize..20).prop_map(|(rows, columns)| {
            let [rows, columns] =
                [rows, columns].map(|side| NonZeroUsize::new(side).expect("positive"));
            Grouping::Blocks { rows, columns }
        }),
    ]
}

/// Deterministic values in [-1, 1], rounded to the storage type.
fn values(count: usize, seed: u64, dtype: FloatType) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| dtype.round(next())).collect()
}

fn codes(count: usize, seed: u64, bits: u8) -> Vec<u8> {
    let scaled = |v: f32| ((v + 1.0) / 2.0 * f32::from(1_u16 << bits)) as u16;
    values(count, seed, FloatType::F32)
        .into_iter()
        .map(|v| scaled(v).min((1_u16 << bits) - 1) as u8)
        .collect()
}

fn runs() -> impl Strategy<Value = Runs> {
    let length = || (1_usize..9).prop_map(|length| NonZeroUsize::new(length).expect("positive"));
    prop_oneof![length().prop_map(Runs::Flat), length().prop_map(Runs::Rows)]
}

fn group_type() -> impl Strategy<Value = GroupType> {
    let float = || (0_usize..3).prop_map(|index| FLOATS[index]);
    let origins = [Origin::Zero, Origin::Middle, Origin::Least, Origin::Mean];
    let origin = (0_usize..4).prop_map(move |index| origins[index]);
    let two_level = (1_u8..=8, runs(), origin, float())
        .prop_map(|(bits, runs, origin, coarse)| TwoLevel { bits, runs, origin, coarse });
    let small = prop_oneof![
        any::<bool>().prop_map(|divided| SmallCodes { float: SmallFloat::E4M3, divided }),
        Just(SmallCodes { float: SmallFloat::E8M0, divided: false }),
    ];
    prop_oneof![
        float().prop_map(GroupType::Plain),
        two_level.prop_map(GroupType::TwoLevel),
        small.prop_map(GroupType::Small),
    ]
}

/// Rows and columns of the array of one number a group.
fn array_shape(grouping: Grouping, rows: usize, cols: usize) -> (usize, usize) {
    match grouping {
        Grouping::Tensor => (1, 1),
        Grouping::Row => (rows, 1),
        Grouping::Columns(width) => (rows, cols.div_ceil(width.get())),
        Grouping::Blocks { rows: height, columns } => {
            (rows.div_ceil(height.get()), cols.div_ceil(columns.get()))
        }
    }
}

/// Any numbers of this type, one a group of the matrix; also their bits, counted one by one.
fn group_floats(
    kind: GroupType,
    grouping: Grouping,
    (rows, cols): (usize, usize),
    seed: u64,
) -> (GroupFloats, u64) {
    let (rows, per_row) = array_shape(grouping, rows, cols);
    let count = rows * per_row;
    let kind = match kind {
        GroupType::Plain(float) => {
            return (
                GroupFloats::plain(values(count, seed, float), float),
                count as u64 * float.bits(),
            );
        }
        GroupType::Small(kind) => {
            // Far from the ends, where products with the numbers of the tests stay finite, and below
            // E4M3's NaN.
            let spread = codes(count, seed ^ 14, 5).into_iter().map(|code| code + 90).collect();
            let floats = GroupFloats::small(kind.float, spread, kind.divided.then_some(3.0));
            return (floats.unwrap(), count as u64 * 8 + if kind.divided { 32 } else { 0 });
        }
        GroupType::TwoLevel(kind) => kind,
    };
    let runs = match kind.runs {
        Runs::Flat(length) => count.div_ceil(length.get()),
        Runs::Rows(length) => rows.div_ceil(length.get()) * per_row,
    };
    let offsets = match kind.origin {
        Origin::Zero | Origin::Middle => 0,
        Origin::Least => runs,
        Origin::Mean => 1,
    };
    let levels = Levels {
        kind,
        per_row,
        codes: codes(count, seed ^ 11, kind.bits),
        coarse: values(runs, seed ^ 12, kind.coarse),
        offsets: values(offsets, seed ^ 13, kind.coarse),
    };
    let bits = count as u64 * u64::from(kind.bits) + (runs + offsets) as u64 * kind.coarse.bits();
    (GroupFloats::two_level(levels).unwrap(), bits)
}

/// Number `index` by the definition of its storage.
fn group_float(floats: &GroupFloats, index: usize) -> f32 {
    if let (Some((codes, divisor)), GroupType::Small(kind)) = (floats.small_codes(), floats.kind())
    {
        let code = i32::from(codes[index]);
        let number = match kind.float {
            SmallFloat::E8M0 => 2.0_f64.powi(code - 127),
            // Normal numbers all, as the codes are above 7.
            _ => (1.0 + f64::from(code % 8) / 8.0) * 2.0_f64.powi(code / 8 - 7),
        };
        return number as f32 / divisor.unwrap_or(1.0);
    }
    let Some(levels) = floats.levels() else { return floats[index] };
    let (row, column) = (index / levels.per_row, index % levels.per_row);
    let run = match levels.kind.runs {
        Runs::Flat(length) => index / length,
        Runs::Rows(length) => row / length * levels.per_row + column,
    };
    let (code, coarse) = (f32::from(levels.codes[index]), levels.coarse[run]);
    let middle = f32::from(1_u8 << (levels.kind.bits - 1));
    match levels.kind.origin {
        Origin::Zero => coarse * code,
        Origin::Middle => coarse * (code - middle),
        Origin::Least => coarse * code + levels.offsets[run],
        Origin::Mean => coarse * (code - middle) + levels.offsets[0],
    }
}

fn round_trip(weight: &Weight) -> Result<Weight, WeightError> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let rebuild = |term: &Term| {
        let parts: HashMap<&str, Vec<u8>> =
            term.parts(rows, cols).into_iter().map(|p| (p.name, p.bytes)).collect();
        Term::from_parts(&term.outline(), rows, cols, &|name| parts.get(name).cloned())
    };
    Weight::new(rows, cols, weight.terms().iter().map(rebuild).collect::<Result<_, _>>()?)
}

/// Scale index by the definition of each grouping, one element at a time.
fn group_of(grouping: Grouping, row: usize, col: usize, cols: usize) -> usize {
    match grouping {
        Grouping::Tensor => 0,
        Grouping::Row => row,
        Grouping::Columns(width) => row * cols.div_ceil(width.get()) + col / width.get(),
        Grouping::Blocks { rows, columns } => {
            row / rows.get() * cols.div_ceil(columns.get()) + col / columns.get()
        }
    }
}

proptest! {
    #[test]
    fn affine_is_its_formula(
        rows in 1_usize..6, cols in 1_usize..40, bits in 1_u8..=8, grouping in grouping(),
        kinds in (group_type(), group_type()), zero in 0_usize..4, seed: u64,
    ) {
        let shape = (rows, cols);
        let groups = grouping.count(rows, cols);
        let (scales, scale_bits) = group_floats(kinds.0, grouping, shape, seed ^ 1);
        let (floats, float_bits) = group_floats(kinds.1, grouping, shape, seed ^ 2);
        let (zeros, zero_bits) = match zero {
            0 => (Zeros::Middle, 0),
            1 => (Zeros::Codes(codes(groups, seed ^ 2, bits)), groups as u64 * u64::from(bits)),
            2 => (Zeros::Floats(floats), float_bits),
            _ => (Zeros::Minima(floats), float_bits),
        };
        let affine = Affine { bits, grouping, codes: codes(rows * cols, seed, bits), scales, zeros };
        let weight = Weight::new(rows, cols, vec![Term::Affine(affine.clone())]).unwrap();
        for (index, value) in weight.decode().into_iter().enumerate() {
            let group = group_of(grouping, index / cols, index % cols, cols);
            let (scale, code) = (group_float(&affine.scales, group), affine.codes[index]);
            let expected = match &affine.zeros {
                Zeros::Middle => scale * (i32::from(code) - (1 << (bits - 1))) as f32,
                Zeros::Codes(zeros) => scale * (i32::from(code) - i32::from(zeros[group])) as f32,
                Zeros::Floats(zeros) => scale * (f32::from(code) - group_float(zeros, group)),
                Zeros::Minima(minima) => scale * f32::from(code) - group_float(minima, group),
            };
            prop_assert_eq!(value, expected);
            prop_assert_eq!(value, affine.value(group, code));
        }
        let expected = (rows * cols) as u64 * u64::from(bits) + scale_bits + zero_bits;
        prop_assert_eq!(weight.bits(), expected);
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
    }

    #[test]
    fn lookup_is_its_formula(
        rows in 1_usize..5, cols in 1_usize..30, bits in 1_u8..=8, grouping in grouping(),
        kind in group_type(), scaled: bool, book_per_row: bool, seed: u64,
    ) {
        let book_type = FLOATS[seed as usize % 3];
        let books = if book_per_row { rows } else { 1 };
        let (scales, scale_bits) = group_floats(kind, grouping, (rows, cols), seed ^ 4);
        let lookup = Lookup {
            bits, codes: codes(rows * cols, seed, bits), book_per_row, book_type: book_type.into(),
            books: values(books << bits, seed ^ 3, book_type),
            scales: scaled.then_some((grouping, scales)),
        };
        let weight = Weight::new(rows, cols, vec![Term::Lookup(lookup.clone())]).unwrap();
        for (index, value) in weight.decode().into_iter().enumerate() {
            let (row, col) = (index / cols, index % cols);
            let scale = lookup.scales.as_ref()
                .map_or(1.0, |(g, scales)| group_float(scales, group_of(*g, row, col, cols)));
            let book = if book_per_row { row << bits } else { 0 };
            prop_assert_eq!(value, scale * lookup.books[book + usize::from(lookup.codes[index])]);
        }
        let expected = (rows * cols) as u64 * u64::from(bits)
            + ((books as u64 * book_type.bits()) << bits) + if scaled { scale_bits } else { 0 };
        prop_assert_eq!(weight.bits(), expected);
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
    }

    #[test]
    fn small_floats_are_their_formula(
        rows in 1_usize..9, cols in 1_usize..30, eight: bool, grouping in grouping(),
        kind in group_type(), seed: u64,
    ) {
        let float = if eight { SmallFloat::E4M3 } else { SmallFloat::E2M1 };
        let (scales, scale_bits) = group_floats(kind, grouping, (rows, cols), seed ^ 4);
        let mut codes = codes(rows * cols, seed, float.bits());
        codes.iter_mut().filter(|code| **code & 127 == 127).for_each(|code| *code -= 1);
        let lookup = Lookup::of_small_floats(float, codes.clone(), grouping, scales.clone());
        let weight = Weight::new(rows, cols, vec![Term::Lookup(lookup)]).unwrap();
        for (index, value) in weight.decode().into_iter().enumerate() {
            let scale = group_float(&scales, group_of(grouping, index / cols, index % cols, cols));
            prop_assert_eq!(value, scale * float.decode(codes[index]));
        }
        let elements = (rows * cols) as u64;
        prop_assert_eq!(weight.bits(), elements * u64::from(float.bits()) + scale_bits);
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
    }

    #[test]
    fn tables_are_their_formula(
        rows in 1_usize..9, cols in 1_usize..30, which in 0_usize..3, grouping in grouping(),
        kind in group_type(), seed: u64,
    ) {
        let table = [Table::Iq4Nl, Table::Ternary, Table::Trits][which];
        let (scales, scale_bits) = group_floats(kind, grouping, (rows, cols), seed ^ 4);
        let mut codes = codes(rows * cols, seed, table.bits());
        codes.iter_mut().for_each(|code| *code %= table.levels().len() as u8);
        let lookup = Lookup::of_table(table, codes.clone(), grouping, scales.clone());
        let weight = Weight::new(rows, cols, vec![Term::Lookup(lookup.clone())]).unwrap();
        for (index, value) in weight.decode().into_iter().enumerate() {
            let scale = group_float(&scales, group_of(grouping, index / cols, index % cols, cols));
            prop_assert_eq!(value, scale * table.levels()[usize::from(codes[index])]);
        }
        let bits_a_row = match table {
            Table::Trits => {
                let width = grouping.width(cols);
                let starts = (0..cols).step_by(width);
                starts.map(|at| 8 * width.min(cols - at).div_ceil(5)).sum::<usize>()
            }
            _ => cols * usize::from(table.bits()),
        };
        prop_assert_eq!(weight.bits(), (rows * bits_a_row) as u64 + scale_bits);
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
        if table != Table::Iq4Nl {
            let codes = vec![3; rows * cols];
            let wrong = Term::Lookup(Lookup { codes, ..lookup });
            prop_assert!(Weight::new(rows, cols, vec![wrong]).is_err());
        }
    }

    #[test]
    fn planes_are_their_formula(
        rows in 1_usize..5, cols in 1_usize..50, planes in 1_u8..=8, grouping in grouping(),
        offset: bool, seed: u64, dtype in 0_usize..3,
    ) {
        let scale_type = FLOATS[dtype];
        let groups = grouping.count(rows, cols);
        let count = usize::from(planes);
        let term = Planes {
            planes, grouping, signs: codes(rows * cols, seed, planes), scale_type,
            alphas: values(count * groups, seed ^ 1, scale_type),
            offsets: offset.then(|| values(groups, seed ^ 2, scale_type)),
        };
        let weight = Weight::new(rows, cols, vec![Term::Planes(term.clone())]).unwrap();
        for (index, value) in weight.decode().into_iter().enumerate() {
            let group = group_of(grouping, index / cols, index % cols, cols);
            let mut expected = 0.0;
            for plane in 0..count {
                let sign = if term.signs[index] >> plane & 1 == 1 { 1.0 } else { -1.0 };
                expected += sign * term.alphas[plane * groups + group];
            }
            if let Some(offsets) = &term.offsets {
                expected += offsets[group];
            }
            prop_assert_eq!(value, expected);
        }
        let floats = (count + usize::from(offset)) * groups;
        let expected = (count * rows * cols) as u64 + floats as u64 * scale_type.bits();
        prop_assert_eq!(weight.bits(), expected);
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
    }

    /// Card of nuQmm, must show 2: uniform codes are planes with an offset.
    #[test]
    fn planes_hold_a_uniform_grid(planes in 1_u8..=8, scale in 1e-3_f32..10.0, zero in -5.0_f32..300.0) {
        let (alphas, offset) = Planes::from_uniform(planes, scale, zero);
        let all: Vec<u8> = (0..=u8::MAX).take(1 << planes).collect();
        let term = Planes {
            planes, grouping: Grouping::Row, signs: all.clone(), alphas,
            offsets: Some(vec![offset]), scale_type: FloatType::F32,
        };
        let weight = Weight::new(1, all.len(), vec![Term::Planes(term)]).unwrap();
        for (code, value) in all.iter().zip(weight.decode()) {
            let expected = f64::from(scale) * (f64::from(*code) - f64::from(zero));
            let largest = f64::from(scale) * (f64::from(zero).abs() + f64::from(u8::MAX));
            prop_assert!((f64::from(value) - expected).abs() <= largest * 4e-7, "{value} {expected}");
        }
    }

    /// A rounded array is within half a step of what was asked, up to the rounding of the coarse
    /// numbers themselves.
    #[test]
    fn rounding_to_two_levels_is_to_the_nearest(
        rows in 1_usize..12, per_row in 1_usize..9, kind in group_type(), seed: u64,
    ) {
        let signed = values(rows * per_row, seed, FloatType::F32);
        let GroupType::TwoLevel(levels) = kind else { return Ok(()) };
        let asked: Vec<f32> = match levels.origin {
            Origin::Zero => signed.iter().map(|v| v.abs()).collect(),
            _ => signed,
        };
        let got = GroupFloats::round(kind, per_row, &asked).unwrap();
        prop_assert_eq!(got.kind(), kind);
        let stored = got.levels().unwrap();
        let slack = if levels.coarse == FloatType::F32 { 1e-6 } else { 0.02 };
        for (index, (asked, got)) in asked.iter().zip(got.iter()).enumerate() {
            let run = levels.runs.of(index, per_row);
            // One bit has the codes −1 and 0 for signed numbers: no half step above.
            let steps = if levels.bits == 1 && levels.origin != Origin::Zero { 1.0 } else { 0.5 };
            let step = stored.coarse[run];
            prop_assert!((asked - got).abs() <= step * steps + slack, "{asked} {got} {step}");
        }
    }

    #[test]
    fn a_sum_decodes_to_the_sum_of_its_terms(
        rows in 1_usize..5, cols in 1_usize..12, rank in 0_usize..4, seed: u64,
    ) {
        let dtype = FloatType::Bf16;
        let dense = Dense { values: values(rows * cols, seed, dtype), dtype };
        let low_rank = LowRank {
            rank, dtype,
            left: values(rows * rank, seed ^ 5, dtype),
            right: values(rank * cols, seed ^ 6, dtype),
        };
        let columns: Vec<u32> = (0..rows).map(|r| ((seed as usize % cols + r) % cols) as u32).collect();
        let whole = Columns {
            columns: vec![seed as u32 % cols as u32, cols as u32 - 1],
            values: values(2 * rows, seed ^ 8, dtype), dtype,
        };
        let sparse = Sparse {
            row_starts: (0..=rows as u32).collect(), columns,
            values: values(rows, seed ^ 7, dtype), dtype, places: Places::Listed,
        };
        let mut expected: Vec<f64> = dense.values.iter().map(|v| f64::from(*v)).collect();
        for row in 0..rows {
            for col in 0..cols {
                for k in 0..rank {
                    expected[row * cols + col] +=
                        f64::from(low_rank.left[row * rank + k]) * f64::from(low_rank.right[k * cols + col]);
                }
            }
            expected[row * cols + sparse.columns[row] as usize] += f64::from(sparse.values[row]);
            for (index, column) in whole.columns.iter().enumerate() {
                expected[row * cols + *column as usize] += f64::from(whole.values[2 * row + index]);
            }
        }
        let terms = vec![
            Term::Dense(dense), Term::LowRank(low_rank), Term::Sparse(sparse), Term::Columns(whole),
        ];
        let weight = Weight::new(rows, cols, terms).unwrap();
        for (value, expected) in weight.decode().into_iter().zip(expected) {
            prop_assert!((f64::from(value) - expected).abs() < 1e-5);
        }
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
    }

    /// What is left of a matrix in each storage: the same matrix, as many bits as are written, and the
    /// smallest is the smallest.
    #[test]
    fn pruned_matrices_of_every_storage(
        rows in 1_usize..6, groups in 1_usize..9, width in 2_u8..9, some in 1_u8..8, seed: u64,
    ) {
        let (cols, dtype) = (groups * usize::from(width), FloatType::Bf16);
        let pruned = 1 + some % (width - 1).max(1);
        let all = values(rows * cols, seed, dtype);
        // The first of each run, shifted from run to run.
        let is_kept = |index: usize| {
            (index + index / usize::from(width) * 3) % usize::from(width) >= usize::from(pruned)
        };
        let kept: Vec<bool> = (0..rows * cols).map(is_kept).collect();
        let left: Vec<f32> = all.iter().zip(&kept).map(|(v, k)| if *k { *v } else { 0.0 }).collect();
        let group = (width, width - pruned);
        let (nonzeros, mut least) = (kept.iter().filter(|kept| **kept).count(), u64::MAX);
        let pattern = Places::Groups { width: group.0, kept: group.1 };
        for places in [Places::Listed, Places::Bitmap, pattern] {
            let sparse = Sparse::of_kept(&all, &kept, cols, dtype, places);
            prop_assert_eq!(sparse.values.len(), nonzeros);
            if group.1 == 0 && places == pattern {
                prop_assert!(Weight::new(rows, cols, vec![Term::Sparse(sparse)]).is_err());
                continue;
            }
            let weight = Weight::new(rows, cols, vec![Term::Sparse(sparse)]).unwrap();
            prop_assert_eq!(weight.decode(), left.clone());
            let stored: usize = weight.terms()[0].parts(rows, cols).iter().map(|p| p.bytes.len()).sum();
            prop_assert_eq!(weight.bits(), 8 * stored as u64);
            least = least.min(places.bits(rows, cols, nonzeros));
            prop_assert_eq!(round_trip(&weight).unwrap(), weight);
        }
        let smallest = Places::smallest(rows, cols, nonzeros, (group.1 > 0).then_some(group));
        prop_assert_eq!(smallest.bits(rows, cols, nonzeros), least);
    }

    #[test]
    fn parts_of_any_length_are_an_error_and_never_a_panic(
        rows in 0_usize..5, cols in 0_usize..9, bits in 0_u8..12,
        lengths in prop::array::uniform4(0_usize..90), kind in 0_usize..15, group in group_type(),
        grouping in grouping(),
    ) {
        let (values, scales) = (FloatType::F16, group);
        // The bits of a code come from the file too.
        let scales = match scales {
            GroupType::TwoLevel(kind) if bits % 3 == 0 => GroupType::TwoLevel(TwoLevel { bits, ..kind }),
            other => other,
        };
        let outline = [
            TermOutline::Dense { values },
            TermOutline::Affine { bits, grouping, zeros: ZeroType::Codes, scales },
            TermOutline::Affine { bits, grouping, zeros: ZeroType::Floats(scales), scales: values.into() },
            TermOutline::Affine { bits: 4, grouping, zeros: ZeroType::Minima(scales), scales },
            TermOutline::Lookup { bits, grouping: Some(grouping), book_per_row: true, books: values.into(), scales },
            TermOutline::Lookup {
                bits: 8, grouping: Some(grouping), book_per_row: false,
                books: SmallFloat::E4M3.into(), scales,
            },
            TermOutline::Lookup {
                bits, grouping: Some(grouping), book_per_row: bits % 2 == 1,
                books: SmallFloat::E2M1.into(), scales,
            },
            TermOutline::Lookup {
                bits: 4 >> (rows % 2), grouping: Some(grouping), book_per_row: false,
                books: [Table::Iq4Nl, Table::Trits][rows % 2].into(), scales,
            },
            TermOutline::Planes { planes: bits, grouping, offsets: true, scales: values },
            TermOutline::Sparse { nonzeros: 3, values, places: Places::Listed },
            TermOutline::Sparse { nonzeros: 3, values, places: Places::Bitmap },
            TermOutline::Sparse { nonzeros: 3, values, places: Places::Groups { width: bits, kept: 1 } },
            TermOutline::Columns { count: 2, values },
            TermOutline::LowRank { rank: 2, values },
            TermOutline::Trellis { row_bits: u32::from(bits), state_bits: 12, strip: rows },
        ][kind].clone();
        let bytes = |name: &str| {
            let length = lengths[name.len() % 4];
            (length % 7 != 0).then(|| (0..length).map(|i| (i * 37) as u8).collect::<Vec<u8>>())
        };
        if let Ok(term) = Term::from_parts(&outline, rows, cols, &bytes) {
            Weight::new(rows, cols, vec![term]).unwrap().decode();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_trellis_is_its_formula(
        rows in 0_usize..20, cols in 1_usize..9, strip in 1_usize..8, seed: u64,
    ) {
        use lapidary_kernels::trellis::Trellis as Code;
        let rates: Vec<u8> = codes(cols, seed, 3).iter().map(|c| c + (c >> 2)).collect();
        let all = codes(rows * cols, seed ^ 1, 8);
        let all = all.iter().zip(rates.iter().cycle());
        let trellis = Trellis {
            state_bits: 12, strip,
            codes: all.map(|(code, rate)| (u32::from(*code) & ((1 << rate) - 1)) as u8).collect(),
            row_scales: codes(rows, seed ^ 2, 8), column_scales: codes(cols, seed ^ 3, 8),
            scale: 0.37, rates,
        };
        let weight = Weight::new(rows, cols, vec![Term::Trellis(trellis.clone())]).unwrap();
        let decoded = weight.decode();
        let code = Code::new(12);
        for column in 0..cols {
            let mut state = 0;
            for row in 0..rows {
                if row % strip == 0 {
                    state = code.start(Trellis::sequence(row, strip, column));
                }
                let rate = u32::from(trellis.rates[column]);
                state = code.next(state, trellis.codes[row * cols + column], rate);
                let power = |exponent: u8| ((f64::from(exponent) - 128.0) / 8.0).exp2();
                let scale = power(trellis.row_scales[row]) * power(trellis.column_scales[column]);
                let value = 0.37 * scale * f64::from(code.value(state));
                let value = if rate == 0 { 0.0 } else { value };
                let found = f64::from(decoded[row * cols + column]);
                prop_assert!((found - value).abs() <= 1e-5 * value.abs(), "{} {}", found, value);
            }
        }
        let sum: u64 = trellis.rates.iter().map(|rate| u64::from(*rate)).sum();
        let aside = 12 * cols as u64 + 8 * rows as u64 + 32;
        prop_assert_eq!(weight.bits(), rows as u64 * sum + aside);
        prop_assert_eq!(round_trip(&weight).unwrap(), weight);
    }
}

/// A super-block of Q4_K, `d · sc · q − dmin · m`, and one of Q6_K, `d · sc · (q − 32)`, exactly.
#[test]
fn k_quants_are_affine_terms() {
    let eight = Runs::Flat(NonZeroUsize::new(8).unwrap());
    let sixteen = Runs::Flat(NonZeroUsize::new(16).unwrap());
    let coarse = FloatType::F16;
    let float = |levels: Levels| GroupFloats::two_level(levels).unwrap();
    let (d, dmin) = (coarse.round(0.0123), coarse.round(0.0456));
    let (sc, m) = (codes(8, 1, 6), codes(8, 2, 6));
    let kind = TwoLevel { bits: 6, runs: eight, origin: Origin::Zero, coarse };
    let level = |codes: &[u8], coarse| {
        float(Levels {
            kind,
            per_row: 8,
            codes: codes.to_vec(),
            coarse: vec![coarse],
            offsets: vec![],
        })
    };
    let q = codes(256, 3, 4);
    let q4 = Affine {
        bits: 4,
        grouping: Grouping::Columns(NonZeroUsize::new(32).unwrap()),
        codes: q.clone(),
        scales: level(&sc, d),
        zeros: Zeros::Minima(level(&m, dmin)),
    };
    let weight = Weight::new(1, 256, vec![Term::Affine(q4)]).unwrap();
    assert_eq!(weight.bits(), 144 * 8, "a block of Q4_K has 144 bytes");
    for (i, value) in weight.decode().into_iter().enumerate() {
        let (scale, minimum) = (d * f32::from(sc[i / 32]), dmin * f32::from(m[i / 32]));
        assert_eq!(value, scale * f32::from(q[i]) - minimum);
    }

    let (sc, q) = (codes(16, 4, 8), codes(256, 5, 6));
    let kind = TwoLevel { bits: 8, runs: sixteen, origin: Origin::Middle, coarse };
    let scales = Levels { kind, per_row: 16, codes: sc.clone(), coarse: vec![d], offsets: vec![] };
    let q6 = Affine {
        bits: 6,
        grouping: Grouping::Columns(NonZeroUsize::new(16).unwrap()),
        codes: q.clone(),
        scales: float(scales),
        zeros: Zeros::Middle,
    };
    let weight = Weight::new(1, 256, vec![Term::Affine(q6)]).unwrap();
    assert_eq!(weight.bits(), 210 * 8, "a block of Q6_K has 210 bytes");
    for (i, value) in weight.decode().into_iter().enumerate() {
        let (sc, q) = (f32::from(sc[i / 16]) - 128.0, f32::from(q[i]) - 32.0);
        assert_eq!(value, d * sc * q);
    }
}

#[test]
fn outlines_are_read_as_they_were_written() {
    let old =
        r#"{"term":"affine","bits":4,"grouping":{"columns":64},"symmetric":false,"scales":"f16"}"#;
    let grouping = Grouping::Columns(NonZeroUsize::new(64).unwrap());
    let scales = GroupType::Plain(FloatType::F16);
    let expected = TermOutline::Affine { bits: 4, grouping, zeros: ZeroType::Codes, scales };
    assert_eq!(serde_json::from_str::<TermOutline>(old).unwrap(), expected);
    let symmetric = old.replace("false", "true");
    let expected = TermOutline::Affine { bits: 4, grouping, zeros: ZeroType::Middle, scales };
    assert_eq!(serde_json::from_str::<TermOutline>(&symmetric).unwrap(), expected);
    let runs = Runs::Rows(NonZeroUsize::new(16).unwrap());
    let kind = TwoLevel { bits: 3, runs, origin: Origin::Least, coarse: FloatType::Bf16 };
    for zeros in [
        ZeroType::Middle,
        ZeroType::Codes,
        ZeroType::Floats(GroupType::TwoLevel(kind)),
        ZeroType::Minima(FloatType::F16.into()),
    ] {
        for scales in [GroupType::TwoLevel(kind), scales] {
            let outline = TermOutline::Affine { bits: 4, grouping, zeros, scales };
            let text = serde_json::to_string(&outline).unwrap();
            assert_eq!(serde_json::from_str::<TermOutline>(&text).unwrap(), outline, "{text}");
        }
    }
    let unknown =
        old.replace(r#""f16""#, r#"{"bits":3,"runs":{"flat":0},"origin":"least","coarse":"f16"}"#);
    assert!(serde_json::from_str::<TermOutline>(&unknown).is_err(), "runs of nothing");
}

#[test]
fn levels_that_do_not_fit_their_matrix_are_refused() {
    let kind = TwoLevel {
        bits: 4,
        runs: Runs::Flat(NonZeroUsize::new(4).unwrap()),
        origin: Origin::Zero,
        coarse: FloatType::F16,
    };
    let scales = GroupFloats::round(GroupType::TwoLevel(kind), 1, &[1.0, 2.0]).unwrap();
    let grouping = Grouping::Columns(NonZeroUsize::new(2).unwrap());
    let affine =
        |scales| Affine { bits: 2, grouping, codes: vec![0; 4], scales, zeros: Zeros::Middle };
    let error = Weight::new(1, 4, vec![Term::Affine(affine(scales))]).unwrap_err().to_string();
    assert!(error.contains("scale_codes"), "two rows of one are not one row of two: {error}");
    let huge = GroupFloats::round(GroupType::TwoLevel(kind), 2, &[1e30, 2.0]).unwrap();
    let error = Weight::new(1, 4, vec![Term::Affine(affine(huge))]).unwrap_err().to_string();
    assert_eq!(error, "affine term: scales is not finite at element 0");
    assert!(GroupFloats::round(GroupType::TwoLevel(kind), 2, &[1.0; 3]).is_err());
}

#[test]
fn a_code_above_its_width_is_named() {
    let affine = Affine {
        bits: 2,
        grouping: Grouping::Row,
        codes: vec![0, 3, 4],
        scales: GroupFloats::plain(vec![1.0], FloatType::F32),
        zeros: Zeros::Middle,
    };
    let error = Weight::new(1, 3, vec![Term::Affine(affine)]).unwrap_err();
    assert_eq!(error.to_string(), "affine term: codes holds 4, which is not below 4");
}

#[test]
fn a_scale_survives_its_storage_type() {
    assert_eq!(FloatType::F16.round(1e-12), 0.0);
    assert_eq!(FloatType::F16.round_scale(1e-12), half::f16::from_bits(1).to_f32());
    assert_eq!(FloatType::Bf16.round_scale(1e-45), half::bf16::from_bits(1).to_f32());
    assert_eq!(FloatType::Bf16.round_scale(f32::MAX), half::bf16::MAX.to_f32());
    assert_eq!(FloatType::F16.round_scale(1e9), 65504.0);
    assert_eq!(FloatType::Bf16.round(1.0 + 1.0 / 256.0), 1.0, "ties go to even");
}

#[test]
fn places_that_are_not_those_of_the_storage_are_refused() {
    let sparse = |columns: [u32; 4], places| {
        let (row_starts, values) = (vec![0, 4], vec![1.0; 4]);
        let columns = columns.to_vec();
        let dtype = FloatType::F16;
        let sparse = Sparse { row_starts, columns, values, dtype, places };
        Weight::new(1, 8, vec![Term::Sparse(sparse)])
    };
    let groups = |width, kept| Places::Groups { width, kept };
    assert!(sparse([0, 1, 6, 7], groups(4, 2)).is_ok());
    assert!(sparse([0, 1, 2, 7], groups(4, 2)).is_err(), "three of the first four");
    assert!(sparse([0, 1, 6, 7], groups(8, 3)).is_err(), "four values are not three of eight");
    assert!(sparse([0, 1, 6, 7], groups(3, 2)).is_err(), "runs of 3 do not divide 8 columns");
    assert!(sparse([0, 1, 7, 6], Places::Bitmap).is_err(), "a bitmap has no order");
    assert!(sparse([0, 1, 1, 6], Places::Bitmap).is_err(), "nor two values at a place");
    assert!(sparse([0, 1, 1, 6], Places::Listed).is_ok());
    let half = Places::smallest(64, 64, 2048, Some((4, 2)));
    assert_eq!(half, groups(4, 2), "of equals, the pattern");
    assert_eq!(half.bits(64, 64, 2048), 4096);
    assert_eq!(Places::smallest(64, 64, 2048, None), Places::Bitmap);
    assert_eq!(Places::smallest(64, 64, 20, None), Places::Listed);
    assert_eq!(Places::smallest(64, 64, 1024, Some((4, 1))).bits(64, 64, 1024), 2048);
}
