//! The files of a folder that are not the weights: which belong to the model, which do not.

use std::path::{Path, PathBuf};

use super::layout::CONFIG;
use crate::error::Result;
use crate::fs::{Fs, Kind};

/// The longest auxiliary file that is read into memory, in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 30;

/// A file that goes with the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuxiliaryFile {
    /// Its name, relative to the folder of the checkpoint, with `/` between parts.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Something in the folder that is not part of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name, relative to the folder of the checkpoint.
    pub name: String,
    /// Why it is left out.
    pub reason: &'static str,
}

/// What is in a folder beside its weights, both lists sorted by name.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) auxiliary: Vec<AuxiliaryFile>,
    pub(super) skipped: Vec<Skipped>,
}

/// Lists a folder and the folders in it. `used` says which files of the folder are its weights;
/// `root` is where links may lead.
pub(super) fn find(
    fs: &dyn Fs,
    folder: &Path,
    root: &Path,
    used: &dyn Fn(&str) -> bool,
) -> Result<Found> {
    let mut found = Found::default();
    for entry in fs.list(folder)? {
        let Some(name) = entry.name.to_str() else {
            found.skip(&entry.name.to_string_lossy(), "its name is not UTF-8");
            continue;
        };
        if used(name) || name == CONFIG {
            continue;
        }
        let path = folder.join(name);
        match entry.kind {
            Kind::Dir if name.starts_with('.') => found.skip(name, "a hidden folder"),
            Kind::Dir => find_in_subfolder(fs, &path, name, root, &mut found)?,
            _ => found.file(fs, name, path, root, other_weights(name))?,
        }
    }
    found.auxiliary.sort_by(|a, b| a.name.cmp(&b.name));
    found.skipped.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn find_in_subfolder(
    fs: &dyn Fs,
    folder: &Path,
    prefix: &str,
    root: &Path,
    found: &mut Found,
) -> Result<()> {
    for entry in fs.list(folder)? {
        let name = format!("{prefix}/{}", entry.name.to_string_lossy());
        let Some(own) = entry.name.to_str() else {
            found.skip(&name, "its name is not UTF-8");
            continue;
        };
        match entry.kind {
            Kind::Dir => found.skip(&name, "a folder within a folder"),
            _ => {
                // The modules of sentence-transformers (`2_Dense`) have weights of their own, which
                // are not a copy of the model's.
                let reason = if is_module(prefix) { None } else { other_weights(own) };
                found.file(fs, &name, folder.join(own), root, reason)?;
            }
        }
    }
    Ok(())
}

impl Found {
    fn skip(&mut self, name: &str, reason: &'static str) {
        self.skipped.push(Skipped { name: name.to_owned(), reason });
    }

    fn file(
        &mut self,
        fs: &dyn Fs,
        name: &str,
        path: PathBuf,
        root: &Path,
        skip: Option<&'static str>,
    ) -> Result<()> {
        if let Some(reason) = skip {
            self.skip(name, reason);
            return Ok(());
        }
        let target = match fs.canonicalize(&path) {
            Ok(target) => target,
            Err(error) if error.is_not_found() => {
                self.skip(name, "a link to nothing");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if !target.starts_with(root) {
            self.skip(name, "a link to outside of the checkpoint");
            return Ok(());
        }
        let metadata = fs.metadata(&path)?;
        if metadata.kind != Kind::File {
            self.skip(name, "not a regular file");
            return Ok(());
        }
        self.auxiliary.push(AuxiliaryFile { name: name.to_owned(), path, bytes: metadata.length });
        Ok(())
    }
}

/// Whether a folder is a module of sentence-transformers: `1_Pooling`, `2_Dense`.
fn is_module(name: &str) -> bool {
    let Some((number, rest)) = name.split_once('_') else {
        return false;
    };
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) && !rest.is_empty()
}

/// The reason to leave out a file whose name says that it holds weights, or is no part of a model.
fn other_weights(name: &str) -> Option<&'static str> {
    const WEIGHTS: [&str; 21] = [
        "bin",
        "ckpt",
        "gguf",
        "ggml",
        "h5",
        "keras",
        "llamafile",
        "mlmodel",
        "msgpack",
        "nemo",
        "npz",
        "onnx",
        "onnx_data",
        "ot",
        "pb",
        "pkl",
        "pt",
        "pth",
        "safetensors",
        "tflite",
        "zip",
    ];
    if name.starts_with(".git") || name == ".DS_Store" {
        return Some("not part of a model");
    }
    if name.ends_with(".partial") {
        return Some("left by an interrupted download or run");
    }
    if name.ends_with(".index.json") {
        return Some("the index of other weights");
    }
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let extension = extension.to_ascii_lowercase();
    WEIGHTS.contains(&extension.as_str()).then_some("weights that are not used")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_in_other_formats_are_known_by_name() {
        let others = [
            "pytorch_model.bin",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            "tf_model.h5",
            "flax_model.msgpack",
            "rust_model.ot",
            "model.onnx",
            "model.Q4_K_M.gguf",
            "consolidated.00.pth",
            ".gitattributes",
        ];
        for name in others {
            assert!(other_weights(name).is_some(), "{name}");
        }
        let parts = [
            "tokenizer.json",
            "tokenizer.model",
            "vocab.txt",
            "merges.txt",
            "chat_template.jinja",
            "modeling_custom.py",
            "LICENSE",
            "README.md",
            "generation_config.json",
        ];
        for name in parts {
            assert!(other_weights(name).is_none(), "{name}");
        }
    }

    #[test]
    fn modules_are_known_by_name() {
        assert!(is_module("1_Pooling") && is_module("12_Dense"));
        assert!(!is_module("onnx") && !is_module("_x") && !is_module("1_") && !is_module("a_b"));
    }
}
