//! HQQ, binary coding, k-means and bit-split against their cards.

mod common;

use common::{Random, codes, encode, gram, method, output_error, weight_error};
use lapidary_methods::Statistics;
use lapidary_weight::{FloatType, Term, Zeros};
use serde_json::{Value, json};

fn error(id: &str, changes: Value, weight: &[f32], cols: usize) -> f64 {
    weight_error(&encode(&*method(id, changes), weight, cols, None), weight)
}

/// Student's t with 4 degrees of freedom: tails as heavy as those of trained weights.
fn heavy_tailed(random: &mut Random, count: usize) -> Vec<f32> {
    let mut one = || {
        let squares: f64 = (0..4).map(|_| random.gaussian().powi(2)).sum();
        random.gaussian() / (squares / 4.0).sqrt()
    };
    (0..count).map(|_| (0.02 * one()) as f32).collect()
}

/// `Σ |W − Ŵ|`, what HQQ keeps the best of.
fn magnitude_error(id: &str, changes: Value, weight: &[f32], cols: usize) -> f64 {
    let decoded = encode(&*method(id, changes), weight, cols, None).weight.decode();
    decoded.iter().zip(weight).map(|(a, b)| f64::from((a - b).abs())).sum()
}

#[test]
fn hqq_is_never_worse_than_round_to_nearest() {
    let mut random = Random::new(1);
    let (rows, cols) = (40, 200);
    for weight in [random.gaussians(rows * cols), heavy_tailed(&mut random, rows * cols)] {
        for bits in [2, 3, 4, 8] {
            let hqq = json!({"bits": bits, "group_size": 64});
            let rtn = json!({"bits": bits, "group_size": 64, "symmetric": false});
            let ours = magnitude_error("hqq", hqq.clone(), &weight, cols);
            let theirs = magnitude_error("rtn", rtn.clone(), &weight, cols);
            assert!(ours < theirs, "{bits} bits: {ours} {theirs}");
            let (ours, theirs) =
                (error("hqq", hqq, &weight, cols), error("rtn", rtn, &weight, cols));
            assert!(ours < theirs, "{bits} bits: squares {ours} {theirs}");
        }
    }
}

/// Each group alone: the integer grid is a start, so no group loses.
#[test]
fn no_group_of_hqq_is_worse_than_round_to_nearest() {
    let mut random = Random::new(2);
    let weight = heavy_tailed(&mut random, 300 * 16);
    for bits in [2, 4] {
        let decode = |id: &str, changes: Value| encode(&*method(id, changes), &weight, 16, None);
        let hqq = decode("hqq", json!({"bits": bits, "group_size": 16})).weight.decode();
        let rtn = json!({"bits": bits, "group_size": 16, "symmetric": false});
        let rtn = decode("rtn", rtn).weight.decode();
        let groups = weight.chunks(16).zip(hqq.chunks(16)).zip(rtn.chunks(16));
        for ((weight, hqq), rtn) in groups {
            let error = |decoded: &[f32]| -> f32 {
                decoded.iter().zip(weight).map(|(a, b)| (a - b).abs()).sum()
            };
            assert!(error(hqq) <= error(rtn) * (1.0 + 1e-4), "{} {}", error(hqq), error(rtn));
        }
    }
}

#[test]
fn zeros_of_hqq_are_real_and_a_uniform_group_stays_as_it_is() {
    let mut random = Random::new(3);
    let weight = random.gaussians(8 * 64);
    let encoded = encode(&*method("hqq", json!({})), &weight, 64, None);
    let Term::Affine(affine) = &encoded.weight.terms()[0] else { panic!() };
    let Zeros::Floats(zeros) = &affine.zeros else { panic!() };
    assert!(zeros.iter().any(|zero| zero.fract() != 0.0), "{zeros:?}");
    let uniform: Vec<f32> = (0..64).map(|i| 0.25 * (i % 16) as f32 - 1.5).collect();
    assert!(error("hqq", json!({}), &uniform, 64) < 1e-10);
}

