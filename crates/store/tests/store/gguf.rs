//! The GGUF reader on honest files.

use lapidary_store::gguf::{MetaArray, MetaValue, open_set, read_gguf};
use lapidary_store::{Checkpoint, Dtype, GgmlType};

use crate::support::{Gguf, Memory, honest_gguf, real, string};

#[test]
fn every_type_of_metadata_is_read() {
    let gguf = read_gguf(&Memory::new(honest_gguf().build())).unwrap();
    assert_eq!((gguf.version, gguf.alignment), (3, 32));
    let expected = [
        ("general.architecture", MetaValue::String("llama".to_owned())),
        ("u8", MetaValue::U8(7)),
        ("i8", MetaValue::I8(-1)),
        ("u16", MetaValue::U16(300)),
        ("i16", MetaValue::I16(-300)),
        ("u32", MetaValue::U32(70_000)),
        ("i32", MetaValue::I32(-70_000)),
        ("f32", MetaValue::F32(1.5)),
        ("bool", MetaValue::Bool(true)),
        ("u64", MetaValue::U64(u64::MAX)),
        ("i64", MetaValue::I64(i64::MIN)),
        ("f64", MetaValue::F64(-2.5)),
        ("strings", MetaValue::Array(MetaArray::String(vec!["a".into(), "".into(), "ü".into()]))),
        ("floats", MetaValue::Array(MetaArray::F32(vec![1.0, 2.0]))),
        ("bools", MetaValue::Array(MetaArray::Bool(vec![false, true]))),
        ("empty", MetaValue::Array(MetaArray::I32(vec![]))),
    ];
    let found: Vec<(&str, MetaValue)> =
        gguf.metadata.iter().map(|(key, value)| (key, value.clone())).collect();
    assert_eq!(found, expected);
    assert_eq!(gguf.metadata.u64("u8"), Some(7));
    assert_eq!(gguf.metadata.u64("i8"), None, "negative");
    assert_eq!(gguf.metadata.f64("f32"), Some(1.5));
    assert_eq!(gguf.metadata.strings("strings").unwrap().len(), 3);
    assert_eq!(gguf.metadata.str("absent"), None);
}

#[test]
fn shapes_are_outermost_first_and_types_are_ours() {
    let gguf = read_gguf(&Memory::new(honest_gguf().build())).unwrap();
    let found: Vec<(&str, Dtype, Vec<usize>, u64)> = gguf
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.dtype, t.shape.clone(), t.span.len()))
        .collect();
    let expected = [
        ("norm", Dtype::F32, vec![5], 20),
        ("weight", Dtype::Ggml(GgmlType::Q4_0), vec![3, 32], 54),
        ("experts", Dtype::BF16, vec![4, 3, 2], 48),
        ("scalar", Dtype::F64, vec![], 8),
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_bytes_of_a_tensor_are_those_at_its_offset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, honest_gguf().build()).unwrap();
    let checkpoint = Checkpoint::open(real(), &path).unwrap();
    let weight = checkpoint.require("weight").unwrap();
    let expected: Vec<u8> = (32..32 + 54).collect();
    assert_eq!(checkpoint.read(weight).unwrap(), expected);
    assert_eq!(checkpoint.gguf().unwrap().str("general.architecture"), Some("llama"));
    assert!(checkpoint.config().is_none());
}

#[test]
fn version_2_and_other_alignments_are_read() {
    for alignment in [1_u32, 8, 64, 4096, 65536] {
        let mut builder = Gguf::new()
            .entry("general.alignment", 4, alignment.to_le_bytes())
            .tensor("a", &[3], 24, 0)
            .tensor("b", &[3], 24, 65536)
            .data(65536 + 3);
        builder.version = 2;
        builder.alignment = alignment as usize;
        let gguf = read_gguf(&Memory::new(builder.build())).unwrap();
        assert_eq!((gguf.version, gguf.alignment), (2, u64::from(alignment)));
        assert_eq!(gguf.tensors[1].span.start() % u64::from(alignment), 0);
    }
}

fn part(number: u16, count: u16, tensors: &[&str]) -> Gguf {
    let mut builder = Gguf::new()
        .entry("split.no", 2, number.to_le_bytes())
        .entry("split.count", 2, count.to_le_bytes())
        .entry("split.tensors.count", 5, 3_i32.to_le_bytes());
    if number == 0 {
        builder = builder.entry("general.architecture", 8, string("llama"));
    }
    for (i, name) in tensors.iter().enumerate() {
        builder = builder.tensor(name, &[4], 24, 32 * i as u64);
    }
    builder.data(32 * tensors.len())
}

#[test]
fn a_split_model_is_read_from_any_of_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: usize| dir.path().join(format!("model-{n:05}-of-00002.gguf"));
    std::fs::write(path(1), part(0, 2, &["a"]).build()).unwrap();
    std::fs::write(path(2), part(1, 2, &["b", "c"]).build()).unwrap();
    for number in [1, 2] {
        let checkpoint = Checkpoint::open(real(), &path(number)).unwrap();
        let files: Vec<(&str, usize)> =
            checkpoint.tensors().iter().map(|t| (t.name.as_str(), t.file)).collect();
        assert_eq!(files, [("a", 0), ("b", 1), ("c", 1)]);
        assert_eq!(checkpoint.gguf().unwrap().str("general.architecture"), Some("llama"));
        let expected: Vec<u8> = (32..36).collect();
        assert_eq!(checkpoint.read(checkpoint.require("c").unwrap()).unwrap(), expected);
        assert_eq!(checkpoint.files().len(), 2);
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: usize| dir.path().join(format!("model-{n:05}-of-00002.gguf"));
    let fs = real();
    let message = || open_set(&*fs, &path(1)).unwrap_err().to_string();

    std::fs::write(path(1), part(0, 2, &["a"]).build()).unwrap();
    assert!(message().contains("split into 2 files; put all of them here"));
    std::fs::write(path(2), part(0, 2, &["b", "c"]).build()).unwrap();
    assert!(message().contains("`split.no` is 0, expected 1"));
    std::fs::write(path(2), part(1, 3, &["b", "c"]).build()).unwrap();
    assert!(message().contains("`split.count` is 3, expected 2"));
    std::fs::write(path(2), part(1, 2, &["a", "c"]).build()).unwrap();
    assert!(message().contains("tensor `a`: another part"));
    std::fs::write(path(2), part(1, 2, &["b"]).build()).unwrap();
    assert!(message().contains("3 tensors are stated, the 2 parts have 2"));

    let renamed = dir.path().join("renamed.gguf");
    std::fs::copy(path(1), &renamed).unwrap();
    let error = open_set(&*fs, &renamed).unwrap_err().to_string();
    assert!(error.contains("original names"), "{error}");
}
