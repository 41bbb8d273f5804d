//! Checkpoints in every layout.

use std::path::Path;

use lapidary_store::checkpoint::Layout;
use lapidary_store::{Category, Checkpoint, Result};

use crate::support::{real, safetensors, safetensors_of};

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn open(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(real(), path)
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect()
}

const SHARD_1: &str = "model-00001-of-00002.safetensors";
const SHARD_2: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A folder of two shards and their index.
fn sharded(dir: &Path) {
    put(dir, SHARD_1, safetensors_of(&["b", "a"]));
    put(dir, SHARD_2, safetensors_of(&["c"]));
    let index = format!(
        r#"{{"metadata":{{"total_size":3}},
            "weight_map":{{"a":"{SHARD_1}","b":"{SHARD_1}","c":"{SHARD_2}"}}}}"#
    );
    put(dir, INDEX, index);
}

#[test]
fn a_folder_with_an_index() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    put(dir.path(), "config.json", r#"{"model_type":"llama"}"#);
    put(dir.path(), "tokenizer.json", "{}");
    let checkpoint = open(dir.path()).unwrap();
    assert_eq!(checkpoint.layout(), Layout::Folder);
    assert_eq!(names(&checkpoint), ["b", "a", "c"], "in the order of the bytes");
    assert_eq!(checkpoint.config().unwrap()["model_type"], "llama");
    let files: Vec<&str> = checkpoint.files().iter().map(|file| file.name.as_str()).collect();
    assert_eq!(files, [SHARD_1, SHARD_2]);
    let total: u64 = checkpoint.files().iter().map(|file| file.bytes).sum();
    assert_eq!(checkpoint.total_bytes(), total);
    assert_eq!(checkpoint.auxiliary().len(), 1);
    assert!(checkpoint.skipped().is_empty());
}

#[test]
fn an_index_must_tell_the_truth() {
    let message = |change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        sharded(dir.path());
        change(dir.path());
        open(dir.path()).unwrap_err().to_string()
    };
    let missing_shard = message(&|dir| std::fs::remove_file(dir.join(SHARD_2)).unwrap());
    assert!(missing_shard.contains(SHARD_2) && missing_shard.contains("download this shard"));
    let missing_tensor = message(&|dir| put(dir, SHARD_1, safetensors_of(&["a"])));
    assert!(missing_tensor.contains("tensor `b`") && missing_tensor.contains("not there"));
    let unlisted = message(&|dir| put(dir, SHARD_2, safetensors_of(&["c", "d"])));
    assert!(unlisted.contains("tensor `d`") && unlisted.contains("not in the index"));
    let twice = message(&|dir| put(dir, SHARD_2, safetensors_of(&["c", "a"])));
    assert!(twice.contains("tensor `a`") && twice.contains("same name"), "{twice}");
    let moved = message(&|dir| {
        put(dir, SHARD_1, safetensors_of(&["b", "c"]));
        put(dir, SHARD_2, safetensors_of(&["a"]));
    });
    assert!(moved.contains("not there"), "{moved}");
}

#[test]
fn a_single_file_wins_over_an_index_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    put(dir.path(), "model.safetensors", safetensors_of(&["x"]));
    let checkpoint = open(dir.path()).unwrap();
    assert_eq!(names(&checkpoint), ["x"]);
    let skipped: Vec<&str> = checkpoint.skipped().iter().map(|file| file.name.as_str()).collect();
    assert_eq!(skipped, [SHARD_1, SHARD_2, INDEX]);
}

#[test]
fn a_folder_without_an_index() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "encoder.safetensors", safetensors_of(&["a"]));
    put(dir.path(), "head.safetensors", safetensors_of(&["b"]));
    let error = open(dir.path()).unwrap_err();
    assert_eq!(error.category(), Category::NotFound);
    assert!(error.to_string().contains("config.json"), "{error}");

    put(dir.path(), "config.json", "{}");
    assert_eq!(names(&open(dir.path()).unwrap()), ["a", "b"]);
    put(dir.path(), "head.safetensors", safetensors_of(&["a"]));
    assert!(open(dir.path()).unwrap_err().to_string().contains("same name"));

    put(dir.path(), "head.safetensors", safetensors_of(&["b"]));
    put(dir.path(), SHARD_1, safetensors_of(&["c"]));
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("one of 2 shards"), "an interrupted download: {error}");
}

