//! How the inputs of layers are rounded: as compressed-tensors does, written, read, refused.

use crate::support::{FLOATS, Random, Tensor, columns, format, reopen, tensor, testdata};
use lapidary_formats::{Format, Layout, Source};
use lapidary_store::{Checkpoint, Dtype};
use lapidary_weight::{
    FloatType, GroupFloats, Grouping, InputNumbers, InputRounding, InputScales, Lookup, Outline,
    SmallFloat, Tensors, Term, Weight,
};
use serde_json::{Value, json};
use std::num::NonZeroUsize;

fn rounding(numbers: InputNumbers, scales: InputScales) -> InputRounding {
    InputRounding { numbers, scales }
}

fn groups(width: usize) -> InputScales {
    InputScales::Channels(NonZeroUsize::new(width).unwrap())
}

#[test]
fn inputs_are_rounded_as_by_compressed_tensors_to_the_last_bit() {
    let path = testdata("golden/compressed_tensors/activations/rounded.safetensors");
    let file = Checkpoint::open(crate::support::fs(), &path).unwrap();
    let get = |name: &str| FloatType::F32.decode(&file.read(file.require(name).unwrap()).unwrap());
    let fixed = |name: &str| InputScales::Fixed(get(&format!("{name}.scale"))[0]);
    for (name, rounding) in [
        ("int8", InputRounding::INT8),
        ("int4", rounding(InputNumbers::Integers(4), InputScales::Token)),
        ("fp8", InputRounding::FP8),
        ("fp8_of_16", rounding(InputNumbers::E4M3, groups(16))),
        ("int8_fixed", rounding(InputNumbers::Integers(8), fixed("int8_fixed"))),
        ("fp8_fixed", rounding(InputNumbers::E4M3, fixed("fp8_fixed"))),
    ] {
        let mut inputs = get("inputs");
        rounding.apply(&mut inputs, 96);
        assert_eq!(inputs, get(name), "{name}");
    }
}

/// Layers of integers and of FP8, some with rounded inputs.
fn layers(random: &mut Random) -> Vec<(String, Weight, Option<InputRounding>)> {
    let affine = |random: &mut Random, bits, grouping| {
        random.affine((6, 48), bits, grouping, true, FLOATS[0])
    };
    let fp8 = |random: &mut Random| {
        let scales = GroupFloats::plain(random.floats(6, FLOATS[0]), FLOATS[0]);
        let codes = random.small_codes(SmallFloat::E4M3, 6 * 48);
        let term = Lookup::of_small_floats(SmallFloat::E4M3, codes, Grouping::Row, scales);
        Weight::new(6, 48, vec![Term::Lookup(term)]).unwrap()
    };
    let layers = [
        (affine(random, 8, Grouping::Row), Some(InputRounding::INT8)),
        (affine(random, 8, Grouping::Row), None),
        (affine(random, 4, columns(16)), Some(InputRounding::INT8)),
        (affine(random, 4, columns(16)), Some(InputRounding::FP8)),
        (affine(random, 4, columns(16)), None),
        (fp8(random), Some(InputRounding::FP8)),
        (fp8(random), Some(rounding(InputNumbers::E4M3, groups(16)))),
        (fp8(random), None),
    ];
    let named = |(index, (weight, inputs))| (format!("layers.{index}"), weight, inputs);
    layers.into_iter().enumerate().map(named).collect()
}

fn folder(
    ours: &'static dyn Format,
    layers: &[(String, Weight, Option<InputRounding>)],
) -> (Value, Vec<Tensor>) {
    let (mut tensors, mut compressed, mut inputs) = (vec![], vec![], vec![]);
    for (module, weight, rounding) in layers {
        let outline = weight.outline();
        let holder = rounding.map_or(ours, |inputs| ours.with_inputs(&outline, inputs).unwrap());
        holder.accepts(&outline).unwrap();
        let specs = holder.tensors(module, &outline, FLOATS[0]);
        tensors.extend(specs.into_iter().zip(holder.encode(weight, FLOATS[0]).unwrap()));
        inputs.extend(rounding.map(|rounding| (module.clone(), rounding)));
        compressed.push((module.clone(), outline));
    }
    let layout = Layout { compressed: &compressed, plain: &[], inputs: &inputs };
    let quantization = ours.config(&layout).unwrap();
    (json!({"model_type": "test", "quantization_config": quantization}), tensors)
}

#[test]
fn formats_that_hold_them_give_them_back() {
    for id in ["compressed-tensors", "native"] {
        let mut layers = layers(&mut Random(1));
        if id == "native" {
            let fixed = rounding(InputNumbers::E4M3, InputScales::Fixed(0.1));
            layers[5].2 = Some(fixed);
        }
        let (config, tensors) = folder(format(id), &layers);
        let opened = reopen(&config, &tensors).unwrap();
        for (module, weight, rounding) in &layers {
            let name = format!("{module}.weight");
            assert_eq!(&opened.source.weight(&name).unwrap(), weight, "{id}: {module}");
            assert_eq!(opened.source.input_rounding(&name), *rounding, "{id}: {module}");
        }
        assert_eq!(opened.source.consumed(), [], "{id}: nothing is left out");
    }
}

