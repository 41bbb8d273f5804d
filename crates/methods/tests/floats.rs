//! FP8, NVFP4, MXFP4 and MXFP8 against their definitions.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Random, encode, method, weight_error};
use lapidary_methods::Site;
use lapidary_weight::{FloatType, GroupFloats, Grouping, Lookup, SmallFloat, Term};
use serde_json::{Value, json};

/// The numbers of a type that are not negative, by the definition.
fn numbers(exponents: i32, fractions: i32, bias: i32, most: f64) -> Vec<f64> {
    let number = |exponent: i32, fraction: i32| {
        let fraction = f64::from(fraction) / f64::from(fractions);
        match exponent {
            0 => fraction * 2.0_f64.powi(1 - bias),
            _ => (1.0 + fraction) * 2.0_f64.powi(exponent - bias),
        }
    };
    let all = (0..exponents).flat_map(|e| (0..fractions).map(move |f| number(e, f)));
    all.filter(|number| *number <= most).collect()
}

fn e4m3() -> Vec<f64> {
    numbers(16, 8, 7, 448.0)
}

fn e2m1() -> Vec<f64> {
    numbers(4, 2, 1, 6.0)
}

/// The nearest number, of two the one at the even place.
fn nearest(numbers: &[f64], value: f64) -> f64 {
    let distance = |index: &usize| (numbers[*index] - value.abs()).abs();
    let best = (0..numbers.len())
        .min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))));
    numbers[best.unwrap()].copysign(value)
}

fn lookup(encoded: &lapidary_methods::Encoded) -> &Lookup {
    match encoded.weight.terms() {
        [Term::Lookup(lookup)] => lookup,
        _ => panic!("one lookup term"),
    }
}

fn scales(encoded: &lapidary_methods::Encoded) -> &GroupFloats {
    &lookup(encoded).scales.as_ref().unwrap().1
}

/// Rows of very different sizes, with zeros among them and a row of nothing else.
fn weights(seed: u64, rows: usize, cols: usize) -> Vec<f32> {
    let mut weight = Random::new(seed).gaussians(rows * cols);
    for (index, w) in weight.iter_mut().enumerate() {
        let row = index / cols;
        *w *= 10.0_f32.powi(row as i32 % 4 - 2);
        if index % 13 == 0 || row == 2 {
            *w = 0.0;
        }
    }
    weight
}

/// Every weight is the nearest number times its scale, and scales are by range as compressed-tensors
/// takes them.
#[test]
fn weights_are_rounded_to_the_nearest_number() {
    let (rows, cols) = (9, 100);
    let weight = weights(1, rows, cols);
    for (id, params, (numbers, largest)) in [
        ("fp8", json!({}), (e4m3(), 448.0)),
        ("fp8", json!({"group_size": 32}), (e4m3(), 448.0)),
        ("fp8", json!({"group_size": "tensor"}), (e4m3(), 448.0)),
        ("fp8", json!({"block": [4, 16]}), (e4m3(), 448.0)),
        ("mxfp8", json!({}), (e4m3(), 256.0)),
        ("mxfp4", json!({}), (e2m1(), 4.0)),
        ("nvfp4", json!({}), (e2m1(), 6.0)),
    ] {
        let encoded = encode(&*method(id, params.clone()), &weight, cols, None);
        let (grouping, scales) = lookup(&encoded).scales.as_ref().unwrap();
        let group_of = |index: usize| {
            grouping.row_start(index / cols, cols) + index % cols / grouping.width(cols)
        };
        let mut peaks = vec![0.0_f32; scales.len()];
        for (index, w) in weight.iter().enumerate() {
            let peak = &mut peaks[group_of(index)];
            *peak = peak.max(w.abs());
        }
        let all = peaks.iter().copied().fold(0.0, f32::max);
        for (peak, scale) in peaks.iter().zip(scales.iter()) {
            let (peak, scale) = (f64::from(*peak), f64::from(*scale));
            let want = match id {
                "fp8" => peak / largest,
                "nvfp4" => {
                    let divisor = 448.0 * 6.0 / f64::from(all);
                    nearest(&e4m3(), divisor * peak / 6.0).max(f64::from(peak > 0.0) / 512.0)
                        / divisor
                }
                // The power of two below, or the next from 1.75 on.
                _ if peak > 0.0 => (peak * 8.0 / 7.0).log2().floor().exp2() / largest,
                _ => 0.0,
            };
            assert!((scale - want).abs() <= 1e-6 * want + 1e-38, "{id} {params}: {scale} {want}");
        }
        for (index, (w, found)) in weight.iter().zip(encoded.weight.decode()).enumerate() {
            let scale = scales[group_of(index)];
            let want = if scale > 0.0 { nearest(&numbers, f64::from(w / scale)) } else { 0.0 };
            assert_eq!(f64::from(found), f64::from(scale * want as f32), "{id} {params} {index}");
        }
    }
}

