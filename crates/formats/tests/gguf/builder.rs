//! Builds GGUF files in memory and has the store read them.

#![allow(dead_code, reason = "each test binary uses some of it")]

use std::path::Path;

use lapidary_store::StoreError;
use lapidary_store::fs::{ReadAt, Stamp};
use lapidary_store::gguf::{Gguf, read_gguf};

/// A value of a metadata entry.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<&[&str]> for Value {
    fn from(values: &[&str]) -> Self {
        Self::Strs(values.iter().map(|&value| value.to_owned()).collect())
    }
}

impl<const N: usize> From<[&str; N]> for Value {
    fn from(values: [&str; N]) -> Self {
        Self::from(&values[..])
    }
}

impl From<Vec<i32>> for Value {
    fn from(values: Vec<i32>) -> Self {
        Self::I32s(values)
    }
}

impl From<Vec<f32>> for Value {
    fn from(values: Vec<f32>) -> Self {
        Self::F32s(values)
    }
}

/// A file in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Builder {
    entries: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    kind: u32,
    bytes: Vec<u8>,
}

impl Builder {
    /// Sets a key, whether it is there already or not.
    pub(crate) fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self = self.remove(key);
        self.entries.push((key.to_owned(), value.into()));
        self
    }

    pub(crate) fn remove(mut self, key: &str) -> Self {
        self.entries.retain(|(name, _)| name != key);
        self
    }

    /// Adds a tensor of zeros, its shape outermost dimension first.
    pub(crate) fn tensor(self, name: &str, shape: &[usize]) -> Self {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        self.tensor_of(name, shape, 0, bytes)
    }

    /// Adds a tensor of any of ggml's types.
    pub(crate) fn tensor_of(
        mut self,
        name: &str,
        shape: &[usize],
        kind: u32,
        bytes: Vec<u8>,
    ) -> Self {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.tensors.push(Tensor { name, shape, kind, bytes });
        self
    }

    /// The file, written and read again.
    pub(crate) fn read(&self) -> Gguf {
        read_gguf(&Bytes(self.bytes())).unwrap()
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            put_string(&mut bytes, key);
            put_value(&mut bytes, value);
        }
        let mut data = vec![];
        for Tensor { name, shape, kind, bytes: content } in &self.tensors {
            put_string(&mut bytes, name);
            bytes.extend((shape.len() as u32).to_le_bytes());
            for &dimension in shape.iter().rev() {
                bytes.extend((dimension as u64).to_le_bytes());
            }
            bytes.extend(kind.to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(content);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(data);
        bytes
    }
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    let mut tag = |number: u32| bytes.extend(number.to_le_bytes());
    match value {
        Value::U32(value) => {
            tag(4);
            bytes.extend(value.to_le_bytes());
        }
        Value::F32(value) => {
            tag(6);
            bytes.extend(value.to_le_bytes());
        }
        Value::Bool(value) => {
            tag(7);
            bytes.push(u8::from(*value));
        }
        Value::Str(text) => {
            tag(8);
            put_string(bytes, text);
        }
        Value::Strs(texts) => {
            tag(9);
            tag(8);
            bytes.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| put_string(bytes, text));
        }
        Value::I32s(values) => {
            tag(9);
            tag(5);
            bytes.extend((values.len() as u64).to_le_bytes());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Value::F32s(values) => {
            tag(9);
            tag(6);
            bytes.extend((values.len() as u64).to_le_bytes());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
}

/// A file in memory.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn path(&self) -> &Path {
        Path::new("test.gguf")
    }

    fn stamp(&self) -> Result<Stamp, StoreError> {
        Ok(Stamp { length: self.0.len() as u64, modified: 0 })
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), StoreError> {
        let start = offset as usize;
        buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        Ok(())
    }
}
