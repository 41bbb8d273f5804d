//! Files and folders that appear whole or not at all.
//!
//! The bytes are written beside the target under another name, brought to the disk, renamed, and
//! the rename is brought to the disk. Whoever opens the target sees the old state or the new one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Result, StoreError};
use crate::fs::{self, Fs, Kind, WriteFile};
use crate::hash::Sha256;

/// A file that was written and is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Writes a whole file in one step; a file of that name is replaced.
///
/// # Errors
/// When the disk refuses; the target is then as it was.
pub fn write(fs: &Arc<dyn Fs>, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(fs, path)?;
    file.write_all(bytes)?;
    file.commit().map(drop)
}

/// A file being written that takes its name only when [committed](AtomicFile::commit).
///
/// Dropped without that, what was written is removed.
#[derive(Debug)]
pub struct AtomicFile {
    fs: Arc<dyn Fs>,
    target: PathBuf,
    temporary: PathBuf,
    file: Option<Box<dyn WriteFile>>,
    hash: Sha256,
    bytes: u64,
}

impl AtomicFile {
    /// Starts a file that will be `path`. Meanwhile it is a hidden file beside it, whose name is
    /// always the same, so that an interrupted run leaves one to be overwritten.
    ///
    /// # Errors
    /// When the disk refuses, or `path` does not end in a file name.
    pub fn create(fs: &Arc<dyn Fs>, path: &Path) -> Result<Self> {
        let temporary = temporary(path)?;
        let file = fs.create(&temporary)?;
        Ok(Self {
            fs: Arc::clone(fs),
            target: path.to_owned(),
            temporary,
            file: Some(file),
            hash: Sha256::new(),
            bytes: 0,
        })
    }

    /// Writes at the end.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Err(StoreError::misuse(&self.target, "a write after the commit"));
        };
        file.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Brings the bytes to the disk and gives the file its name.
    ///
    /// # Errors
    /// When the disk refuses. The target is then as it was, unless only the last step failed: to
    /// bring the rename to the disk.
    pub fn commit(mut self) -> Result<Written> {
        let Some(file) = &mut self.file else {
            return Err(StoreError::misuse(&self.target, "a second commit"));
        };
        file.sync()?;
        self.fs.rename(&self.temporary, &self.target)?;
        self.file = None;
        self.fs.sync_dir(fs::parent(&self.target))?;
        let sha256 = std::mem::take(&mut self.hash).finish();
        Ok(Written { path: std::mem::take(&mut self.target), bytes: self.bytes, sha256 })
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nobody is there to hear of a failure, and the next run overwrites what remains.
            let _ = self.fs.remove_file(&self.temporary);
        }
    }
}

/// The name a file has until it is complete.
fn temporary(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(StoreError::misuse(path, "a path that does not end in a file name"));
    };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".partial");
    Ok(path.with_file_name(hidden))
}

/// Gives a finished folder its final name in one step, after all that is in it is on the disk.
///
/// # Errors
/// [`StoreError::Exists`] if there is something at `target`; otherwise when the disk refuses. The
/// target then does not exist, unless only the last step failed: to bring the rename to the disk.
pub fn publish_dir(fs: &dyn Fs, staging: &Path, target: &Path) -> Result<()> {
    if fs::exists(fs, target)? {
        return Err(StoreError::Exists { path: target.to_owned() });
    }
    sync_tree(fs, staging)?;
    fs.rename_new(staging, target)?;
    fs.sync_dir(fs::parent(target))?;
    if fs::parent(staging) != fs::parent(target) {
        fs.sync_dir(fs::parent(staging))?;
    }
    Ok(())
}

/// Brings every file and folder below `dir`, and `dir` itself, to the disk.
fn sync_tree(fs: &dyn Fs, dir: &Path) -> Result<()> {
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs.list(&folder)? {
            let path = folder.join(&entry.name);
            match entry.kind {
                Kind::File => fs.sync_file(&path)?,
                Kind::Dir => folders.push(path),
                Kind::Symlink | Kind::Other => {
                    return Err(StoreError::misuse(&path, "a published folder may not hold links"));
                }
            }
        }
        fs.sync_dir(&folder)?;
    }
    Ok(())
}
