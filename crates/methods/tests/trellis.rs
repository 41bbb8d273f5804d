//! The trellis in the sweep: sizes kept to the bit, errors below those of scalar grids, hard cases.

mod common;

use common::{Random, encode, gram, method, output_error, weight_error};
use lapidary_methods::NoteKind;
use lapidary_weight::Term;
use serde_json::json;

#[test]
fn every_number_of_bits_is_kept_and_used() {
    let (rows, cols) = (300, 96);
    let mut random = Random::new(3);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(200, cols, 0.97), cols);
    let mut before = f64::INFINITY;
    for bits in [1.5, 2.0, 2.25, 3.1, 4.25, 6.0] {
        let method = method("trellis", json!({"bits": bits}));
        let encoded = encode(&*method, &weight, cols, Some(&statistics));
        let stored = encoded.weight.bits() as f64 / (rows * cols) as f64;
        // A row has a whole number of bits: what is lost is less than one in 96.
        assert!(stored <= bits && stored > bits - 1.1 / 96.0, "{bits}: {stored}");
        let error = output_error(&encoded, &weight, &statistics);
        assert!(error < before, "{bits}: {error} {before}");
        before = error;
    }
}

#[test]
fn it_loses_less_than_gptq_and_rounding_of_more_bits() {
    let (rows, cols) = (192, 128);
    let mut random = Random::new(11);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(400, cols, 0.98), cols);
    for bits in [2_u8, 3, 4] {
        let scalar = json!({"bits": bits, "group_size": 64});
        let error = |id: &str, params| {
            let encoded = encode(&*method(id, params), &weight, cols, Some(&statistics));
            output_error(&encoded, &weight, &statistics)
        };
        let trellis = error("trellis", json!({"bits": f64::from(bits)}));
        let (gptq, rtn) = (error("gptq", scalar.clone()), error("rtn", scalar));
        assert!(trellis < 0.75 * gptq && gptq < rtn, "{bits}: {trellis} {gptq} {rtn}");
    }
}

/// A search compares layers by the shortest register, since a longer one gains about as much in all.
#[test]
fn a_longer_register_lowers_every_error_by_about_as_much() {
    let (rows, cols) = (768, 48);
    let mut random = Random::new(41);
    let long = method("trellis", json!({"bits": 4.0, "state_bits": 15}));
    let sketch = long.sketch().unwrap();
    assert!(sketch.sketch().is_none());
    for (decay, spread) in [(0.99, 0.0), (0.97, 0.5), (0.9, 1.5)] {
        let mut weight = random.gaussians(rows * cols);
        for (row, weight) in weight.chunks_exact_mut(cols).enumerate() {
            weight.iter_mut().for_each(|w| *w *= (spread * (row as f32 * 0.7).sin()).exp());
        }
        let statistics = gram(&random.correlated(200, cols, decay), cols);
        let error = |method| {
            output_error(&encode(method, &weight, cols, Some(&statistics)), &weight, &statistics)
        };
        let share = error(&*long) / error(&*sketch);
        assert!((0.75..0.97).contains(&share), "{decay} {spread}: {share}");
    }
}

/// The distortion of white inputs is the trellis's own: nothing is lost by the scales or the sweep.
#[test]
fn white_inputs_give_the_distortion_of_the_code() {
    let (rows, cols) = (256, 64);
    let mut random = Random::new(17);
    let weight = random.gaussians(rows * cols);
    let mut statistics = gram(&[0.0; 64], cols);
    (0..cols).for_each(|i| statistics.gram[i * cols + i] = 1.0);
    let encoded =
        encode(&*method("trellis", json!({"bits": 4.1})), &weight, cols, Some(&statistics));
    let energy: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
    let distortion = weight_error(&encoded, &weight) / energy;
    assert!(distortion < 0.0068, "{distortion}");
    let [Term::Trellis(trellis), Term::Sparse(_)] = encoded.weight.terms() else {
        panic!("a trellis and a few values apart")
    };
    let sum: u32 = trellis.rates.iter().map(|rate| u32::from(*rate)).sum();
    assert!(trellis.rates.iter().all(|rate| (3..=5).contains(rate)), "{sum}: {:?}", trellis.rates);
}

#[test]
fn columns_that_matter_more_get_more_bits() {
    let (rows, cols) = (64, 32);
    let mut random = Random::new(23);
    let weight = random.gaussians(rows * cols);
    let mut inputs = random.gaussians(300 * cols);
    for row in inputs.chunks_exact_mut(cols) {
        row[..4].iter_mut().for_each(|x| *x *= 16.0);
    }
    let statistics = gram(&inputs, cols);
    let encoded =
        encode(&*method("trellis", json!({"bits": 3.5})), &weight, cols, Some(&statistics));
    let Term::Trellis(trellis) = &encoded.weight.terms()[0] else { panic!("a trellis") };
    let least = trellis.rates[..4].iter().min().unwrap();
    assert!(trellis.rates[4..].iter().all(|rate| rate + 2 <= *least), "{:?}", trellis.rates);
}

#[test]
fn hard_matrices_stay_finite_and_lose_no_more_than_rounding() {
    let cols = 80;
    let mut random = Random::new(31);
    let inputs = random.correlated(160, cols, 0.95);
    let plain = random.gaussians(24 * cols);
    let mut outlier = plain.clone();
    outlier[5 * cols + 7] = 1000.0;
    let mut constant = plain.clone();
    constant[3 * cols..4 * cols].fill(0.25);
    constant[4 * cols..5 * cols].fill(0.0);
    let mut repeated = plain.clone();
    repeated.copy_within(0..cols, cols);
    let mut dead = inputs.clone();
    dead.iter_mut().step_by(cols).for_each(|x| *x = 0.0);
    let cases = [
        ("outlier", &outlier[..], &inputs),
        ("constant rows", &constant[..], &inputs),
        ("equal rows", &repeated[..], &inputs),
        ("dead column", &plain[..], &dead),
        ("one row", &plain[..cols], &inputs),
    ];
    for (name, weight, inputs) in cases {
        let statistics = gram(inputs, cols);
        let error = |id: &str, params| {
            let encoded = encode(&*method(id, params), weight, cols, Some(&statistics));
            output_error(&encoded, weight, &statistics)
        };
        let trellis = error("trellis", json!({"bits": 4.5}));
        let rtn = error("rtn", json!({"bits": 4, "group_size": 32}));
        assert!(trellis <= rtn, "{name}: {trellis} {rtn}");
    }
}

#[test]
fn no_column_counts_where_nothing_was_ever_seen() {
    let cols = 16;
    let weight = Random::new(2).gaussians(20 * cols);
    let statistics = gram(&vec![0.0; cols], cols);
    let encoded =
        encode(&*method("trellis", json!({"bits": 5.0})), &weight, cols, Some(&statistics));
    let energy: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
    assert!(weight_error(&encoded, &weight) < 0.05 * energy);
    assert!(encoded.notes.iter().all(|note| note.kind == NoteKind::Fact), "{:?}", encoded.notes);
}
