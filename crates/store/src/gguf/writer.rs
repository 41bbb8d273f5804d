//! Writing one GGUF file as a stream.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::reader::alignment;
use super::value::{MetaArray, MetaValue, Metadata};
use super::{MAGIC, MAX_HEADER, MAX_NAME, MAX_RANK, MAX_STRING, MAX_STRINGS};
use crate::atomic::Written;
use crate::error::{Quoted, Result, StoreError};
use crate::fs::Fs;
use crate::stream::{TensorStream, aligned, byte_len};
use crate::tensor::TensorSpec;

/// The version of the format that is written.
const VERSION: u32 = 3;

/// Writes a GGUF file whose tensors are declared first and then arrive in the same order, in pieces
/// of any size. The file appears under its name only when [finished](Writer::finish).
#[derive(Debug)]
pub struct Writer(TensorStream);

impl Writer {
    /// Starts a file and writes its header: the metadata in their order, then the tensors. Data is
    /// aligned to `general.alignment`, or to 32 bytes.
    ///
    /// # Errors
    /// When a name is used twice or longer than [`MAX_NAME`], a tensor has a type that ggml has not,
    /// more than [`MAX_RANK`] dimensions or rows that blocks do not divide, a string or an array is
    /// longer than readers accept, the alignment is no power of two, a size overflows, or the disk
    /// refuses.
    pub fn create(
        fs: &Arc<dyn Fs>,
        path: &Path,
        metadata: &Metadata,
        tensors: &[TensorSpec],
    ) -> Result<Self> {
        let header = header(path, metadata, tensors)?;
        let alignment = alignment(path, metadata)?;
        Ok(Self(TensorStream::create(fs, path, &header, tensors.to_vec(), alignment)?))
    }

    /// Bytes of the file with these metadata and tensors.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn file_bytes(metadata: &Metadata, tensors: &[TensorSpec]) -> Result<u64> {
        let path = Path::new("model.gguf");
        let header = header(path, metadata, tensors)?;
        let data = offsets(path, tensors, alignment(path, metadata)?)?.1;
        Ok(u64::try_from(header.len()).unwrap_or(u64::MAX).saturating_add(data))
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

    /// Brings the file to the disk and gives it its name.
    ///
    /// # Errors
    /// When a tensor was not written completely, or the disk refuses; there is no file then.
    pub fn finish(self) -> Result<Written> {
        self.0.finish()
    }
}

/// Everything before the data, filled up to the alignment.
fn header(path: &Path, metadata: &Metadata, tensors: &[TensorSpec]) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend(count(tensors.len()));
    out.extend(count(metadata.len()));
    for (key, value) in metadata.iter() {
        put_string(path, key, key, &mut out)?;
        put_value(path, key, value, &mut out)?;
    }
    let alignment = alignment(path, metadata)?;
    let (offsets, _) = offsets(path, tensors, alignment)?;
    let mut seen = HashSet::new();
    for (tensor, offset) in tensors.iter().zip(offsets) {
        let misuse = |problem: String| {
            Err(StoreError::misuse(path, format!("tensor {} {problem}", Quoted(&tensor.name))))
        };
        if !seen.insert(tensor.name.as_str()) {
            return misuse("is declared twice".to_owned());
        }
        if tensor.name.len() > MAX_NAME {
            return misuse(format!("has a name of more than {MAX_NAME} bytes"));
        }
        let rank = u32::try_from(tensor.shape.len()).unwrap_or(u32::MAX);
        if rank > MAX_RANK {
            return misuse(format!("has {rank} dimensions, at most {MAX_RANK} are possible"));
        }
        let Some(ggml) = tensor.dtype.to_ggml() else {
            return misuse(format!("is of type {}, which ggml has not", tensor.dtype));
        };
        put_string(path, &tensor.name, &tensor.name, &mut out)?;
        out.extend(rank.to_le_bytes());
        // Innermost first, the reverse of ours.
        out.extend(tensor.shape.iter().rev().flat_map(|dimension| count(*dimension)));
        out.extend(ggml.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    let length = u64::try_from(out.len()).unwrap_or(u64::MAX);
    match aligned(length, alignment).map(usize::try_from) {
        Some(Ok(end)) if length <= MAX_HEADER => {
            out.resize(end, 0);
            Ok(out)
        }
        _ => {
            let what = "the header to be written";
            let path = path.to_owned();
            Err(StoreError::TooLarge { path, what, bytes: length, limit: MAX_HEADER })
        }
    }
}

/// Where each tensor begins, counted from the first, and where the last one ends.
fn offsets(path: &Path, tensors: &[TensorSpec], alignment: u64) -> Result<(Vec<u64>, u64)> {
    let mut end = 0_u64;
    let mut offsets = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        offsets.push(end);
        let next = end.checked_add(byte_len(path, tensor)?);
        end = next.and_then(|next| aligned(next, alignment)).ok_or_else(|| {
            StoreError::misuse(path, "the tensors take more bytes than 64 bits can say")
        })?;
    }
    Ok((offsets, end))
}

