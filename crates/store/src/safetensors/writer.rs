//! Writing one safetensors file as a stream.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{MAX_HEADER, METADATA_KEY};
use crate::atomic::{AtomicFile, Written};
use crate::error::{Quoted, Result, StoreError};
use crate::fs::Fs;
use crate::tensor::TensorSpec;

/// Writes a safetensors file whose tensors are declared first and then arrive in order, in pieces
/// of any size. The file appears under its name only when [finished](Writer::finish).
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: AtomicFile,
    tensors: Vec<TensorSpec>,
    /// Which tensor is being written, and how many of its bytes are still to come.
    current: usize,
    missing: u64,
}

impl Writer {
    /// Starts a file and writes its header. `metadata` goes into `__metadata__` beside
    /// `"format": "pt"`, which transformers demands.
    ///
    /// The tensors are laid out in the declared order, except that those with wider elements come
    /// first, so that each is aligned to its type: PyTorch refuses a misaligned tensor.
    /// [`Writer::order`] is the order to write them in.
    ///
    /// # Errors
    /// When a name is used twice or is `__metadata__`, a type has no safetensors name, a size
    /// overflows, the header exceeds [`MAX_HEADER`], or the disk refuses.
    pub fn create(
        fs: &Arc<dyn Fs>,
        path: &Path,
        tensors: &[TensorSpec],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut tensors = tensors.to_vec();
        sort_by_alignment(&mut tensors);
        let header = header(path, &tensors, metadata)?;
        let mut writer = Self {
            path: path.to_owned(),
            file: AtomicFile::create(fs, path)?,
            tensors,
            current: 0,
            missing: 0,
        };
        writer.file.write_all(&header)?;
        writer.missing = writer.next_size()?;
        Ok(writer)
    }

    /// The names of the tensors in the order in which they have to be written.
    pub fn order(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Writes the next bytes of the tensor `name`. Tensors come in [order](Writer::order), each
    /// complete before the next; a tensor without elements may be left out.
    ///
    /// # Errors
    /// When it is not this tensor's turn, when it gets more bytes than it has, or when the disk
    /// refuses.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        while self.missing == 0 && self.expected() != Some(name) && self.expected().is_some() {
            self.advance()?;
        }
        if self.expected() != Some(name) {
            let problem = match self.expected() {
                Some(expected) => format!(
                    "tensor {} was written while {} still misses {} bytes",
                    Quoted(name),
                    Quoted(expected),
                    self.missing
                ),
                None => format!("tensor {} was written after the last one", Quoted(name)),
            };
            return Err(StoreError::misuse(&self.path, problem));
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let Some(missing) = self.missing.checked_sub(length) else {
            let problem = format!(
                "tensor {} got {length} bytes while it misses only {}",
                Quoted(name),
                self.missing
            );
            return Err(StoreError::misuse(&self.path, problem));
        };
        self.file.write_all(bytes)?;
        self.missing = missing;
        Ok(())
    }

    /// Whether every byte of every tensor was written.
    pub fn is_complete(&self) -> bool {
        let rest = self.tensors.iter().skip(self.current).skip(1);
        self.missing == 0 && rest.clone().all(|tensor| tensor.byte_len() == Ok(0))
    }

    /// Brings the file to the disk and gives it its name.
    ///
    /// # Errors
    /// When a tensor was not written completely, or the disk refuses; there is no file then.
    pub fn finish(self) -> Result<Written> {
        if !self.is_complete() {
            let name = self.expected().unwrap_or_default();
            let problem = format!(
                "finished while tensor {} misses {} bytes, or one after it was not written",
                Quoted(name),
                self.missing
            );
            return Err(StoreError::misuse(&self.path, problem));
        }
        self.file.commit()
    }

    fn expected(&self) -> Option<&str> {
        self.tensors.get(self.current).map(|tensor| tensor.name.as_str())
    }

    fn advance(&mut self) -> Result<()> {
        self.current = self.current.saturating_add(1);
        self.missing = self.next_size()?;
        Ok(())
    }

    fn next_size(&self) -> Result<u64> {
        let Some(tensor) = self.tensors.get(self.current) else {
            return Ok(0);
        };
        byte_len(&self.path, tensor)
    }
}

/// Wider elements first, otherwise as declared.
pub(super) fn sort_by_alignment(tensors: &mut [TensorSpec]) {
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.block_bytes()));
}

/// The size of a tensor to be written, or an error that names it.
pub(super) fn byte_len(path: &Path, tensor: &TensorSpec) -> Result<u64> {
    tensor.byte_len().map_err(|error| {
        StoreError::misuse(path, format!("tensor {}: {error}", Quoted(&tensor.name)))
    })
}

/// The length prefix and the header, padded with spaces to a multiple of 8.
pub(super) fn header(
    path: &Path,
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut map = Map::new();
    let mut all: Map<String, Value> =
        metadata.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
    all.insert("format".to_owned(), Value::from("pt"));
    map.insert(METADATA_KEY.to_owned(), Value::Object(all));

    let mut offset = 0_u64;
    let mut seen = HashSet::new();
    for tensor in tensors {
        let misuse = |problem: &str| {
            Err(StoreError::misuse(path, format!("tensor {} {problem}", Quoted(&tensor.name))))
        };
        if tensor.name == METADATA_KEY {
            return misuse("has a name that the format reserves");
        }
        if !seen.insert(tensor.name.as_str()) {
            return misuse("is declared twice");
        }
        let Some(dtype) = tensor.dtype.safetensors_name() else {
            return misuse("has a type that safetensors cannot hold");
        };
        let Some(end) = offset.checked_add(byte_len(path, tensor)?) else {
            return misuse("makes the file longer than 64 bits can say");
        };
        let entry = json!({
            "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end],
        });
        map.insert(tensor.name.clone(), entry);
        offset = end;
    }

    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
    if length > MAX_HEADER {
        let what = "the header to be written";
        let path = path.to_owned();
        return Err(StoreError::TooLarge { path, what, bytes: length, limit: MAX_HEADER });
    }
    let mut header = length.to_le_bytes().to_vec();
    header.append(&mut text);
    Ok(header)
}