/// Card of nuQmm, must show 4: errors of Gaussian groups of 128, and never above the uniform grid.
#[test]
fn binary_coding_has_the_errors_of_its_card() {
    let mut random = Random::new(4);
    let (rows, cols) = (120, 256);
    let gaussian = random.gaussians(rows * cols);
    let heavy = heavy_tailed(&mut random, rows * cols);
    let changes = |bits: u8, offset: bool| json!({"bits": bits, "offset": offset});
    for (bits, expected) in [(2, 0.114), (3, 0.037), (4, 0.0117)] {
        let found = error("bcq", changes(bits, false), &gaussian, cols) / gaussian.len() as f64;
        assert!(found < 1.03 * expected && found > 0.7 * expected, "{bits} planes: {found}");
    }
    for weight in [&gaussian, &heavy] {
        let mut before = f64::INFINITY;
        for bits in 1..=5 {
            let found = error("bcq", changes(bits, true), weight, cols);
            assert!(found < before, "{bits} planes: {found} {before}");
            before = found;
            for symmetric in [true, false] {
                if bits > 1 {
                    let rtn = json!({"bits": bits, "symmetric": symmetric});
                    let rtn = error("rtn", rtn, weight, cols);
                    assert!(found < rtn, "{bits} planes: {found} {rtn}");
                }
            }
        }
    }
}

#[test]
fn weighing_by_the_inputs_lowers_the_weighted_error() {
    let mut random = Random::new(5);
    let (rows, cols) = (16, 96);
    let weight = random.gaussians(rows * cols);
    let mut inputs = random.gaussians(300 * cols);
    for row in inputs.chunks_exact_mut(cols) {
        row.iter_mut().enumerate().for_each(|(i, x)| *x *= 0.05 + (i % 7) as f32);
    }
    let statistics = gram(&inputs, cols);
    let mut diagonal = vec![0.0; cols * cols];
    (0..cols).for_each(|i| diagonal[i * cols + i] = statistics.gram[i * cols + i]);
    let diagonal = Statistics { gram: diagonal, drift: None, inputs: None, tokens: 300 };
    for (id, bits) in [("bcq", 2), ("bcq", 3), ("squeezellm", 3), ("squeezellm", 4)] {
        let error = |weighted: bool| {
            let changes = json!({"bits": bits, "weighted": weighted});
            let encoded = encode(&*method(id, changes), &weight, cols, Some(&statistics));
            output_error(&encoded, &weight, &diagonal)
        };
        assert!(error(true) < 0.97 * error(false), "{id}: {} {}", error(true), error(false));
    }
}

/// K-means against the uniform grid of a row of the same bits, and the share stored sparsely.
#[test]
fn codebooks_of_rows_beat_grids_of_rows() {
    let mut random = Random::new(6);
    let (rows, cols) = (20, 400);
    let gaussian = random.gaussians(rows * cols);
    let mut heavy = heavy_tailed(&mut random, rows * cols);
    heavy[17] = 3.0;
    heavy[5 * cols] = -2.0;
    for weight in [&gaussian, &heavy] {
        for bits in [2, 3, 4, 6] {
            let kmeans = json!({"bits": bits, "weighted": false});
            let kmeans = error("squeezellm", kmeans, weight, cols);
            for symmetric in [true, false] {
                let grid = json!({"bits": bits, "group_size": "row", "symmetric": symmetric});
                for id in ["rtn", "omse"] {
                    let grid = error(id, grid.clone(), weight, cols);
                    assert!(kmeans < grid, "{bits} bits, {id}: {kmeans} {grid}");
                }
            }
        }
    }
    let share = json!({"bits": 3, "weighted": false, "sparse_share": 0.0045});
    let encoded = encode(&*method("squeezellm", share), &heavy, cols, None);
    let Term::Sparse(sparse) = &encoded.weight.terms()[1] else { panic!() };
    assert_eq!(sparse.values.len(), 36);
    let decoded = encoded.weight.decode();
    for place in [17, 5 * cols] {
        assert!((decoded[place] - heavy[place]).abs() < 1e-6);
    }
    let without = error("squeezellm", json!({"bits": 3, "weighted": false}), &heavy, cols);
    assert!(weight_error(&encoded, &heavy) < 0.8 * without);
}

/// A codebook of a Gaussian row has the error of Lloyd and Max's quantizer.
#[test]
fn long_gaussian_rows_have_the_errors_of_lloyd_and_max() {
    let weight = Random::new(7).gaussians(3 * 20_000);
    for (bits, expected) in [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)] {
        let changes = json!({"bits": bits, "weighted": false, "rounds": 300});
        let found = error("squeezellm", changes, &weight, 20_000) / weight.len() as f64;
        assert!((found / expected - 1.0).abs() < 0.04, "{bits} bits: {found} {expected}");
    }
}

