//! Folders of DeepSeek's FP8 and of ModelOpt, made by hand from their layouts, and hostile ones.

use crate::support::{Opened, Random, Tensor, reopen, tensor};
use lapidary_formats::FormatError;
use lapidary_store::Dtype;
use lapidary_weight::{FloatType, SmallFloat, Tensors};
use serde_json::{Value, json};

fn bytes(values: &[f32]) -> Vec<u8> {
    FloatType::F32.encode(values)
}

fn plain() -> Tensor {
    tensor("norm.weight", Dtype::BF16, &[8], FloatType::Bf16.encode(&[1.5; 8]))
}

fn read(opened: &Opened, name: &str) -> Vec<f32> {
    opened.source.read(name).unwrap()
}

fn e4m3(code: u8) -> f64 {
    f64::from(SmallFloat::E4M3.decode(code))
}

/// `[6, 40]` in blocks of `[4, 16]`: blocks at the edges are smaller.
fn deepseek(random: &mut Random) -> (Value, Vec<Tensor>, Vec<u8>, Vec<f32>) {
    let codes = random.small_codes(SmallFloat::E4M3, 6 * 40);
    let scales = random.floats(2 * 3, FloatType::F32);
    let config = json!({"model_type": "test", "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [4, 16],
    }});
    let tensors = vec![
        tensor("m.weight", Dtype::F8E4M3, &[6, 40], codes.clone()),
        tensor("m.weight_scale_inv", Dtype::F32, &[2, 3], bytes(&scales)),
        plain(),
    ];
    (config, tensors, codes, scales)
}

#[test]
fn blocks_of_fp8_are_multiplied_by_their_scales() {
    let (config, tensors, codes, scales) = deepseek(&mut Random(1));
    let opened = reopen(&config, &tensors).unwrap();
    let names: Vec<&str> = opened.source.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(opened.source.float_type(), FloatType::Bf16, "the type of what is plain");
    for (index, value) in read(&opened, "m.weight").into_iter().enumerate() {
        let (row, col) = (index / 40, index % 40);
        let want = e4m3(codes[index]) * f64::from(scales[row / 4 * 3 + col / 16]);
        assert!((f64::from(value) - want).abs() <= 1e-6 * want.abs(), "{index}");
    }
    let dropped = opened.source.consumed();
    assert!(dropped.iter().any(|(name, _)| name.contains("activation_scheme")), "{dropped:?}");
}

#[test]
fn one_scale_a_matrix_and_powers_of_two_are_read_too() {
    let (mut config, mut tensors, codes, _) = deepseek(&mut Random(2));
    tensors[1] =
        tensor("m.weight_scale_inv", Dtype::F8E8M0, &[2, 3], vec![127, 126, 128, 120, 130, 127]);
    let value = read(&reopen(&config, &tensors).unwrap(), "m.weight");
    assert_eq!(f64::from(value[16]), e4m3(codes[16]) / 2.0);
    assert_eq!(f64::from(value[4 * 40 + 20]), e4m3(codes[4 * 40 + 20]) * 8.0);
    config["quantization_config"]["weight_block_size"] = json!(null);
    tensors[1] = tensor("m.weight_scale", Dtype::F32, &[], bytes(&[0.25]));
    tensors.push(tensor("m.input_scale", Dtype::F32, &[], bytes(&[3.0])));
    let opened = reopen(&config, &tensors).unwrap();
    assert_eq!(f64::from(read(&opened, "m.weight")[7]), e4m3(codes[7]) / 4.0);
    assert!(opened.source.get("m.input_scale").is_none());
    assert!(opened.source.consumed().iter().any(|(name, _)| name == "m.input_scale"));
}

