//! Folders of other tools that contradict themselves: an error that names the module, never a panic.

use crate::folders::FOLDERS;
use crate::hostile::{complaint, names};
use crate::support::{Random, Tensor, encode, format, tensor};
use lapidary_store::Dtype;
use lapidary_weight::{FloatType, Grouping};
use serde_json::{Value, json};

/// A good folder of one layer in each format, and one of 8 bits.
fn good() -> Vec<(String, Value, Vec<Tensor>)> {
    let mut folders: Vec<_> = FOLDERS
        .into_iter()
        .map(|id| {
            let weight = Random(11).held_by(id);
            let (config, tensors) = encode(format(id), &[("m".to_owned(), weight)], FloatType::F16);
            (id.to_owned(), config, tensors)
        })
        .collect();
    let weight = Random(1).affine((4, 64), 8, Grouping::Row, true, FloatType::F32);
    let (config, tensors) =
        encode(format("bitsandbytes"), &[("m".to_owned(), weight)], FloatType::F16);
    folders.push(("int8".to_owned(), config, tensors));
    folders
}

/// Whether a tensor says that there is a layer, or may be absent.
fn is_mark(name: &str) -> bool {
    let marks = ["qweight", "scales", "weight_scale", "W_q", "SCB", "weight_format", "quant_state"];
    marks.iter().any(|mark| name.contains(mark)) || is_unread(name)
}

/// Settings of HQQ that change nothing.
fn is_unread(name: &str) -> bool {
    let unread = [
        "unpack_view_dtype",
        "compute_dtype",
        "offload_meta",
        "encoded_state_dict",
        "stores_quant_config",
        "channel_wise",
        "optimize",
        "round_zero",
    ];
    unread.iter().any(|part| name.ends_with(part))
}

#[test]
fn good_folders_have_nothing_to_complain_of() {
    for (id, config, tensors) in good() {
        assert_eq!(complaint(&config, &tensors), "", "{id}");
    }
}

#[test]
fn missing_tensors_shapes_and_types_are_named() {
    for (id, config, tensors) in good() {
        for (index, (spec, bytes)) in tensors.iter().enumerate() {
            let with = |new: Option<Tensor>| {
                let mut tensors = tensors.clone();
                tensors.remove(index);
                tensors.extend(new);
                complaint(&config, &tensors)
            };
            let gone = with(None);
            assert!(is_mark(&spec.name) || gone.contains("m."), "{id} {}: {gone}", spec.name);
            if is_unread(&spec.name) {
                continue;
            }
            for axis in 0..spec.shape.len() {
                let mut shape = spec.shape.clone();
                shape[axis] += 1;
                let count = shape.iter().product::<usize>() * spec.dtype.block_bytes() as usize;
                let mut longer = bytes.clone();
                longer.resize(count, 0);
                let said = with(Some(tensor(&spec.name, spec.dtype, &shape, longer)));
                // Nothing but the weight says how wide a layer of BitNet or of 8 bits is.
                let is_free = ["bitnet", "int8"].contains(&id.as_str()) && spec.name == "m.weight";
                assert!(is_free || said.contains("m."), "{id} {} {shape:?}: {said:?}", spec.name);
                shape[axis] = 0;
                let said = with(Some(tensor(&spec.name, spec.dtype, &shape, vec![])));
                assert!(said.contains("m"), "{id} {} {shape:?}: {said:?}", spec.name);
            }
            for dtype in [Dtype::F64, Dtype::I64, Dtype::I8, Dtype::I32, Dtype::BF16, Dtype::U8] {
                let count = spec.shape.iter().product::<usize>() * dtype.block_bytes() as usize;
                let other = tensor(&spec.name, dtype, &spec.shape, vec![0; count]);
                let said = with(Some(other));
                let fits = dtype == spec.dtype || is_float(dtype) && is_float(spec.dtype);
                let left = id == "bitnet" && spec.name == "m.weight";
                assert!(
                    fits || left || said.contains("m."),
                    "{id} {} {dtype:?}: {said}",
                    spec.name
                );
            }
        }
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32)
}

/// Bytes of any value: what is read is refused or a number.
#[test]
fn garbage_in_any_tensor_never_panics() {
    let mut random = Random(9);
    for (_, config, tensors) in good() {
        for index in 0..tensors.len() {
            for fill in [0, 0x7f, 0xff, 0x55] {
                let mut bad = tensors.clone();
                bad[index].1.fill(fill);
                complaint(&config, &bad);
            }
            for _ in 0..20 {
                let mut bad = tensors.clone();
                for byte in &mut bad[index].1 {
                    if random.below(3) == 0 {
                        *byte = random.next() as u8;
                    }
                }
                complaint(&config, &bad);
            }
        }
    }
}

#[test]
fn inputs_of_groups_that_there_are_not_are_refused() {
    let (_, config, mut tensors) = good().swap_remove(0);
    let index = tensors.iter().position(|(spec, _)| spec.name == "m.g_idx").unwrap();
    for bad in [-1_i32, 100_000, i32::MAX, i32::MIN] {
        tensors[index].1[..4].copy_from_slice(&bad.to_le_bytes());
        names(&complaint(&config, &tensors), &["m.g_idx", "groups"]);
    }
}

#[test]
fn configurations_that_cannot_be_read_are_named() {
    let folders = good();
    let with = |id: &str, key: &str, value: Value| {
        let (_, config, tensors) = folders.iter().find(|(name, _, _)| name == id).unwrap();
        let mut config = config.clone();
        config["quantization_config"][key] = value;
        complaint(&config, tensors)
    };
    for value in [json!(5), json!(0), json!(-4), json!("4"), json!(1_u64 << 40)] {
        names(&with("gptq", "bits", value.clone()), &["bits"]);
        names(&with("awq", "bits", value), &["bits"]);
    }
    for value in [json!(0), json!(-2), json!("x"), json!(1.5)] {
        names(&with("gptq", "group_size", value.clone()), &["group_size"]);
        names(&with("mlx", "group_size", value), &["group_size"]);
    }
    names(&with("gptq", "checkpoint_format", json!("marlin")), &["marlin", "gptq_v2"]);
    names(&with("gptq", "is_marlin_format", json!(true)), &["is_marlin_format"]);
    names(&with("gptq", "pack_dtype", json!("int16")), &["pack_dtype"]);
    names(&with("gptq", "dynamic", json!({"+:(": {"bits": 4}})), &["dynamic", "regular"]);
    names(&with("gptq", "dynamic", json!({"+:.*": {"bits": 7}})), &["dynamic", "bits"]);
    names(&with("awq", "version", json!("gemv")), &["version", "gemv"]);
    names(&with("mlx", "mode", json!("mxfp4")), &["mode"]);
    names(&with("mlx", "bits", json!(7)), &["bits"]);
    names(&with("bitnet", "linear_class", json!("other")), &["linear_class"]);
    names(&with("bitnet", "use_rms_norm", json!(true)), &["use_rms_norm"]);
}
