//! Round trips of every scheme that is accepted, and the refusal of those that are not.

use crate::support::{FLOATS, Random, bits, blocks, columns, encode, format, reopen};
use lapidary_formats::Format;
use lapidary_weight::{
    FloatType, GroupFloats, GroupType, Grouping, Lookup, Origin, Outline, Places, Runs, SmallFloat,
    Term, TermOutline, TwoLevel, Weight, ZeroType,
};
use proptest::prelude::*;
use serde_json::json;

fn ours() -> &'static dyn Format {
    format("compressed-tensors")
}

fn outline(rows: usize, cols: usize, terms: Vec<TermOutline>) -> Outline {
    Outline { rows, cols, terms }
}

fn affine(bits: u8, grouping: Grouping, symmetric: bool) -> TermOutline {
    let zeros = if symmetric { ZeroType::Middle } else { ZeroType::Codes };
    TermOutline::Affine { bits, grouping, zeros, scales: FloatType::F16.into() }
}

/// Every width with every sharing of scales, in one folder: the groups of the configuration tell
/// them apart.
#[test]
fn every_scheme_comes_back_exactly() {
    let mut random = Random(1);
    let mut weights = vec![];
    for width in 2..=8 {
        for (index, (rows, cols, grouping)) in [
            (3, 96, columns(32)),
            (5, 51, columns(17)),
            (37, 40, columns(1)),
            (4, 33, Grouping::Row),
            (1, 7, Grouping::Row),
            (6, 45, Grouping::Tensor),
        ]
        .into_iter()
        .enumerate()
        {
            for symmetric in [true, false] {
                if grouping == Grouping::Tensor && !symmetric {
                    continue;
                }
                let dtype = FLOATS[random.below(3)];
                let weight = random.affine((rows, cols), width, grouping, symmetric, dtype);
                weights.push((format!("layers.{width}.{index}_{symmetric}"), weight));
            }
        }
    }
    let (config, tensors) = encode(ours(), &weights, FloatType::F16);
    let groups = config["quantization_config"]["config_groups"].as_object().unwrap();
    assert!(groups.len() > 7, "one group of the configuration a scheme");
    let opened = reopen(&config, &tensors).unwrap();
    assert_eq!(opened.source.tensors().len(), weights.len());
    for (module, weight) in &weights {
        let name = format!("{module}.weight");
        let back = opened.source.weight(&name).unwrap();
        assert_eq!(&back, weight, "{module}");
        let read = lapidary_weight::Tensors::read(&opened.source, &name).unwrap();
        assert_eq!(bits(&read), bits(&weight.decode()), "{module}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Through the format alone, as the job's journal does.
    #[test]
    fn what_is_encoded_is_decoded(
        width in 2_u8..=8, rows in 1_usize..40, groups in 1_usize..6, size in 1_usize..40,
        symmetric: bool, dtype in 0_usize..3, seed: u64,
    ) {
        let grouping = if groups == 1 { Grouping::Row } else { columns(size) };
        let shape = (rows, groups * size);
        let weight = Random(seed).affine(shape, width, grouping, symmetric, FLOATS[dtype]);
        let (outline, dtype) = (weight.outline(), FLOATS[dtype]);
        prop_assert_eq!(ours().accepts(&outline), Ok(()));
        let names = ours().tensors("m", &outline, dtype);
        let bytes = ours().encode(&weight, dtype).unwrap();
        let read = |name: &str| {
            let index = names.iter().position(|spec| spec.name == name).unwrap();
            Ok(bytes[index].clone())
        };
        prop_assert_eq!(ours().decode("m", &outline, dtype, &read).unwrap(), weight);
    }
}

/// The kinds of FP8 and FP4 that the format has, with shapes that they fit.
fn of_floats(random: &mut Random) -> Vec<(&'static str, Weight)> {
    let mut weights = vec![];
    for (grouping, shape) in [
        (Grouping::Row, (5, 33)),
        (Grouping::Tensor, (3, 7)),
        (columns(16), (2, 48)),
        (blocks(4, 16), (10, 40)),
        (blocks(128, 128), (3, 5)),
    ] {
        let dtype = FLOATS[random.below(3)];
        let scales = random.floats(grouping.count(shape.0, shape.1), dtype);
        let scales = GroupFloats::plain(scales, dtype);
        weights.push(("naive-quantized", small(random, SmallFloat::E4M3, shape, grouping, scales)));
    }
    for (format, float, scale, width, divisor) in [
        ("mxfp8-quantized", SmallFloat::E4M3, SmallFloat::E8M0, 32, None),
        ("mxfp4-pack-quantized", SmallFloat::E2M1, SmallFloat::E8M0, 32, None),
        ("nvfp4-pack-quantized", SmallFloat::E2M1, SmallFloat::E4M3, 16, Some(2688.5)),
    ] {
        for groups in 1..4 {
            let (rows, cols) = (1 + random.below(9), groups * width);
            let codes = random.small_codes(scale, rows * groups);
            let codes = codes.into_iter().map(|code| code.clamp(20, 120)).collect();
            let scales = GroupFloats::small(scale, codes, divisor).unwrap();
            weights.push((format, small(random, float, (rows, cols), columns(width), scales)));
        }
    }
    weights
}

fn small(
    random: &mut Random,
    float: SmallFloat,
    (rows, cols): (usize, usize),
    grouping: Grouping,
    scales: GroupFloats,
) -> Weight {
    let codes = random.small_codes(float, rows * cols);
    let term = Lookup::of_small_floats(float, codes, grouping, scales);
    Weight::new(rows, cols, vec![Term::Lookup(term)]).unwrap()
}

/// FP8, FP4 and integers in one folder, each under the format of its group.
#[test]
fn mixed_formats_come_back_exactly() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut weights = of_floats(&mut random);
        weights.push(("pack-quantized", {
            random.affine((4, 64), 4, columns(32), false, FloatType::F16)
        }));
        let named: Vec<(String, Weight)> = weights
            .iter()
            .enumerate()
            .map(|(index, (_, weight))| (format!("layers.{index}.linear"), weight.clone()))
            .collect();
        let (config, tensors) = encode(ours(), &named, FloatType::Bf16);
        let quantization = &config["quantization_config"];
        assert_eq!(quantization["format"], "mixed-precision");
        let opened = reopen(&config, &tensors).unwrap();
        assert_eq!(opened.source.tensors().len(), weights.len());
        for ((module, weight), (format, _)) in named.iter().zip(&weights) {
            let back = opened.source.weight(&format!("{module}.weight")).unwrap();
            assert_eq!(&back, weight, "{module}");
            let groups = quantization["config_groups"].as_object().unwrap().values();
            let is_in = |group: &&serde_json::Value| {
                group["targets"].as_array().unwrap().contains(&json!(module))
            };
            assert_eq!(groups.filter(is_in).map(|g| &g["format"]).collect::<Vec<_>>(), [*format]);
        }
    }
}

