//! Finding out how a checkpoint is laid out, and reading all of its headers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::auxiliary::{self, AuxiliaryFile, Skipped};
use super::{Config, Layout, WeightFile, index};
use crate::error::{Place, Quoted, Result, StoreError};
use crate::fs::{self, Entry, Fs, Kind};
use crate::gguf::{self, Metadata};
use crate::json::{self, Limits};
use crate::pytorch;
use crate::safetensors::{INDEX_NAME, SINGLE_NAME, read_header};
use crate::tensor::TensorInfo;

/// The file that says what the model is.
pub(super) const CONFIG: &str = "config.json";

/// Everything that opening a checkpoint finds out.
pub(super) struct Found {
    pub(super) layout: Layout,
    pub(super) files: Vec<WeightFile>,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) config: Option<Config>,
    pub(super) gguf: Option<Metadata>,
    pub(super) auxiliary: Vec<AuxiliaryFile>,
    pub(super) skipped: Vec<Skipped>,
}

/// Opens a folder, a GGUF file or a safetensors file.
pub(super) fn open(fs: &dyn Fs, path: &Path) -> Result<Found> {
    if fs.metadata(path)?.kind == Kind::Dir {
        return open_folder(fs, path);
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "gguf" => open_gguf(fs, path),
        "safetensors" => open_single(fs, path, Container::Safetensors),
        "bin" | "pth" | "pt" => open_single(fs, path, Container::Pytorch),
        _ => Err(StoreError::Unsupported {
            path: path.to_owned(),
            problem:
                "neither a folder nor a .safetensors, .gguf, .bin, .pth or .pt file; give one \
                      of these"
                    .to_owned(),
        }),
    }
}

fn open_gguf(fs: &dyn Fs, path: &Path) -> Result<Found> {
    let set = gguf::open_set(fs, path)?;
    let files = set
        .files
        .into_iter()
        .map(|part| WeightFile::new(part.path, part.stamp, BTreeMap::new()))
        .collect();
    Ok(Found {
        layout: Layout::Gguf,
        files,
        tensors: set.tensors,
        config: None,
        gguf: Some(set.metadata),
        auxiliary: Vec::new(),
        skipped: Vec::new(),
    })
}

fn open_single(fs: &dyn Fs, path: &Path, container: Container) -> Result<Found> {
    let (file, tensors) = container.read(fs, path.to_owned())?;
    let folder = fs::parent(path);
    let root = link_root(fs, folder)?;
    let around = auxiliary::find(fs, folder, &root, &|name| name == file.name)?;
    Ok(Found {
        layout: match container {
            Container::Safetensors => Layout::SafetensorsFile,
            Container::Pytorch => Layout::PytorchFile,
        },
        files: vec![file],
        tensors,
        config: read_config(fs, folder, &root)?,
        gguf: None,
        auxiliary: around.auxiliary,
        skipped: around.skipped,
    })
}

fn open_folder(fs: &dyn Fs, folder: &Path) -> Result<Found> {
    let root = link_root(fs, folder)?;
    let entries = fs.list(folder)?;
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    if let Some(gguf) = only_gguf(&entries) {
        check_link(fs, &folder.join(gguf), &root)?;
        return open_gguf(fs, &folder.join(gguf));
    }
    let config = read_config(fs, folder, &root)?;

    let container = Container::of(&entries);
    let (single, index_name) = container.names();
    // As transformers does: a single file wins over an index beside it.
    let index_used = has(index_name) && !has(single);
    let shards = if index_used {
        check_link(fs, &folder.join(index_name), &root)?;
        Some(index::read(fs, &folder.join(index_name), container.extension())?)
    } else {
        None
    };
    let names: Vec<String> = match (&shards, container) {
        (Some(shards), _) => shards.keys().cloned().collect(),
        (None, _) if has(single) => vec![single.to_owned()],
        (None, Container::Pytorch) => {
            named(&entries, ".pth").into_iter().map(str::to_owned).collect()
        }
        (None, Container::Safetensors) => safetensors_files(folder, &entries, config.is_some())?,
    };

    let mut files = Vec::new();
    let mut tensors = Vec::new();
    for name in &names {
        let path = folder.join(name);
        if shards.is_some() && !fs::exists(fs, &path)? {
            let advice = "the index names it; download this shard as well".to_owned();
            return Err(StoreError::NotFound { path, advice });
        }
        check_link(fs, &path, &root)?;
        let (file, header) = container.read(fs, path)?;
        let number = files.len();
        tensors.extend(header.into_iter().map(|tensor| TensorInfo { file: number, ..tensor }));
        files.push(file);
    }
    check_unique(&files, &tensors)?;
    if let Some(shards) = &shards {
        check_index(&folder.join(index_name), shards, &files, &tensors)?;
    }
    let used =
        |name: &str| names.iter().any(|file| file == name) || (index_used && name == index_name);
    let around = auxiliary::find(fs, folder, &root, &used)?;
    Ok(Found {
        layout: Layout::Folder,
        files,
        tensors,
        config,
        gguf: None,
        auxiliary: around.auxiliary,
        skipped: around.skipped,
    })
}

