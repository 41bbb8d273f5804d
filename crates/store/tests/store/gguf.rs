//! The GGUF reader on honest files, and the writer.

use std::path::Path;

use lapidary_store::gguf::{MetaArray, MetaValue, Metadata, Writer, open_set, read_gguf};
use lapidary_store::{Checkpoint, Dtype, GgmlType, TensorSpec};
use proptest::prelude::*;

use crate::support::{Gguf, Memory, honest_gguf, real, scratch, string};

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

/// What `testdata/golden/gguf/make.py` puts into its file.
fn golden() -> (Metadata, Vec<TensorSpec>) {
    let mut metadata = Metadata::default();
    let text = |text: &str| MetaValue::String(text.to_owned());
    let strings = ["a", "", "ü"].map(str::to_owned).to_vec();
    let entries = [
        ("general.architecture", text("llama")),
        ("a.u8", MetaValue::U8(7)),
        ("a.i8", MetaValue::I8(-7)),
        ("a.u16", MetaValue::U16(300)),
        ("a.i16", MetaValue::I16(-300)),
        ("a.u32", MetaValue::U32(70_000)),
        ("a.i32", MetaValue::I32(-70_000)),
        ("a.f32", MetaValue::F32(0.1)),
        ("a.bool", MetaValue::Bool(true)),
        ("a.string", text("grüße ▁\n")),
        ("a.u64", MetaValue::U64(1 << 40)),
        ("a.i64", MetaValue::I64(-(1 << 40))),
        ("a.f64", MetaValue::F64(0.1)),
        ("a.strings", MetaValue::Array(MetaArray::String(strings))),
        ("a.integers", MetaValue::Array(MetaArray::I32(vec![1, -2, 3]))),
        ("a.floats", MetaValue::Array(MetaArray::F32(vec![0.5, -0.25]))),
        ("a.bools", MetaValue::Array(MetaArray::Bool(vec![true, false]))),
    ];
    for (key, value) in entries {
        assert!(metadata.insert(key.to_owned(), value));
    }
    let tensors = vec![
        TensorSpec::new("norm.weight", Dtype::F32, [5]),
        TensorSpec::new("half.weight", Dtype::F16, [3, 2]),
        TensorSpec::new("blocks.weight", Dtype::Ggml(GgmlType::Q4_0), [3, 64]),
    ];
    (metadata, tensors)
}

#[test]
fn the_written_file_is_that_of_the_python_package() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/gguf");
    let wanted = std::fs::read(folder.join("container.gguf")).unwrap();
    let read = Checkpoint::open(real(), &folder.join("container.gguf")).unwrap();
    let (metadata, tensors) = golden();
    assert_eq!(read.gguf().unwrap(), &metadata);
    let scratch = scratch();
    let path = scratch.path().join("model.gguf");
    let mut writer = Writer::create(&real(), &path, &metadata, &tensors).unwrap();
    for tensor in &tensors {
        let bytes = read.read(read.require(&tensor.name).unwrap()).unwrap();
        for piece in bytes.chunks(7) {
            writer.append(&tensor.name, piece).unwrap();
        }
    }
    let written = writer.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), wanted);
    assert_eq!(written.bytes, Writer::file_bytes(&metadata, &tensors).unwrap());
    let again = scratch.path().join("again");
    std::fs::create_dir(&again).unwrap();
    std::fs::copy(&path, again.join("model.gguf")).unwrap();
    let folder = Checkpoint::open(real(), &again).unwrap();
    assert_eq!(folder.gguf(), Some(&metadata), "a folder with one GGUF is that model");
    assert_eq!(folder.read_gguf_metadata().unwrap(), Some(metadata));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let scratch = scratch();
    let path = scratch.path().join("model.gguf");
    let refused = |metadata: &Metadata, tensors: &[TensorSpec]| {
        let refused = Writer::create(&real(), &path, metadata, tensors).is_err();
        assert!(refused && !path.exists());
    };
    let none = Metadata::default();
    let tensor = |name: &str, dtype, shape: &[usize]| TensorSpec::new(name, dtype, shape);
    let q4 = Dtype::Ggml(GgmlType::Q4_0);
    refused(&none, &[tensor("a", Dtype::F32, &[1]), tensor("a", Dtype::F32, &[1])]);
    refused(&none, &[tensor(&"a".repeat(64), Dtype::F32, &[1])]);
    refused(&none, &[tensor("a", Dtype::F32, &[1; 5])]);
    refused(&none, &[tensor("a", Dtype::U16, &[1])]);
    refused(&none, &[tensor("a", q4, &[2, 33])]);
    refused(&none, &[tensor("a", Dtype::F32, &[usize::MAX, 8])]);
    let mut odd = Metadata::default();
    odd.set("general.alignment", MetaValue::U32(24));
    refused(&odd, &[]);
    // Too few bytes, too many, and those of a tensor whose turn it is not.
    let two = [tensor("a", Dtype::F32, &[2]), tensor("b", Dtype::F32, &[1])];
    let create = || Writer::create(&real(), &path, &none, &two).unwrap();
    let mut writer = create();
    assert!(writer.append("b", &[0; 4]).is_err());
    writer.append("a", &[0; 4]).unwrap();
    assert!(writer.append("a", &[0; 5]).is_err());
    assert!(writer.finish().is_err());
    assert!(!path.exists());
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        alignment in 0_u32..8,
        numbers in prop::collection::vec(any::<i64>(), 0..5),
        floats in prop::collection::vec(-1e9_f32..1e9, 0..5),
        texts in prop::collection::vec("\\PC{0,9}", 0..5),
        shapes in prop::collection::vec((0_usize..4, 0_usize..40, 0_usize..5), 0..6),
    ) {
        let mut metadata = Metadata::default();
        metadata.set("general.alignment", MetaValue::U32(1 << alignment));
        metadata.set("numbers", MetaValue::Array(MetaArray::I64(numbers)));
        metadata.set("floats", MetaValue::Array(MetaArray::F32(floats)));
        metadata.set("texts", MetaValue::Array(MetaArray::String(texts)));
        let kinds =
            [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8, Dtype::Ggml(GgmlType::Q5_1)];
        let spec = |(index, (rows, cols, kind)): (usize, &(usize, usize, usize))| {
            let cols = cols * kinds[*kind].block_elements() as usize;
            TensorSpec::new(format!("t{index}.weight"), kinds[*kind], [*rows, cols])
        };
        let tensors: Vec<TensorSpec> = shapes.iter().enumerate().map(spec).collect();
        let scratch = scratch();
        let path = scratch.path().join("model.gguf");
        let mut writer = Writer::create(&real(), &path, &metadata, &tensors).unwrap();
        for (index, tensor) in tensors.iter().enumerate() {
            let bytes = vec![index as u8 + 1; tensor.byte_len().unwrap() as usize];
            bytes.chunks(100).for_each(|piece| writer.append(&tensor.name, piece).unwrap());
        }
        writer.finish().unwrap();
        let read = Checkpoint::open(real(), &path).unwrap();
        prop_assert_eq!(read.gguf(), Some(&metadata));
        prop_assert_eq!(read.tensors().len(), tensors.len());
        for (index, (info, tensor)) in read.tensors().iter().zip(&tensors).enumerate() {
            prop_assert_eq!((&info.name, info.dtype, &info.shape),
                (&tensor.name, tensor.dtype, &tensor.shape));
            prop_assert!(read.read(info).unwrap().iter().all(|byte| *byte == index as u8 + 1));
        }
    }
}