/// The sizes that the formats are known by: 8, 4.5, 4.25 and 8.25 bits a weight.
#[test]
fn bits_add_up() {
    let (rows, cols) = (64, 4096);
    for (id, expected) in [("fp8", 8.0), ("nvfp4", 4.5), ("mxfp4", 4.25), ("mxfp8", 8.25)] {
        let outline = method(id, json!({})).outline(rows, cols, FloatType::Bf16);
        let bits = outline.bits() as f64 / (rows * cols) as f64;
        assert!((bits - expected).abs() < 0.005, "{id}: {bits}");
    }
}

/// Scales by error never do worse, and do better on Gaussians; smaller groups with finer scales do
/// better than larger ones with powers of two.
#[test]
fn errors_are_in_the_order_they_should_be() {
    let cols = 256;
    let weight = Random::new(2).gaussians(64 * cols);
    let error = |id: &str, params: Value| {
        weight_error(&encode(&*method(id, params), &weight, cols, None), &weight)
    };
    let by = |id: &str| {
        let pair = ["range", "error"].map(|scale| error(id, json!({"scale": scale})));
        assert!(pair[1] < pair[0], "{id}: {pair:?}");
        pair[0]
    };
    let (fp8, nvfp4, mxfp4, mxfp8) = (by("fp8"), by("nvfp4"), by("mxfp4"), by("mxfp8"));
    assert!(fp8 < nvfp4 && mxfp8 < nvfp4 && nvfp4 < mxfp4, "{fp8} {mxfp8} {nvfp4} {mxfp4}");
    let squares: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
    // Uniform in a binade: the mean square of a relative error of half a step in 2^-4.
    assert!(
        fp8 / squares < 1e-3 && nvfp4 / squares < 1.2e-2,
        "{} {}",
        fp8 / squares,
        nvfp4 / squares
    );
}

#[test]
fn ragged_and_awkward_weights_are_encoded() {
    for (rows, cols) in [(1, 1), (3, 17), (5, 33), (2, 31), (130, 7)] {
        let mut weight = weights(3, rows, cols);
        weight[0] = f32::MIN_POSITIVE / 8.0;
        for (id, params) in [
            ("fp8", json!({"block": [128, 128]})),
            ("fp8", json!({"block": [2, 5], "scale": "error"})),
            ("fp8", json!({"group_size": 5})),
            ("nvfp4", json!({"scale": "error"})),
            ("mxfp4", json!({"scale": "error"})),
            ("mxfp8", json!({})),
        ] {
            encode(&*method(id, params.clone()), &weight, cols, None);
            encode(&*method(id, params), &vec![0.0; rows * cols], cols, None);
        }
    }
}

/// Layers that share an input have one divisor, that of the largest weight of all.
#[test]
fn the_divisor_follows_from_the_peak() {
    let weight = Random::new(4).gaussians(4 * 32);
    let method = method("nvfp4", json!({}));
    assert!(method.shares_range());
    let site = Site {
        name: "site",
        rows: 4,
        cols: 32,
        weight: &weight,
        statistics: None,
        scale_type: FloatType::F16,
        peak: Some(12.0),
    };
    let encoded = method.encode(&site).unwrap();
    assert_eq!(scales(&encoded).small_codes().unwrap().1, Some(448.0 * 6.0 / 12.0));
    let alone = method.encode(&Site { peak: None, ..site }).unwrap();
    let peak = weight.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
    let (codes, divisor) = scales(&alone).small_codes().unwrap();
    assert_eq!(divisor, Some(448.0 * 6.0 / peak));
    let largest = codes.iter().map(|code| SmallFloat::E4M3.decode(*code)).fold(0.0, f32::max);
    assert_eq!(largest, 448.0);
    assert!(!common::method("mxfp4", json!({})).shares_range());
}

#[test]
fn parameters_that_contradict_each_other_are_named() {
    let build = lapidary_methods::find("fp8").unwrap().build;
    let both = build(&json!({"group_size": 32, "block": [128, 128], "scale": "range"}));
    assert!(matches!(both, Err(error) if error.path == "block"));
    let zero = build(&json!({"group_size": "row", "block": [0, 128], "scale": "range"}));
    assert!(zero.is_err());
    let outline = method("fp8", json!({"block": [128, 64]})).outline(300, 200, FloatType::F32);
    let lapidary_weight::TermOutline::Lookup { grouping: Some(grouping), .. } = outline.terms[0]
    else {
        panic!("a lookup with groups")
    };
    assert!(matches!(grouping, Grouping::Blocks { .. }));
    assert_eq!(grouping.scale_shape(300, 200), [3, 4]);
}
