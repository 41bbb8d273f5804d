//! Reading one GGUF file: header, metadata, tensor descriptions.

use std::collections::HashSet;
use std::path::Path;

use super::cursor::Cursor;
use super::value::{MetaArray, MetaValue, Metadata};
use super::{DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_RANK, MAX_STRINGS};
use crate::checked::{FileInt, Span};
use crate::dtype::{Dtype, GgmlType};
use crate::error::{Place, Quoted, Result, StoreError};
use crate::fs::ReadAt;
use crate::tensor::TensorInfo;

/// The fewest bytes a metadata entry takes: an empty key, a type, a value of one byte.
const SMALLEST_ENTRY: u64 = 13;
/// The fewest bytes a tensor description takes: an empty name, a rank, a type, an offset.
const SMALLEST_TENSOR: u64 = 24;

/// The checked header of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct Gguf {
    /// The version of the format: 2 or 3.
    pub version: u32,
    /// `general.alignment`, or 32.
    pub alignment: u64,
    /// The metadata.
    pub metadata: Metadata,
    /// The tensors, in the order of the file, their shapes outermost dimension first (the reverse
    /// of ggml's `ne`).
    pub tensors: Vec<TensorInfo>,
}

/// Reads the header of a GGUF file and checks it against the length of the file.
///
/// # Errors
/// When the file cannot be read, is of another version or byte order, or breaks a rule.
pub fn read_gguf(file: &dyn ReadAt) -> Result<Gguf> {
    let mut cursor = Cursor::new(file)?;
    let version = read_version(&mut cursor)?;
    let tensor_count = cursor.u64("the number of tensors")?;
    let entry_count = cursor.u64("the number of metadata entries")?;
    let tensor_count = cursor.check_count(tensor_count, SMALLEST_TENSOR, "tensors")?;
    let entry_count = cursor.check_count(entry_count, SMALLEST_ENTRY, "metadata entries")?;

    let mut metadata = Metadata::default();
    for _ in 0..entry_count {
        let key = cursor.string("a metadata key")?;
        let value = read_value(&mut cursor, &key)?;
        if !metadata.insert(key.clone(), value) {
            return Err(cursor.error(format!("duplicate metadata key {}", Quoted(&key))));
        }
    }
    let alignment = alignment(cursor.path(), &metadata)?;

    let raw = cursor.list(tensor_count, read_tensor)?;
    let header_end = FileInt::new(cursor.position());
    let Some(data_start) = header_end.align_up(alignment) else {
        return Err(cursor.error("the header is too long"));
    };
    let tensors = place_tensors(cursor.path(), raw, data_start, alignment, cursor.file_length())?;
    Ok(Gguf { version, alignment, metadata, tensors })
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32> {
    let unsupported = |path: &Path, problem: &str| {
        Err(StoreError::Unsupported { path: path.to_owned(), problem: problem.to_owned() })
    };
    let magic: [u8; 4] = cursor.bytes("the magic number")?;
    if magic != MAGIC {
        let problem = format!("not a GGUF file: it starts with {}", magic.escape_ascii());
        return Err(StoreError::malformed(cursor.path(), Place::Byte(0), problem));
    }
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        1 => unsupported(
            cursor.path(),
            "GGUF version 1; convert it with a llama.cpp of August 2023 or later",
        ),
        version if version.swap_bytes() <= 16 => unsupported(
            cursor.path(),
            "a big-endian GGUF file; get the little-endian one, or convert it with \
             gguf_convert_endian.py",
        ),
        version => unsupported(
            cursor.path(),
            &format!("GGUF version {version}; versions 2 and 3 are supported"),
        ),
    }
}

/// A metadata value: u32 type, then the value.
fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<MetaValue> {
    let what = "a metadata value";
    Ok(match cursor.u32("the type of a metadata value")? {
        0 => MetaValue::U8(u8::from_le_bytes(cursor.bytes(what)?)),
        1 => MetaValue::I8(i8::from_le_bytes(cursor.bytes(what)?)),
        2 => MetaValue::U16(u16::from_le_bytes(cursor.bytes(what)?)),
        3 => MetaValue::I16(i16::from_le_bytes(cursor.bytes(what)?)),
        4 => MetaValue::U32(u32::from_le_bytes(cursor.bytes(what)?)),
        5 => MetaValue::I32(i32::from_le_bytes(cursor.bytes(what)?)),
        6 => MetaValue::F32(f32::from_le_bytes(cursor.bytes(what)?)),
        7 => MetaValue::Bool(read_bool(cursor)?),
        8 => MetaValue::String(cursor.string("a metadata string")?),
        9 => MetaValue::Array(read_array(cursor, key)?),
        10 => MetaValue::U64(u64::from_le_bytes(cursor.bytes(what)?)),
        11 => MetaValue::I64(i64::from_le_bytes(cursor.bytes(what)?)),
        12 => MetaValue::F64(f64::from_le_bytes(cursor.bytes(what)?)),
        other => {
            let problem = format!("metadata key {} has the unknown type {other}", Quoted(key));
            return Err(cursor.error(problem));
        }
    })
}

fn read_bool(cursor: &mut Cursor<'_>) -> Result<bool> {
    match cursor.bytes("a truth value")? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(cursor.error(format!("a truth value of {other}, it may be 0 or 1"))),
    }
}

