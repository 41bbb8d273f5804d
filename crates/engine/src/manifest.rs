//! The manifest of a result: what it was made of, how, and what each layer lost on the way.

use crate::EngineError;
use lapidary_methods::{Note, NoteKind};
use lapidary_store::fs::{Kind, read};
use lapidary_store::{Fs, hash, json};
use lapidary_weight::{InputRounding, Outline};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Its name in the folder.
pub const FILE_NAME: &str = "lapidary.json";

/// Longest manifest that is read.
const MOST_BYTES: u64 = 1 << 28;

/// Everything there is to know of a result. It names no path and no time: the same job gives the
/// same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Everything the bytes depend on: version, inputs with hashes, recipe, calibration tokens, seed.
    pub identity: Value,
    /// The format.
    pub format: String,
    /// Bits stored for each weight of the blocks' compressed layers, when there are any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bits_per_weight: Option<f64>,
    /// The same of the compressed tables and heads, when there are any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub table_bits_per_weight: Option<f64>,
    /// Share of the compressed layers' weights that is pruned, where any is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sparsity: Option<f64>,
    /// Bytes of the weight files, before and after.
    pub bytes: Bytes,
    /// What steps have cut of the model, in a line each; `structure.json` beside it tells all.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub structure: Vec<String>,
    /// What was calibrated on.
    pub calibration: Option<CalibrationRecord>,
    /// What happened to each compressed layer.
    pub sites: Vec<SiteRecord>,
    /// Departures from the recipe that concern a plan or the whole job; those of a site stand there.
    pub notes: Vec<JobNote>,
    /// Where every tensor of the source went.
    pub tensors: TensorLists,
    /// Every other file of the folder, with its hash.
    pub files: Vec<FileRecord>,
}

/// Sizes of the weight files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Of the source.
    pub source: u64,
    /// Of the result.
    pub result: u64,
}

/// What was calibrated on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// `builtin` or `file`.
    pub text: String,
    /// Rows.
    pub rows: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// Precision of the forward passes.
    pub precision: String,
}

/// What happened to a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteRecord {
    /// The module.
    pub name: String,
    /// The method.
    pub method: String,
    /// What it is stored as.
    pub outline: Outline,
    /// How its inputs are rounded when the model is run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub inputs: Option<InputRounding>,
    /// `‖W − Ŵ‖² / ‖W‖²`.
    pub weight_error: f64,
    /// `‖W X − Ŵ X‖² / ‖W X‖²` on the calibration tokens, where they were run.
    pub output_error: Option<f64>,
    /// Share of the stored weights that is exactly 0, where some were pruned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sparsity: Option<f64>,
    /// Everything that departed from the plain course.
    pub notes: Vec<Note>,
}

/// A note on the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobNote {
    /// The site, or nothing when it concerns the whole.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub site: String,
    /// The note.
    #[serde(flatten)]
    pub note: Note,
}

/// Where every tensor of the source went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorLists {
    /// Weights that were compressed.
    pub compressed: Vec<String>,
    /// Tensors that were handed on as they were.
    pub copied: Vec<String>,
    /// Tensors that are written changed and not compressed: other numbers, the same function.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rewritten: Vec<String>,
    /// Tensors that were not written, with the reason.
    pub dropped: Vec<(String, String)>,
}

/// A file of the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name relative to the folder.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// When there is none, or it is not a manifest.
    pub fn read(fs: &dyn Fs, folder: &Path) -> Result<Self, EngineError> {
        let path = folder.join(FILE_NAME);
        let bytes = read(fs, &path, "the manifest", MOST_BYTES)?;
        let value = json::parse(&bytes, &path)?;
        serde_json::from_value(value)
            .map_err(|error| EngineError::BadInput(format!("{}: {error}", path.display())))
    }

    /// Its bytes in the folder.
    ///
    /// # Errors
    /// Never: all its numbers are finite.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EngineError> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| EngineError::Internal(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Names, lengths and hashes of all files of a folder and its direct subfolders, except the manifest.
///
/// # Errors
/// When a file cannot be read.
pub fn hash_folder(fs: &dyn Fs, folder: &Path) -> Result<Vec<FileRecord>, EngineError> {
    let mut files = vec![];
    for entry in fs.list(folder)? {
        let name = entry.name.to_string_lossy().into_owned();
        match entry.kind {
            Kind::Dir => {
                for inner in fs.list(&folder.join(&entry.name))? {
                    let name = format!("{name}/{}", inner.name.to_string_lossy());
                    files.push(file_record(fs, folder, name)?);
                }
            }
            _ if name == FILE_NAME => {}
            _ => files.push(file_record(fs, folder, name)?),
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn file_record(fs: &dyn Fs, folder: &Path, name: String) -> Result<FileRecord, EngineError> {
    let path = folder.join(&name);
    let bytes = fs.open(&path)?.len()?;
    Ok(FileRecord { sha256: hash::sha256_file(fs, &path)?, bytes, name })
}

impl Manifest {
    /// Every fallback, with the site it concerns.
    pub fn fallbacks(&self) -> impl Iterator<Item = (&str, &Note)> {
        let of_job = self.notes.iter().map(|note| (note.site.as_str(), &note.note));
        let of_sites = self
            .sites
            .iter()
            .flat_map(|site| site.notes.iter().map(|note| (site.name.as_str(), note)));
        of_job.chain(of_sites).filter(|(_, note)| note.kind == NoteKind::Fallback)
    }
}
