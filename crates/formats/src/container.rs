//! The files that a result is written in: a folder of safetensors, or whatever else a format wants.

use crate::{FormatError, LogicalTensor, Source};
use lapidary_store::safetensors::{self, ShardedWriter};
use lapidary_store::{Dtype, Fs, TensorSpec};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What becomes of a tensor that is not encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It is written as this type.
    As(Dtype),
    /// It is left out, for this reason.
    Dropped(String),
}

/// What a container says of a result before there is any.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settled {
    /// The configuration that the result will be read with, where that is not the source's.
    pub config: Option<Value>,
    /// What people should know.
    pub remarks: Vec<String>,
    /// What the loader will do otherwise than the model was trained with.
    pub departures: Vec<String>,
}

/// How the tensors of a result become files. Tensors have their Hugging Face names.
pub trait Container: std::fmt::Debug + Send + Sync {
    /// Whether `config.json` and the source's other files go beside the weights; else these hold
    /// everything.
    fn has_files(&self) -> bool;

    /// Whether all matrices stand with their rows as rows, also those that a folder of their family has
    /// the other way round.
    fn is_upright(&self) -> bool {
        !self.has_files()
    }

    /// What becomes of a tensor that is not encoded.
    fn keep(&self, source: &Source, tensor: &LogicalTensor) -> Kept;

    /// What a piece of a tensor will be read back as, where the file holds another number that cannot
    /// be turned back exactly; `None` where it is read as it was.
    fn as_read(&self, _tensor: &TensorSpec, _bytes: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// Checks that a result of these tensors can be written.
    ///
    /// # Errors
    /// What cannot, and why.
    fn settle(&self, source: &Source, tensors: &[TensorSpec]) -> Result<Settled, FormatError>;

    /// Exact bytes of the weight files; `shard_bytes` is the most that one should have, where that was
    /// asked for.
    ///
    /// # Errors
    /// When the tensors cannot be written.
    fn file_bytes(
        &self,
        source: &Source,
        tensors: &[TensorSpec],
        shard_bytes: Option<u64>,
    ) -> Result<u64, FormatError>;

    /// Bytes of memory that writing takes beside the pieces that are handed over: what is made of the
    /// source's other files, and tensors that wait until they are whole.
    fn writing_bytes(&self, _source: &Source) -> u64 {
        0
    }

    /// Starts writing into a folder that exists.
    ///
    /// # Errors
    /// When the tensors cannot be written, or the disk refuses.
    fn create(
        &self,
        fs: &Arc<dyn Fs>,
        folder: &Path,
        source: &Source,
        tensors: &[TensorSpec],
        shard_bytes: Option<u64>,
    ) -> Result<Box<dyn WeightFiles>, FormatError>;
}

/// Weight files being written.
pub trait WeightFiles {
    /// The tensors in the order in which they have to be written.
    fn order(&self) -> Vec<String>;

    /// Writes the next bytes of a tensor.
    ///
    /// # Errors
    /// When it is not this tensor's turn, it gets more bytes than it has, or the disk refuses.
    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatError>;

    /// Completes the files; returns their bytes.
    ///
    /// # Errors
    /// When a tensor was not written completely, or the disk refuses.
    fn finish(self: Box<Self>) -> Result<u64, FormatError>;
}

/// A Hugging Face folder: safetensors, `config.json`, the source's other files.
#[derive(Debug)]
pub(crate) struct Folder;

impl Container for Folder {
    fn has_files(&self) -> bool {
        true
    }

    fn keep(&self, source: &Source, tensor: &LogicalTensor) -> Kept {
        Kept::As(source.raw_dtype(tensor))
    }

    fn settle(&self, _source: &Source, _tensors: &[TensorSpec]) -> Result<Settled, FormatError> {
        Ok(Settled::default())
    }

    fn file_bytes(
        &self,
        _source: &Source,
        tensors: &[TensorSpec],
        shard_bytes: Option<u64>,
    ) -> Result<u64, FormatError> {
        let shards =
            safetensors::plan(tensors, shard_bytes.unwrap_or(safetensors::DEFAULT_SHARD))?.shards;
        let sizes = shards.iter().map(safetensors::Shard::file_bytes);
        Ok(sizes.sum::<Result<u64, _>>()?)
    }

    fn create(
        &self,
        fs: &Arc<dyn Fs>,
        folder: &Path,
        _source: &Source,
        tensors: &[TensorSpec],
        shard_bytes: Option<u64>,
    ) -> Result<Box<dyn WeightFiles>, FormatError> {
        let shards = safetensors::plan(tensors, shard_bytes.unwrap_or(safetensors::DEFAULT_SHARD))?;
        Ok(Box::new(ShardedWriter::create(fs, folder, shards, BTreeMap::new())?))
    }
}

impl WeightFiles for ShardedWriter {
    fn order(&self) -> Vec<String> {
        self.plan().order().map(|tensor| tensor.name.clone()).collect()
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        Ok(Self::append(self, name, bytes)?)
    }

    fn finish(self: Box<Self>) -> Result<u64, FormatError> {
        let index = Self::finish(*self)?;
        Ok(index.shards.iter().map(|shard| shard.bytes).sum())
    }
}
