//! Round trips of every scheme that is accepted, and the refusal of those that are not.

use crate::support::{FLOATS, Random, bits, columns, encode, format, reopen};
use lapidary_formats::Format;
use lapidary_weight::{
    FloatType, GroupType, Grouping, Origin, Outline, Runs, Term, TermOutline, TwoLevel, Weight,
    ZeroType,
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
        vec![TermOutline::Sparse { nonzeros: 3, values: FloatType::F16 }],
        vec![TermOutline::Lookup {
            bits: 4,
            grouping: None,
            book_per_row: false,
            books: FloatType::F16,
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
        assert!(why.starts_with("it holds one affine term"), "{why}");
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
