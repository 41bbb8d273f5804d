//! Compressed folders that contradict themselves: one clear error each, never a panic.

use crate::support::{
    Random, Tensor, blocks, columns, encode, format, reopen, tensor, write_folder,
};
use lapidary_store::{Dtype, TensorSpec};
use lapidary_weight::{FloatType, GroupFloats, Grouping, Lookup, SmallFloat, Term, Weight};
use serde_json::{Value, json};

/// What opening the folder, or else decoding all its layers, complains of.
pub(crate) fn complaint(config: &Value, tensors: &[Tensor]) -> String {
    let opened = match reopen(config, tensors) {
        Ok(opened) => opened,
        Err(error) => return error.to_string(),
    };
    let source = &opened.source;
    let weights = source.tensors().iter().map(|tensor| source.weight(&tensor.name));
    weights.filter_map(Result::err).map(|error| error.to_string()).next().unwrap_or_default()
}

/// A good folder of one asymmetric layer `m` of `[4, 64]` in groups of 32.
fn packed() -> (Value, Vec<Tensor>) {
    let weight = Random(1).affine((4, 64), 4, columns(32), false, FloatType::F16);
    encode(format("compressed-tensors"), &[("m".to_owned(), weight)], FloatType::F16)
}

/// The complaint after one tensor is replaced, or taken away.
fn after(name: &str, new: Option<Tensor>) -> String {
    let (config, mut tensors) = packed();
    tensors.retain(|(spec, _)| spec.name != name);
    tensors.extend(new);
    complaint(&config, &tensors)
}

fn shape_of(sizes: &[i64]) -> Option<Tensor> {
    let bytes = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
    Some(tensor("m.weight_shape", Dtype::I64, &[sizes.len()], bytes))
}

fn zeros(name: &str, dtype: Dtype, shape: &[usize]) -> Option<Tensor> {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.block_bytes() as usize];
    Some(tensor(name, dtype, shape, bytes))
}

#[track_caller]
pub(crate) fn names(complaint: &str, parts: &[&str]) {
    for part in parts {
        assert!(complaint.contains(part), "{complaint:?} does not say {part:?}");
    }
}

#[test]
fn a_good_folder_has_nothing_to_complain_of() {
    let (config, tensors) = packed();
    assert_eq!(complaint(&config, &tensors), "");
}

#[test]
fn missing_tensors_are_named() {
    for part in ["weight_scale", "weight_shape", "weight_zero_point"] {
        let name = format!("m.{part}");
        names(&after(&name, None), &[&name]);
    }
}

#[test]
fn shapes_that_contradict_each_other_are_named() {
    for sizes in [
        &[-4_i64, 64][..],
        &[4, -64],
        &[i64::MAX, i64::MAX],
        &[4, 1 << 40],
        &[1 << 40, 64],
        &[5, 64],
        &[3, 64],
        &[0, 64],
        &[4],
        &[4, 64, 1],
        &[],
    ] {
        names(&after("m.weight_shape", shape_of(sizes)), &["m.weight_"]);
    }
    // Widths within what the packed words could hold, but not what they do.
    for cols in [1, 32, 63, 65, 96] {
        names(&after("m.weight_shape", shape_of(&[4, cols])), &["m.weight_"]);
    }
    for shape in [&[4, 3][..], &[2, 4], &[8], &[4, 1], &[1, 2], &[4, 2, 1], &[0, 2], &[4, 0]] {
        let complaint = after("m.weight_scale", zeros("m.weight_scale", Dtype::F16, shape));
        names(&complaint, &["m.weight_"]);
    }
    for shape in [&[4, 7][..], &[4, 9], &[32], &[3, 8], &[4, 8, 1], &[0, 8], &[4, 0]] {
        let complaint = after("m.weight_packed", zeros("m.weight_packed", Dtype::I32, shape));
        names(&complaint, &["m.weight_packed"]);
    }
    for shape in [&[1, 1][..], &[2, 2], &[3], &[1, 3], &[0, 2]] {
        let new = zeros("m.weight_zero_point", Dtype::I32, shape);
        names(&after("m.weight_zero_point", new), &["m.weight_zero_point"]);
    }
}