#[test]
fn a_folder_without_safetensors_says_what_it_has() {
    let message = |name: &str| {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), name, "x");
        put(dir.path(), "config.json", "{}");
        let error = open(dir.path()).unwrap_err();
        assert_eq!(error.category(), Category::NotFound);
        error.to_string()
    };
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "model.Q4_K_M.gguf", "x");
    put(dir.path(), "model.Q8_0.gguf", "x");
    let several = open(dir.path()).unwrap_err().to_string();
    assert!(several.contains("give one of the GGUF files"), "{several}");
    assert!(message("model.bin").contains("give a file of another name itself"));
    assert!(message("README.md").contains("no weights"));
}

#[test]
fn a_file_on_its_own_brings_what_is_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.safetensors", safetensors_of(&["a"]));
    put(dir.path(), "b.safetensors", safetensors_of(&["b"]));
    put(dir.path(), "config.json", r#"{"x":1}"#);
    put(dir.path(), "tokenizer.json", "{}");
    let checkpoint = open(&dir.path().join("a.safetensors")).unwrap();
    assert_eq!(checkpoint.layout(), Layout::SafetensorsFile);
    assert_eq!(names(&checkpoint), ["a"]);
    assert_eq!(checkpoint.config().unwrap()["x"], 1);
    assert_eq!(checkpoint.auxiliary()[0].name, "tokenizer.json");
    assert_eq!(checkpoint.skipped()[0].name, "b.safetensors");

    put(dir.path(), "model.h5", "x");
    let error = open(&dir.path().join("model.h5")).unwrap_err().to_string();
    assert!(error.contains("neither a folder nor"), "{error}");
}

#[test]
fn what_goes_with_the_weights_and_what_does_not() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "model.safetensors", safetensors_of(&["a"]));
    let goes = [
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "LICENSE",
        "chat_template.jinja",
        "modules.json",
        "tokenizer.json",
    ];
    let stays = [
        ".cache/x",
        ".gitattributes",
        "flax_model.msgpack",
        "model.Q8_0.gguf",
        "onnx/model.onnx",
        "onnx/deeper/x",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
    ];
    for name in goes.iter().chain(&stays) {
        put(dir.path(), name, name);
    }
    let checkpoint = open(dir.path()).unwrap();
    let found: Vec<&str> = checkpoint.auxiliary().iter().map(|f| f.name.as_str()).collect();
    assert_eq!(found, goes);
    let skipped: Vec<&str> = checkpoint.skipped().iter().map(|f| f.name.as_str()).collect();
    let expected = [
        ".cache",
        ".gitattributes",
        "flax_model.msgpack",
        "model.Q8_0.gguf",
        "onnx/deeper",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
    ];
    assert_eq!(skipped, expected);

    assert_eq!(checkpoint.read_auxiliary("LICENSE").unwrap(), b"LICENSE");
    assert!(checkpoint.read_auxiliary("../etc/passwd").is_err());
    let first = &checkpoint.auxiliary()[0].name;
    assert_eq!(checkpoint.read_auxiliary(first).unwrap(), b"1_Pooling/config.json");
}

#[test]
fn a_checkpoint_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Checkpoint>();
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    let checkpoint = open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for tensor in checkpoint.tensors() {
            let checkpoint = &checkpoint;
            scope.spawn(move || {
                for _ in 0..100 {
                    assert_eq!(checkpoint.read(tensor).unwrap(), [0]);
                }
            });
        }
    });
}

