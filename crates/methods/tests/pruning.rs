//! What the cards of magnitude pruning, Wanda and SparseGPT say must be shown.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Random, build, codes, encode, gram, method, output_error};
use lapidary_methods::{Method, MethodError, Pruned, Pruner, Site, Statistics, Tensorwise, find};
use lapidary_weight::{FloatType, Places, Term, TermOutline};
use serde_json::{Value, json};

fn pruner(id: &str, changes: Value) -> Box<dyn Pruner> {
    match build(id, changes) {
        Method::Pruner(pruner) => pruner,
        _ => panic!("{id} prunes nothing"),
    }
}

fn floats(id: &str, changes: Value) -> Pruned {
    Pruned::floats(pruner(id, changes))
}

fn before(id: &str, changes: Value, encoder: &str, of_encoder: Value) -> Pruned {
    Pruned::before(pruner(id, changes), method(encoder, of_encoder)).unwrap()
}

fn decoded(method: &dyn Tensorwise, weight: &[f32], cols: usize, known: &Statistics) -> Vec<f32> {
    encode(method, weight, cols, Some(known)).weight.decode()
}

/// Pruned entries are +0.0 and not −0.0.
fn zeros(values: &[f32]) -> usize {
    assert!(values.iter().all(|value| value.to_bits() != (-0.0_f32).to_bits()));
    values.iter().filter(|value| **value == 0.0).count()
}

const ALL: [&str; 3] = ["magnitude", "wanda", "sparsegpt"];

fn example(rows: usize, cols: usize) -> (Vec<f32>, Statistics) {
    let mut random = Random::new(41);
    let weight = random.gaussians(rows * cols);
    (weight, gram(&random.correlated(5 * cols, cols, 0.95), cols))
}

/// Schedule: card 1, must show 1.
#[test]
fn the_schedule_is_cubic_and_clamped() {
    use lapidary_methods::magnitude::scheduled;
    let steps = [(0.0, 0.0), (0.25, 0.2891), (0.5, 0.4375), (0.75, 0.4922), (1.0, 0.5), (3.0, 0.5)];
    for (progress, expected) in steps {
        assert!((scheduled(0.0, 0.5, progress) - expected).abs() < 5e-5, "{progress}");
    }
    let values: Vec<f64> = (0..=100).map(|i| scheduled(0.1, 0.9, f64::from(i) / 100.0)).collect();
    let near = |value: f64, wanted: f64| (value - wanted).abs() < 1e-12;
    assert!(values.is_sorted() && near(values[0], 0.1) && near(values[100], 0.9));
    assert!(near(scheduled(0.1, 0.9, -1.0), 0.1));
}

#[test]
fn exactly_as_many_go_as_were_asked_for_even_among_equals() {
    let (rows, cols) = (7, 300);
    let (mut weight, known) = example(rows, cols);
    // Ties, zeros that were there before, and negative zeros.
    weight.iter_mut().for_each(|w| *w = (*w * 2.0).round() / 2.0);
    for share in [0.0, 0.07, 0.29, 0.5, 0.7, 0.95] {
        for (id, changes) in [
            ("magnitude", json!({"sparsity": share})),
            ("magnitude", json!({"sparsity": share, "scope": "row"})),
            ("wanda", json!({"sparsity": share})),
            ("wanda", json!({"sparsity": share, "score": "ria"})),
            ("sparsegpt", json!({"sparsity": share})),
            ("sparsegpt", json!({"sparsity": share, "act_order": true})),
        ] {
            let by_row = id == "wanda" || changes["scope"] == "row";
            let of = |count: usize| (share * count as f64 + 1e-9) as usize;
            let count = if by_row { rows * of(cols) } else { of(rows * cols) };
            let pruner = pruner(id, changes.clone());
            assert_eq!(pruner.count(rows, cols), count, "{id} {changes}");
            let site = site(&weight, cols, &known, FloatType::F32);
            let kept = pruner.prune(&site).unwrap().kept;
            assert_eq!(kept.iter().filter(|kept| !**kept).count(), count, "{id} {changes}");
            if by_row {
                let pruned = |row: &[bool]| row.iter().filter(|kept| !**kept).count();
                assert!(kept.chunks_exact(cols).all(|row| pruned(row) == of(cols)), "{id}");
            }
            let left = decoded(&floats(id, changes.clone()), &weight, cols, &known);
            let pruned = left.iter().zip(&kept).filter(|(_, kept)| !**kept);
            assert!(pruned.clone().all(|(value, _)| value.to_bits() == 0), "{id} {changes}");
            if share == 0.0 {
                assert_eq!(left, weight, "{id}: nothing pruned is nothing changed");
            }
        }
    }
}