/// The shape of an empty tensor may be of any size: nothing in the file bounds it.
#[test]
fn empty_tensors_of_absurd_shapes_are_refused() {
    let (config, _) = packed();
    for huge in [1_usize << 58, 1 << 59, usize::MAX >> 2] {
        let tensors = [
            zeros("m.weight_scale", Dtype::F16, &[0, 2]),
            shape_of(&[0, (huge / 2) as i64]),
            Some(tensor("m.weight_packed", Dtype::I32, &[0, huge], vec![])),
            zeros("m.weight_zero_point", Dtype::I32, &[0, 2]),
        ];
        let folder = tempfile::tempdir().unwrap();
        let tensors: Vec<Tensor> = tensors.into_iter().flatten().collect();
        let written = std::panic::catch_unwind(|| write_folder(folder.path(), &config, &tensors));
        // The writer may refuse such a shape before a reader sees it; neither may panic in reading.
        if written.is_ok() {
            complaint(&config, &tensors);
        }
    }
}

#[test]
fn types_that_are_not_of_the_format_are_named() {
    for (part, shape, dtype) in [
        ("weight_packed", &[4, 8][..], Dtype::F32),
        ("weight_packed", &[4, 8], Dtype::I64),
        ("weight_scale", &[4, 2], Dtype::I32),
        ("weight_scale", &[4, 2], Dtype::F64),
        ("weight_shape", &[2], Dtype::I32),
        ("weight_shape", &[2], Dtype::F64),
        ("weight_zero_point", &[1, 2], Dtype::F32),
        ("weight_zero_point", &[4, 2], Dtype::I8),
    ] {
        let name = format!("m.{part}");
        names(&after(&name, zeros(&name, dtype, shape)), &[&name]);
    }
}

#[test]
fn scales_that_are_no_numbers_are_refused() {
    for value in [f32::NAN, f32::INFINITY] {
        let bytes = FloatType::F16.encode(&[0.5, 0.5, 0.5, value, 0.5, 0.5, 0.5, 0.5]);
        let new = tensor("m.weight_scale", Dtype::F16, &[4, 2], bytes);
        names(&after("m.weight_scale", Some(new)), &["m: affine term: scales", "element 3"]);
    }
}

#[test]
fn groups_in_activation_order_are_refused_with_a_way_out() {
    let complaint = after("", zeros("m.weight_g_idx", Dtype::I32, &[64]));
    names(&complaint, &["m.weight_g_idx", "activation order", "actorder: weight"]);
}

#[test]
fn configurations_that_cannot_be_read_are_named() {
    let with = |pointer: &str, value: Value| {
        let (mut config, tensors) = packed();
        *config.pointer_mut(&format!("/quantization_config{pointer}")).unwrap() = value;
        complaint(&config, &tensors)
    };
    let group = "/config_groups/group_0";
    for value in [json!(0), json!(9), json!(-4), json!(4.5), json!("4"), json!(null)] {
        names(&with(&format!("{group}/weights/num_bits"), value), &["group_0.weights.num_bits"]);
    }
    for format in ["nvfp4-pack-quantized", "int-quantized", "float-quantized"] {
        let complaint = with(&format!("{group}/format"), json!(format));
        let place = if format == "int-quantized" { "m.weight_packed" } else { format };
        names(&complaint, &["group_0", place]);
    }
    names(&with("/config_groups", json!([])), &["config_groups", "is missing"]);
    names(&with(&format!("{group}/weights"), json!(null)), &["group_0", "has no weights"]);
    let complaint = with(&format!("{group}/targets"), json!(["another"]));
    names(&complaint, &["m.weight_packed", "no group"]);
    names(&with(&format!("{group}/targets"), json!(["re:("])), &["group_0", "regular expression"]);
    names(&with("/quant_method", json!("exl3")), &["\"exl3\"", "cannot be read"]);
    names(&with("/quant_method", json!(7)), &["cannot be read"]);
}

/// A good folder of one NVFP4 layer `n` of `[4, 64]`, and one FP8 layer `f` of `[6, 40]` in blocks.
fn floats() -> (Value, Vec<Tensor>) {
    let mut random = Random(3);
    let divided = GroupFloats::small(SmallFloat::E4M3, vec![0x30; 16], Some(900.0)).unwrap();
    let plain = GroupFloats::plain(vec![0.5; 6], FloatType::F32);
    let mut weight = |float, (rows, cols), grouping, scales| {
        let codes = random.small_codes(float, rows * cols);
        let term = Lookup::of_small_floats(float, codes, grouping, scales);
        Weight::new(rows, cols, vec![Term::Lookup(term)]).unwrap()
    };
    let weights = [
        ("n".to_owned(), weight(SmallFloat::E2M1, (4, 64), columns(16), divided)),
        ("f".to_owned(), weight(SmallFloat::E4M3, (6, 40), blocks(4, 16), plain)),
    ];
    encode(format("compressed-tensors"), &weights, FloatType::F16)
}