/// What weight files are.
#[derive(Clone, Copy)]
enum Container {
    Safetensors,
    Pytorch,
}

impl Container {
    /// PyTorch's files count only where there are no safetensors.
    fn of(entries: &[Entry]) -> Self {
        let has = |name: &str| entries.iter().any(|entry| entry.name == name);
        let has_safetensors = has(INDEX_NAME) || !named(entries, ".safetensors").is_empty();
        let is_pytorch = has(pytorch::SINGLE_NAME)
            || has(pytorch::INDEX_NAME)
            || named(entries, ".pth").len() == 1;
        if is_pytorch && !has_safetensors { Self::Pytorch } else { Self::Safetensors }
    }

    /// Names of the only file, and of the index of several.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Safetensors => (SINGLE_NAME, INDEX_NAME),
            Self::Pytorch => (pytorch::SINGLE_NAME, pytorch::INDEX_NAME),
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Safetensors => ".safetensors",
            Self::Pytorch => ".bin",
        }
    }

    /// Reads what a file says of its tensors.
    fn read(self, fs: &dyn Fs, path: PathBuf) -> Result<(WeightFile, Vec<TensorInfo>)> {
        let open = fs.open(&path)?;
        let stamp = open.stamp()?;
        let (tensors, metadata) = match self {
            Self::Safetensors => {
                let header = read_header(&*open)?;
                (header.tensors, header.metadata)
            }
            Self::Pytorch => (pytorch::read_header(&*open)?, BTreeMap::new()),
        };
        Ok((WeightFile::new(path, stamp, metadata), tensors))
    }
}

/// Names of the files of a folder with this extension.
fn named<'a>(entries: &'a [Entry], extension: &str) -> Vec<&'a str> {
    let names = entries.iter().filter(|entry| entry.kind != Kind::Dir);
    let names = names.filter_map(|entry| entry.name.to_str());
    names.filter(|name| name.ends_with(extension) && !name.starts_with('.')).collect()
}

/// The GGUF file that is all the weights a folder has; of a split one, the first part.
fn only_gguf(entries: &[Entry]) -> Option<&str> {
    let is_later_part = |name: &str| {
        let stem = name.strip_suffix(".gguf").and_then(|name| name.rsplit_once("-of-"));
        stem.is_some_and(|(before, _)| before.contains('-') && !before.ends_with("-00001"))
    };
    let mut files = named(entries, ".gguf");
    files.retain(|name| !is_later_part(name));
    match files[..] {
        [only] if named(entries, ".safetensors").is_empty() => Some(only),
        _ => None,
    }
}

/// The safetensors files of a folder without an index. Together they are taken for the model only
/// beside a `config.json`, and if they are not part of a larger set.
fn safetensors_files(folder: &Path, entries: &[Entry], has_config: bool) -> Result<Vec<String>> {
    let files: Vec<String> =
        named(entries, ".safetensors").into_iter().map(str::to_owned).collect();
    if files.is_empty() {
        let gguf = named(entries, ".gguf");
        let advice = if let Some(first) = gguf.first() {
            format!("give one of the GGUF files, for example {}", folder.join(first).display())
        } else if let Some(first) = named(entries, ".bin").first() {
            format!(
                "PyTorch's weights are called {}; give a file of another name itself, for example \
                 {}",
                pytorch::SINGLE_NAME,
                folder.join(first).display()
            )
        } else {
            "the folder holds no weights that can be read".to_owned()
        };
        return Err(StoreError::NotFound { path: folder.join(SINGLE_NAME), advice });
    }
    if !has_config {
        let advice = format!(
            "safetensors files without it may be anything; give one of them directly: {}",
            files.join(", ")
        );
        return Err(StoreError::NotFound { path: folder.join(CONFIG), advice });
    }
    for file in &files {
        if let Some((prefix, count)) = shard_of(file) {
            for number in 1..=count {
                let part = format!("{prefix}-{number:05}-of-{count:05}.safetensors");
                if !files.contains(&part) {
                    let advice = format!("{file} is one of {count} shards; download all of them");
                    return Err(StoreError::NotFound { path: folder.join(part), advice });
                }
            }
        }
    }
    Ok(files)
}

