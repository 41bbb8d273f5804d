//! Files of `torch.save`: read as PyTorch wrote them, and refused where they are anything else.

use std::path::{Path, PathBuf};

use lapidary_store::checkpoint::Layout;
use lapidary_store::{Category, Checkpoint, Result};
use proptest::prelude::*;

use crate::support::real;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/pytorch").join(name)
}

/// What is wrong with a file of these bytes, or nothing.
fn complaint(bytes: &[u8]) -> Result<Checkpoint> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.bin");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(real(), &path)
}

#[track_caller]
fn refused(bytes: &[u8]) -> String {
    let error = complaint(bytes).unwrap_err();
    assert_eq!(error.category(), Category::BadInput, "{error}");
    error.to_string()
}

/// A zip archive of stored entries.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (vec![], vec![]);
    for (name, content) in entries {
        let (at, length) = (bytes.len() as u32, content.len() as u32);
        let sizes = [0, length, length].map(u32::to_le_bytes).concat();
        let names = [(name.len() as u16).to_le_bytes(), [0, 0]].concat();
        bytes.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0");
        bytes.extend([&sizes[..], &names, name.as_bytes(), content].concat());
        directory.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0");
        directory
            .extend([&sizes[..], &names, &[0; 10], &at.to_le_bytes(), name.as_bytes()].concat());
    }
    let (at, count) = (bytes.len() as u32, entries.len() as u16);
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    bytes.extend([(directory.len() as u32).to_le_bytes(), at.to_le_bytes()].concat());
    bytes.extend([0, 0]);
    bytes
}

/// An archive with this pickle and one storage of 12 bytes.
fn pickled(pickle: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &[0; 12])])
}

/// The pickle of `{"w": tensor}` with this storage type, key, offset, shape and strides.
fn tensor(storage: &str, key: &str, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let text =
        |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let tuple = |sizes: &[u8]| {
        let sizes: Vec<u8> = sizes.iter().flat_map(|size| [b'K', *size]).collect();
        [b"(", &sizes[..], b"t"].concat()
    };
    [
        b"\x80\x02}(".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        format!("ctorch\n{storage}\n").into_bytes(),
        text(key),
        text("cpu"),
        b"K\x03tQ".to_vec(),
        vec![b'K', offset],
        tuple(shape),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtRu.".to_vec(),
    ]
    .concat()
}

#[test]
fn every_tensor_is_read_as_it_was_saved() {
    let values = Checkpoint::open(real(), &golden("values.safetensors")).unwrap();
    let mut count = 0;
    for name in ["state.bin", "module.pth"] {
        let saved = Checkpoint::open(real(), &golden(name)).unwrap();
        assert_eq!(saved.layout(), Layout::PytorchFile);
        for tensor in saved.tensors() {
            let want = values.require(&tensor.name).unwrap();
            let (have, shape) = ((tensor.dtype, &tensor.shape), (want.dtype, &want.shape));
            assert_eq!(have, shape, "{}", tensor.name);
            let bytes = saved.read(tensor).unwrap();
            assert_eq!(bytes, values.read(want).unwrap(), "{}", tensor.name);
            count += 1;
        }
    }
    assert_eq!(count, values.tensors().len());
}

#[test]
fn a_folder_is_opened_by_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let put = |from: &str, to: &str| std::fs::copy(golden(from), dir.path().join(to)).unwrap();
    let names = || -> Vec<String> {
        let checkpoint = Checkpoint::open(real(), dir.path()).unwrap();
        assert_eq!(checkpoint.layout(), Layout::Folder);
        checkpoint.files().iter().map(|file| file.name.clone()).collect()
    };
    put("module.pth", "model.pth");
    assert_eq!(names(), ["model.pth"]);
    let shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    put("state.bin", shards[0]);
    put("module.pth", shards[1]);
    let parts = [golden("state.bin"), golden("module.pth")];
    let entries = parts.iter().zip(shards).flat_map(|(path, shard)| {
        let part = Checkpoint::open(real(), path).unwrap();
        let entry = |name: &str| format!("{name:?}: {shard:?}");
        part.tensors().iter().map(|tensor| entry(&tensor.name)).collect::<Vec<_>>()
    });
    let index = format!("{{\"weight_map\": {{{}}}}}", entries.collect::<Vec<_>>().join(", "));
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), index).unwrap();
    assert_eq!(names(), shards);
    put("state.bin", "pytorch_model.bin");
    assert_eq!(names(), ["pytorch_model.bin"], "a single file wins over an index");
    put("values.safetensors", "model.safetensors");
    assert_eq!(names(), ["model.safetensors"], "and safetensors over both");
}

#[test]
fn what_is_no_state_dict_is_refused_with_what_to_do() {
    for (name, parts) in [
        ("hostile.bin", &["system", "do not trust this file"][..]),
        ("legacy.bin", &["PyTorch 1.6", "save the state dict again"]),
        ("trainer.bin", &["`epoch`", "save the state dict alone"]),
        ("transposed.bin", &["`w`", "contiguous"]),
    ] {
        let error = Checkpoint::open(real(), &golden(name)).unwrap_err();
        assert_eq!(error.category(), Category::BadInput);
        for part in parts {
            assert!(error.to_string().contains(part), "{name}: {error}");
        }
    }
}