/// A byte a weight: every width, with and without zero points.
#[test]
fn bytes_come_back_exactly() {
    let (mut random, bytes) = (Random(5), format("int-quantized"));
    let mut weights = vec![];
    for width in 2..=8 {
        for (index, (grouping, symmetric)) in [
            (columns(16), true),
            (columns(16), false),
            (Grouping::Row, false),
            (Grouping::Tensor, true),
        ]
        .into_iter()
        .enumerate()
        {
            let weight = random.affine((3, 48), width, grouping, symmetric, FloatType::F32);
            weights.push((format!("layers.{width}.{index}"), weight));
        }
    }
    let (config, tensors) = encode(bytes, &weights, FloatType::F16);
    assert_eq!(config["quantization_config"]["format"], "int-quantized");
    let opened = reopen(&config, &tensors).unwrap();
    for (module, weight) in &weights {
        assert_eq!(&opened.source.weight(&format!("{module}.weight")).unwrap(), weight, "{module}");
    }
    let floats = &of_floats(&mut random)[0].1;
    let why = bytes.accepts(&floats.outline()).unwrap_err();
    assert!(why.starts_with("it holds integers, not floats e4m3"), "{why}");
}

/// What engines are told of each kind, as `compressed-tensors` spells it.
#[test]
fn float_groups_say_what_loaders_want() {
    let arguments = |index: usize| {
        let weight = of_floats(&mut Random(6)).swap_remove(index).1;
        let (config, _) = encode(ours(), &[("model.a".to_owned(), weight)], FloatType::Bf16);
        let group = config["quantization_config"]["config_groups"]["group_0"].clone();
        (group["format"].clone(), group["weights"].clone())
    };
    let float = |bits: u8, rest: serde_json::Value| {
        let mut all =
            json!({"num_bits": bits, "type": "float", "symmetric": true, "dynamic": false});
        all.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        all
    };
    let (e4m3, byte) = ("torch.float8_e4m3fn", "torch.uint8");
    for (index, format, expected) in [
        (0, "naive-quantized", float(8, json!({"strategy": "channel"}))),
        (1, "naive-quantized", float(8, json!({"strategy": "tensor"}))),
        (3, "naive-quantized", float(8, json!({"strategy": "block", "block_structure": [4, 16]}))),
        (
            5,
            "mxfp8-quantized",
            float(
                8,
                json!({
                    "strategy": "group", "group_size": 32, "scale_dtype": byte, "zp_dtype": byte,
                }),
            ),
        ),
        (
            11,
            "nvfp4-pack-quantized",
            float(
                4,
                json!({
                    "strategy": "tensor_group", "group_size": 16, "scale_dtype": e4m3,
                    "zp_dtype": e4m3,
                }),
            ),
        ),
    ] {
        assert_eq!(arguments(index), (json!(format), expected));
    }
}

