//! Builders of small files, honest and not.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapidary_store::fs::{ReadAt, Stamp};
use lapidary_store::{Fs, RealFs, Result};

/// The disk.
pub(crate) fn real() -> Arc<dyn Fs> {
    Arc::new(RealFs)
}

/// A folder for tests that bring much to the disk: in memory where there is such a place, since
/// what they test does not depend on how long that takes.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A file in memory.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: Vec<u8>,
    path: PathBuf,
}

impl Memory {
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), path: PathBuf::from("memory") }
    }
}

impl ReadAt for Memory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn stamp(&self) -> Result<Stamp> {
        Ok(Stamp { length: self.bytes.len() as u64, modified: 0 })
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let start = offset as usize;
        buffer.copy_from_slice(&self.bytes[start..start + buffer.len()]);
        Ok(())
    }
}

/// A safetensors file with this header, a true length prefix, and `data` zero bytes after it.
pub(crate) fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A safetensors file with one-byte tensors of these names.
pub(crate) fn safetensors_of(names: &[&str]) -> Vec<u8> {
    let entry = |(i, name): (usize, &&str)| {
        format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1)
    };
    let entries: Vec<String> = names.iter().enumerate().map(entry).collect();
    safetensors(&format!("{{{}}}", entries.join(",")), names.len())
}

/// A GGUF file under construction: what is stated and what is there can differ.
#[derive(Clone, Debug)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) data: usize,
}

impl Gguf {
    pub(crate) fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: 0,
        }
    }

    /// Adds a metadata entry from its type and its raw value.
    pub(crate) fn entry(mut self, key: &str, kind: u32, value: impl AsRef<[u8]>) -> Self {
        let mut bytes = string(key);
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(value.as_ref());
        self.entries.push(bytes);
        self
    }

    /// Adds a metadata entry that is an array.
    pub(crate) fn array(self, key: &str, kind: u32, count: u64, items: impl AsRef<[u8]>) -> Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(items.as_ref());
        self.entry(key, 9, bytes)
    }

    /// Adds a tensor description; `ne` is innermost first, as in the file.
    pub(crate) fn tensor(mut self, name: &str, ne: &[u64], kind: u32, offset: u64) -> Self {
        let mut bytes = string(name);
        bytes.extend_from_slice(&(ne.len() as u32).to_le_bytes());
        bytes.extend(ne.iter().flat_map(|dimension| dimension.to_le_bytes()));
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    /// Adds bytes of data, counting up.
    pub(crate) fn data(mut self, length: usize) -> Self {
        self.data = length;
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend_from_slice(&self.version.to_le_bytes());
        let count = |stated: Option<u64>, list: &[Vec<u8>]| stated.unwrap_or(list.len() as u64);
        bytes.extend_from_slice(&count(self.tensor_count, &self.tensors).to_le_bytes());
        bytes.extend_from_slice(&count(self.entry_count, &self.entries).to_le_bytes());
        bytes.extend(self.entries.iter().chain(&self.tensors).flatten());
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        bytes.extend((0..self.data).map(|i| i as u8));
        bytes
    }
}

/// A string as it stands in GGUF.
pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A small GGUF file with a value of every type and tensors of several.
pub(crate) fn honest_gguf() -> Gguf {
    let strings = [string("a"), string(""), string("ü")].concat();
    Gguf::new()
        .entry("general.architecture", 8, string("llama"))
        .entry("u8", 0, [7])
        .entry("i8", 1, [0xff])
        .entry("u16", 2, 300_u16.to_le_bytes())
        .entry("i16", 3, (-300_i16).to_le_bytes())
        .entry("u32", 4, 70_000_u32.to_le_bytes())
        .entry("i32", 5, (-70_000_i32).to_le_bytes())
        .entry("f32", 6, 1.5_f32.to_le_bytes())
        .entry("bool", 7, [1])
        .entry("u64", 10, u64::MAX.to_le_bytes())
        .entry("i64", 11, i64::MIN.to_le_bytes())
        .entry("f64", 12, (-2.5_f64).to_le_bytes())
        .array("strings", 8, 3, strings)
        .array("floats", 6, 2, [1.0_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat())
        .array("bools", 7, 2, [0, 1])
        .array("empty", 5, 0, [])
        .tensor("norm", &[5], 0, 0)
        .tensor("weight", &[32, 3], 2, 32)
        .tensor("experts", &[2, 3, 4], 30, 96)
        .tensor("scalar", &[], 28, 160)
        .data(168)
}