#[test]
fn pickles_that_do_anything_else_are_refused() {
    let good = pickled(&tensor("FloatStorage", "0", 0, &[3], &[1]));
    assert_eq!(complaint(&good).unwrap().tensors()[0].shape, [3]);
    for (pickle, part) in [
        (&b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."[..], "os.system"),
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "something else than tensors"),
        (b"\x80\x02(X\x03\0\0\0abcios\nsystem\n.", "operation 0x69"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "operation 0x81"),
        (b"\x80\x02K\x01}b.", "sets attributes"),
        (b"\x80\x02K\x01Q.", "something else than a storage"),
        (b"\x80\x02K\x01.", "no dict of tensors"),
        (b"\x80\x02}K\x01K\x02s.", "no text"),
        (b"\x80\x02}X\x01\0\0\0aK\x02s.", "no tensor"),
        (b"\x80\x02\x8a\x09123456789.", "64 bits"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02s.", "damaged"),
        (b"\x80\x02t.", "damaged"),
        (b"\x80\x02}(K\x01u.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "damaged"),
        (b"\x80\x02(.", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"", "damaged"),
    ] {
        let error = refused(&pickled(pickle));
        assert!(error.contains(part), "{pickle:?}: {error}");
    }
}

#[test]
fn tensors_outside_of_their_storage_are_refused() {
    for (storage, key, offset, shape, strides, part) in [
        ("FloatStorage", "0", 0, &[4][..], &[1][..], "not in its storage"),
        ("FloatStorage", "0", 1, &[3], &[1], "not in its storage"),
        ("DoubleStorage", "0", 0, &[2], &[1], "not in its storage"),
        (
            "FloatStorage",
            "0",
            0,
            &[200, 200, 200, 200, 200, 200, 200, 200, 200],
            &[1; 9],
            "row by row",
        ),
        ("FloatStorage", "0", 0, &[1, 3], &[1], "row by row"),
        ("FloatStorage", "0", 0, &[2], &[2], "row by row"),
        ("FloatStorage", "0", 0, &[3], &[0], "row by row"),
        ("FloatStorage", "9", 0, &[3], &[1], "not in the archive"),
        ("FloatStorage", "../data.pkl", 0, &[3], &[1], "not in the archive"),
        ("QInt8Storage", "0", 0, &[3], &[1], "QInt8Storage"),
    ] {
        let error = refused(&pickled(&tensor(storage, key, offset, shape, strides)));
        assert!(error.contains(part), "{storage} {key} {shape:?}: {error}");
    }
    let empty = pickled(&tensor("FloatStorage", "0", 3, &[0, 255], &[7, 9]));
    assert_eq!(complaint(&empty).unwrap().tensors()[0].shape, [0, 255]);
}

#[test]
fn archives_that_lie_are_refused() {
    let pickle = tensor("FloatStorage", "0", 0, &[3], &[1]);
    let good = pickled(&pickle);
    // Methods and lengths in the directory, and what it points to.
    let directory = good.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    let end = good.len() - 22;
    for (at, value, part) in [
        (directory + 8, 1, "compressed or encrypted"),
        (directory + 10, 8, "compressed or encrypted"),
        (directory + 20, 9, "two lengths"),
        (directory + 30, 200, "cut off"),
        (directory + 42, 77, "lies outside"),
        (directory + 45, 77, "lies outside"),
        (directory, 0, "something else than entries"),
        (end + 12, 1, "damaged archive"),
        (end + 19, 99, "outside of the file"),
        (end + 20, 1, "PyTorch 1.6"),
        (end, 0, "PyTorch 1.6"),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        let error = refused(&bad);
        assert!(error.contains(part), "{at}: {error}");
    }
    for entries in [
        &[("a/other.pkl", &pickle[..])][..],
        &[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)],
        &[("a/b/data.pkl", &pickle)],
        &[("data.pkl", &pickle)],
    ] {
        let error = refused(&archive(entries));
        assert!(error.contains("without one data.pkl"), "{error}");
    }
    let twice = archive(&[("a/data.pkl", &pickle), ("a/data.pkl", &pickle)]);
    assert!(refused(&twice).contains("two entries"));
    let big = archive(&[("a/data.pkl", &pickle), ("a/byteorder", b"big")]);
    assert!(refused(&big).contains("big-endian"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Bytes changed, cut or made up: an answer, never a panic.
    #[test]
    fn damage_is_an_error_and_never_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(), cuts: bool, module: bool,
    ) {
        let name = if module { "module.pth" } else { "state.bin" };
        let mut bytes = std::fs::read(golden(name)).unwrap();
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(checkpoint) = complaint(&bytes) {
            prop_assert!(checkpoint.tensors().iter().all(|t| t.span.end() <= bytes.len() as u64));
        }
    }

    #[test]
    fn any_program_is_an_answer(
        program in prop::collection::vec(
            prop::sample::select(&b"(){}[].tuseaQRbNqhK\x01\x02\x80\x85\x86\x87\x88\x8a\x8c\x93\x94X\0c\n"[..]),
            0..60,
        ),
    ) {
        let _ = complaint(&pickled(&program));
    }
}
