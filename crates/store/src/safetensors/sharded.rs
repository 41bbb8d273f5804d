//! Writing a checkpoint as one safetensors file or as several with an index.
//!
//! Which tensor goes where is planned from the declared list, before anything is written, and
//! depends on nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Writer;
use super::writer::{header, sort_by_alignment};
use crate::atomic::{AtomicFile, Written};
use crate::error::{Quoted, Result, StoreError};
use crate::fs::Fs;
use crate::stream::byte_len;
use crate::tensor::TensorSpec;

/// The name of the index beside several shards.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// The name of the file if there is only one.
pub const SINGLE_NAME: &str = "model.safetensors";

/// One file of a planned checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its file name.
    pub file: String,
    /// Its tensors, in the order in which they have to be written.
    pub tensors: Vec<TensorSpec>,
    /// The bytes of its tensors, without the header.
    pub bytes: u64,
}

impl Shard {
    /// The bytes of the file, when it is written without metadata: header and tensors.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn file_bytes(&self) -> Result<u64> {
        let header = header(Path::new(&self.file), &self.tensors, &BTreeMap::new())?;
        sum(u64::try_from(header.len()).unwrap_or(u64::MAX), self.bytes)
    }
}

/// Which tensors go into which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The files, in the order in which they have to be written.
    pub shards: Vec<Shard>,
}

/// What was written: the shards and, if there is more than one, the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The shards, in order.
    pub shards: Vec<Written>,
    /// The index file.
    pub index: Option<Written>,
}

/// Distributes tensors over files of at most `max_shard_bytes` of tensor data each.
///
/// Tensors that stand next to each other and belong to one module (their names agree up to the
/// last dot) stay in one file, since loaders want the codes and scales of a layer together. A
/// module larger than the limit gets a file of its own, and only then may a file exceed it.
///
/// # Errors
/// When a size overflows.
pub fn plan(tensors: &[TensorSpec], max_shard_bytes: u64) -> Result<Plan> {
    let mut shards: Vec<(Vec<TensorSpec>, u64)> = vec![(Vec::new(), 0)];
    for module in tensors.chunk_by(|a, b| module_of(&a.name) == module_of(&b.name)) {
        let mut size = 0_u64;
        for tensor in module {
            size = sum(size, byte_len(Path::new(INDEX_NAME), tensor)?)?;
        }
        match shards.last_mut() {
            Some((list, bytes)) if list.is_empty() || sum(*bytes, size)? <= max_shard_bytes => {
                list.extend_from_slice(module);
                *bytes = sum(*bytes, size)?;
            }
            _ => shards.push((module.to_vec(), size)),
        }
    }
    let total = shards.len();
    let shards = shards.into_iter().zip(1_usize..).map(|((mut tensors, bytes), number)| {
        sort_by_alignment(&mut tensors);
        let file = match total {
            1 => SINGLE_NAME.to_owned(),
            _ => format!("model-{number:05}-of-{total:05}.safetensors"),
        };
        Shard { file, tensors, bytes }
    });
    Ok(Plan { shards: shards.collect() })
}

fn sum(a: u64, b: u64) -> Result<u64> {
    let problem = "the tensors take more bytes than 64 bits can say";
    a.checked_add(b).ok_or_else(|| StoreError::misuse(Path::new(INDEX_NAME), problem))
}

fn module_of(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
}

impl Plan {
    /// All tensors, in the order in which they have to be written.
    pub fn order(&self) -> impl Iterator<Item = &TensorSpec> {
        self.shards.iter().flat_map(|shard| &shard.tensors)
    }

    /// The bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().fold(0, |total, shard| total.saturating_add(shard.bytes))
    }

    /// The content of the index file: `metadata.total_size` and the file of each tensor.
    pub fn index_json(&self) -> Vec<u8> {
        let mut map: BTreeMap<&str, &str> = BTreeMap::new();
        for shard in &self.shards {
            map.extend(shard.tensors.iter().map(|t| (t.name.as_str(), shard.file.as_str())));
        }
        let map: Map<String, Value> =
            map.into_iter().map(|(name, file)| (name.to_owned(), Value::from(file))).collect();
        let index = json!({ "metadata": { "total_size": self.total_bytes() }, "weight_map": map });
        let mut text = format!("{index:#}").into_bytes();
        text.push(b'\n');
        text
    }
}

/// Writes the shards of a [`Plan`], one after the other, and then their index.
///
/// Each file appears under its name only when it is complete. A folder in which an interrupted run
/// left some of the shards is not a valid checkpoint, and [`crate::Checkpoint::open`] says so; to
/// make the whole folder appear in one step, write to a staging folder and
/// [publish](crate::atomic::publish_dir) it.
#[derive(Debug)]
pub struct ShardedWriter {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    plan: Plan,
    metadata: BTreeMap<String, String>,
    current: Option<Writer>,
    written: Vec<Written>,
}

impl ShardedWriter {
    /// Starts writing into the folder `dir`, which must exist. `metadata` as in
    /// [`Writer::create`].
    ///
    /// # Errors
    /// As [`Writer::create`], or when a name occurs twice in the plan.
    pub fn create(
        fs: &Arc<dyn Fs>,
        dir: &Path,
        plan: Plan,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut names: Vec<&str> = plan.order().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair.first() == pair.last()) {
            let name = Quoted(twice.first().copied().unwrap_or_default());
            return Err(StoreError::misuse(dir, format!("tensor {name} is declared twice")));
        }
        let mut writer = Self {
            fs: Arc::clone(fs),
            dir: dir.to_owned(),
            plan,
            metadata,
            current: None,
            written: Vec::new(),
        };
        writer.open_next()?;
        Ok(writer)
    }

    /// The plan, whose [order](Plan::order) is the order to write in.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Writes the next bytes of the tensor `name`; the order is that of [`Plan::order`].
    ///
    /// # Errors
    /// As [`Writer::append`].
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        while self.current.as_ref().is_some_and(Writer::is_complete) && !self.holds(name) {
            self.close_current()?;
            self.open_next()?;
        }
        match &mut self.current {
            Some(writer) => writer.append(name, bytes),
            None => {
                let problem = format!("tensor {} was written after the last one", Quoted(name));
                Err(StoreError::misuse(&self.dir, problem))
            }
        }
    }

    /// Completes the last shard and writes the index, if there is more than one shard.
    ///
    /// # Errors
    /// When a tensor was not written completely, or the disk refuses.
    pub fn finish(mut self) -> Result<Index> {
        while self.current.is_some() {
            self.close_current()?;
            self.open_next()?;
        }
        let mut index = None;
        if self.plan.shards.len() > 1 {
            let mut file = AtomicFile::create(&self.fs, &self.dir.join(INDEX_NAME))?;
            file.write_all(&self.plan.index_json())?;
            index = Some(file.commit()?);
        }
        Ok(Index { shards: self.written, index })
    }

    /// Whether the shard being written has a tensor of this name.
    fn holds(&self, name: &str) -> bool {
        let shard = self.plan.shards.get(self.written.len());
        shard.is_some_and(|shard| shard.tensors.iter().any(|tensor| tensor.name == name))
    }

    fn close_current(&mut self) -> Result<()> {
        if let Some(writer) = self.current.take() {
            self.written.push(writer.finish()?);
        }
        Ok(())
    }

    fn open_next(&mut self) -> Result<()> {
        if let Some(shard) = self.plan.shards.get(self.written.len()) {
            let path = self.dir.join(&shard.file);
            let writer = Writer::create(&self.fs, &path, &shard.tensors, &self.metadata)?;
            self.current = Some(writer);
        }
        Ok(())
    }
}
