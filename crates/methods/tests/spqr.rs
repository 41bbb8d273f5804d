//! SpQR: sizes, outliers, and errors against the paper's claims.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Random, encode, gram, method, output_error, weight_error};
use lapidary_weight::{FloatType, GroupType, Sparse, Term, Zeros};
use serde_json::json;

fn sparse(terms: &[Term]) -> Option<&Sparse> {
    terms.iter().find_map(|term| match term {
        Term::Sparse(sparse) => Some(sparse),
        _ => None,
    })
}

/// `b + (b_s + b_z) / g + 64 / (g · rows) + 48 r`: columns are stored in 32 bits here, the paper
/// has 16.
#[test]
fn the_size_is_that_of_the_formula() {
    let cases = [(3, 16, 16, 0.0, 3.625), (4, 16, 16, 0.0, 4.625), (3, 8, 64, 0.0, 3.875)];
    for (bits, group, stat_rows, outliers, expected) in cases {
        let spqr = method(
            "spqr",
            json!({"bits": bits, "group_size": group, "stat_rows": stat_rows, "outliers": outliers}),
        );
        let outline = spqr.outline(256, 512, FloatType::F32);
        let average = outline.bits() as f64 / (256.0 * 512.0);
        assert!((average - expected).abs() < 1e-9, "{average} {expected}");
    }
    let outline = method("spqr", json!({"outliers": 0.004})).outline(256, 512, FloatType::F32);
    let outliers = (0.004_f64 * 256.0 * 512.0).round();
    let average = outline.bits() as f64 / (256.0 * 512.0);
    let starts = 32.0 * 257.0;
    let expected = 3.625 + (48.0 * outliers + starts) / (256.0 * 512.0);
    assert!((average - expected).abs() < 1e-9, "{average} {expected}");
}

#[test]
fn a_planted_weight_is_kept_apart_and_frees_its_group() {
    let mut random = Random::new(7);
    let (rows, cols) = (32, 64);
    let mut weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(256, cols, 0.95), cols);
    let place = 5 * cols + 19;
    weight[place] = 100.0;
    let one = 1.0 / (rows * cols) as f64;
    let with = encode(&*method("spqr", json!({"outliers": one})), &weight, cols, Some(&statistics));
    let without =
        encode(&*method("spqr", json!({"outliers": 0.0})), &weight, cols, Some(&statistics));
    let apart = sparse(with.weight.terms()).unwrap();
    assert_eq!((apart.columns.as_slice(), apart.values.len()), (&[19_u32][..], 1));
    assert_eq!((apart.row_starts[5], apart.row_starts[6]), (0, 1));
    assert!(sparse(without.weight.terms()).is_none());
    let (with, without) = (with.weight.decode(), without.weight.decode());
    assert!((with[place] - 100.0).abs() < 5.0, "compensated, and near: {}", with[place]);
    let worst = |decoded: &[f32]| {
        let group = place / 16 * 16..place / 16 * 16 + 16;
        let others = group.filter(|other| *other != place);
        others.map(|other| (decoded[other] - weight[other]).abs()).fold(0.0_f32, f32::max)
    };
    // With it in the group all others are one code, and their errors as large as they are.
    assert!(3.0 * worst(&with) < worst(&without), "{} {}", worst(&with), worst(&without));
}

/// The stored terms, decoded by the paper's formulas in a few lines.
#[test]
fn codes_statistics_and_outliers_make_up_the_matrix() {
    let mut random = Random::new(11);
    let (rows, cols) = (40, 72);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(256, cols, 0.95), cols);
    let encoded =
        encode(&*method("spqr", json!({"outliers": 0.01})), &weight, cols, Some(&statistics));
    let [Term::Affine(affine), Term::Sparse(apart)] = encoded.weight.terms() else { panic!() };
    let Zeros::Floats(zeros) = &affine.zeros else { panic!() };
    let GroupType::TwoLevel(kind) = affine.scales.kind() else { panic!() };
    assert_eq!((kind.bits, apart.values.len()), (3, 29));
    let groups = cols.div_ceil(16);
    let mut expected: Vec<f32> = (0..rows * cols)
        .map(|i| {
            let group = i / cols * groups + i % cols / 16;
            affine.scales[group] * (f32::from(affine.codes[i]) - zeros[group])
        })
        .collect();
    for row in 0..rows {
        for at in apart.row_starts[row] as usize..apart.row_starts[row + 1] as usize {
            expected[row * cols + apart.columns[at] as usize] += apart.values[at];
        }
    }
    assert_eq!(encoded.weight.decode(), expected);
}