#[test]
fn tensors_of_float_layers_that_contradict_each_other_are_named() {
    let (config, tensors) = floats();
    assert_eq!(complaint(&config, &tensors), "");
    for (index, (spec, bytes)) in tensors.iter().enumerate() {
        // Without its scales, `f.weight` is a tensor like any other, of floats of 8 bits.
        let mut gone = tensors.clone();
        gone.remove(index);
        if spec.name != "f.weight_scale"
            && spec.name != "f.weight"
            && spec.name != "n.weight_packed"
        {
            names(&complaint(&config, &gone), &[&spec.name, "missing"]);
        }
        let mut longer = tensors.clone();
        // A row more may lie in the last block.
        longer[index].0.shape[0] += 4;
        let row = bytes.len() / spec.shape[0].max(1);
        longer[index].1.extend(std::iter::repeat_n(0, 4 * row));
        names(&complaint(&config, &longer), &[&spec.name[..1], ".weight"]);
        let mut other = tensors.clone();
        other[index].0 = TensorSpec::new(&spec.name, Dtype::Bool, spec.shape.clone());
        other[index].1.truncate(spec.shape.iter().product());
        names(&complaint(&config, &other), &[&spec.name, "Bool"]);
    }
}

#[test]
fn codes_and_divisors_that_are_no_numbers_are_refused() {
    let (config, tensors) = floats();
    let with = |name: &str, bytes: Vec<u8>| {
        let mut tensors = tensors.clone();
        let tensor = tensors.iter_mut().find(|(spec, _)| spec.name == name).unwrap();
        assert_eq!(tensor.1.len(), bytes.len());
        tensor.1 = bytes;
        complaint(&config, &tensors)
    };
    let mut codes = vec![0; 240];
    codes[17] = 0xff;
    names(&with("f.weight", codes), &["f: lookup term: codes", "element 17"]);
    let mut scales = vec![0x30; 16];
    scales[3] = 0x7f;
    names(&with("n.weight_scale", scales), &["n: small-float term: codes", "element 3"]);
    for divisor in [0.0_f32, -1.0, f32::NAN, f32::INFINITY] {
        let complaint = with("n.weight_global_scale", divisor.to_le_bytes().to_vec());
        names(&complaint, &["n: small-float term", "divided by"]);
    }
    let structures = [json!(null), json!([4]), json!([0, 16]), json!([-4, 16]), json!("4x16")];
    for structure in structures {
        let mut config = config.clone();
        config["quantization_config"]["config_groups"]["group_1"]["weights"]["block_structure"] =
            structure;
        names(&complaint(&config, &tensors), &["group_1.weights.block_structure"]);
    }
}

/// A good folder of every kind of term.
fn native() -> (Value, Vec<Tensor>) {
    let mut random = Random(2);
    let weight = Weight::new(6, 40, random.terms(6, 40)).unwrap();
    encode(format("native"), &[("m".to_owned(), weight)], FloatType::F16)
}

#[test]
fn native_tensors_that_do_not_fit_their_outline_are_named() {
    let (config, tensors) = native();
    assert_eq!(complaint(&config, &tensors), "");
    for (index, (spec, bytes)) in tensors.iter().enumerate() {
        let mut gone = tensors.clone();
        gone.remove(index);
        names(&complaint(&config, &gone), &[&spec.name]);

        let mut longer = tensors.clone();
        // A row more may lie in the last block.
        longer[index].0.shape[0] += 4;
        let row = bytes.len() / spec.shape[0].max(1);
        longer[index].1.extend(std::iter::repeat_n(0, 4 * row));
        names(&complaint(&config, &longer), &[&spec.name]);
    }
}

