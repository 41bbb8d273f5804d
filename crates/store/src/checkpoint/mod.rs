//! A model on the disk, whatever its layout: a folder of safetensors or of PyTorch's files, one
//! file, or GGUF.
//!
//! Opening reads headers only. The bytes of a tensor are read when asked for, after the file was
//! seen to have still the length and time it had when its header was checked.

mod auxiliary;
mod index;
mod layout;
mod resolve;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

pub use auxiliary::{AuxiliaryFile, Skipped};
pub use resolve::{Environment, resolve};

use crate::error::{Quoted, Result, StoreError};
use crate::fs::{self, Fs, ReadAt, Stamp};
use crate::gguf::Metadata;
use crate::hash;
use crate::tensor::TensorInfo;

/// How a checkpoint is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A folder with one or several safetensors files, or PyTorch's.
    Folder,
    /// One safetensors file, named directly.
    SafetensorsFile,
    /// One file of PyTorch, named directly.
    PytorchFile,
    /// A GGUF file, or the first of a split set.
    Gguf,
}

/// A file that holds tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightFile {
    /// Its name, relative to the folder of the checkpoint.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// The `__metadata__` of its header; empty for GGUF, whose metadata is [`Checkpoint::gguf`].
    pub metadata: BTreeMap<String, String>,
    stamp: Stamp,
}

impl WeightFile {
    fn new(path: PathBuf, stamp: Stamp, metadata: BTreeMap<String, String>) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, path, bytes: stamp.length, metadata, stamp }
    }
}

/// A file of a checkpoint with its content hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHash {
    /// Its name, relative to the folder of the checkpoint, with `/` between parts.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    layout: Layout,
    files: Vec<WeightFile>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    config: Option<Config>,
    gguf: Option<Metadata>,
    auxiliary: Vec<AuxiliaryFile>,
    skipped: Vec<Skipped>,
    /// The file read last, since reads come in runs on one file.
    open: Mutex<Option<(usize, Arc<dyn ReadAt>)>>,
}

#[derive(Debug)]
struct Config {
    bytes: Vec<u8>,
    value: Value,
}

