//! Reading and checking the header of a safetensors file.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::{MAX_HEADER, MAX_RANK, METADATA_KEY};
use crate::checked::{FileInt, Span};
use crate::dtype::Dtype;
use crate::error::{Place, Quoted, Result, StoreError};
use crate::fs::{self, ReadAt};
use crate::json;
use crate::tensor::TensorInfo;

/// The checked header of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// The `__metadata__` entry; empty when there is none.
    pub metadata: BTreeMap<String, String>,
}

/// Reads the header of a safetensors file and checks it against the length of the file.
///
/// # Errors
/// When the file cannot be read, or its header breaks a rule of the format.
pub fn read_header(file: &dyn ReadAt) -> Result<Header> {
    let path = file.path();
    let file_length = file.len()?;
    let mut prefix = [0_u8; 8];
    if file_length < 8 {
        return Err(truncated(path, "the length of the header", 8, file_length));
    }
    file.read_exact_at(&mut prefix, 0)?;
    let length = FileInt::new(u64::from_le_bytes(prefix));
    if length.get() > MAX_HEADER {
        let problem = format!(
            "a header of {length} bytes, above the limit of {MAX_HEADER}: not a safetensors file, \
             or a damaged one; download or export it again"
        );
        return Err(StoreError::malformed(path, Place::Byte(0), problem));
    }
    let Some(span) = Span::within(file_length, FileInt::new(8), length) else {
        let needed = length.get().saturating_add(8);
        return Err(truncated(path, "the header", needed, file_length));
    };
    let mut first = [0_u8; 1];
    if !span.is_empty() {
        file.read_exact_at(&mut first, 8)?;
    }
    if first != *b"{" {
        let problem = "the header does not start with `{`; not a safetensors file";
        return Err(StoreError::malformed(path, Place::Byte(8), problem));
    }
    let mut text = fs::allocate(path, "the header", span.len())?;
    file.read_exact_at(&mut text, 8)?;
    let raw: RawHeader =
        serde_json::from_slice(&text).map_err(|error| json::malformed(path, &error))?;
    drop(text);
    check(path, raw, span.end(), file_length)
}

/// Turns the raw header into tensors, checking every rule on spans.
fn check(path: &Path, raw: RawHeader, data_start: u64, file_length: u64) -> Result<Header> {
    let mut entries = raw.tensors;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors = Vec::new();
    let mut expected = 0_u64;
    for (name, entry) in entries {
        let problem = |problem: String| {
            Err(StoreError::malformed(path, Place::Tensor(name.clone()), problem))
        };
        let (begin, end) = entry.data_offsets;
        if begin != expected {
            let gap = if begin > expected { "a hole" } else { "an overlap" };
            return problem(format!(
                "its bytes start at {begin}, but the tensor before ends at {expected}: {gap}"
            ));
        }
        let Some(length) = end.checked_sub(begin) else {
            return problem(format!("its bytes end at {end}, before they start at {begin}"));
        };
        let Some(dtype) = Dtype::from_safetensors(&entry.dtype) else {
            let problem = format!(
                "tensor {} has the unknown element type {}; convert it to one of the usual types",
                Quoted(&name),
                Quoted(&entry.dtype)
            );
            return Err(StoreError::Unsupported { path: path.to_owned(), problem });
        };
        match dtype.byte_len(&entry.shape.0) {
            Ok(size) if size == length => {}
            Ok(size) => {
                let shape = entry.shape.0;
                return problem(format!(
                    "{length} bytes are stated, {dtype} {shape:?} takes {size}"
                ));
            }
            Err(error) => return problem(error.to_string()),
        }
        let start = FileInt::new(data_start).plus(begin);
        let span = start.and_then(|start| Span::within(file_length, start, FileInt::new(length)));
        let Some(span) = span else {
            let needed = data_start.saturating_add(end);
            return Err(truncated(path, &format!("tensor {}", Quoted(&name)), needed, file_length));
        };
        tensors.push(TensorInfo { name, dtype, shape: entry.shape.0, span, file: 0 });
        expected = end;
    }
    let end = data_start.saturating_add(expected);
    if end != file_length {
        let problem =
            format!("the tensors end at byte {end}, but the file goes on to {file_length}");
        return Err(StoreError::malformed(path, Place::Byte(end), problem));
    }
    Ok(Header { tensors, metadata: raw.metadata })
}

fn truncated(path: &Path, what: &str, needed: u64, length: u64) -> StoreError {
    StoreError::Truncated { path: path.to_owned(), what: what.to_owned(), needed, length }
}

/// The header as it stands in the file: well-formed, of the right types, names unique.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = list.next_element()? {
            if shape.len() >= MAX_RANK {
                return Err(A::Error::custom(format_args!("more than {MAX_RANK} dimensions")));
            }
            shape.push(dimension);
        }
        Ok(Shape(shape))
    }
}

/// The value of `__metadata__`; two equal keys are an error.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from strings to strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Metadata, A::Error> {
        let mut metadata = BTreeMap::new();
        while let Some((key, value)) = access.next_entry::<String, String>()? {
            if metadata.contains_key(&key) {
                return Err(duplicate(&key));
            }
            metadata.insert(key, value);
        }
        Ok(Metadata(metadata))
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from tensor names to their description")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<RawHeader, A::Error> {
        let mut tensors = Vec::new();
        let mut metadata = None;
        let mut seen = HashSet::new();
        while let Some(name) = access.next_key::<String>()? {
            if name == METADATA_KEY {
                let Metadata(map) = access.next_value()?;
                if metadata.replace(map).is_some() {
                    return Err(duplicate(METADATA_KEY));
                }
                continue;
            }
            if !seen.insert(name.clone()) {
                return Err(duplicate(&name));
            }
            let entry = access.next_value()?;
            tensors.push((name, entry));
        }
        Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
    }
}

fn duplicate<E: serde::de::Error>(name: &str) -> E {
    E::custom(format_args!("duplicate key {}", Quoted(name)))
}