fn count(number: usize) -> [u8; 8] {
    u64::try_from(number).unwrap_or(u64::MAX).to_le_bytes()
}

fn put_string(path: &Path, key: &str, text: &str, out: &mut Vec<u8>) -> Result<()> {
    let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
    if length > MAX_STRING {
        let problem = format!("{}: a string of {length} bytes", Quoted(key));
        return Err(StoreError::misuse(path, problem));
    }
    out.extend(length.to_le_bytes());
    out.extend(text.as_bytes());
    Ok(())
}

/// The type of a value, then the value.
fn put_value(path: &Path, key: &str, value: &MetaValue, out: &mut Vec<u8>) -> Result<()> {
    let mut put = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        MetaValue::U8(value) => put(0, &value.to_le_bytes()),
        MetaValue::I8(value) => put(1, &value.to_le_bytes()),
        MetaValue::U16(value) => put(2, &value.to_le_bytes()),
        MetaValue::I16(value) => put(3, &value.to_le_bytes()),
        MetaValue::U32(value) => put(4, &value.to_le_bytes()),
        MetaValue::I32(value) => put(5, &value.to_le_bytes()),
        MetaValue::F32(value) => put(6, &value.to_le_bytes()),
        MetaValue::Bool(value) => put(7, &[u8::from(*value)]),
        MetaValue::U64(value) => put(10, &value.to_le_bytes()),
        MetaValue::I64(value) => put(11, &value.to_le_bytes()),
        MetaValue::F64(value) => put(12, &value.to_le_bytes()),
        MetaValue::String(text) => {
            put(8, &[]);
            put_string(path, key, text, out)?;
        }
        MetaValue::Array(array) => {
            put(9, &[]);
            put_array(path, key, array, out)?;
        }
    }
    Ok(())
}

/// The type of the elements, their number, the elements.
fn put_array(path: &Path, key: &str, array: &MetaArray, out: &mut Vec<u8>) -> Result<()> {
    let length = u64::try_from(array.len()).unwrap_or(u64::MAX);
    let mut put = |kind: u32, bytes: &mut dyn Iterator<Item = u8>| {
        out.extend(kind.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend(bytes);
    };
    match array {
        MetaArray::U8(values) => put(0, &mut values.iter().copied()),
        MetaArray::I8(values) => put(1, &mut values.iter().flat_map(|v| v.to_le_bytes())),
        MetaArray::U16(values) => put(2, &mut values.iter().flat_map(|v| v.to_le_bytes())),
        MetaArray::I16(values) => put(3, &mut values.iter().flat_map(|v| v.to_le_bytes())),
        MetaArray::U32(values) => put(4, &mut values.iter().flat_map(|v| v.to_le_bytes())),
        MetaArray::I32(values) => put(5, &mut values.iter().flat_map(|v| v.to_le_bytes())),
        MetaArray::F32(values) => put(6, &mut values.iter().flat_map(|v| v.to_le_bytes())),
        MetaArray::Bool(values) => put(7, &mut values.iter().map(|v| u8::from(*v))),
        MetaArray::U64(values) => put(10, &mut values.iter().flat_map(|v| v.to_le_bytes())),
        MetaArray::I64(values) => put(11, &mut values.iter().flat_map(|v| v.to_le_bytes())),
        MetaArray::F64(values) => put(12, &mut values.iter().flat_map(|v| v.to_le_bytes())),
        MetaArray::String(texts) => {
            if length > MAX_STRINGS {
                let problem = format!("{}: {length} strings", Quoted(key));
                return Err(StoreError::misuse(path, problem));
            }
            put(8, &mut std::iter::empty());
            for text in texts {
                put_string(path, key, text, out)?;
            }
        }
    }
    Ok(())
}