#[test]
fn what_it_cannot_store_is_refused_with_the_reason() {
    let refused = |outline: &Outline| ours().accepts(outline).unwrap_err();
    let ragged = refused(&outline(4, 100, vec![affine(4, columns(32), true)]));
    assert!(ragged.contains("groups of 32 do not divide the 100 columns"), "{ragged}");
    let tensor = refused(&outline(4, 64, vec![affine(4, Grouping::Tensor, false)]));
    assert!(tensor.contains("no zero point for a whole matrix"), "{tensor}");
    let dense = TermOutline::Dense { values: FloatType::F16 };
    for terms in [
        vec![],
        vec![dense.clone()],
        vec![affine(4, Grouping::Row, true), affine(4, Grouping::Row, true)],
        vec![affine(4, Grouping::Row, true), dense],
        vec![TermOutline::LowRank { rank: 2, values: FloatType::F16 }],
        vec![TermOutline::Sparse { nonzeros: 3, values: FloatType::F16, places: Places::Listed }],
        vec![TermOutline::Lookup {
            bits: 4,
            grouping: None,
            book_per_row: false,
            books: FloatType::F16.into(),
            scales: FloatType::F16.into(),
        }],
        vec![TermOutline::Planes {
            planes: 3,
            grouping: Grouping::Row,
            offsets: false,
            scales: FloatType::F16,
        }],
    ] {
        let why = refused(&outline(4, 64, terms));
        assert!(why.starts_with("it holds one affine or small-float term"), "{why}");
    }
    let plain = GroupType::Plain(FloatType::F16);
    let runs = Runs::Flat(std::num::NonZeroUsize::new(8).unwrap());
    let coarse = FloatType::F16;
    let two_level = GroupType::TwoLevel(TwoLevel { bits: 6, runs, origin: Origin::Zero, coarse });
    for (zeros, scales, reason) in [
        (ZeroType::Floats(plain), plain, "its zero points are integers, not affine 4 bits"),
        (ZeroType::Minima(plain), plain, "its zero points are integers, not affine 4 bits"),
        (ZeroType::Middle, two_level, "its scales are plain floats, not affine 4 bits"),
    ] {
        let term = TermOutline::Affine { bits: 4, grouping: columns(32), zeros, scales };
        let why = refused(&outline(4, 64, vec![term]));
        assert!(why.starts_with(reason), "{why}");
    }
}