#[test]
fn it_loses_less_than_gptq_of_the_same_size_and_less_still_with_outliers() {
    let mut random = Random::new(3);
    let (rows, cols) = (64, 128);
    let mut weight = random.gaussians(rows * cols);
    // A few heavy weights, as trained matrices have.
    for place in (0..rows * cols).step_by(397) {
        weight[place] *= 6.0;
    }
    let statistics = gram(&random.correlated(1024, cols, 0.98), cols);
    let error = |id: &str, changes| {
        let encoded = encode(&*method(id, changes), &weight, cols, Some(&statistics));
        output_error(&encoded, &weight, &statistics)
    };
    let grid = json!({"bits": 3, "group_size": 32, "symmetric": false});
    let (rtn, gptq) = (error("rtn", grid.clone()), error("gptq", grid));
    let plain = error("spqr", json!({"outliers": 0.0}));
    let spqr = error("spqr", json!({"outliers": 0.004}));
    let more = error("spqr", json!({"outliers": 0.02}));
    assert!(gptq < 0.8 * rtn, "{gptq} {rtn}");
    assert!(spqr < gptq && spqr < plain && more < spqr, "{gptq} {plain} {spqr} {more}");
}

#[test]
fn awkward_matrices_stay_near_rounding() {
    let mut random = Random::new(5);
    let (rows, cols) = (20, 50);
    let inputs = random.correlated(128, cols, 0.9);
    let mut dead = inputs.clone();
    dead.chunks_exact_mut(cols).for_each(|row| row[3] = 0.0);
    let plain = random.gaussians(rows * cols);
    let mut outlier = plain.clone();
    outlier[77] = 1e4;
    let mut constant = plain.clone();
    constant[cols..2 * cols].fill(0.7);
    constant[2 * cols..3 * cols].fill(0.0);
    let duplicate = plain[..cols].repeat(rows);
    let one_row = plain[..cols].to_vec();
    let cases = [
        ("dead", &plain, gram(&dead, cols)),
        ("outlier", &outlier, gram(&inputs, cols)),
        ("constant", &constant, gram(&inputs, cols)),
        ("duplicate", &duplicate, gram(&inputs, cols)),
        ("one row", &one_row, gram(&inputs, cols)),
    ];
    for (name, weight, statistics) in &cases {
        let spqr = encode(&*method("spqr", json!({"bits": 4})), weight, cols, Some(statistics));
        let rtn = method("rtn", json!({"bits": 4, "group_size": 16}));
        let rtn = encode(&*rtn, weight, cols, Some(statistics));
        let errors = [spqr, rtn].map(|encoded| output_error(&encoded, weight, statistics));
        assert!(errors[0] <= errors[1] * 1.01 + 1e-9, "{name}: {errors:?}");
    }
    let zeros = vec![0.0; rows * cols];
    let encoded = encode(&*method("spqr", json!({})), &zeros, cols, Some(&gram(&inputs, cols)));
    assert!(weight_error(&encoded, &zeros) < 1e-6);
    // Without statistics the same terms come, every column weighing the same.
    let alone = method("spqr", json!({"bits": 4})).without_statistics().unwrap();
    let encoded = encode(&*alone, &plain, cols, None);
    let rtn = encode(&*method("rtn", json!({"bits": 4, "group_size": 16})), &plain, cols, None);
    assert!(weight_error(&encoded, &plain) < weight_error(&rtn, &plain));
}
