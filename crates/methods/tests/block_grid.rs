//! Grids that are blocks of GGUF files: byte for byte what ggml reads, and better than rounding.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Random, encode, gram, method, output_error, weight_error};
use lapidary_kernels::ggml::{Block, BlockKind, PACKED, dequantize, pack};
use lapidary_methods::{Encoded, NoteKind};
use lapidary_weight::{Affine, FloatType, GroupFloats, Lookup, Term, Zeros};
use proptest::prelude::*;
use serde_json::json;

fn name(kind: BlockKind) -> String {
    kind.name().to_lowercase()
}

/// Codes and floats of one block of an array.
fn stored(array: &GroupFloats, block: usize) -> (Vec<u8>, f32) {
    match array.levels() {
        None if array.small_codes().is_some() => (vec![array.small_codes().unwrap().0[block]], 0.0),
        None => (vec![], array[block]),
        Some(levels) => {
            let groups = levels.codes.len() / levels.coarse.len();
            (levels.codes[block * groups..][..groups].to_vec(), levels.coarse[block])
        }
    }
}

/// The weight as ggml reads the bytes that its codes make.
fn through_ggml(kind: BlockKind, encoded: &Encoded) -> Vec<f32> {
    let (codes, scales, minima) = match encoded.weight.terms() {
        [Term::Affine(Affine { codes, scales, zeros: Zeros::Minima(minima), .. })] => {
            (codes, scales, Some(minima))
        }
        [Term::Affine(Affine { codes, scales, .. })] => (codes, scales, None),
        [Term::Lookup(Lookup { codes, scales: Some((_, scales)), .. })] => (codes, scales, None),
        _ => panic!("one term of codes"),
    };
    let mut bytes = vec![];
    for (block, codes) in codes.chunks_exact(kind.elements()).enumerate() {
        let (scales, scale) = stored(scales, block);
        let (minima, minimum) = minima.map_or((vec![], 0.0), |minima| stored(minima, block));
        let block = Block { codes, scales: &scales, minima: &minima, scale, minimum };
        pack(kind, &block, &mut bytes).unwrap();
    }
    let mut values = vec![0.0; codes.len()];
    dequantize(kind, &bytes, &mut values).unwrap();
    values
}

fn matrix(random: &mut Random, rows: usize, cols: usize, shape: u8) -> Vec<f32> {
    let mut weight = random.gaussians(rows * cols);
    match shape {
        0 => {}
        // All of one sign, and far from zero.
        1 => weight.iter_mut().for_each(|value| *value = 3.0 + 0.1 * *value),
        2 => weight.iter_mut().for_each(|value| *value = -value.abs() - 0.5),
        3 => weight.iter_mut().step_by(97).for_each(|value| *value *= 50.0),
        4 => weight[..cols].fill(0.25),
        _ => weight.iter_mut().for_each(|value| *value *= 1e-6),
    }
    weight[cols / 2..cols / 2 + 40].fill(0.0);
    weight
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn every_type_is_what_ggml_reads(seed: u64, shape in 0_u8..6, rows in 1_usize..4) {
        every_type(seed, shape, rows)?;
    }
}

/// Weights so small that halves are coarse: what the search wants may be stored worse than a range.
#[test]
fn the_search_loses_no_more_than_the_range_where_halves_are_coarse() {
    every_type(8_139_361_144_438_416_930, 5, 1).unwrap();
}

fn every_type(seed: u64, shape: u8, rows: usize) -> Result<(), TestCaseError> {
    let mut random = Random::new(seed);
    let cols = 512;
    let weight = matrix(&mut random, rows, cols, shape);
    let statistics = gram(&random.gaussians(64 * cols), cols);
    for kind in PACKED {
        let mut errors = vec![];
        for id in ["rtn", "omse", "gptq"] {
            let method = method(id, json!({"grid": name(kind)}));
            let encoded = encode(&*method, &weight, cols, Some(&statistics));
            prop_assert_eq!(&through_ggml(kind, &encoded), &encoded.weight.decode());
            prop_assert!(encoded.notes.iter().all(|note| note.kind == NoteKind::Fact));
            let bits = method.outline(rows, cols, FloatType::F32).bits() as usize;
            prop_assert_eq!(bits, 8 * kind.bytes() * rows * cols / kind.elements());
            errors.push(weight_error(&encoded, &weight));
        }
        prop_assert!(errors[1] <= errors[0] * 1.001 + 1e-12, "{kind:?} {errors:?}");
    }
    Ok(())
}