impl Checkpoint {
    /// Opens a folder with `model.safetensors`, or an index and its shards, or any safetensors
    /// files beside a `config.json`, or else with `pytorch_model.bin`, or its index and shards, or
    /// one `.pth` file; or a `.gguf` file, or a folder whose only weights it is; or a single
    /// `.safetensors`, `.bin`, `.pth` or `.pt` file.
    ///
    /// # Errors
    /// When there is nothing of the kind, a file is missing, or one breaks its format.
    pub fn open(fs: Arc<dyn Fs>, path: &Path) -> Result<Self> {
        let found = layout::open(&*fs, path)?;
        let by_name = found.tensors.iter().zip(0_usize..);
        let by_name = by_name.map(|(tensor, index)| (tensor.name.clone(), index)).collect();
        Ok(Self {
            fs,
            path: path.to_owned(),
            layout: found.layout,
            files: found.files,
            tensors: found.tensors,
            by_name,
            config: found.config,
            gguf: found.gguf,
            auxiliary: found.auxiliary,
            skipped: found.skipped,
            open: Mutex::new(None),
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is laid out.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The files that hold the tensors: shards by name, the parts of a split GGUF by number.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The bytes of all weight files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0, |total, file| total.saturating_add(file.bytes))
    }

    /// All tensors, file by file, in the order of their bytes (GGUF: of their descriptions).
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`StoreError::NoSuchTensor`], which names the most similar tensor there is.
    pub fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.get(name).ok_or_else(|| StoreError::NoSuchTensor {
            path: self.path.clone(),
            name: name.to_owned(),
            near: most_similar(name, &self.tensors),
        })
    }

    /// The bytes of a tensor of this checkpoint.
    ///
    /// # Errors
    /// When the file cannot be read, was changed or cut since the checkpoint was opened, or memory
    /// is not to be had.
    pub fn read(&self, tensor: &TensorInfo) -> Result<Vec<u8>> {
        let path = self.file_of(tensor)?.path.as_path();
        let mut bytes = fs::allocate(path, &tensor.name, tensor.span.len())?;
        self.read_range(tensor, 0..tensor.span.len(), &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `buffer` with the bytes `range` of a tensor; `buffer` must have the length of
    /// `range`.
    ///
    /// # Errors
    /// As [`Checkpoint::read`]; [`StoreError::Misuse`] when the range leaves the tensor.
    pub fn read_range(
        &self,
        tensor: &TensorInfo,
        range: Range<u64>,
        buffer: &mut [u8],
    ) -> Result<()> {
        let file = self.file_of(tensor)?;
        let part = tensor.span.part(range.start, range.end);
        let part = part.filter(|part| u64::try_from(buffer.len()) == Ok(part.len()));
        let Some(part) = part else {
            let problem = format!(
                "bytes {}..{} of tensor {} into a buffer of {}, it has {}",
                range.start,
                range.end,
                Quoted(&tensor.name),
                buffer.len(),
                tensor.span.len()
            );
            return Err(StoreError::misuse(&file.path, problem));
        };
        let open = self.open_file(tensor.file, file)?;
        self.check_unchanged(tensor, file, &*open)?;
        let read = open.read_exact_at(buffer, part.start());
        self.check_unchanged(tensor, file, &*open)?;
        read
    }

    /// `config.json`, parsed.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref().map(|config| &config.value)
    }

    /// The metadata of a GGUF checkpoint.
    pub fn gguf(&self) -> Option<&Metadata> {
        self.gguf.as_ref()
    }

    /// Hands out the metadata of a GGUF checkpoint, whose vocabulary can be large: for whoever is
    /// done with it before the tensors are read.
    pub fn take_gguf(&mut self) -> Option<Metadata> {
        self.gguf.take()
    }

    /// The metadata of a GGUF checkpoint, read from its file once more; `None` for another layout.
    ///
    /// # Errors
    /// When the file cannot be read, or was changed since the checkpoint was opened.
    pub fn read_gguf_metadata(&self) -> Result<Option<Metadata>> {
        let file = match self.files.first() {
            Some(file) if self.layout == Layout::Gguf => file,
            _ => return Ok(None),
        };
        let open = self.fs.open(&file.path)?;
        if open.stamp()? != file.stamp {
            return Err(StoreError::Changed { path: file.path.clone() });
        }
        Ok(Some(crate::gguf::read_gguf(&*open)?.metadata))
    }

    /// The files that go with the weights, such as `tokenizer.json` or `1_Pooling/config.json`,
    /// sorted by name; not the weights, their index, or `config.json`.
    pub fn auxiliary(&self) -> &[AuxiliaryFile] {
        &self.auxiliary
    }

    /// What else is in the folder and is not part of the checkpoint, with the reason.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The content of an auxiliary file, by its name.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if it is none; else when it cannot be read.
    pub fn read_auxiliary(&self, name: &str) -> Result<Vec<u8>> {
        let file = self.auxiliary.iter().find(|file| file.name == name);
        let Some(file) = file else {
            let path = self.path.join(name);
            let advice = "it is not among the files of this checkpoint".to_owned();
            return Err(StoreError::NotFound { path, advice });
        };
        fs::read(&*self.fs, &file.path, "the file", auxiliary::MAX_BYTES)
    }

    /// Hashes every file of the checkpoint: weights, `config.json` and auxiliary files, sorted by
    /// name. `progress` is told the bytes read after each chunk.
    ///
    /// # Errors
    /// When a file cannot be read, or a weight file was changed since the checkpoint was opened.
    pub fn hash_files(&self, progress: &mut dyn FnMut(u64)) -> Result<Vec<FileHash>> {
        let mut hashes = Vec::new();
        for file in &self.files {
            let open = self.fs.open(&file.path)?;
            let changed = || StoreError::Changed { path: file.path.clone() };
            let stamp = |open: &dyn ReadAt| Ok(open.stamp()? == file.stamp);
            if !stamp(&*open)? {
                return Err(changed());
            }
            let sha256 = hash::sha256_of(&*open, progress)?;
            if !stamp(&*open)? {
                return Err(changed());
            }
            hashes.push(FileHash { name: file.name.clone(), bytes: file.bytes, sha256 });
        }
        for file in &self.auxiliary {
            let open = self.fs.open(&file.path)?;
            let sha256 = hash::sha256_of(&*open, progress)?;
            hashes.push(FileHash { name: file.name.clone(), bytes: file.bytes, sha256 });
        }
        if let Some(config) = &self.config {
            let bytes = u64::try_from(config.bytes.len()).unwrap_or(u64::MAX);
            let sha256 = hash::sha256(&config.bytes);
            hashes.push(FileHash { name: layout::CONFIG.to_owned(), bytes, sha256 });
        }
        hashes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(hashes)
    }

    fn file_of(&self, tensor: &TensorInfo) -> Result<&WeightFile> {
        let problem = "a tensor of another checkpoint";
        self.files.get(tensor.file).ok_or_else(|| StoreError::misuse(&self.path, problem))
    }

    fn open_file(&self, index: usize, file: &WeightFile) -> Result<Arc<dyn ReadAt>> {
        // A poisoned lock only means that another thread died; the cache is whole in any case.
        let mut cached = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((number, open)) if *number == index => Ok(Arc::clone(open)),
            _ => {
                let open: Arc<dyn ReadAt> = Arc::from(self.fs.open(&file.path)?);
                *cached = Some((index, Arc::clone(&open)));
                Ok(open)
            }
        }
    }

    fn check_unchanged(
        &self,
        tensor: &TensorInfo,
        file: &WeightFile,
        open: &dyn ReadAt,
    ) -> Result<()> {
        let stamp = open.stamp()?;
        if stamp.length < tensor.span.end() {
            return Err(StoreError::Truncated {
                path: file.path.clone(),
                what: format!("tensor {}", Quoted(&tensor.name)),
                needed: tensor.span.end(),
                length: stamp.length,
            });
        }
        if stamp != file.stamp {
            return Err(StoreError::Changed { path: file.path.clone() });
        }
        Ok(())
    }
}

/// The tensor name that shares the longest beginning and end with `name`, if they share much.
fn most_similar(name: &str, tensors: &[TensorInfo]) -> Option<String> {
    let shared = |other: &str| {
        let start = name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let end = name.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
        start.saturating_add(end)
    };
    let near = tensors.iter().map(|tensor| (shared(&tensor.name), &tensor.name)).max()?;
    (near.0.saturating_mul(2) >= name.len()).then(|| near.1.clone())
}