#[test]
fn every_file_is_hashed() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path());
    put(dir.path(), "config.json", "{}");
    put(dir.path(), "a.txt", "text");
    let checkpoint = open(dir.path()).unwrap();
    let mut bytes = 0;
    let hashes = checkpoint.hash_files(&mut |read| bytes += read).unwrap();
    let names: Vec<&str> = hashes.iter().map(|hash| hash.name.as_str()).collect();
    assert_eq!(names, ["a.txt", "config.json", SHARD_1, SHARD_2]);
    for hash in &hashes {
        let content = std::fs::read(dir.path().join(&hash.name)).unwrap();
        assert_eq!(hash.sha256, lapidary_store::hash::sha256(&content));
        assert_eq!(hash.bytes, content.len() as u64);
    }
    let read: u64 = hashes.iter().filter(|h| h.name != "config.json").map(|h| h.bytes).sum();
    assert_eq!(bytes, read);
}

#[test]
fn a_file_that_changes_under_our_hands_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "model.safetensors", safetensors_of(&["a", "b"]));
    let path = dir.path().join("model.safetensors");
    let checkpoint = open(dir.path()).unwrap();
    let b = checkpoint.require("b").unwrap();
    assert_eq!(checkpoint.read(b).unwrap(), [0]);

    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let error = checkpoint.read(b).unwrap_err();
    assert_eq!(error.category(), Category::BadInput);
    assert!(error.to_string().contains("tensor `b` needs"), "{error}");
    let error = checkpoint.read(checkpoint.require("a").unwrap()).unwrap_err().to_string();
    assert!(error.contains("changed while it was being read"), "{error}");
    assert!(checkpoint.hash_files(&mut |_| ()).is_err());
}

#[test]
fn a_tensor_that_is_not_there_and_a_range_that_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let header = r#"{"model.layers.0.weight":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    put(dir.path(), "model.safetensors", safetensors(header, 4));
    let checkpoint = open(dir.path()).unwrap();
    let error = checkpoint.require("model.layers.1.weight").unwrap_err();
    assert_eq!(error.category(), Category::NotFound);
    assert!(error.to_string().ends_with("it has `model.layers.0.weight`"), "{error}");
    assert!(checkpoint.require("zzz").unwrap_err().to_string().ends_with("no tensor `zzz`"));

    let tensor = &checkpoint.tensors()[0];
    let mut buffer = [0; 2];
    checkpoint.read_range(tensor, 1..3, &mut buffer).unwrap();
    for (start, end) in [(0, 3), (3, 5), (4, 2), (u64::MAX, 1)] {
        assert!(checkpoint.read_range(tensor, start..end, &mut buffer).is_err());
    }
}

#[test]
fn links_may_not_leave_the_checkpoint() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    put(outside.path(), "weights", safetensors_of(&["secret"]));
    put(outside.path(), "passwd", "secret");

    let dir = tempfile::tempdir().unwrap();
    symlink(outside.path().join("weights"), dir.path().join("model.safetensors")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert_eq!(error.category(), Category::BadInput);
    assert!(error.to_string().contains("outside of the checkpoint"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "real.bin", safetensors_of(&["a"]));
    symlink("real.bin", dir.path().join("model.safetensors")).unwrap();
    symlink(outside.path().join("passwd"), dir.path().join("LICENSE")).unwrap();
    symlink(outside.path(), dir.path().join("folder")).unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    let checkpoint = open(dir.path()).unwrap();
    assert!(checkpoint.auxiliary().is_empty(), "{:?}", checkpoint.auxiliary());
    let skipped: Vec<(&str, &str)> =
        checkpoint.skipped().iter().map(|file| (file.name.as_str(), file.reason)).collect();
    let expected = [
        ("LICENSE", "a link to outside of the checkpoint"),
        ("dangling", "a link to nothing"),
        ("folder", "a link to outside of the checkpoint"),
        ("real.bin", "weights that are not used"),
    ];
    assert_eq!(skipped, expected);
    symlink(outside.path().join("passwd"), dir.path().join("config.json")).unwrap();
    assert!(open(dir.path()).unwrap_err().to_string().contains("outside of the checkpoint"));
}