fn site<'a>(
    weight: &'a [f32],
    cols: usize,
    known: &'a Statistics,
    scale_type: FloatType,
) -> Site<'a> {
    let rows = weight.len() / cols;
    Site { name: "site", rows, cols, weight, statistics: Some(known), scale_type, peak: None }
}

#[test]
fn patterns_hold_in_every_group_of_every_row() {
    let (rows, cols) = (9, 168);
    let (weight, known) = example(rows, cols);
    for (pattern, pruned, width) in [("2:4", 2, 4), ("4:8", 4, 8), ("3:4", 3, 4), ("1:7", 1, 7)] {
        for id in ALL {
            let method = floats(id, json!({"pattern": pattern}));
            let left = decoded(&method, &weight, cols, &known);
            assert!(left.chunks_exact(width).all(|group| zeros(group) == pruned), "{id} {pattern}");
            let refused = method.check_shape(rows, cols + 1).unwrap_err();
            assert!(refused.contains(pattern), "{refused}");
            method.check_shape(rows, cols).unwrap();
        }
        // Together with rounding, whatever the groups of scales and the order of visits.
        for (group, act_order, is_static) in
            [(json!(64), true, true), (json!(12), false, false), (json!("row"), false, false)]
        {
            let params = json!({
                "bits": 4, "group_size": group, "act_order": act_order, "static_groups": is_static,
            });
            for id in ALL {
                let chain = before(id, json!({"pattern": pattern}), "gptq", params.clone());
                let left = decoded(&chain, &weight, cols, &known);
                let least = |group: &[f32]| zeros(group) >= pruned;
                assert!(left.chunks_exact(width).all(least), "{id} {pattern} {params}");
            }
        }
    }
    let wrong = (find("wanda").unwrap().build)(&json!({"pattern": "4:4"})).err().unwrap();
    assert!(wrong.to_string().contains("no pattern N:M"), "{wrong}");
    let both = (find("wanda").unwrap().build)(&json!({"pattern": "2:4", "sparsity": 0.5}));
    assert!(both.err().unwrap().to_string().contains("leave sparsity out"));
    for share in [-0.1, 1.0, 1.5] {
        assert!((find("magnitude").unwrap().build)(&json!({"sparsity": share})).is_err());
    }
}