/// All codes with their best scale, in f64.
fn brute_force(weight: &[f64], h: &[f64], highest: i32) -> f64 {
    let n = weight.len();
    let product = |a: &[f64], b: &[f64]| -> f64 {
        (0..n).map(|i| (0..n).map(|j| a[i] * h[i * n + j] * b[j]).sum::<f64>()).sum()
    };
    let base = (2 * highest + 1) as usize;
    let mut least = product(weight, weight);
    for index in 0..base.pow(n as u32) {
        let mut rest = index;
        let digit = |_| {
            let digit = (rest % base) as i32 - highest;
            rest /= base;
            f64::from(digit)
        };
        let q: Vec<f64> = (0..n).map(digit).collect();
        let stiffness = product(&q, &q);
        if stiffness > 0.0 {
            let along = product(weight, &q);
            least = least.min(product(weight, weight) - along * along / stiffness);
        }
    }
    least
}

/// Card of bit-split, must show 3: never below brute force, and equal to it more often than not.
#[test]
fn bit_split_is_often_as_good_as_trying_everything() {
    for (bits, n, seed) in [(2, 8, 8), (3, 5, 9)] {
        let mut random = Random::new(seed);
        let (mut equal, mut ratios) = (0, vec![]);
        for _ in 0..20 {
            let weight = random.gaussians(n);
            let statistics = gram(&random.gaussians(40 * n), n);
            let changes = json!({"bits": bits, "group_size": "row", "dampening_frac": 0.0});
            let encoded = encode(&*method("bit-split", changes), &weight, n, Some(&statistics));
            let found = output_error(&encoded, &weight, &statistics);
            let h: Vec<f64> = statistics.gram.iter().map(|g| f64::from(*g)).collect();
            let w: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
            let least = brute_force(&w, &h, (1 << (bits - 1)) - 1);
            assert!(found >= least * (1.0 - 1e-3), "{found} {least}");
            equal += usize::from(found <= least * 1.001);
            ratios.push(found / least);
        }
        ratios.sort_by(f64::total_cmp);
        assert!(equal >= 9, "{bits} bits: {equal} of 20, {ratios:?}");
        assert!(ratios[10] < 1.2, "{ratios:?}");
    }
}

/// Must show 2 and 4: codes keep to ±(2^(bits−1) − 1), and correlated inputs make it far better.
#[test]
fn bit_split_uses_the_correlations_of_its_inputs() {
    let mut random = Random::new(10);
    let (rows, cols, factors) = (24, 128, 8);
    let weight = random.gaussians(rows * cols);
    let basis = random.gaussians(factors * cols);
    let mut inputs = vec![];
    for _ in 0..400 {
        let mix = random.gaussians(factors);
        for column in 0..cols {
            let shared: f32 = (0..factors).map(|k| mix[k] * basis[k * cols + column]).sum();
            inputs.push(shared + 0.05 * random.gaussian() as f32);
        }
    }
    let statistics = gram(&inputs, cols);
    for bits in [2, 3, 4] {
        for group in [json!("row"), json!(32)] {
            let run = |id: &str| {
                let changes = json!({"bits": bits, "group_size": group});
                encode(&*method(id, changes), &weight, cols, Some(&statistics))
            };
            let split = run("bit-split");
            assert!(codes(&split).iter().all(|code| *code > 0), "the lowest code is not used");
            let split = output_error(&split, &weight, &statistics);
            let (rtn, omse) = (run("rtn"), run("omse"));
            let others = [rtn, omse].map(|e| output_error(&e, &weight, &statistics));
            assert!(others.iter().all(|other| split < 0.15 * other), "{split} {others:?}");
        }
    }
}

#[test]
fn without_inputs_methods_promise_the_same_outline() {
    let weight = Random::new(11).gaussians(6 * 40);
    for (id, changes) in [
        ("bcq", json!({"weighted": true})),
        ("bit-split", json!({"group_size": 16})),
        ("squeezellm", json!({"sparse_share": 0.01})),
        ("kbit", json!({"outlier_share": 0.1})),
    ] {
        let method = method(id, changes);
        assert!(method.needs().gram, "{id}");
        let other = method.without_statistics().unwrap();
        assert!(!other.needs().gram, "{id}");
        let float = FloatType::F32;
        assert_eq!(method.outline(6, 40, float), other.outline(6, 40, float));
        encode(&*other, &weight, 40, None);
    }
}
