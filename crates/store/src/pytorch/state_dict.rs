//! From the dict that a pickle made to where the bytes of each tensor are.

use std::collections::HashSet;
use std::path::Path;

use super::archive::Archive;
use super::pickle::{Object, Tensor, Value};
use crate::checked::{FileInt, Span};
use crate::error::{Place, Quoted, Result, StoreError};
use crate::tensor::TensorInfo;

/// The tensors of a state dict, in its order.
pub(super) fn tensors(path: &Path, archive: &Archive, object: &Object) -> Result<Vec<TensorInfo>> {
    let entries = match &object.root {
        Value::Dict(index) => object.dicts.get(*index),
        _ => None,
    };
    let Some(entries) = entries else {
        let problem = "it holds no dict of tensors; save the state dict alone";
        return Err(StoreError::malformed(path, Place::File, problem));
    };
    let mut names = HashSet::new();
    let mut tensors = vec![];
    for (key, value) in entries {
        let name = match key {
            Value::Text(range) => object.text(range),
            _ => None,
        };
        let Some(name) = name else {
            let problem = "a key of its dict is no text, so it is no state dict";
            return Err(StoreError::malformed(path, Place::File, problem));
        };
        let wrong = |problem: String| {
            Err(StoreError::malformed(path, Place::Tensor(name.to_owned()), problem))
        };
        if !names.insert(name) {
            return wrong("it is there twice".to_owned());
        }
        let tensor = match value {
            Value::Tensor(index) => object.tensors.get(*index),
            _ => None,
        };
        let Some(tensor) = tensor else {
            return wrong("it is no tensor; save the state dict alone".to_owned());
        };
        match info(name, tensor, archive, object) {
            Ok(info) => tensors.push(info),
            Err(problem) => return wrong(problem),
        }
    }
    Ok(tensors)
}

/// Where a tensor is, or what is wrong with it.
fn info(
    name: &str,
    tensor: &Tensor,
    archive: &Archive,
    object: &Object,
) -> Result<TensorInfo, String> {
    let storage = object.storages.get(tensor.storage).ok_or("its storage is missing")?;
    let key = object.text(&storage.key).ok_or("the name of its storage is no text")?;
    let missing = || format!("its storage {} is not in the archive", Quoted(key));
    let bytes = archive.entry(&format!("data/{key}")).ok_or_else(missing)?;
    let size = |size: &u64| usize::try_from(*size).ok();
    let shape: Option<Vec<usize>> = tensor.shape.iter().map(size).collect();
    let shape = shape.ok_or("its shape is beyond all sense")?;
    if !is_row_major(tensor) {
        return Err("its elements do not lie row by row; save it contiguous".to_owned());
    }
    let length = storage.dtype.byte_len(&shape).map_err(|error| error.to_string())?;
    let start = FileInt::new(tensor.offset).times(storage.dtype.block_bytes());
    let within = start.and_then(|start| Span::within(bytes.len(), start, FileInt::new(length)));
    let span = within.and_then(|within| bytes.part(within.start(), within.end()));
    let outside = || {
        format!(
            "{length} bytes from element {} on are not in its storage of {}",
            tensor.offset,
            bytes.len()
        )
    };
    let span = span.ok_or_else(outside)?;
    Ok(TensorInfo { name: name.to_owned(), dtype: storage.dtype, shape, span, file: 0 })
}

/// Whether the elements follow each other in the order of their indices. The stride of a dimension of
/// one says nothing, nor do any where there is no element.
fn is_row_major(tensor: &Tensor) -> bool {
    if tensor.shape.len() != tensor.strides.len() {
        return false;
    }
    if tensor.shape.contains(&0) {
        return true;
    }
    let mut expected = Some(1_u64);
    for (size, stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
        if *size != 1 && Some(*stride) != expected {
            return false;
        }
        expected = expected.and_then(|expected| expected.checked_mul(*size));
    }
    true
}