/// An array: u32 type of the elements, u64 count, the elements.
fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<MetaArray> {
    let element_type = cursor.u32("the type of an array")?;
    let count = cursor.u64("the length of an array")?;
    let size = match element_type {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        other => {
            let kind = if other == 9 { "arrays" } else { "the unknown type" };
            let problem = format!(
                "metadata key {} is an array of {kind} ({other}), which is not supported",
                Quoted(key)
            );
            return Err(cursor.error(problem));
        }
    };
    let n = cursor.check_count(count, size, "array elements")?;
    Ok(match element_type {
        0 => MetaArray::U8(cursor.values(n, u8::from_le_bytes)?),
        1 => MetaArray::I8(cursor.values(n, i8::from_le_bytes)?),
        2 => MetaArray::U16(cursor.values(n, u16::from_le_bytes)?),
        3 => MetaArray::I16(cursor.values(n, i16::from_le_bytes)?),
        4 => MetaArray::U32(cursor.values(n, u32::from_le_bytes)?),
        5 => MetaArray::I32(cursor.values(n, i32::from_le_bytes)?),
        6 => MetaArray::F32(cursor.values(n, f32::from_le_bytes)?),
        7 => MetaArray::Bool(cursor.list(n, read_bool)?),
        8 if count.get() > MAX_STRINGS => {
            let problem = format!("an array of {count} strings, the limit is {MAX_STRINGS}");
            return Err(cursor.error(problem));
        }
        8 => MetaArray::String(cursor.list(n, |cursor| cursor.string("a string of an array"))?),
        10 => MetaArray::U64(cursor.values(n, u64::from_le_bytes)?),
        11 => MetaArray::I64(cursor.values(n, i64::from_le_bytes)?),
        _ => MetaArray::F64(cursor.values(n, f64::from_le_bytes)?),
    })
}

/// `general.alignment`, checked; or the usual one.
pub(super) fn alignment(path: &Path, metadata: &Metadata) -> Result<u64> {
    let key = "general.alignment";
    let Some(value) = metadata.get(key) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let problem = match value.as_u64() {
        Some(value) if value.is_power_of_two() && value <= MAX_ALIGNMENT => return Ok(value),
        Some(value) => {
            format!("an alignment of {value}; it must be a power of two up to {MAX_ALIGNMENT}")
        }
        None => "it must be a positive integer".to_owned(),
    };
    Err(StoreError::malformed(path, Place::Key(key.to_owned()), problem))
}

/// A tensor description as it stands in the file, its dimensions turned outermost first.
struct RawTensor {
    name: String,
    shape: Vec<FileInt>,
    dtype: Dtype,
    offset: FileInt,
}

/// A tensor description: name, u32 rank, u64 per dimension, u32 type, u64 offset.
fn read_tensor(cursor: &mut Cursor<'_>) -> Result<RawTensor> {
    let name = cursor.string("a tensor name")?;
    let rank = cursor.u32("the rank of a tensor")?;
    if rank > MAX_RANK {
        let problem = format!(
            "tensor {} has {rank} dimensions, at most {MAX_RANK} are possible",
            Quoted(&name)
        );
        return Err(cursor.error(problem));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        shape.push(cursor.u64("a dimension of a tensor")?);
    }
    shape.reverse();
    let id = cursor.u32("the type of a tensor")?;
    let offset = cursor.u64("the offset of a tensor")?;
    let Some(ggml) = GgmlType::from_id(id) else {
        let problem = format!(
            "tensor {} has the ggml type {id}, which is not known; types of forks of llama.cpp \
             are not supported, use a file made by llama.cpp itself",
            Quoted(&name)
        );
        return Err(StoreError::Unsupported { path: cursor.path().to_owned(), problem });
    };
    Ok(RawTensor { name, shape, dtype: Dtype::from_ggml(ggml), offset })
}

/// Gives each tensor its bytes: aligned, within the file, apart from each other.
fn place_tensors(
    path: &Path,
    raw: Vec<RawTensor>,
    data_start: FileInt,
    alignment: u64,
    file_length: u64,
) -> Result<Vec<TensorInfo>> {
    let mut names = HashSet::new();
    let mut tensors: Vec<TensorInfo> = Vec::new();
    for RawTensor { name, shape, dtype, offset } in raw {
        let malformed = |problem: String| {
            Err(StoreError::malformed(path, Place::Tensor(name.clone()), problem))
        };
        if !names.insert(name.clone()) {
            return malformed("there are two tensors of this name".to_owned());
        }
        if offset.get().checked_rem(alignment) != Some(0) {
            return malformed(format!("its offset {offset} is not a multiple of {alignment}"));
        }
        let shape: Option<Vec<usize>> = shape.iter().map(|d| d.at_most(u64::MAX)).collect();
        let Some(shape) = shape else {
            return malformed("a dimension is too large for this machine".to_owned());
        };
        let size = match dtype.byte_len(&shape) {
            Ok(size) => FileInt::new(size),
            Err(error) => return malformed(error.to_string()),
        };
        let start = data_start.plus(offset.get());
        let Some(span) = start.and_then(|start| Span::within(file_length, start, size)) else {
            let end = start.and_then(|start| start.plus(size.get()));
            return Err(StoreError::Truncated {
                path: path.to_owned(),
                what: format!("tensor {}", Quoted(&name)),
                needed: end.map_or(u64::MAX, FileInt::get),
                length: file_length,
            });
        };
        tensors.push(TensorInfo { name, dtype, shape, span, file: 0 });
    }
    check_overlaps(path, &tensors)?;
    Ok(tensors)
}

fn check_overlaps(path: &Path, tensors: &[TensorInfo]) -> Result<()> {
    let mut by_place: Vec<&TensorInfo> = tensors.iter().filter(|t| !t.span.is_empty()).collect();
    by_place.sort_by_key(|tensor| tensor.span.start());
    for pair in by_place.windows(2) {
        if let [first, second] = pair
            && first.span.end() > second.span.start()
        {
            let problem = format!("its bytes overlap those of tensor {}", Quoted(&first.name));
            let place = Place::Tensor(second.name.clone());
            return Err(StoreError::malformed(path, place, problem));
        }
    }
    Ok(())
}
