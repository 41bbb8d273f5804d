//! From what a user types to a path: a folder, a file, or `org/name` in the Hugging Face cache.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Place, Result, StoreError};
use crate::fs::{self, Fs};

/// The part of the environment that says where the Hugging Face cache is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `HF_HUB_CACHE` (or its old name `HUGGINGFACE_HUB_CACHE`): the cache itself.
    pub hf_hub_cache: Option<PathBuf>,
    /// `HF_HOME`: the folder above `hub`.
    pub hf_home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`: the folder above `huggingface/hub`.
    pub xdg_cache_home: Option<PathBuf>,
    /// `HOME`: the folder above `.cache/huggingface/hub`.
    pub home: Option<PathBuf>,
}

impl Environment {
    /// Takes the variables out of an environment, such as `std::env::var_os`. Empty ones count as
    /// unset.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            hf_hub_cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")),
            hf_home: path("HF_HOME"),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            home: path("HOME"),
        }
    }

    /// The folder of the cache, if the environment says where it is: the first of `HF_HUB_CACHE`,
    /// `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`, `HOME/.cache/huggingface/hub`.
    pub fn hub_cache(&self) -> Option<PathBuf> {
        let below = |base: &Option<PathBuf>, rest: &str| base.as_ref().map(|base| base.join(rest));
        (self.hf_hub_cache.clone())
            .or_else(|| below(&self.hf_home, "hub"))
            .or_else(|| below(&self.xdg_cache_home, "huggingface/hub"))
            .or_else(|| below(&self.home, ".cache/huggingface/hub"))
    }
}

/// Finds the path of a model: a folder or file as given, or else the snapshot of
/// `org/name[@revision]` in the Hugging Face cache. Nothing is downloaded.
///
/// # Errors
/// [`StoreError::ModelNotFound`] with every place that was looked at and how to get the model.
pub fn resolve(fs: &dyn Fs, model: &str, environment: &Environment) -> Result<PathBuf> {
    let path = Path::new(model);
    let mut looked = vec![path.to_owned()];
    let not_found = |looked: Vec<PathBuf>, advice: String| {
        Err(StoreError::ModelNotFound { model: model.to_owned(), looked, advice })
    };
    if !model.is_empty() && !model.contains('\0') && fs::exists(fs, path)? {
        return Ok(path.to_owned());
    }
    let Some(repository) = Repository::parse(model) else {
        let advice = "give an existing folder or file, or org/name of a model in the Hugging Face \
                      cache";
        return not_found(looked, advice.to_owned());
    };
    let Some(cache) = environment.hub_cache() else {
        let advice = "set HF_HOME to say where the Hugging Face cache is".to_owned();
        return not_found(looked, advice);
    };
    let folder = cache.join(repository.folder());
    let snapshots = folder.join("snapshots");
    let reference = folder.join("refs").join(&repository.revision);

    let mut commit = repository.revision.clone();
    looked.push(reference.clone());
    if fs::exists(fs, &reference)? {
        let text = fs::read(fs, &reference, "a reference", 1024)?;
        commit = String::from_utf8_lossy(&text).trim().to_owned();
        if !is_hexadecimal(&commit) {
            let problem = "it does not hold the hash of a commit; delete it and download again";
            return Err(StoreError::malformed(&reference, Place::File, problem));
        }
    }
    let snapshot = snapshots.join(&commit);
    looked.push(snapshot.clone());
    if fs::exists(fs, &snapshot)? {
        return Ok(snapshot);
    }
    let advice = match available(fs, &snapshots)?.as_slice() {
        [] => format!("get it with `hf download {}`", repository.command()),
        revisions => format!(
            "the cache has other revisions of it, {}: name one as {}@revision, or get this one \
             with `hf download {}`",
            revisions.join(", "),
            repository.name,
            repository.command()
        ),
    };
    not_found(looked, advice)
}

/// The revisions of a repository that are in the cache.
fn available(fs: &dyn Fs, snapshots: &Path) -> Result<Vec<String>> {
    if !fs::exists(fs, snapshots)? {
        return Ok(Vec::new());
    }
    let entries = fs.list(snapshots)?;
    Ok(entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect())
}

fn is_hexadecimal(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `org/name[@revision]`, checked so that it cannot leave the cache.
#[derive(Debug, PartialEq, Eq)]
struct Repository {
    name: String,
    revision: String,
}

impl Repository {
    fn parse(model: &str) -> Option<Self> {
        let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
        let mut parts = name.split('/');
        let named = |part: &str| is_component(part) && !part.contains("--");
        let valid = named(parts.next()?) && parts.next().is_none_or(named);
        if !valid || parts.next().is_some() || !revision.split('/').all(is_component) {
            return None;
        }
        Some(Self { name: name.to_owned(), revision: revision.to_owned() })
    }

    /// Its folder within the cache.
    fn folder(&self) -> String {
        format!("models--{}", self.name.replace('/', "--"))
    }

    /// The arguments of `hf download`.
    fn command(&self) -> String {
        match self.revision.as_str() {
            "main" => self.name.clone(),
            revision => format!("{} --revision {revision}", self.name),
        }
    }
}

/// Letters, digits, `-`, `_` and `.`, but no name made of dots only.
fn is_component(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !part.is_empty() && part.bytes().all(allowed) && !part.bytes().all(|byte| byte == b'.')
}
