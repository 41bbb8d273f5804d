//! NF4, FP4 and the k-bit types against the figures of their cards.

mod common;

use common::{Random, encode, gram, method, weight_error};
use lapidary_methods::{Site, Tensorwise};
use lapidary_weight::{FloatType, Term};
use serde_json::{Value, json};

fn relative_error(id: &str, changes: Value, weight: &[f32], cols: usize) -> f64 {
    let squares: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
    weight_error(&encode(&*method(id, changes), weight, cols, None), weight) / squares
}

/// Card of k-bit inference, must show 2, and of QLoRA: relative errors on Gaussians, blocks of 64.
#[test]
fn errors_on_gaussians_are_those_of_the_cards() {
    let mut random = Random::new(1);
    let weight = random.gaussians(512 * 1024);
    let kbit = |changes| relative_error("kbit", changes, &weight, 1024);
    let plain = json!({"double_quantization": false});
    for (name, error, expected) in [
        ("nf4", relative_error("nf4", plain.clone(), &weight, 1024), 0.0085),
        ("fp4", relative_error("fp4", plain, &weight, 1024), 0.0111),
        ("int", kbit(json!({"data_type": "int"})), 0.0117),
        ("e2m1", kbit(json!({"data_type": "float"})), 0.0111),
        ("e3m0", kbit(json!({"data_type": "float", "exponent_bits": 3})), 0.0355),
        ("int 16", kbit(json!({"data_type": "int", "group_size": 16})), 0.0073),
        ("int 32", kbit(json!({"data_type": "int", "group_size": 32})), 0.0094),
        ("int 128", kbit(json!({"data_type": "int", "group_size": 128})), 0.0139),
    ] {
        assert!((error / expected - 1.0).abs() < 0.03, "{name}: {error}, not {expected}");
    }
    // The order of the paper: quantile, float, integer, dynamic.
    let by_type = |data_type: &str| kbit(json!({"data_type": data_type}));
    let errors = ["quantile", "float", "int", "dynamic-exponent"].map(by_type);
    assert!(errors.is_sorted(), "{errors:?}");
}

/// Card of QLoRA: double quantization adds less than a hundredth to the error, and makes 4.127 bits.
#[test]
fn double_quantization_costs_little_and_saves_what_it_should() {
    let (rows, cols) = (512, 1024);
    let weight = Random::new(2).gaussians(rows * cols);
    let encoded = encode(&*method("nf4", json!({})), &weight, cols, None);
    let bits = encoded.weight.bits() as f64 / weight.len() as f64;
    assert!((bits - 4.127).abs() < 1.2e-3, "{bits}");
    let plain = relative_error("nf4", json!({"double_quantization": false}), &weight, cols);
    let double = relative_error("nf4", json!({}), &weight, cols);
    assert!(double < 1.01 * plain, "{double} {plain}");
}

/// Must show 3 of the k-bit card: k + 16/B, and 16 bits for the columns kept (beside their codes).
#[test]
fn bits_add_up() {
    let (rows, cols) = (256, 512);
    for (bits, group, share) in [(3, 64, 0.0), (4, 64, 0.02), (5, 128, 0.02), (8, 256, 0.1)] {
        let changes = json!({"bits": bits, "group_size": group, "outlier_share": share});
        let outline = method("kbit", changes).outline(rows, cols, FloatType::F16);
        let kept = (share * cols as f64).round();
        let expected = f64::from(bits)
            + 16.0 / f64::from(group)
            + kept / cols as f64 * (16.0 + 32.0 / rows as f64)
            + 32.0 * f64::from(1_u32 << bits) / (rows * cols) as f64;
        let found = outline.bits() as f64 / (rows * cols) as f64;
        assert!((found - expected).abs() < 1e-9, "{bits} {group} {share}: {found} {expected}");
    }
}

/// Must show 4: the largest of a block comes back exactly, and halving blocks helps.
#[test]
fn the_largest_of_a_block_is_exact_up_to_its_scale() {
    let (rows, cols, group) = (7, 150, 32);
    let weight = Random::new(3).gaussians(rows * cols);
    for (id, changes) in [
        ("nf4", json!({"double_quantization": false, "group_size": group})),
        ("fp4", json!({"double_quantization": false, "group_size": group})),
        ("kbit", json!({"data_type": "int", "bits": 3, "group_size": group})),
        ("kbit", json!({"data_type": "dynamic-exponent", "bits": 5, "group_size": group})),
    ] {
        let decoded = encode(&*method(id, changes), &weight, cols, None).weight.decode();
        for (row, decoded) in weight.chunks_exact(cols).zip(decoded.chunks_exact(cols)) {
            for (block, decoded) in row.chunks(group).zip(decoded.chunks(group)) {
                let at = |a: &usize, b: &usize| block[*a].abs().total_cmp(&block[*b].abs());
                let largest = (0..block.len()).max_by(at).unwrap();
                // NF4 has −1 and 1 both.
                assert_eq!(block[largest], decoded[largest], "{id}");
            }
        }
    }
    for data_type in ["int", "float", "quantile", "dynamic-exponent"] {
        let error = |group: usize| {
            let changes = json!({"data_type": data_type, "group_size": group});
            relative_error("kbit", changes, &weight, cols)
        };
        assert!(error(16) < error(64), "{data_type}");
    }
}

