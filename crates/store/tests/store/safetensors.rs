//! The safetensors writer and reader against each other and against the rules of the format.

use std::collections::BTreeMap;
use std::path::Path;

use lapidary_store::safetensors::{
    INDEX_NAME, SINGLE_NAME, ShardedWriter, Writer, plan, read_header,
};
use lapidary_store::{Checkpoint, Dtype, Fs, RealFs, TensorSpec};
use proptest::prelude::*;

use crate::support::{real, scratch};

const DTYPES: [Dtype; 8] = [
    Dtype::F64,
    Dtype::F32,
    Dtype::BF16,
    Dtype::F8E4M3,
    Dtype::I64,
    Dtype::I32,
    Dtype::U8,
    Dtype::Bool,
];

/// Bytes that differ from tensor to tensor and from place to place.
fn content(number: usize, tensor: &TensorSpec) -> Vec<u8> {
    let length = tensor.byte_len().unwrap() as usize;
    (0..length).map(|i| (i * 31 + number * 7 + 1) as u8).collect()
}

fn declared() -> impl Strategy<Value = Vec<TensorSpec>> {
    let shape = prop::collection::vec(0_usize..5, 0..4);
    let module = prop::sample::select(vec!["a", "b.c", "ü\"\\\n", ""]);
    prop::collection::vec((module, prop::sample::select(&DTYPES[..]), shape), 0..20).prop_map(
        |list| {
            let tensor = |(i, (module, dtype, shape)): (usize, (&str, Dtype, Vec<usize>))| {
                TensorSpec::new(format!("{module}.{i}"), dtype, shape)
            };
            list.into_iter().enumerate().map(tensor).collect()
        },
    )
}

/// Writes the tensors in pieces of `piece` bytes, in the order that the plan asks for.
fn write(dir: &Path, tensors: &[TensorSpec], max_shard: u64, piece: usize) -> usize {
    let plan = plan(tensors, max_shard).unwrap();
    let shards = plan.shards.len();
    let mut writer = ShardedWriter::create(&real(), dir, plan.clone(), BTreeMap::new()).unwrap();
    for tensor in plan.order() {
        let number = tensors.iter().position(|other| other == tensor).unwrap();
        for bytes in content(number, tensor).chunks(piece) {
            writer.append(&tensor.name, bytes).unwrap();
        }
    }
    let index = writer.finish().unwrap();
    assert_eq!(index.shards.len(), shards);
    assert_eq!(index.index.is_some(), shards > 1);
    for written in &index.shards {
        let bytes = std::fs::read(&written.path).unwrap();
        assert_eq!(written.bytes, bytes.len() as u64);
        assert_eq!(written.sha256, lapidary_store::hash::sha256(&bytes));
    }
    shards
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(
        tensors in declared(), max_shard in 1_u64..400, piece in 1_usize..50,
    ) {
        let dir = scratch();
        let shards = write(dir.path(), &tensors, max_shard, piece);
        prop_assert_eq!(dir.path().join(SINGLE_NAME).exists(), shards == 1);
        prop_assert_eq!(dir.path().join(INDEX_NAME).exists(), shards > 1);

        let checkpoint = Checkpoint::open(real(), dir.path()).unwrap();
        prop_assert_eq!(checkpoint.tensors().len(), tensors.len());
        for (number, tensor) in tensors.iter().enumerate() {
            let info = checkpoint.require(&tensor.name).unwrap();
            prop_assert_eq!(info.dtype, tensor.dtype);
            prop_assert_eq!(&info.shape, &tensor.shape);
            prop_assert_eq!(info.span.start() % tensor.dtype.block_bytes(), 0, "aligned");
            let expected = content(number, tensor);
            prop_assert_eq!(&checkpoint.read(info).unwrap(), &expected);
            let (from, to) = (expected.len() / 3, expected.len());
            let mut part = vec![0; to - from];
            checkpoint.read_range(info, from as u64..to as u64, &mut part).unwrap();
            prop_assert_eq!(&part, &expected[from..to]);
        }
    }

    #[test]
    fn the_same_declaration_gives_the_same_bytes(tensors in declared(), max_shard in 1_u64..400) {
        let (one, two) = (scratch(), scratch());
        write(one.path(), &tensors, max_shard, 1);
        write(two.path(), &tensors, max_shard, 4096);
        for entry in std::fs::read_dir(one.path()).unwrap() {
            let name = entry.unwrap().file_name();
            let bytes = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
            prop_assert_eq!(bytes(one.path()), bytes(two.path()));
        }
    }

    #[test]
    fn a_plan_keeps_modules_together_and_within_the_limit(
        tensors in declared(), max_shard in 1_u64..400,
    ) {
        let plan = plan(&tensors, max_shard).unwrap();
        let total: u64 = tensors.iter().map(|t| t.byte_len().unwrap()).sum();
        prop_assert_eq!(plan.total_bytes(), total);
        prop_assert_eq!(plan.order().count(), tensors.len());
        for shard in &plan.shards {
            let module = |name: &str| name.rsplit_once('.').unwrap().0.to_owned();
            let mut modules: Vec<String> = shard.tensors.iter().map(|t| module(&t.name)).collect();
            modules.dedup();
            prop_assert!(shard.bytes <= max_shard || modules.iter().all(|m| *m == modules[0]));
        }
    }
}

#[test]
fn the_header_is_the_one_transformers_wants() {
    let dir = scratch();
    let path = dir.path().join("x.safetensors");
    let tensors = [TensorSpec::new("b", Dtype::U8, [3]), TensorSpec::new("a", Dtype::F32, [1, 2])];
    let extra = BTreeMap::from([("tool".to_owned(), "1".to_owned())]);
    let mut writer = Writer::create(&real(), &path, &tensors, &extra).unwrap();
    assert_eq!(writer.order().collect::<Vec<_>>(), ["a", "b"], "wider elements first");
    writer.append("a", &[1; 8]).unwrap();
    writer.append("b", &[2; 3]).unwrap();
    writer.finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(length % 8, 0);
    let text = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
    let expected =
        r#"{"__metadata__":{"tool":"1","format":"pt"},"a":{"dtype":"F32","shape":[1,2],"#;
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(bytes.len(), 8 + length + 11);
    let header = read_header(&*RealFs.open(&path).unwrap()).unwrap();
    assert_eq!(header.metadata["tool"], "1");
}

#[test]
fn a_writer_insists_on_its_declaration() {
    let dir = scratch();
    let path = dir.path().join("x.safetensors");
    let tensors = [TensorSpec::new("a", Dtype::U8, [3]), TensorSpec::new("b", Dtype::U8, [3])];
    let none = BTreeMap::new();
    let create = || Writer::create(&real(), &path, &tensors, &none).unwrap();

    let mut writer = create();
    assert!(writer.append("b", &[0]).unwrap_err().to_string().contains("`a` still misses 3"));
    assert!(writer.append("a", &[0; 4]).unwrap_err().to_string().contains("misses only 3"));
    writer.append("a", &[0; 3]).unwrap();
    assert!(writer.append("a", &[0]).is_err(), "a is complete");
    drop(writer);

    let mut writer = create();
    writer.append("a", &[0; 3]).unwrap();
    writer.append("b", &[0; 2]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("`b` misses 1"));

    let twice = [tensors[0].clone(), tensors[0].clone()];
    assert!(Writer::create(&real(), &path, &twice, &none).is_err());
    let reserved = [TensorSpec::new("__metadata__", Dtype::U8, [1])];
    assert!(Writer::create(&real(), &path, &reserved, &none).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}