/// Against sorting in f64.
#[test]
fn what_goes_is_what_scores_least() {
    let (rows, cols) = (5, 40);
    let (weight, known) = example(rows, cols);
    let size = |j: usize| f64::from(known.gram[j * cols + j]).sqrt();
    let at = |row: usize, j: usize| f64::from(weight[row * cols + j]).abs();
    let of_row = |row: usize| (0..cols).map(|j| at(row, j)).sum::<f64>();
    let of_column = |j: usize| (0..rows).map(|row| at(row, j)).sum::<f64>();
    let wanda = |row: usize, j: usize| at(row, j) * size(j);
    let ria = |row: usize, j: usize| {
        (at(row, j) / of_column(j) + at(row, j) / of_row(row)) * size(j).sqrt()
    };
    type Score<'a> = &'a dyn Fn(usize, usize) -> f64;
    let scores: [(&str, Score<'_>); 2] = [("wanda", &wanda), ("ria", &ria)];
    for (score, of) in scores {
        let changes = json!({"sparsity": 0.4, "score": score});
        let kept = pruner("wanda", changes).prune(&site(&weight, cols, &known, FloatType::F32));
        for (row, kept) in kept.unwrap().kept.chunks_exact(cols).enumerate() {
            let mut order: Vec<usize> = (0..cols).collect();
            order.sort_by(|a, b| of(row, *a).total_cmp(&of(row, *b)));
            order[..16].iter().for_each(|j| assert!(!kept[*j], "{score} {row} {j}"));
        }
    }
    // Magnitude over the whole matrix: no kept weight is below a pruned one.
    let kept = pruner("magnitude", json!({"sparsity": 0.3}));
    let kept = kept.prune(&site(&weight, cols, &known, FloatType::F32)).unwrap().kept;
    let of = |side: bool| weight.iter().zip(&kept).filter(move |(_, k)| **k == side);
    let most = of(false).map(|(w, _)| w.abs()).fold(0.0, f32::max);
    let least = of(true).map(|(w, _)| w.abs()).fold(f32::INFINITY, f32::min);
    assert!(most <= least);
}

/// Card 3, must show 2 to 4.
#[test]
fn scores_are_indifferent_to_what_changes_no_function() {
    let (rows, cols) = (6, 64);
    let (weight, known) = example(rows, cols);
    let mask = |weight: &[f32], known: &Statistics, changes: Value| {
        pruner("wanda", changes).prune(&site(weight, cols, known, FloatType::F32)).unwrap().kept
    };
    // Inputs times powers of two, columns divided by them: exact.
    let scales: Vec<f32> = (0..cols).map(|j| f32::from(1_u16 << (j % 5))).collect();
    let scaled: Vec<f32> = weight.iter().enumerate().map(|(i, w)| w * scales[i % cols]).collect();
    let known_scaled = known.scaled(&scales);
    assert_eq!(mask(&weight, &known, json!({})), mask(&scaled, &known_scaled, json!({})));
    // The same sizes everywhere: magnitude, row by row.
    let mut even = known.clone();
    (0..cols).for_each(|j| even.gram[j * cols + j] = 3.0);
    let by_size = pruner("magnitude", json!({"scope": "row"}));
    let by_size = by_size.prune(&site(&weight, cols, &even, FloatType::F32)).unwrap().kept;
    assert_eq!(mask(&weight, &even, json!({})), by_size);
    // RIA is relative.
    let ria = || json!({"score": "ria"});
    let larger: Vec<f32> = weight.iter().map(|w| w * 8.0).collect();
    assert_eq!(mask(&weight, &known, ria()), mask(&larger, &known, ria()));
}

/// The damped Gram matrix.
fn damped(known: &Statistics, cols: usize, share: f64) -> Vec<f64> {
    let mean = (0..cols).map(|j| f64::from(known.gram[j * cols + j])).sum::<f64>() / cols as f64;
    let mut h: Vec<f64> = known.gram.iter().map(|value| f64::from(*value)).collect();
    (0..cols).for_each(|j| h[j * cols + j] += share * mean);
    h
}

/// `e H eᵀ` of one row.
fn energy(error: &[f64], h: &[f64]) -> f64 {
    let n = error.len();
    (0..n).map(|i| error[i] * (0..n).map(|j| h[i * n + j] * error[j]).sum::<f64>()).sum()
}

/// Solves `A x = b` by Gaussian elimination.
fn solve(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for pivot in 0..n {
        for row in pivot + 1..n {
            let factor = a[row * n + pivot] / a[pivot * n + pivot];
            (pivot..n).for_each(|k| a[row * n + k] -= factor * a[pivot * n + k]);
            b[row] -= factor * b[pivot];
        }
    }
    for row in (0..n).rev() {
        let rest: f64 = (row + 1..n).map(|k| a[row * n + k] * b[k]).sum();
        b[row] = (b[row] - rest) / a[row * n + row];
    }
    b
}

/// Card 2, must show 2: `exact least squares ≤ SparseGPT ≤ the mask alone`, with the same mask.
#[test]
fn the_sweep_lies_between_the_mask_alone_and_least_squares() {
    let (rows, cols) = (8, 160);
    let (weight, known) = example(rows, cols);
    let h = damped(&known, cols, 0.01);
    for changes in [json!({}), json!({"act_order": true}), json!({"pattern": "2:4"})] {
        let pruning = pruner("sparsegpt", changes.clone());
        let pruning = pruning.prune(&site(&weight, cols, &known, FloatType::F32)).unwrap();
        let moved = pruning.moved.unwrap();
        let (mut swept, mut masked, mut exact) = (0.0, 0.0, 0.0);
        for row in 0..rows {
            let at = row * cols..(row + 1) * cols;
            let (w, kept) = (&weight[at.clone()], &pruning.kept[at.clone()]);
            let error = |left: &dyn Fn(usize) -> f64| -> f64 {
                let e: Vec<f64> = (0..cols).map(|j| f64::from(w[j]) - left(j)).collect();
                energy(&e, &h)
            };
            swept += error(&|j| f64::from(moved[row * cols + j]));
            masked += error(&|j| if kept[j] { f64::from(w[j]) } else { 0.0 });
            // H_kk (w_k − x) = −H_kp w_p over kept k and pruned p.
            let places: Vec<usize> = (0..cols).filter(|j| kept[*j]).collect();
            let h = &h;
            let of_row = |i: &usize| places.iter().map(|j| h[i * cols + j]).collect();
            let a = places.iter().flat_map::<Vec<f64>, _>(of_row).collect();
            let b = |i: &usize| (0..cols).map(|j| h[i * cols + j] * f64::from(w[j])).sum();
            let best = solve(a, places.iter().map(b).collect());
            let value = |j: usize| places.binary_search(&j).map_or(0.0, |place| best[place]);
            exact += error(&value);
        }
        assert!(exact <= swept && swept < 0.7 * masked, "{changes}: {exact} {swept} {masked}");
    }
}

/// Must show 3: without correlations nothing moves, and what goes is what Wanda's squares say.
#[test]
fn a_diagonal_gram_matrix_moves_nothing() {
    let (rows, cols) = (6, 64);
    let (weight, mut known) = example(rows, cols);
    for i in 0..cols * cols {
        known.gram[i] = if i % (cols + 1) == 0 { 1.0 + (i % 7) as f32 } else { 0.0 };
    }
    let undamped = json!({"pattern": "2:4", "dampening_frac": 0.0});
    let left = decoded(&floats("sparsegpt", undamped), &weight, cols, &known);
    let wanda = decoded(&floats("wanda", json!({"pattern": "2:4"})), &weight, cols, &known);
    assert_eq!(left, wanda);
}

/// The paper's algorithm in f64, column by column, without lazy updates but for where masks are
/// chosen.
fn reference(weight: &[f32], cols: usize, known: &Statistics, block: usize) -> Vec<f64> {
    let (n, rows) = (cols, weight.len() / cols);
    let h = damped(known, n, 0.01);
    let unit = |i: usize| (0..n).map(|j| if i == j { 1.0 } else { 0.0 }).collect::<Vec<f64>>();
    let mut w: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
    let mut kept = vec![true; w.len()];
    for j in 0..n {
        // The inverse of what is left of H, whose first row spreads the error: OBS itself.
        let left = n - j;
        let rest: Vec<f64> =
            (j..n).flat_map(|a| (j..n).map(move |b| (a, b))).map(|(a, b)| h[a * n + b]).collect();
        let inverse = solve(rest, unit(0)[..left].to_vec());
        if j % block == 0 {
            let width = block.min(left);
            let pivot = |k: usize| {
                let side = n - k;
                let rest = (k..n).flat_map(|a| (k..n).map(move |b| (a, b)));
                solve(rest.map(|(a, b)| h[a * n + b]).collect(), unit(0)[..side].to_vec())[0]
            };
            let pivots: Vec<f64> = (j..j + width).map(pivot).collect();
            let mut scores: Vec<(f64, usize)> = vec![];
            for row in 0..rows {
                for (k, pivot) in pivots.iter().enumerate() {
                    let place = row * n + j + k;
                    scores.push((w[place] * w[place] / pivot, place));
                }
            }
            scores.sort_by(|a, b| a.0.total_cmp(&b.0));
            let count = rows * (j + width) / 2 - rows * j / 2;
            scores[..count].iter().for_each(|(_, place)| kept[*place] = false);
        }
        for row in 0..rows {
            if kept[row * n + j] {
                continue;
            }
            let error = w[row * n + j] / inverse[0];
            for (k, spread) in inverse.iter().enumerate() {
                w[row * n + j + k] -= error * spread;
            }
            w[row * n + j] = 0.0;
        }
    }
    w
}

#[test]
fn weights_are_those_of_the_paper() {
    let (rows, cols) = (5, 132);
    let (weight, known) = example(rows, cols);
    let left = decoded(&floats("sparsegpt", json!({})), &weight, cols, &known);
    let wanted = reference(&weight, cols, &known, 128);
    let same = left.iter().zip(&wanted).filter(|(a, b)| (**a == 0.0) == (**b == 0.0)).count();
    assert!(same as f64 > 0.99 * left.len() as f64, "{same} of {}", left.len());
    let errors = left.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>();
    let size = wanted.iter().map(|w| w * w).sum::<f64>();
    assert!(errors < 0.02 * size, "{errors} {size}");
}

#[test]
fn less_is_lost_by_more_knowledge_and_in_one_sweep() {
    let (rows, cols) = (24, 256);
    let (weight, known) = example(rows, cols);
    let loss = |method: &dyn Tensorwise| {
        output_error(&encode(method, &weight, cols, Some(&known)), &weight, &known)
    };
    for changes in [json!({}), json!({"pattern": "2:4"})] {
        let [magnitude, wanda, sparse] = ALL.map(|id| loss(&floats(id, changes.clone())));
        assert!(sparse < wanda && wanda < magnitude, "{sparse} {wanda} {magnitude}");
        let grid = json!({"bits": 3, "group_size": 64});
        let gptq = json!({"bits": 3, "group_size": 64, "act_order": false});
        let joint = loss(&before("sparsegpt", changes.clone(), "gptq", gptq.clone()));
        let after = loss(&before("sparsegpt", changes.clone(), "rtn", grid.clone()));
        let wanda_gptq = loss(&before("wanda", changes.clone(), "gptq", gptq));
        let wanda_rtn = loss(&before("wanda", changes, "rtn", grid));
        assert!(
            joint < after && wanda_gptq < wanda_rtn,
            "{joint} {after} {wanda_gptq} {wanda_rtn}"
        );
    }
}

/// Must show 5: what is pruned is 0 after rounding too, with zero points and without.
#[test]
fn pruned_entries_stay_zero_through_every_encoder() {
    let (rows, cols) = (10, 144);
    let (mut weight, mut known) = example(rows, cols);
    // Groups that lie on one side of zero, and an input that never comes.
    weight[..cols].iter_mut().for_each(|w| *w = 1.0 + w.abs());
    (0..cols).for_each(|j| (known.gram[j * cols + 5], known.gram[5 * cols + j]) = (0.0, 0.0));
    for (encoder, more) in [
        ("rtn", json!({})),
        ("omse", json!({"steps": 50})),
        ("gptq", json!({})),
        ("gptq", json!({"act_order": false, "static_groups": false})),
        ("gptq", json!({"drift_correction": 0.5})),
    ] {
        for symmetric in [true, false] {
            for id in ["magnitude", "wanda"] {
                let mut params = more.clone();
                params["symmetric"] = json!(symmetric);
                params["group_size"] = json!(48);
                let chain = before(id, json!({"sparsity": 0.6}), encoder, params);
                let kept = pruner(id, json!({"sparsity": 0.6}));
                let kept = kept.prune(&site(&weight, cols, &known, FloatType::F32)).unwrap().kept;
                let left = decoded(&chain, &weight, cols, &known);
                let gone = left.iter().zip(&kept).filter(|(_, kept)| !**kept);
                assert!(gone.clone().all(|(v, _)| v.to_bits() == 0), "{id} {encoder} {more}");
                assert_eq!(gone.count(), chain.pruned(rows, cols).unwrap());
            }
            let mut params = more.clone();
            params["symmetric"] = json!(symmetric);
            let chain = before("sparsegpt", json!({"sparsity": 0.6}), encoder, params);
            let left = decoded(&chain, &weight, cols, &known);
            assert!(zeros(&left) >= chain.pruned(rows, cols).unwrap(), "{encoder} {more}");
        }
    }
    let nothing = before("sparsegpt", json!({"sparsity": 0.0}), "gptq", json!({}));
    let gptq = method("gptq", json!({}));
    let nothing = encode(&nothing, &weight, cols, Some(&known));
    let alone = encode(&*gptq, &weight, cols, Some(&known));
    assert_eq!(codes(&nothing), codes(&alone), "nothing pruned is the encoder alone");
}

#[test]
fn encoders_that_cannot_keep_zeros_are_refused() {
    let refused = |encoder: &str, params: Value| {
        Pruned::before(pruner("magnitude", json!({})), method(encoder, params)).err()
    };
    for (encoder, params) in [
        ("hqq", json!({})),
        ("trellis", json!({})),
        ("omse", json!({"tensors": 2})),
        ("gptq", json!({"grid": "q4_1"})),
    ] {
        assert!(refused(encoder, params).unwrap().contains("exactly 0"), "{encoder}");
    }
    let own = pruner("sparsegpt", json!({"dampening_frac": 0.05}));
    let error = Pruned::before(own, method("gptq", json!({}))).err().unwrap();
    assert!(error.contains("in one sweep"), "{error}");
}

#[test]
fn floats_are_stored_by_what_is_smaller() {
    let (rows, cols) = (64, 128);
    let outline = |share: f64| {
        let method = floats("magnitude", json!({"sparsity": share}));
        let outline = method.outline(rows, cols, FloatType::F16);
        (outline.bits() as f64 / (rows * cols) as f64, outline.terms[0].clone())
    };
    assert_eq!(outline(0.5).0, 9.0);
    let dense = TermOutline::Dense { values: FloatType::F16 };
    assert_eq!((outline(0.0), outline(0.06)), ((16.0, dense.clone()), (16.0, dense)));
    let places = |share| match outline(share).1 {
        TermOutline::Sparse { places, .. } => places,
        other => panic!("{other:?}"),
    };
    assert_eq!((places(0.1), places(0.99)), (Places::Bitmap, Places::Listed));
    let (weight, known) = example(rows, cols);
    let encoded = encode(&floats("wanda", json!({"pattern": "2:4"})), &weight, cols, Some(&known));
    let [Term::Sparse(sparse)] = encoded.weight.terms() else { panic!("sparse") };
    assert_eq!(sparse.places, Places::Groups { width: 4, kept: 2 });
}

/// As `awkward.rs` has it for encoders.
#[test]
fn awkward_weights_threads_and_what_is_no_number() {
    let (rows, cols) = (33, 72);
    let (mut weight, mut known) = example(rows, cols);
    weight[100] = 3e4;
    weight[72..144].fill(0.0);
    (0..cols).for_each(|j| (known.gram[j * cols + 3], known.gram[3 * cols + j]) = (0.0, 0.0));
    let nothing = Statistics { gram: vec![0.0; cols * cols], ..known.clone() };
    for id in ALL {
        for changes in [json!({}), json!({"pattern": "2:4"})] {
            let both = [
                floats(id, changes.clone()),
                before(id, changes.clone(), "gptq", json!({"group_size": 16})),
            ];
            for method in both {
                let on = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    pool.unwrap().install(|| encode(&method, &weight, cols, Some(&known)))
                };
                assert_eq!(on(3), on(1), "{id} {changes}");
                let left = decoded(&method, &weight, cols, &nothing);
                assert!(zeros(&left) >= method.pruned(rows, cols).unwrap(), "{id} {changes}");
                let without = method.without_statistics().unwrap();
                let shape = (rows, cols, FloatType::F16);
                assert_eq!(
                    without.outline(shape.0, shape.1, shape.2),
                    method.outline(shape.0, shape.1, shape.2)
                );
                let left = encode(&*without, &weight, cols, None).weight.decode();
                assert!(zeros(&left) >= method.pruned(rows, cols).unwrap());
                let mut bad = weight.clone();
                bad[cols + 2] = f32::NAN;
                let error = method.encode(&site(&bad, cols, &known, FloatType::F16)).unwrap_err();
                assert!(matches!(error, MethodError::Numerical { .. }), "{id}: {error}");
            }
        }
    }
}