fn complaint(opened: Result<Opened, FormatError>) -> String {
    match opened {
        Ok(opened) => opened.source.weight("m.weight").unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn fp8_folders_that_contradict_themselves_are_refused() {
    let (config, good, ..) = deepseek(&mut Random(3));
    let with = |index: usize, new: Tensor| {
        let mut tensors = good.clone();
        tensors[index] = new;
        complaint(reopen(&config, &tensors))
    };
    let scale = |dtype, shape: &[usize]| {
        let size = shape.iter().product::<usize>() * dtype_bytes(dtype);
        tensor("m.weight_scale_inv", dtype, shape, vec![0x3c; size])
    };
    for shape in [&[2, 2][..], &[3, 3], &[6, 1], &[2, 3, 1], &[0, 3], &[6]] {
        let error = with(1, scale(Dtype::F32, shape));
        assert!(error.contains("m.weight_scale_inv"), "{shape:?}: {error}");
    }
    assert!(with(1, scale(Dtype::I32, &[2, 3])).contains("m.weight_scale_inv: is I32"));
    assert!(with(1, plain_named("other")).contains("m.weight_scale_inv: is missing"));
    let flat = tensor("m.weight", Dtype::F8E4M3, &[240], vec![0; 240]);
    assert!(with(0, flat).contains("where a matrix is needed"));
    let nan = tensor("m.weight", Dtype::F8E4M3, &[6, 40], vec![0x7f; 240]);
    assert!(with(0, nan).contains("not finite"));
    for (key, value) in [
        ("fmt", json!("e5m2")),
        ("weight_block_size", json!([0, 16])),
        ("weight_block_size", json!([16])),
        ("weight_block_size", json!("128")),
        ("weight_block_size", json!([-1, u64::MAX])),
    ] {
        let mut config = config.clone();
        config["quantization_config"][key] = value;
        assert!(complaint(reopen(&config, &good)).contains(key), "{key}");
    }
}

fn dtype_bytes(dtype: Dtype) -> usize {
    dtype.block_bytes() as usize
}

fn plain_named(name: &str) -> Tensor {
    tensor(name, Dtype::F32, &[1], bytes(&[1.0]))
}

/// One NVFP4 layer `m` of `[3, 32]`, one FP8 layer `f` of `[2, 5]`.
fn modelopt() -> (Value, Vec<Tensor>, Vec<u8>, Vec<u8>) {
    let mut random = Random(4);
    let codes = random.small_codes(SmallFloat::E2M1, 3 * 32);
    let packed = codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect();
    let scales = vec![0x38, 0x40, 0x30, 0x44, 0x7e, 0x01];
    let config = json!({"model_type": "test", "quantization_config": {
        "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
    }});
    let tensors = vec![
        tensor("m.weight", Dtype::U8, &[3, 16], packed),
        tensor("m.weight_scale", Dtype::F8E4M3, &[3, 2], scales.clone()),
        tensor("m.weight_scale_2", Dtype::F32, &[], bytes(&[0.125])),
        tensor("m.input_scale", Dtype::F32, &[], bytes(&[7.0])),
        tensor("f.weight", Dtype::F8E4M3, &[2, 5], vec![0x38; 10]),
        tensor("f.weight_scale", Dtype::F32, &[], bytes(&[0.5])),
        tensor("k_proj.k_scale", Dtype::F32, &[], bytes(&[7.0])),
        plain(),
    ];
    (config, tensors, codes, scales)
}

fn check_modelopt(opened: &Opened, codes: &[u8], scales: &[u8]) {
    let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for (index, value) in read(opened, "m.weight").into_iter().enumerate() {
        let level: f64 = levels[usize::from(codes[index] & 7)];
        let level = if codes[index] & 8 == 0 { level } else { -level };
        let want = level * e4m3(scales[index / 32 * 2 + index % 32 / 16]) * 0.125;
        assert_eq!(f64::from(value), want, "{index}");
    }
    assert_eq!(read(opened, "f.weight"), [0.5; 10]);
    for name in ["m.input_scale", "k_proj.k_scale"] {
        assert!(opened.source.get(name).is_none());
        assert!(opened.source.consumed().iter().any(|(dropped, _)| dropped == name), "{name}");
    }
}

#[test]
fn layers_of_modelopt_are_read_by_what_they_are() {
    let (config, tensors, codes, scales) = modelopt();
    check_modelopt(&reopen(&config, &tensors).unwrap(), &codes, &scales);
}

/// Older folders describe the layers in a file of its own.
#[test]
fn the_file_beside_the_configuration_is_enough() {
    let (_, tensors, codes, scales) = modelopt();
    let folder = tempfile::tempdir().unwrap();
    let file = json!({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}});
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("hf_quant_config.json", file.to_string());
    crate::support::write_folder(folder.path(), &json!({"model_type": "test"}), &tensors);
    let source = lapidary_formats::Source::open(crate::support::fs(), folder.path()).unwrap();
    assert!(source.files().iter().all(|file| file.name != "hf_quant_config.json"));
    check_modelopt(&Opened { source, _folder: folder }, &codes, &scales);
}

#[test]
fn folders_of_modelopt_that_contradict_themselves_are_refused() {
    let (config, good, ..) = modelopt();
    let with = |index: usize, new: Tensor| {
        let mut tensors = good.clone();
        tensors[index] = new;
        complaint(reopen(&config, &tensors))
    };
    for (index, new, part) in [
        (1, tensor("m.weight_scale", Dtype::F8E4M3, &[3, 3], vec![0; 9]), "m.weight_scale: is"),
        (1, tensor("m.weight_scale", Dtype::F32, &[3, 2], vec![0; 24]), "m.weight_scale: is"),
        (2, tensor("m.weight_scale_2", Dtype::F32, &[2], vec![0; 8]), "m.weight_scale_2: is"),
        (2, plain_named("other"), "m.weight_scale_2: is missing"),
        (2, tensor("m.weight_scale_2", Dtype::F32, &[], bytes(&[0.0])), "divided by"),
        (2, tensor("m.weight_scale_2", Dtype::F32, &[], bytes(&[f32::NAN])), "divided by"),
        (0, tensor("m.weight", Dtype::U8, &[3, 15], vec![0; 45]), "whole groups of 16"),
        (0, tensor("m.weight", Dtype::U8, &[48], vec![0; 48]), "where a matrix is needed"),
        (3, tensor("m.pre_quant_scale", Dtype::F32, &[32], vec![0; 128]), "pre_quant_scale"),
        (5, tensor("f.weight_scale", Dtype::F32, &[3], vec![0; 12]), "f.weight_scale: is"),
    ] {
        let error = with(index, new);
        assert!(error.contains(part), "{part}: {error}");
    }
    let mut awq = config;
    awq["quantization_config"]["quant_algo"] = json!("W4A16_AWQ");
    let error = complaint(reopen(&awq, &good));
    assert!(error.contains("W4A16_AWQ") && error.contains("NVFP4"), "{error}");
}
