//! `model.safetensors.index.json` and `pytorch_model.bin.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::Value;

use crate::error::{Place, Quoted, Result, StoreError};
use crate::fs::Fs;
use crate::json;

/// Tensor names by shard file name, both sorted.
pub(super) type Shards = BTreeMap<String, BTreeSet<String>>;

/// Reads an index and checks that every shard is a plain file name that ends in `extension`.
pub(super) fn read(fs: &dyn Fs, path: &Path, extension: &str) -> Result<Shards> {
    let value = json::read(fs, path)?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        let place = Place::Key("weight_map".to_owned());
        return Err(StoreError::malformed(path, place, "there is no such object in the index"));
    };
    let mut shards = Shards::new();
    for (tensor, file) in map {
        let Some(file) = file.as_str() else {
            let problem = "its shard must be a string";
            return Err(StoreError::malformed(path, Place::Tensor(tensor.clone()), problem));
        };
        if !is_plain_name(file) {
            let problem = format!(
                "tensor {} is said to be in {}, which is not a plain file name; do not trust this \
                 checkpoint",
                Quoted(tensor),
                Quoted(file)
            );
            return Err(StoreError::OutsideCheckpoint { path: path.to_owned(), problem });
        }
        if !file.ends_with(extension) {
            let problem = format!("its shard {} is not a {extension} file", Quoted(file));
            return Err(StoreError::malformed(path, Place::Tensor(tensor.clone()), problem));
        }
        shards.entry(file.to_owned()).or_default().insert(tensor.clone());
    }
    if shards.is_empty() {
        return Err(StoreError::malformed(path, Place::File, "the index names no tensor"));
    }
    Ok(shards)
}

/// Whether a name is one normal component of a path, on any system.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(only)) if only == name)
        && components.next().is_none()
        && !name.contains(['/', '\\', ':'])
        && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_plain() {
        for name in ["model.safetensors", "model-00001-of-00002.safetensors", "..a", "a b"] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in ["", ".", "..", "/a", "a/b", "../a", "a/", "./a", "a\\b", "a\0b", "C:a"] {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}
