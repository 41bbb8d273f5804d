//! What GPTQ's card says must be shown, against a reference in f64.

mod common;

use common::{Random, codes, encode, error, gram, method, output_error};
use lapidary_methods::{NoteKind, Statistics};
use serde_json::{Value, json};

fn plain(bits: u8, group: Value) -> Value {
    json!({"bits": bits, "group_size": group, "act_order": false, "static_groups": false, "scale": "min-max"})
}

/// How groups are made and columns visited.
#[derive(Clone, Copy)]
struct Course {
    group: usize,
    act_order: bool,
    is_static: bool,
}

/// The algorithm of the paper in f64, without blocks: H⁻¹ by Gauss-Jordan, U by its definition.
fn reference_codes(
    weight: &[f32],
    cols: usize,
    statistics: &Statistics,
    bits: u32,
    course: Course,
) -> Vec<u8> {
    let n = cols;
    let diagonal = |i: usize| statistics.gram[i * n + i];
    let mut order: Vec<usize> = (0..n).collect();
    if course.act_order {
        order.sort_by(|a, b| diagonal(*b).total_cmp(&diagonal(*a)));
    }
    let mean = (0..n).map(|i| f64::from(diagonal(i))).sum::<f64>() / n as f64;
    let mut h = vec![];
    for i in &order {
        h.extend(order.iter().map(|j| f64::from(statistics.gram[i * n + j])));
    }
    (0..n).for_each(|i| h[i * n + i] += 0.01 * mean);
    let lower = cholesky(&invert(&h, n), n);
    let levels = f64::from((1_u32 << bits) - 1);
    let zero = (levels + 1.0) / 2.0;
    let scale_of = |values: &mut dyn Iterator<Item = f64>| {
        values.fold(0.0_f64, |reach, w| reach.max(w.abs())) / (levels / 2.0)
    };
    let mut codes = vec![0; weight.len()];
    for (row, codes) in weight.chunks_exact(n).zip(codes.chunks_exact_mut(n)) {
        let mut w: Vec<f64> = order.iter().map(|column| f64::from(row[*column])).collect();
        let groups = row.chunks(course.group);
        let mut scales: Vec<f64> =
            groups.map(|group| scale_of(&mut group.iter().map(|w| f64::from(*w)))).collect();
        for j in 0..n {
            let group = order[j] / course.group;
            if !course.is_static && j % course.group == 0 {
                let end = (j + course.group).min(n);
                scales[group] = scale_of(&mut w[j..end].iter().copied());
            }
            let scale = scales[group];
            let code = ((w[j] / scale).round_ties_even() + zero).clamp(0.0, levels);
            let error = (w[j] - scale * (code - zero)) / lower[j * n + j];
            (j..n).for_each(|k| w[k] -= error * lower[k * n + j]);
            codes[order[j]] = code as u8;
        }
    }
    codes
}

/// `H⁻¹ = Uᵀ U` with U upper: the transpose of its lower Cholesky factor.
fn cholesky(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut lower = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| lower[i * n + k] * lower[j * n + k]).sum();
            let rest = matrix[i * n + j] - dot;
            lower[i * n + j] = if i == j { rest.sqrt() } else { rest / lower[j * n + j] };
        }
    }
    lower
}

fn invert(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut a = matrix.to_vec();
    let mut inverse = vec![0.0; n * n];
    (0..n).for_each(|i| inverse[i * n + i] = 1.0);
    for pivot in 0..n {
        let scale = 1.0 / a[pivot * n + pivot];
        for k in 0..n {
            a[pivot * n + k] *= scale;
            inverse[pivot * n + k] *= scale;
        }
        for row in (0..n).filter(|row| *row != pivot) {
            let factor = a[row * n + pivot];
            for k in 0..n {
                a[row * n + k] -= factor * a[pivot * n + k];
                inverse[row * n + k] -= factor * inverse[pivot * n + k];
            }
        }
    }
    inverse
}

#[test]
fn codes_are_those_of_the_paper() {
    let mut random = Random::new(1);
    let (rows, cols) = (24, 150);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(600, cols, 0.97), cols);
    let course = |group, act_order, is_static| Course { group, act_order, is_static };
    for (bits, course) in [
        (2, course(cols, false, false)),
        (3, course(cols, false, true)),
        (4, course(cols, true, true)),
        (8, course(cols, false, false)),
        // Neither 64 nor 7 divides the width: the last group is ragged.
        (4, course(64, false, false)),
        (3, course(64, false, true)),
        (3, course(64, true, true)),
        (4, course(7, false, false)),
        (4, course(7, true, true)),
    ] {
        let mut params = plain(bits, json!(course.group));
        params["act_order"] = json!(course.act_order);
        params["static_groups"] = json!(course.is_static);
        let encoded = encode(&*method("gptq", params), &weight, cols, Some(&statistics));
        let reference = reference_codes(&weight, cols, &statistics, u32::from(bits), course);
        let same = codes(&encoded).iter().zip(&reference).filter(|(a, b)| a == b).count();
        // A value near the middle of two codes may fall the other way in f32, and its row after it;
        // the least value of a symmetric group is always there, so small groups differ more.
        let least = if course.group < 10 { 0.9 } else { 0.97 };
        let share = same as f64 / reference.len() as f64;
        assert!(share > least, "{bits} bits, groups of {}: {share}", course.group);
    }
}