#[test]
fn columns_of_large_inputs_stay_as_they_are() {
    let (rows, cols) = (12, 64);
    let mut random = Random::new(4);
    let weight = random.gaussians(rows * cols);
    let mut inputs = random.gaussians(100 * cols);
    for row in inputs.chunks_exact_mut(cols) {
        row[5] *= 30.0;
        row[60] *= 20.0;
    }
    let statistics = gram(&inputs, cols);
    let changes = json!({"outlier_share": 2.0 / 64.0, "bits": 3});
    let encoded = encode(&*method("kbit", changes), &weight, cols, Some(&statistics));
    let Term::Columns(kept) = &encoded.weight.terms()[1] else { panic!() };
    assert_eq!(kept.columns, [5, 60]);
    let decoded = encoded.weight.decode();
    for row in 0..rows {
        for column in [5, 60] {
            let place = row * cols + column;
            assert_eq!(decoded[place], weight[place]);
        }
    }
    let plain = encode(&*method("kbit", json!({"bits": 3})), &weight, cols, None);
    assert!(weight_error(&encoded, &weight) < weight_error(&plain, &weight));
}

/// Each weight is the nearest level of its block: against all levels, in f64.
#[test]
fn every_code_is_the_nearest_level() {
    let (rows, cols) = (3, 70);
    let mut weight = Random::new(5).gaussians(rows * cols);
    weight[..16].fill(0.0);
    weight[20] = 1e6;
    for (id, changes) in [
        ("nf4", json!({"group_size": 16})),
        ("fp4", json!({"group_size": "row", "double_quantization": false})),
        ("kbit", json!({"group_size": "tensor", "data_type": "quantile", "bits": 5})),
        ("kbit", json!({"group_size": 16, "bits": 8, "exponent_bits": 6})),
    ] {
        let encoded = encode(&*method(id, changes), &weight, cols, None);
        let Term::Lookup(lookup) = &encoded.weight.terms()[0] else { panic!() };
        let (grouping, scales) = lookup.scales.as_ref().unwrap();
        for (place, (value, decoded)) in weight.iter().zip(encoded.weight.decode()).enumerate() {
            let group =
                grouping.row_start(place / cols, cols) + place % cols / grouping.width(cols);
            let scale = f64::from(scales[group]);
            let distance = |level: &f32| (scale * f64::from(*level) - f64::from(*value)).abs();
            let least = lookup.books.iter().map(distance).fold(f64::INFINITY, f64::min);
            let found = (f64::from(decoded) - f64::from(*value)).abs();
            if scale > 0.0 {
                assert!(found <= least + 1e-6 * scale, "{id} {place}: {found} {least}");
            } else {
                assert_eq!(decoded, 0.0);
            }
        }
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    let kbit = lapidary_methods::find("kbit").unwrap();
    for (key, value) in [
        ("bits", json!(1)),
        ("bits", json!(9)),
        ("exponent_bits", json!(0)),
        ("exponent_bits", json!(4)),
        ("outlier_share", json!(1.5)),
        ("data_type", json!("double")),
    ] {
        let mut params = (kbit.defaults)();
        params[key] = value;
        let Err(error) = (kbit.build)(&params) else { panic!("{key} was taken") };
        assert_eq!(error.path, key);
    }
    let needs = |share: f64| method("kbit", json!({"outlier_share": share})).needs().gram;
    assert_eq!((needs(0.0), needs(0.02)), (false, true));
    let site = Site {
        name: "site",
        rows: 1,
        cols: 2,
        weight: &[1.0, 2.0],
        statistics: None,
        scale_type: FloatType::F16,
        peak: None,
    };
    let kept: Box<dyn Tensorwise> = method("kbit", json!({"outlier_share": 0.5}));
    let error = kept.encode(&site).unwrap_err().to_string();
    assert!(error.contains("needs the Gram matrix"), "{error}");
}