/// A caller that did not ask `accepts` gets an error, never a file that lies.
#[test]
fn encoding_what_it_cannot_store_fails() {
    let mut random = Random(2);
    for (shape, grouping, symmetric) in
        [((2, 10), columns(4), true), ((2, 10), Grouping::Tensor, false)]
    {
        let weight = random.affine(shape, 4, grouping, symmetric, FloatType::F16);
        let error = ours().encode(&weight, FloatType::F16).unwrap_err().to_string();
        assert!(error.starts_with("format compressed-tensors cannot hold"), "{error}");
    }
    let term = random.affine((2, 8), 4, Grouping::Row, true, FloatType::F16).terms()[0].clone();
    let sum = Weight::new(2, 8, vec![term.clone(), term]).unwrap();
    assert!(ours().encode(&sum, FloatType::F16).is_err());
}

/// The keys that loaders demand, and none that they refuse.
#[test]
fn the_configuration_is_as_loaders_want_it() {
    let weight = |random: &mut Random, width, grouping, symmetric| {
        random.affine((4, 64), width, grouping, symmetric, FloatType::F16)
    };
    let mut random = Random(3);
    let same = vec![
        ("model.a".to_owned(), weight(&mut random, 4, columns(32), true)),
        ("model.b".to_owned(), weight(&mut random, 4, columns(32), true)),
    ];
    let (config, _) = encode(ours(), &same, FloatType::F16);
    let quantization = &config["quantization_config"];
    assert_eq!(quantization["quant_method"], "compressed-tensors");
    assert_eq!(quantization["format"], "pack-quantized");
    assert_eq!(quantization["quantization_status"], "compressed");
    assert_eq!(quantization["ignore"], json!(["lm_head"]));
    let group = &quantization["config_groups"]["group_0"];
    assert_eq!(group["targets"], json!(["Linear"]), "one scheme is that of all linear layers");
    let expected = json!({
        "num_bits": 4, "type": "int", "symmetric": true, "dynamic": false,
        "strategy": "group", "group_size": 32,
    });
    assert_eq!(group["weights"], expected);

    let mut mixed = same;
    mixed.push(("model.c".to_owned(), weight(&mut random, 8, Grouping::Row, false)));
    let (config, _) = encode(ours(), &mixed, FloatType::F16);
    let groups = &config["quantization_config"]["config_groups"];
    assert_eq!(groups["group_0"]["targets"], json!(["model.a", "model.b"]));
    assert_eq!(groups["group_1"]["targets"], json!(["model.c"]));
    assert_eq!(groups["group_1"]["weights"]["strategy"], "channel");
    assert!(groups["group_1"]["weights"].get("group_size").is_none());
}

/// What is planned is what is written.
#[test]
fn scales_have_the_type_of_the_model_where_it_is_that_narrow() {
    assert_eq!(ours().scale_type(FloatType::F16), FloatType::F16);
    assert_eq!(ours().scale_type(FloatType::Bf16), FloatType::Bf16);
    let weight = Random(4).affine((4, 8), 4, Grouping::Row, true, FloatType::Bf16);
    let specs = ours().tensors("m", &weight.outline(), FloatType::Bf16);
    assert_eq!(specs[1].dtype, lapidary_store::Dtype::BF16);
    let Term::Affine(affine) = &weight.terms()[0] else { panic!() };
    assert_eq!(ours().encode(&weight, FloatType::Bf16).unwrap()[1], {
        FloatType::Bf16.encode(&affine.scales)
    });
}
