//! Round to nearest against its formula, OMSE against the figures of its card.

mod common;

use common::{Random, codes, encode, method, weight_error};
use lapidary_weight::Term;
use serde_json::json;

/// compressed-tensors' own formula in f64, group by group, for both kinds of grids.
#[test]
fn rtn_is_the_formula_of_compressed_tensors() {
    let mut random = Random::new(1);
    let (rows, cols) = (5, 70);
    let weight = random.gaussians(rows * cols);
    for (bits, group, symmetric) in
        [(4, 32, true), (4, 32, false), (3, 64, true), (2, 7, false), (8, 70, true), (5, 1, false)]
    {
        let changes = json!({"bits": bits, "group_size": group, "symmetric": symmetric});
        let encoded = encode(&*method("rtn", changes), &weight, cols, None);
        let levels = f64::from((1_u32 << bits) - 1);
        let mut expected = vec![];
        for row in weight.chunks_exact(cols) {
            for values in row.chunks(group) {
                let values: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
                let low = values.iter().copied().fold(0.0, f64::min);
                let high = values.iter().copied().fold(0.0, f64::max);
                let (scale, zero) = if symmetric {
                    (low.abs().max(high) / (levels / 2.0), (levels + 1.0) / 2.0)
                } else {
                    let scale = (high - low) / levels;
                    (scale, (-low / scale).round_ties_even())
                };
                let code = |v: &f64| ((v / scale).round_ties_even() + zero).clamp(0.0, levels);
                expected.extend(values.iter().map(|value| code(value) as u8));
            }
        }
        let codes = codes(&encoded);
        let different = codes.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert!(different <= 1, "{bits} bits, groups of {group}: {different} codes differ");
    }
}

#[test]
fn every_grouping_of_any_width_is_encoded() {
    let mut random = Random::new(2);
    for (rows, cols) in [(1, 1), (3, 5), (2, 33), (7, 64)] {
        let weight = random.gaussians(rows * cols);
        for group in
            [json!("tensor"), json!("row"), json!(-1), json!(1), json!(4), json!(32), json!(100)]
        {
            for bits in 2..=8 {
                let changes = json!({"bits": bits, "group_size": group, "symmetric": false});
                let encoded = encode(&*method("rtn", changes), &weight, cols, None);
                let Term::Affine(affine) = &encoded.weight.terms()[0] else { panic!() };
                assert_eq!(affine.scales.len(), affine.grouping.count(rows, cols));
            }
        }
    }
}

/// Card of OMSE, must show 1 and 2: ratios and absolute errors on Gaussian rows of 4096.
#[test]
fn omse_has_the_errors_of_its_card_on_gaussians() {
    let mut random = Random::new(3);
    let (rows, cols) = (12, 4096);
    let weight = random.gaussians(rows * cols);
    let cases = [(2, 5.5, 0.151), (3, 3.2, 0.0408), (4, 1.93, 0.01155)];
    for (bits, ratio, absolute) in cases {
        // The card's round to nearest spans max|w| in 2^(bits−1) − 1 steps, and its OMSE starts there.
        let spans = |scale: f64, value: f64| {
            let highest = f64::from((1_u32 << (bits - 1)) - 1);
            let code = (value / scale).round_ties_even().clamp(-highest - 1.0, highest);
            (value - scale * code).powi(2)
        };
        let mut rtn = 0.0;
        for row in weight.chunks_exact(cols) {
            let reach = row.iter().fold(0.0_f32, |reach, w| reach.max(w.abs()));
            let scale = f64::from(reach) / f64::from((1_u32 << (bits - 1)) - 1);
            rtn += row.iter().map(|w| spans(scale, f64::from(*w))).sum::<f64>();
        }
        let omse = encode(
            &*method("omse", json!({"bits": bits, "group_size": "row"})),
            &weight,
            cols,
            None,
        );
        let error = weight_error(&omse, &weight);
        let per_weight = error / weight.len() as f64;
        assert!((per_weight / absolute - 1.0).abs() < 0.05, "{bits} bits: {per_weight}");
        assert!((rtn / error / ratio - 1.0).abs() < 0.15, "{bits} bits: ratio {}", rtn / error);
    }
}