#[test]
fn gptq_loses_less_than_the_search_and_that_less_than_the_range() {
    let mut random = Random::new(1);
    let (rows, cols) = (24, 256);
    let weight = random.gaussians(rows * cols);
    let statistics = gram(&random.correlated(1024, cols, 0.985), cols);
    for kind in PACKED {
        let [rtn, omse, gptq] = ["rtn", "omse", "gptq"].map(|id| {
            let method = method(id, json!({"grid": name(kind)}));
            encode(&*method, &weight, cols, Some(&statistics))
        });
        let weights = [&rtn, &omse].map(|encoded| weight_error(encoded, &weight));
        assert!(weights[1] < weights[0], "{kind:?}: {weights:?}");
        let outputs =
            [&rtn, &omse, &gptq].map(|encoded| output_error(encoded, &weight, &statistics));
        assert!(outputs[2] < 0.8 * outputs[1].min(outputs[0]), "{kind:?}: {outputs:?}");
    }
}

/// llama.cpp's rules for rounding to nearest: the extreme value is the lowest code.
#[test]
fn rounding_to_q4_0_is_that_of_the_reference() {
    let weight = Random::new(9).gaussians(96);
    let encoded = encode(&*method("rtn", json!({"grid": "q4_0"})), &weight, 96, None);
    for (block, decoded) in weight.chunks(32).zip(encoded.weight.decode().chunks(32)) {
        let extreme = block.iter().fold(0.0_f32, |a, b| if b.abs() > a.abs() { *b } else { a });
        let scale = FloatType::F16.round(extreme / -8.0);
        for (value, decoded) in block.iter().zip(decoded) {
            let code = (value / scale).round_ties_even().clamp(-8.0, 7.0);
            assert_eq!(*decoded, scale * code);
        }
    }
}

#[test]
fn columns_that_blocks_do_not_divide_get_what_llama_cpp_gives_them() {
    let mut random = Random::new(2);
    for (asked, given) in [
        ("q2_k", "q4_0"),
        ("q3_k", "q4_0"),
        ("q4_k", "q5_0"),
        ("q5_k", "q5_1"),
        ("q6_k", "q8_0"),
        ("iq4_xs", "iq4_nl"),
        ("tq1_0", "q4_0"),
        ("tq2_0", "q4_0"),
    ] {
        let weight = random.gaussians(2 * 576);
        let methods = [asked, given].map(|grid| method("omse", json!({"grid": grid})));
        let [wanted, instead] =
            [0, 1].map(|index: usize| encode(&*methods[index], &weight, 576, None));
        assert_eq!(wanted.weight, instead.weight, "{asked}");
        let note = methods[0].departure(576).unwrap();
        assert_eq!(note.kind, NoteKind::Fallback);
        assert!(note.what.contains(given), "{}", note.what);
        assert!(methods[1].departure(576).is_none() && methods[0].departure(512).is_none());
    }
    let weight = random.gaussians(3 * 40);
    let gptq = method("gptq", json!({"grid": "q4_0"}));
    let encoded = encode(&*gptq, &weight, 40, Some(&gram(&random.gaussians(80 * 40), 40)));
    assert!(matches!(encoded.weight.terms(), [Term::Dense(_)]));
    assert_eq!(gptq.departure(40).unwrap().kind, NoteKind::Fallback);
}

#[test]
fn a_grid_with_bits_of_its_own_takes_no_others() {
    let entry = lapidary_methods::find("rtn").unwrap();
    for (key, value) in [("bits", json!(5)), ("group_size", json!(64)), ("symmetric", json!(false))]
    {
        let mut params = (entry.defaults)();
        params["grid"] = json!("q4_k");
        params[key] = value;
        let error = (entry.build)(&params).err().unwrap();
        assert_eq!(error.path, "grid");
    }
}