/// Prefix and count of a shard name, `prefix-00001-of-00003.safetensors`.
fn shard_of(name: &str) -> Option<(&str, u32)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(number) && is_number(count)).then(|| count.parse().ok().map(|n| (prefix, n)))?
}

fn check_unique(files: &[WeightFile], tensors: &[TensorInfo]) -> Result<()> {
    let mut seen: HashMap<&str, &WeightFile> = HashMap::new();
    for tensor in tensors {
        let Some(file) = files.get(tensor.file) else {
            continue;
        };
        if let Some(other) = seen.insert(&tensor.name, file) {
            let problem = format!("{} has a tensor of the same name", Quoted(&other.name));
            let place = Place::Tensor(tensor.name.clone());
            return Err(StoreError::malformed(&file.path, place, problem));
        }
    }
    Ok(())
}

/// Checks that the shards hold exactly what the index says.
fn check_index(
    path: &Path,
    shards: &index::Shards,
    files: &[WeightFile],
    tensors: &[TensorInfo],
) -> Result<()> {
    let mut found: HashMap<usize, BTreeSet<&str>> = HashMap::new();
    for tensor in tensors {
        found.entry(tensor.file).or_default().insert(&tensor.name);
    }
    for (number, file) in files.iter().enumerate() {
        let found = found.remove(&number).unwrap_or_default();
        let stated = shards.get(&file.name).into_iter().flatten();
        let stated: BTreeSet<&str> = stated.map(String::as_str).collect();
        if let Some(name) = stated.difference(&found).next() {
            let problem = format!(
                "the index says that it is in {}, but it is not there; download both again",
                Quoted(&file.name)
            );
            return Err(StoreError::malformed(path, Place::Tensor((*name).to_owned()), problem));
        }
        if let Some(name) = found.difference(&stated).next() {
            let problem = format!(
                "it is in {}, but not in the index; download both again",
                Quoted(&file.name)
            );
            return Err(StoreError::malformed(path, Place::Tensor((*name).to_owned()), problem));
        }
    }
    Ok(())
}

fn read_config(fs: &dyn Fs, folder: &Path, root: &Path) -> Result<Option<Config>> {
    let path = folder.join(CONFIG);
    if !fs::exists(fs, &path)? {
        return Ok(None);
    }
    check_link(fs, &path, root)?;
    let bytes = fs::read(fs, &path, "the configuration", Limits::default().bytes)?;
    let value = json::parse(&bytes, &path)?;
    Ok(Some(Config { bytes, value }))
}

/// The folder that links may lead to: the model itself, or, in a Hugging Face cache, the folder
/// above `snapshots`, which holds the `blobs`.
fn link_root(fs: &dyn Fs, folder: &Path) -> Result<PathBuf> {
    let folder = fs.canonicalize(folder)?;
    let snapshots = folder.parent();
    let in_snapshots = snapshots.is_some_and(|parent| parent.ends_with("snapshots"));
    let repository = snapshots.and_then(Path::parent).filter(|repository| {
        let name = repository.file_name().and_then(|name| name.to_str());
        in_snapshots && name.is_some_and(|name| name.starts_with("models--"))
    });
    Ok(repository.map_or_else(|| folder.clone(), Path::to_owned))
}

fn check_link(fs: &dyn Fs, path: &Path, root: &Path) -> Result<()> {
    let target = fs.canonicalize(path)?;
    if target.starts_with(root) {
        return Ok(());
    }
    let problem = format!(
        "a link to {}, outside of the checkpoint; copy the file here if it belongs to it",
        target.display()
    );
    Err(StoreError::OutsideCheckpoint { path: path.to_owned(), problem })
}