/// Must show 2.
#[test]
fn a_diagonal_gram_matrix_gives_round_to_nearest_code_for_code() {
    let mut random = Random::new(2);
    let (rows, cols) = (9, 77);
    let weight = random.gaussians(rows * cols);
    let mut diagonal = vec![0.0; cols * cols];
    (0..cols).for_each(|i| diagonal[i * cols + i] = 0.1 + random.uniform() as f32);
    let statistics = Statistics { gram: diagonal, drift: None, inputs: None, tokens: 100 };
    for (group, act_order) in [(json!("row"), false), (json!(16), false), (json!(16), true)] {
        let mut changes = plain(3, group.clone());
        changes["act_order"] = json!(act_order);
        changes["static_groups"] = json!(act_order);
        let gptq = encode(&*method("gptq", changes), &weight, cols, Some(&statistics));
        let rtn =
            encode(&*method("rtn", json!({"bits": 3, "group_size": group})), &weight, cols, None);
        assert_eq!(codes(&gptq), codes(&rtn));
    }
}

/// Must show 5, and that each refinement pays on its own objective.
#[test]
fn correlated_inputs_make_it_far_better_than_round_to_nearest() {
    let mut random = Random::new(3);
    let (rows, cols) = (64, 64);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(2000, cols, 0.9), cols);
    for bits in [3, 4] {
        let error = |id: &str, changes: Value| {
            let encoded = encode(&*method(id, changes), &weight, cols, Some(&statistics));
            output_error(&encoded, &weight, &statistics)
        };
        let rtn = error("rtn", json!({"bits": bits, "group_size": 32}));
        let gptq = error("gptq", plain(bits, json!(32)));
        let default = error("gptq", json!({"bits": bits, "group_size": 32}));
        assert!(gptq < 0.4 * rtn, "{bits} bits: {gptq} {rtn}");
        assert!(default < gptq, "{bits} bits: {default} {gptq}");
    }
}

