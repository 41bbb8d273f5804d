//! Models split over several GGUF files, `name-00001-of-00003.gguf`.
//!
//! The first file has the metadata; every file has `split.no` (from 0) and `split.count`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::reader::{Gguf, read_gguf};
use super::value::Metadata;
use crate::error::{Place, Quoted, Result, StoreError};
use crate::fs::{Fs, Stamp};
use crate::tensor::TensorInfo;

/// The most files a model may be split over.
const MAX_SPLIT: u64 = 4096;

/// A GGUF model, in one file or several.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufSet {
    /// The files, in order.
    pub files: Vec<Part>,
    /// The metadata, which is that of the first file.
    pub metadata: Metadata,
    /// The tensors of all files; [`TensorInfo::file`] is an index into `files`.
    pub tensors: Vec<TensorInfo>,
}

/// One file of a GGUF model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it is.
    pub path: PathBuf,
    /// Its length and time when its header was read.
    pub stamp: Stamp,
}

/// Reads the header of a GGUF file and, if it is one part of a split model, of the other parts,
/// which must be in the same folder.
///
/// # Errors
/// When a file cannot be read or is missing, or when the parts do not belong together.
pub fn open_set(fs: &dyn Fs, path: &Path) -> Result<GgufSet> {
    let (opened, part) = read_part(fs, path)?;
    let count = opened.metadata.u64("split.count").unwrap_or(1);
    if count <= 1 {
        let Gguf { metadata, tensors, .. } = opened;
        return Ok(GgufSet { files: vec![part], metadata, tensors });
    }
    if count > MAX_SPLIT {
        let place = Place::Key("split.count".to_owned());
        let problem = format!("split into {count} files, the limit is {MAX_SPLIT}");
        return Err(StoreError::malformed(path, place, problem));
    }
    read_parts(fs, path, count)
}

fn read_part(fs: &dyn Fs, path: &Path) -> Result<(Gguf, Part)> {
    let file = fs.open(path)?;
    let part = Part { path: path.to_owned(), stamp: file.stamp()? };
    Ok((read_gguf(&*file)?, part))
}

fn read_parts(fs: &dyn Fs, path: &Path, count: u64) -> Result<GgufSet> {
    let mut set = GgufSet { files: Vec::new(), metadata: Metadata::default(), tensors: Vec::new() };
    let mut names = HashSet::new();
    for number in 0..count {
        let path = part_path(path, number, count)?;
        let (opened, part) = read_part(fs, &path).map_err(|error| missing(error, count))?;
        check_part(&path, &opened, number, count)?;
        for mut tensor in opened.tensors {
            if !names.insert(tensor.name.clone()) {
                let problem = "another part of the model has a tensor of this name";
                return Err(StoreError::malformed(&path, Place::Tensor(tensor.name), problem));
            }
            tensor.file = set.files.len();
            set.tensors.push(tensor);
        }
        if number == 0 {
            set.metadata = opened.metadata;
        }
        set.files.push(part);
    }
    let found = u64::try_from(set.tensors.len()).unwrap_or(u64::MAX);
    match set.metadata.u64("split.tensors.count") {
        Some(stated) if stated != found => {
            let place = Place::Key("split.tensors.count".to_owned());
            let problem = format!("{stated} tensors are stated, the {count} parts have {found}");
            Err(StoreError::malformed(path, place, problem))
        }
        _ => Ok(set),
    }
}

/// The path of part `number` (from 0), made from the path of any part.
fn part_path(path: &Path, number: u64, count: u64) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(&format!("-of-{count:05}.gguf"));
    let prefix = stem.and_then(|stem| {
        let (prefix, number) = stem.rsplit_once('-')?;
        (number.len() == 5 && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(prefix)
    });
    let Some(prefix) = prefix else {
        let problem = format!(
            "it is one of {count} parts, but its name does not end in -00001-of-{count:05}.gguf; \
             give the parts their original names"
        );
        return Err(StoreError::malformed(path, Place::File, problem));
    };
    let number = number.saturating_add(1);
    Ok(path.with_file_name(format!("{prefix}-{number:05}-of-{count:05}.gguf")))
}

fn missing(error: StoreError, count: u64) -> StoreError {
    match error {
        StoreError::NotFound { path, .. } => {
            let advice = format!("the model is split into {count} files; put all of them here");
            StoreError::NotFound { path, advice }
        }
        other => other,
    }
}

fn check_part(path: &Path, part: &Gguf, number: u64, count: u64) -> Result<()> {
    for (key, expected) in [("split.no", number), ("split.count", count)] {
        let found = part.metadata.u64(key);
        if found != Some(expected) {
            let found = found.map_or_else(|| "nothing".to_owned(), |value| value.to_string());
            let problem = format!(
                "{} is {found}, expected {expected}; the parts of the model do not belong together",
                Quoted(key)
            );
            return Err(StoreError::malformed(path, Place::Key(key.to_owned()), problem));
        }
    }
    Ok(())
}