/// Must show 1: the full range is a candidate.
#[test]
fn omse_is_never_worse_than_rtn() {
    let mut random = Random::new(4);
    for cols in [1, 9, 64, 130] {
        let weight = random.gaussians(8 * cols);
        for bits in 2..=8 {
            for symmetric in [true, false] {
                let changes = json!({"bits": bits, "group_size": 32, "symmetric": symmetric});
                let rtn = encode(&*method("rtn", changes.clone()), &weight, cols, None);
                let omse = encode(&*method("omse", changes), &weight, cols, None);
                let (rtn, omse) = (weight_error(&rtn, &weight), weight_error(&omse, &weight));
                assert!(omse <= rtn * (1.0 + 1e-5) + 1e-12, "{bits} bits, {cols}: {omse} {rtn}");
            }
        }
    }
}

#[test]
fn degenerate_weights_are_encoded_as_they_are() {
    for weight in [vec![0.0; 64], vec![1.5; 64], vec![-2.0; 64], vec![f32::MIN_POSITIVE; 64]] {
        for id in ["rtn", "omse"] {
            let encoded = encode(
                &*method(id, json!({"group_size": 16, "symmetric": false})),
                &weight,
                32,
                None,
            );
            let worst = encoded
                .weight
                .decode()
                .iter()
                .zip(&weight)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst <= 1e-6 * weight[0].abs() + 1e-30, "{id} {weight:?}: {worst}");
        }
    }
}

/// Against every scale in steps of a thousandth of the largest, in f64: the search is close to the
/// least error that any scale has.
#[test]
fn omse_finds_the_best_scale_of_all() {
    let mut random = Random::new(5);
    let (rows, cols) = (6, 128);
    let weight = random.gaussians(rows * cols);
    for bits in [2, 3, 4, 6] {
        let changes = json!({"bits": bits, "group_size": "row"});
        let omse = encode(&*method("omse", changes), &weight, cols, None);
        let decoded = omse.weight.decode();
        let highest = f64::from(1_u32 << (bits - 1)) - 1.0;
        for (row, decoded) in weight.chunks_exact(cols).zip(decoded.chunks_exact(cols)) {
            let reach = row.iter().fold(0.0_f32, |reach, w| reach.max(w.abs()));
            let error_at = |scale: f64| -> f64 {
                let round = |w: f64| (w / scale).round_ties_even().clamp(-highest - 1.0, highest);
                row.iter().map(|w| (f64::from(*w) - scale * round(f64::from(*w))).powi(2)).sum()
            };
            let largest = f64::from(reach) / (highest + 0.5);
            let all = (1..=1000).map(|step| error_at(largest * f64::from(step) / 1000.0));
            let least = all.fold(f64::INFINITY, f64::min);
            let pairs = row.iter().zip(decoded);
            let found: f64 = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
            assert!(found <= least * 1.005, "{bits} bits: {found} {least}");
        }
    }
}

/// Must show 3: two grids of 4 bits fitted together are far better than one fitted to what the other
/// leaves, and about as good as one of 8 bits; so with 3 bits, and rows of 144 as on the card.
#[test]
fn two_grids_fitted_together_are_about_as_good_as_one_of_twice_the_bits() {
    let mut random = Random::new(6);
    let (rows, cols) = (40, 144);
    let weight = random.gaussians(rows * cols);
    // Mean squared errors of the card: joint, greedy.
    for (bits, joint, greedy) in [(4, 3.5e-5, 3.2e-4), (3, 6.0e-4, 3.4e-3)] {
        let error = |changes| {
            let encoded = encode(&*method("omse", changes), &weight, cols, None);
            weight_error(&encoded, &weight) / weight.len() as f64
        };
        let double = error(json!({"bits": 2 * bits, "group_size": "row"}));
        let both = error(json!({"bits": bits, "group_size": "row", "tensors": 2}));
        assert!(both < 1.1 * double, "{bits} bits: {both} {double}");
        assert!(both < 1.2 * joint && both < 0.3 * greedy, "{bits} bits: {both}");
    }
}

#[test]
fn more_grids_are_never_worse() {
    let mut random = Random::new(7);
    let (rows, cols) = (6, 50);
    let weight: Vec<f32> = random.gaussians(rows * cols).iter().map(|w| w * w * w).collect();
    for (bits, symmetric) in [(2, true), (2, false), (3, true), (5, false)] {
        let error = |tensors: usize| {
            let changes = json!({
                "bits": bits, "group_size": 16, "symmetric": symmetric, "tensors": tensors,
                "steps": 100,
            });
            weight_error(&encode(&*method("omse", changes), &weight, cols, None), &weight)
        };
        let errors: Vec<f64> = (1..=4).map(error).collect();
        for pair in errors.windows(2) {
            assert!(pair[1] <= pair[0] * 1.0001 + 1e-9, "{bits} bits: {errors:?}");
        }
        assert!(errors[1] < 0.5 * errors[0], "{bits} bits: {errors:?}");
    }
}
