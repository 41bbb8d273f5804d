//! What a layer makes up for when its inputs have drifted, against the least squares it stands for.

mod common;

use common::{Random, encode, gram, method};
use lapidary_methods::Statistics;
use serde_json::json;

/// True inputs, what earlier layers made of them, and the statistics of both.
fn drifted(random: &mut Random, tokens: usize, n: usize) -> (Vec<f32>, Vec<f32>, Statistics) {
    let uncompressed = random.correlated(tokens, n, 0.97);
    let mix: Vec<f32> = random.gaussians(n * n);
    let inputs: Vec<f32> = uncompressed
        .chunks_exact(n)
        .flat_map(|row| {
            let spill = |i: usize| row.iter().zip(&mix[i * n..]).map(|(x, m)| x * m).sum::<f32>();
            (0..n).map(|i| row[i] + 0.02 * spill(i)).collect::<Vec<_>>()
        })
        .collect();
    let mut statistics = gram(&inputs, n);
    let mut drift = vec![0.0_f64; n * n];
    for (wanted, have) in uncompressed.chunks_exact(n).zip(inputs.chunks_exact(n)) {
        for i in 0..n {
            for j in 0..n {
                drift[i * n + j] += f64::from(wanted[i] - have[i]) * f64::from(have[j]);
            }
        }
    }
    statistics.drift = Some(drift.into_iter().map(|sum| sum as f32).collect());
    (uncompressed, inputs, statistics)
}

/// `‖W X̃ − Ŵ X‖²`.
fn loss(weight: &[f32], decoded: &[f32], uncompressed: &[f32], inputs: &[f32], n: usize) -> f64 {
    let mut loss = 0.0;
    for (wanted, have) in uncompressed.chunks_exact(n).zip(inputs.chunks_exact(n)) {
        for (row, decoded) in weight.chunks_exact(n).zip(decoded.chunks_exact(n)) {
            let dot = |w: &[f32], x: &[f32]| -> f64 {
                w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
            };
            loss += (dot(row, wanted) - dot(decoded, have)).powi(2);
        }
    }
    loss
}

#[test]
fn the_whole_way_is_the_least_squares_solution() {
    let (rows, n) = (6, 24);
    let mut random = Random::new(4);
    let weight = random.gaussians(rows * n);
    let (uncompressed, inputs, statistics) = drifted(&mut random, 400, n);
    // Eight bits and hardly any damping: rounding is nothing beside what is solved for.
    let params = json!({
        "bits": 8, "group_size": 8, "drift_correction": 1.0, "dampening_frac": 1e-7
    });
    let decoded = encode(&*method("gptq", params), &weight, n, Some(&statistics)).weight.decode();
    let best = loss(&weight, &decoded, &uncompressed, &inputs, n);
    // At the least squares solution no step to any side helps: the gradient is zero.
    let plain = loss(&weight, &weight, &uncompressed, &inputs, n);
    assert!(best < 0.01 * plain, "{best} {plain}");
    for index in 0..rows * n {
        for step in [-0.05, 0.05] {
            let mut other = decoded.clone();
            other[index] += step;
            let other = loss(&weight, &other, &uncompressed, &inputs, n);
            assert!(other > 0.98 * best, "{index}: {other} {best}");
        }
    }
}

#[test]
fn the_further_the_way_the_nearer_to_the_uncompressed_outputs() {
    let (rows, n) = (32, 48);
    let mut random = Random::new(9);
    let weight = random.gaussians(rows * n);
    let (uncompressed, inputs, statistics) = drifted(&mut random, 300, n);
    for (id, bits) in [("gptq", json!(4)), ("trellis", json!(4.5))] {
        let mut before = f64::INFINITY;
        for share in [0.0, 0.25, 0.5, 1.0] {
            let params = json!({"bits": bits, "drift_correction": share});
            let encoded = encode(&*method(id, params), &weight, n, Some(&statistics));
            let loss = loss(&weight, &encoded.weight.decode(), &uncompressed, &inputs, n);
            assert!(loss < before, "{id} {share}: {loss} {before}");
            before = loss;
        }
    }
}

#[test]
fn without_drift_nothing_changes() {
    let (rows, n) = (8, 32);
    let mut random = Random::new(12);
    let weight = random.gaussians(rows * n);
    let statistics = gram(&random.correlated(200, n, 0.95), n);
    let still = Statistics { drift: Some(vec![0.0; n * n]), ..statistics.clone() };
    let params = |share: f64| json!({"bits": 3, "group_size": 16, "drift_correction": share});
    let plain = encode(&*method("gptq", params(0.0)), &weight, n, Some(&statistics));
    for statistics in [&statistics, &still] {
        let corrected = encode(&*method("gptq", params(1.0)), &weight, n, Some(statistics));
        assert_eq!(corrected, plain);
    }
}