/// Each scheme of an engine has the format under which it is looked for.
#[test]
fn the_configuration_says_what_engines_look_for() {
    let (config, _) = folder(format("compressed-tensors"), &layers(&mut Random(2)));
    let groups = config["quantization_config"]["config_groups"].as_object().unwrap();
    let of_layer = |index: usize| {
        let is_it = |group: &&Value| group["targets"][0] == format!("layers.{index}");
        groups.values().find(is_it).unwrap()
    };
    let formats: Vec<&str> = (0..8).map(|i| of_layer(i)["format"].as_str().unwrap()).collect();
    let (int, words) = ("int-quantized", "pack-quantized");
    let (float, naive) = ("float-quantized", "naive-quantized");
    assert_eq!(formats, [int, words, int, words, words, float, float, naive]);
    let token = json!({
        "num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true,
    });
    assert_eq!(of_layer(0)["input_activations"], token);
    let group = json!({
        "num_bits": 8, "type": "float", "symmetric": true, "strategy": "group", "group_size": 16,
        "dynamic": true,
    });
    assert_eq!(of_layer(6)["input_activations"], group);
    assert_eq!(of_layer(7)["input_activations"], Value::Null);
}

#[test]
fn other_formats_have_no_place_for_them() {
    let layers = layers(&mut Random(3));
    let outline: Outline = layers[2].1.outline();
    for ours in lapidary_formats::formats() {
        let held = ours.with_inputs(&outline, InputRounding::INT8);
        match ours.id() {
            "compressed-tensors" | "int-quantized" | "native" => assert!(held.is_ok()),
            id => assert!(held.err().unwrap().contains("no place"), "{id}"),
        }
    }
    let fixed = rounding(InputNumbers::Integers(8), InputScales::Fixed(1.0));
    let refused = format("compressed-tensors").with_inputs(&outline, fixed);
    assert!(refused.err().unwrap().contains("not with a fixed one"));
}

/// A layer with these `input_activations`, and these tensors beside it.
fn read(inputs: &Value, more: &[Tensor]) -> Result<Source, String> {
    let layer = layers(&mut Random(4)).swap_remove(0);
    let (mut config, mut tensors) = folder(format("compressed-tensors"), &[layer]);
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = inputs.clone();
    tensors.extend(more.iter().cloned());
    reopen(&config, &tensors).map(|opened| opened.source).map_err(|error| error.to_string())
}

#[test]
fn fixed_scales_are_read_and_checked() {
    let inputs = json!({"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": false});
    let scale = |dtype, shape: &[usize], bytes: Vec<u8>| {
        [tensor("layers.0.input_scale", dtype, shape, bytes)]
    };
    let f32s = |values: &[f32]| FloatType::F32.encode(values);
    let source = read(&inputs, &scale(Dtype::F32, &[1], f32s(&[0.5]))).unwrap();
    let expected = rounding(InputNumbers::Integers(8), InputScales::Fixed(0.5));
    assert_eq!(source.input_rounding("layers.0.weight"), Some(expected));
    assert_eq!((source.tensors().len(), source.consumed()), (1, &[][..]), "no tensor of its own");
    let half = FloatType::Bf16.encode(&[0.5]);
    let source = read(&inputs, &scale(Dtype::BF16, &[], half)).unwrap();
    assert_eq!(source.input_rounding("layers.0.weight"), Some(expected));
    for (tensors, reason) in [
        (vec![], "input_scale: is missing"),
        (scale(Dtype::F32, &[1], f32s(&[0.0])).to_vec(), "not one number above 0"),
        (scale(Dtype::F32, &[1], f32s(&[f32::NAN])).to_vec(), "not one number above 0"),
        (scale(Dtype::F32, &[2], f32s(&[1.0, 1.0])).to_vec(), "not one number above 0"),
        (scale(Dtype::I8, &[1], vec![1]).to_vec(), "not of floats"),
    ] {
        let error = read(&inputs, &tensors).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

/// Rules that nothing here follows are told of among what is not made use of.
#[test]
fn what_is_not_read_is_said() {
    let token = |more: Value| {
        let mut inputs =
            json!({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true});
        inputs.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        inputs
    };
    assert!(read(&token(json!({})), &[]).unwrap().consumed().is_empty());
    for odd in [
        json!({"symmetric": false}),
        json!({"strategy": "tensor"}),
        json!({"dynamic": "local", "strategy": "tensor_group", "group_size": 16}),
        json!({"type": "float", "num_bits": 4}),
        json!({"num_bits": 16}),
        json!({"strategy": "group", "group_size": 0}),
    ] {
        let source = read(&token(odd.clone()), &[]).unwrap();
        assert_eq!(source.input_rounding("layers.0.weight"), None, "{odd}");
        let [(place, what)] = source.consumed() else { panic!("{odd}: one thing") };
        assert!(place.ends_with("input_activations") && what.contains("stay floats"), "{what}");
    }
}