#[test]
fn every_grouping_order_and_width_is_encoded() {
    let mut random = Random::new(4);
    for cols in [1, 7, 40, 131] {
        let weight = random.gaussians(3 * cols);
        let statistics = gram(&random.correlated(64, cols, 0.95), cols);
        let rtn = encode(&*method("rtn", json!({"group_size": 5, "bits": 4})), &weight, cols, None);
        let bound = output_error(&rtn, &weight, &statistics);
        for group in [json!("tensor"), json!("row"), json!(5), json!(32), json!(130)] {
            for (act_order, is_static) in [(false, false), (false, true), (true, true)] {
                for symmetric in [true, false] {
                    let changes = json!({
                        "bits": 4, "group_size": group, "act_order": act_order,
                        "static_groups": is_static, "symmetric": symmetric, "scale": "mse",
                    });
                    let encoded =
                        encode(&*method("gptq", changes), &weight, cols, Some(&statistics));
                    if group == json!(5) {
                        let error = output_error(&encoded, &weight, &statistics);
                        assert!(error <= 1.5 * bound + 1e-6, "{error} {bound}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_dead_column_is_rounded_to_nearest_and_told_of() {
    let mut random = Random::new(5);
    let (rows, cols) = (4, 32);
    let weight = random.gaussians(rows * cols);
    let mut inputs = random.correlated(200, cols, 0.9);
    inputs.iter_mut().skip(3).step_by(cols).for_each(|value| *value = 0.0);
    let statistics = gram(&inputs, cols);
    let encoded =
        encode(&*method("gptq", plain(4, json!("row"))), &weight, cols, Some(&statistics));
    let rtn = encode(&*method("rtn", json!({"bits": 4, "group_size": "row"})), &weight, cols, None);
    let column = |codes: Vec<u8>| codes.into_iter().skip(3).step_by(cols).collect::<Vec<u8>>();
    assert_eq!(column(codes(&encoded)), column(codes(&rtn)));
    assert!(
        encoded
            .notes
            .iter()
            .any(|note| note.kind == NoteKind::Fact && note.what.starts_with("1 input"))
    );
}

#[test]
fn degenerate_gram_matrices_never_make_it_worse_than_round_to_nearest() {
    let mut random = Random::new(6);
    let (rows, cols) = (8, 48);
    let weight = random.gaussians(rows * cols);
    let one_row = random.gaussians(cols);
    let duplicated: Vec<f32> = random
        .gaussians(100)
        .into_iter()
        .flat_map(|value| std::iter::repeat_n(value, cols))
        .collect();
    let huge: Vec<f32> = random.gaussians(64 * cols).into_iter().map(|v| v * 1e12).collect();
    let tiny: Vec<f32> = random.gaussians(64 * cols).into_iter().map(|v| v * 1e-12).collect();
    let cases = [
        ("one row", one_row),
        ("duplicates", duplicated),
        ("huge", huge),
        ("tiny", tiny),
        ("nothing", vec![0.0; cols]),
    ];
    for (name, inputs) in cases {
        let statistics = gram(&inputs, cols);
        let gptq =
            encode(&*method("gptq", json!({"group_size": 16})), &weight, cols, Some(&statistics));
        let rtn = encode(&*method("rtn", json!({"group_size": 16})), &weight, cols, None);
        let (gptq, rtn) =
            (output_error(&gptq, &weight, &statistics), output_error(&rtn, &weight, &statistics));
        assert!(gptq <= rtn * 1.001 + 1e-9, "{name}: {gptq} {rtn}");
    }
}

#[test]
fn a_matrix_that_cannot_be_factored_falls_back_and_says_so() {
    let (rows, cols) = (2, 4);
    let weight = Random::new(7).gaussians(rows * cols);
    // Not positive whatever is added to its diagonal within reason.
    let mut gram = vec![1000.0; cols * cols];
    (0..cols).for_each(|i| gram[i * cols + i] = 1.0);
    let statistics = Statistics { gram, drift: None, inputs: None, tokens: 10 };
    let encoded =
        encode(&*method("gptq", json!({"group_size": "row"})), &weight, cols, Some(&statistics));
    assert!(
        encoded.notes.iter().any(|note| note.kind == NoteKind::Fallback),
        "{:?}",
        encoded.notes
    );
    let raised =
        Statistics { gram: vec![1.0, 1.05, 1.05, 1.0], drift: None, inputs: None, tokens: 10 };
    let encoded = encode(&*method("gptq", json!({"group_size": "row"})), &weight, 2, Some(&raised));
    let note = &encoded.notes[0];
    assert!(note.kind == NoteKind::Fallback && note.what.contains("damping of 0.1"), "{note:?}");
}

#[test]
fn without_statistics_it_says_what_it_needs() {
    let gptq = method("gptq", json!({}));
    let site = lapidary_methods::Site {
        name: "layer",
        rows: 1,
        cols: 2,
        weight: &[1.0, 2.0],
        statistics: None,
        scale_type: lapidary_weight::FloatType::F16,
        peak: None,
    };
    let error = gptq.encode(&site).unwrap_err().to_string();
    assert!(error.starts_with("layer: the method needs the Gram matrix"), "{error}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut random = Random::new(8);
    let (rows, cols) = (67, 200);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(400, cols, 0.97), cols);
    for changes in [
        json!({"bits": 4, "group_size": 32}),
        json!({"bits": 3, "group_size": 64, "symmetric": false}),
        json!({"bits": 4, "group_size": "row", "act_order": false, "static_groups": false}),
        json!({"bits": 8, "group_size": "tensor", "scale": "mse"}),
    ] {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let method = method("gptq", changes.clone());
            pool.install(|| encode(&*method, &weight, cols, Some(&statistics)))
        };
        let alone = on(1);
        for threads in [2, 3] {
            assert_eq!(on(threads), alone, "{changes} on {threads} threads");
        }
    }
}

#[test]
fn statistics_or_weights_that_are_no_numbers_are_an_error() {
    let mut random = Random::new(9);
    let (rows, cols) = (3, 24);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(100, cols, 0.9), cols);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 5, cols + 1, cols * cols - 1] {
            let mut statistics = statistics.clone();
            statistics.gram[place] = bad;
            let what = error("gptq", &weight, cols, Some(&statistics));
            assert!(
                what.starts_with("site: the Gram matrix of its inputs is not finite"),
                "{what}"
            );
        }
        for id in ["gptq", "omse", "rtn"] {
            let mut weight = weight.clone();
            weight[cols + 2] = bad;
            let what = error(id, &weight, cols, Some(&statistics));
            assert!(
                what.starts_with("site: its weight is not finite at row 1, column 2"),
                "{what}"
            );
        }
    }
}

/// Sums of squares of the largest finite activations, and weights near the end of the range.
#[test]
fn the_largest_numbers_are_encoded_or_refused_but_never_lost() {
    let (rows, cols) = (2, 16);
    let weight: Vec<f32> =
        (0..rows * cols).map(|i| if i % 2 == 0 { f32::MAX } else { -f32::MAX }).collect();
    let mut diagonal = vec![0.0; cols * cols];
    (0..cols).for_each(|i| diagonal[i * cols + i] = f32::MAX);
    let statistics = Statistics { gram: diagonal, drift: None, inputs: None, tokens: 1 };
    for id in ["gptq", "omse", "rtn"] {
        for symmetric in [true, false] {
            let changes = json!({"group_size": "row", "symmetric": symmetric});
            let method = method(id, changes);
            let site = lapidary_methods::Site {
                name: "site",
                rows,
                cols,
                weight: &weight,
                statistics: Some(&statistics),
                scale_type: lapidary_weight::FloatType::F32,
                peak: None,
            };
            if let Ok(encoded) = method.encode(&site) {
                let decoded = encoded.weight.decode();
                assert!(decoded.iter().all(|value| value.is_finite()), "{id} {symmetric}");
            }
        }
    }
}
