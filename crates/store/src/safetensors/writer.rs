//! Writing one safetensors file as a stream.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{MAX_HEADER, METADATA_KEY};
use crate::atomic::Written;
use crate::error::{Quoted, Result, StoreError};
use crate::fs::Fs;
use crate::stream::{TensorStream, byte_len};
use crate::tensor::TensorSpec;

/// Writes a safetensors file whose tensors are declared first and then arrive in order, in pieces
/// of any size. The file appears under its name only when [finished](Writer::finish).
#[derive(Debug)]
pub struct Writer(TensorStream);

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
        Ok(Self(TensorStream::create(fs, path, &header, tensors, 1)?))
    }

    /// The names of the tensors in the order in which they have to be written.
    pub fn order(&self) -> impl Iterator<Item = &str> {
        self.0.order()
    }

    /// Writes the next bytes of the tensor `name`. Tensors come in [order](Writer::order), each
    /// complete before the next; a tensor without elements may be left out.
    ///
    /// # Errors
    /// When it is not this tensor's turn, when it gets more bytes than it has, or when the disk
    /// refuses.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.0.append(name, bytes)
    }

    /// Whether every byte of every tensor was written.
    pub fn is_complete(&self) -> bool {
        self.0.is_complete()
    }

    /// Brings the file to the disk and gives it its name.
    ///
    /// # Errors
    /// When a tensor was not written completely, or the disk refuses; there is no file then.
    pub fn finish(self) -> Result<Written> {
        self.0.finish()
    }
}

/// Wider elements first, otherwise as declared.
pub(super) fn sort_by_alignment(tensors: &mut [TensorSpec]) {
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.block_bytes()));
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
