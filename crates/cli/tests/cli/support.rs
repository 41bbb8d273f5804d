//! The binary, models to give it, and what it said.

use assert_cmd::Command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The binary under test.
pub(crate) const LAPIDARY: &str = env!("CARGO_BIN_EXE_lapidary");

/// Calibration that takes no time.
pub(crate) const SMALL: &str = "--samples 2 --seq-len 32";

/// Much longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(240);

/// What a command said and returned.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the binary in a folder; `line` is split at spaces.
pub(crate) fn run(folder: &Path, line: &str) -> Said {
    run_with(folder, line, &[])
}

/// The same with more in the environment.
pub(crate) fn run_with(folder: &Path, line: &str, more: &[(&str, &Path)]) -> Said {
    let mut command = Command::new(LAPIDARY);
    command.args(line.split_whitespace());
    command.current_dir(folder).envs(environment(folder)).envs(more.to_vec()).timeout(LIMIT);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// No models from outside the test's folder, and a backtrace wherever a panic would show one.
pub(crate) fn environment(folder: &Path) -> [(&'static str, PathBuf); 2] {
    [("HF_HOME", folder.join("cache")), ("RUST_BACKTRACE", "1".into())]
}

impl Said {
    /// It went well; its standard output.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.code == Some(0) && !self.err.contains("panicked"), "{self:#?}");
        self.out
    }

    /// It went well and printed one JSON value.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// It failed with this code, and all it said is one line with these parts.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(self.out.is_empty() && self.err.starts_with("error: "), "{self:#?}");
        assert_eq!(self.err.trim_end().lines().count(), 1, "{self:#?}");
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in {self:#?}");
        }
    }
}

/// A folder for a test, in memory where there is such a place.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A folder of the project.
pub(crate) fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A folder with `model`: the built-in language model with its tokenizer.
pub(crate) fn with_model() -> tempfile::TempDir {
    let scratch = scratch();
    let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    copy("assets/demo", &files, &scratch.path().join("model"));
    scratch
}

/// A folder with `tiny`: random weights, no tokenizer.
pub(crate) fn with_tiny() -> tempfile::TempDir {
    let scratch = scratch();
    let files = ["config.json", "model.safetensors"];
    copy("testdata/models/llama-tied", &files, &scratch.path().join("tiny"));
    scratch
}

/// Copies files of a folder of the project to a new folder.
pub(crate) fn copy(from: &str, files: &[&str], to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in files {
        std::fs::copy(project(from).join(file), to.join(file)).unwrap();
    }
}

/// The bytes of all files of a folder.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    entries(folder).into_iter().map(|name| (name.clone(), read(&folder.join(&name)))).collect()
}

/// The names in a folder.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// A JSON file.
pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&read(path)).unwrap()
}

/// A file with 4 calibration rows of 16 tokens, as safetensors.
pub(crate) fn write_rows(path: &Path) {
    let header = br#"{"input_ids":{"dtype":"I64","shape":[4,16],"data_offsets":[0,512]}}"#;
    let tokens = (0..64_i64).flat_map(|i| (i * i % 51).to_le_bytes());
    let length = (header.len() as u64).to_le_bytes();
    let bytes: Vec<u8> = length.into_iter().chain(header.iter().copied()).chain(tokens).collect();
    std::fs::write(path, bytes).unwrap();
}