#[test]
fn native_indices_outside_the_matrix_are_refused() {
    let (config, tensors) = native();
    let mut tried = 0;
    for (index, (spec, bytes)) in tensors.iter().enumerate() {
        if !(spec.name.ends_with("row_starts") || spec.name.ends_with("columns")) {
            continue;
        }
        for place in 0..bytes.len() / 4 {
            let mut bad = tensors.clone();
            bad[index].1[4 * place..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
            names(&complaint(&config, &bad), &["m: ", " term: "]);
            tried += 1;
        }
    }
    assert!(tried > 30);
}

/// Outlines are as hostile as everything else in `config.json`.
#[test]
fn native_outlines_of_absurd_sizes_are_refused() {
    let most = u64::MAX;
    let dense = json!({"term": "dense", "values": "f16"});
    let affine = |bits: u64, grouping: Value| {
        json!({
            "term": "affine", "bits": bits, "grouping": grouping, "symmetric": false,
            "scales": "f16",
        })
    };
    let lookup = |bits: u64| {
        json!({
            "term": "lookup", "bits": bits, "grouping": "row", "book_per_row": true, "books": "f16",
            "scales": "f16",
        })
    };
    let two_level = |bits: u64, length: u64| {
        let levels = json!({
            "bits": bits, "runs": {"flat": length}, "origin": "middle", "coarse": "f16",
        });
        json!({
            "term": "affine", "bits": 4, "grouping": {"columns": 1}, "zeros": {"minima": levels},
            "scales": levels,
        })
    };
    let planes = |planes: u64| {
        json!({
            "term": "planes", "planes": planes, "grouping": "row", "offsets": true, "scales": "f16",
        })
    };
    let sparse = json!({"term": "sparse", "nonzeros": most, "values": "f32"});
    let low_rank = json!({"term": "low-rank", "rank": most, "values": "f32"});
    for (rows, cols, term) in [
        (most, most, dense.clone()),
        (most, 1, dense.clone()),
        (1 << 40, 1 << 40, dense.clone()),
        (4, 4, affine(0, json!("row"))),
        (4, 4, affine(9, json!("row"))),
        (4, 4, affine(200, json!("row"))),
        (4, 4, affine(4, json!({"columns": 0}))),
        (4, 4, affine(4, json!({"columns": -1}))),
        (4, 4, affine(4, json!("diagonal"))),
        (most, most, affine(4, json!("tensor"))),
        (most, most, affine(4, json!({"columns": 1}))),
        (4, 4, lookup(0)),
        (4, 4, lookup(63)),
        (4, 4, lookup(64)),
        (most, 4, lookup(8)),
        (4, 4, two_level(0, 8)),
        (4, 4, two_level(9, 8)),
        (4, 4, two_level(4, 0)),
        (1 << 24, 1 << 24, two_level(4, 1)),
        (most, 4, two_level(4, most)),
        (4, 4, planes(0)),
        (4, 4, planes(9)),
        (1 << 24, 1 << 24, planes(8)),
        (4, 4, sparse.clone()),
        (most, 4, sparse),
        (4, 4, json!({"term": "columns", "count": 5, "values": "f16"})),
        (4, 4, low_rank.clone()),
        (most, most, low_rank),
        (4, 4, json!({"term": "dense", "values": "f8"})),
        (4, 4, json!({"term": "unheard-of"})),
        (4, 4, json!({"term": "dense", "values": "f16", "more": 1})),
    ] {
        let site = json!({"rows": rows, "cols": cols, "terms": [term]});
        let quantization = json!({"quant_method": "lapidary", "sites": {"m": site}});
        let config = json!({"quantization_config": quantization});
        let plain = tensor("other", Dtype::F16, &[2], vec![0; 4]);
        let said = complaint(&config, &[plain]);
        assert!(!said.is_empty(), "{term} of [{rows}, {cols}] was accepted");
        assert!(said.contains('m') && said.len() < 500, "{said}");
    }
    for sites in [json!(null), json!([]), json!({"m": 3}), json!({"m": {"rows": 4}})] {
        let quantization = json!({"quant_method": "lapidary", "sites": sites});
        let plain = tensor("other", Dtype::F16, &[2], vec![0; 4]);
        names(&complaint(&json!({"quantization_config": quantization}), &[plain]), &["sites"]);
    }
}

/// What was stored is decoded by what stands beside it, so the two have to agree.
#[test]
fn tensors_of_another_width_are_not_taken_for_these() {
    let weight = Random(3).affine((4, 64), 4, Grouping::Row, true, FloatType::F16);
    let ours = format("compressed-tensors");
    let (mut config, tensors) = encode(ours, &[("m".to_owned(), weight)], FloatType::F16);
    for bits in [2, 3, 5, 6, 8] {
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] =
            json!(bits);
        names(&complaint(&config, &tensors), &["m.weight_packed", &format!("{bits}-bit")]);
    }
}
