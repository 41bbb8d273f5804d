//! A weight in other terms: what is called exact has the same values, bit for bit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use lapidary_weight::{
    Affine, FloatType, GroupFloats, GroupType, Grouping, Lookup, Origin, Outline, Runs, Term,
    TermOutline, TwoLevel, Weight, ZeroType, Zeros, restatements,
};
use proptest::prelude::*;
use std::num::NonZeroUsize;

fn columns(width: usize) -> Grouping {
    Grouping::Columns(NonZeroUsize::new(width).unwrap())
}

/// Numbers of a type, some of them not powers of two.
fn floats(count: usize, kind: GroupType, per_row: usize, seed: u32) -> GroupFloats {
    let number = |index: usize| {
        let bits = (index as u32 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9) >> 16;
        0.001 + bits as f32 / 65536.0
    };
    let values: Vec<f32> = (0..count).map(number).collect();
    GroupFloats::round(kind, per_row, &values).unwrap()
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Middle,
    Codes,
    Floats,
    Minima,
}

fn weight(
    (rows, cols): (usize, usize),
    bits: u8,
    grouping: Grouping,
    kind: Kind,
    scales: GroupType,
    seed: u32,
) -> Weight {
    let (count, per_row) = (grouping.count(rows, cols), grouping.per_row(cols));
    let mask = (1_u32 << bits) - 1;
    let code = |index: usize| {
        ((index as u32).wrapping_mul(0x85eb_ca6b).wrapping_add(seed) >> 7 & mask) as u8
    };
    let zeros = match kind {
        Kind::Middle => Zeros::Middle,
        Kind::Codes => Zeros::Codes((0..count).map(|group| code(group + 7)).collect()),
        Kind::Floats => Zeros::Floats(floats(count, scales, per_row, seed ^ 5)),
        Kind::Minima => Zeros::Minima(floats(count, scales, per_row, seed ^ 9)),
    };
    let codes = (0..rows * cols).map(code).collect();
    let scales = floats(count, scales, per_row, seed);
    let affine = Affine { bits, grouping, codes, scales, zeros };
    Weight::new(rows, cols, vec![Term::Affine(affine)]).unwrap()
}

fn groupings() -> impl Strategy<Value = Grouping> {
    prop_oneof![
        Just(Grouping::Tensor),
        Just(Grouping::Row),
        prop::sample::select(vec![16, 32, 48, 64, 128, 200]).prop_map(columns),
    ]
}

fn types() -> impl Strategy<Value = GroupType> {
    let runs = NonZeroUsize::new(4).unwrap();
    let coarse = FloatType::F16;
    let two = TwoLevel { bits: 6, runs: Runs::Flat(runs), origin: Origin::Zero, coarse };
    let plain = [FloatType::F16, FloatType::Bf16, FloatType::F32].map(GroupType::Plain);
    prop::sample::select([plain.as_slice(), &[GroupType::TwoLevel(two)]].concat())
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Middle, Kind::Codes, Kind::Floats, Kind::Minima])
}

proptest! {
    #[test]
    fn what_is_exact_keeps_every_value_and_the_rest_is_near(
        rows in 1_usize..4,
        cols in prop::sample::select(vec![1_usize, 31, 64, 96, 128, 256]),
        bits in 1_u8..=8,
        grouping in groupings(),
        kind in kinds(),
        scales in types(),
        seed in any::<u32>(),
    ) {
        let weight = weight((rows, cols), bits, grouping, kind, scales, seed);
        let values = weight.decode();
        let reach = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        // Values are differences of codes times scales: a rounded scale moves each by its share.
        let reach = reach.max(f32::from(u8::MAX)) * 2.0;
        let all = restatements(&weight.outline());
        prop_assert_eq!(&all[0].outline, &weight.outline());
        for other in &all {
            let restated = weight.restated(&other.outline).unwrap();
            prop_assert_eq!(&restated.outline(), &other.outline);
            for (new, old) in restated.decode().iter().zip(&values) {
                if other.is_exact {
                    prop_assert_eq!(new.to_bits(), old.to_bits(), "{:?}", other.outline);
                } else {
                    prop_assert!((new - old).abs() <= reach / 128.0, "{new} {old} {other:?}");
                }
            }
        }
    }
}

#[test]
fn formats_find_the_terms_they_hold() {
    let terms = |weight: &Weight| -> Vec<(TermOutline, bool)> {
        let of =
            |other: lapidary_weight::Restatement| (other.outline.terms[0].clone(), other.is_exact);
        restatements(&weight.outline()).into_iter().map(of).collect()
    };
    let f16 = GroupType::Plain(FloatType::F16);
    let term = |bits, grouping, zeros| TermOutline::Affine { bits, grouping, zeros, scales: f16 };
    let symmetric = terms(&weight((2, 256), 4, columns(128), Kind::Middle, f16, 3));
    // GPTQ's and AWQ's zero points, llama.cpp's blocks of 32 without and with minima.
    for (bits, grouping, zeros) in [
        (4, columns(128), ZeroType::Codes),
        (4, columns(32), ZeroType::Middle),
        (8, columns(32), ZeroType::Middle),
        (4, columns(32), ZeroType::Minima(f16)),
    ] {
        assert!(symmetric.contains(&(term(bits, grouping, zeros), true)), "{bits} {zeros:?}");
    }
    let asymmetric = terms(&weight((2, 256), 4, columns(128), Kind::Codes, f16, 3));
    assert!(asymmetric.contains(&(term(5, columns(32), ZeroType::Middle), true)), "a bit wider");
    assert!(asymmetric.contains(&(term(4, columns(32), ZeroType::Minima(f16)), false)));
    assert!(!asymmetric.iter().any(|(other, _)| *other == term(4, columns(32), ZeroType::Middle)));
    let exact = asymmetric.iter().take_while(|(_, is_exact)| *is_exact).count();
    assert!(asymmetric[exact..].iter().all(|(_, is_exact)| !is_exact), "the exact ones are first");
}

#[test]
fn codebooks_get_finer_groups_and_sums_of_terms_stay_as_they_are() {
    let scales = GroupFloats::plain(vec![0.5, 2.0], FloatType::F16);
    let lookup = Lookup {
        bits: 2,
        codes: (0..128).map(|index| index as u8 % 4).collect(),
        books: vec![-1.0, -0.25, 0.5, 1.0],
        book_per_row: false,
        scales: Some((columns(64), scales)),
        book_type: FloatType::F32.into(),
    };
    let weight = Weight::new(1, 128, vec![Term::Lookup(lookup)]).unwrap();
    let all = restatements(&weight.outline());
    assert!(all.len() > 1);
    for other in &all {
        let restated = weight.restated(&other.outline).unwrap();
        assert_eq!(restated.decode(), weight.decode(), "these scales are exact in every type");
    }
    let sum = Weight::new(1, 128, [weight.terms(), weight.terms()].concat()).unwrap();
    assert_eq!(restatements(&sum.outline()).len(), 1);
    let other = Outline { rows: 2, ..weight.outline() };
    assert!(weight.restated(&other).is_err());
}
