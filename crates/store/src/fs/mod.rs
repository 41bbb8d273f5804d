//! The seam to the operating system: every file operation of the project is a method of [`Fs`].
//!
//! [`RealFs`] is the disk. [`FaultFs`] wraps another `Fs` and fails the k-th call, so that tests
//! can ask what is left behind when the disk gives up at any moment.

mod fault;
mod real;

use std::ffi::OsString;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

pub use fault::{Calls, Fault, FaultFs};
pub use real::RealFs;

use crate::checked;
use crate::error::{Place, Result, StoreError};

/// File operations. All errors name the path.
pub trait Fs: Send + Sync + Debug {
    /// Opens a regular file for reading at any position.
    fn open(&self, path: &Path) -> Result<Box<dyn ReadAt>>;

    /// Creates a file, or empties the one that is there.
    fn create(&self, path: &Path) -> Result<Box<dyn WriteFile>>;

    /// Opens a file to write at its end, and creates it if need be.
    fn append(&self, path: &Path) -> Result<Box<dyn WriteFile>>;

    /// Cuts a file to `length` bytes and brings that to the disk.
    fn truncate(&self, path: &Path, length: u64) -> Result<()>;

    /// Renames a file or folder; a file at the target is replaced in one step.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Renames a file or folder and fails with [`StoreError::Exists`] if the target exists.
    fn rename_new(&self, from: &Path, to: &Path) -> Result<()>;

    /// Brings the content of a file to the disk.
    fn sync_file(&self, path: &Path) -> Result<()>;

    /// Brings the entries of a folder to the disk: files created in it, renames within it.
    fn sync_dir(&self, path: &Path) -> Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> Result<()>;

    /// Removes a folder and all that is in it.
    fn remove_dir_all(&self, path: &Path) -> Result<()>;

    /// Creates a folder and those above it.
    fn create_dir_all(&self, path: &Path) -> Result<()>;

    /// The entries of a folder, sorted by name.
    fn list(&self, path: &Path) -> Result<Vec<Entry>>;

    /// What a path is, links followed.
    fn metadata(&self, path: &Path) -> Result<Metadata>;

    /// The path without links, `.` and `..`.
    fn canonicalize(&self, path: &Path) -> Result<PathBuf>;

    /// Bytes that may still be written to the disk that holds `path` (or, as long as it does not
    /// exist, the nearest folder above it).
    fn free_space(&self, path: &Path) -> Result<u64>;

    /// Takes the lock of a lock file, or fails with [`StoreError::Locked`] naming its holder. The
    /// lock ends with the value, or with the process, however that ends.
    fn lock(&self, path: &Path) -> Result<FileLock>;
}

/// A file open for reading at any position.
#[expect(clippy::len_without_is_empty, reason = "nobody asks whether a weight file is empty")]
pub trait ReadAt: Send + Sync + Debug {
    /// The path it was opened by.
    fn path(&self) -> &Path;

    /// Its length and modification time, as they are now.
    fn stamp(&self) -> Result<Stamp>;

    /// Its length now, in bytes.
    fn len(&self) -> Result<u64> {
        Ok(self.stamp()?.length)
    }

    /// Fills `buffer` from `offset` on; [`StoreError::Truncated`] if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
}

/// A file open for writing in sequence.
pub trait WriteFile: Send + Debug {
    /// Writes all of `bytes`.
    fn write_all(&mut self, bytes: &[u8]) -> Result<()>;

    /// Hands what is buffered to the operating system.
    fn flush(&mut self) -> Result<()>;

    /// Brings everything written to the disk.
    fn sync(&mut self) -> Result<()>;
}

/// Length and modification time of a file; two stamps that differ mean that it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Length in bytes.
    pub length: u64,
    /// Modification time, in nanoseconds from the epoch of the file system.
    pub modified: i128,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// File, folder or something else.
    pub kind: Kind,
    /// Length in bytes.
    pub length: u64,
}

/// The kind of an entry of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Dir,
    /// A symbolic link; only seen where links are not followed.
    Symlink,
    /// A pipe, a socket or a device.
    Other,
}

/// An entry of a folder; a link is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name within the folder.
    pub name: OsString,
    /// Its kind.
    pub kind: Kind,
}

/// A held lock; dropping it releases the lock. The lock file stays, empty of meaning.
#[derive(Debug)]
pub struct FileLock {
    _file: std::fs::File,
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// [`StoreError::TooLarge`] if it is longer, and everything that opening and reading can meet.
pub fn read(fs: &dyn Fs, path: &Path, what: &'static str, limit: u64) -> Result<Vec<u8>> {
    let file = fs.open(path)?;
    let length = file.len()?;
    if length > limit {
        return Err(StoreError::TooLarge { path: path.to_owned(), what, bytes: length, limit });
    }
    let mut bytes = allocate(path, what, length)?;
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Reads a whole text file of at most `limit` bytes.
///
/// # Errors
/// As [`read`], and when it is not UTF-8.
pub fn read_text(fs: &dyn Fs, path: &Path, what: &'static str, limit: u64) -> Result<String> {
    text(path, read(fs, path, what, limit)?)
}

/// The lines of a text file that fit into `limit` bytes, and whether there are more.
///
/// # Errors
/// As [`read_text`], and when the first line alone is longer.
pub fn read_lines(
    fs: &dyn Fs,
    path: &Path,
    what: &'static str,
    limit: u64,
) -> Result<(String, bool)> {
    let file = fs.open(path)?;
    let length = file.len()?;
    if length <= limit {
        return Ok((read_text(fs, path, what, limit)?, false));
    }
    let mut bytes = allocate(path, what, limit)?;
    file.read_exact_at(&mut bytes, 0)?;
    while bytes.pop_if(|byte| *byte != b'\n').is_some() {}
    if bytes.is_empty() {
        return Err(StoreError::TooLarge { path: path.to_owned(), what, bytes: length, limit });
    }
    Ok((text(path, bytes)?, true))
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let place = Place::Byte(error.utf8_error().valid_up_to() as u64);
        StoreError::malformed(path, place, "this is not UTF-8 text")
    })
}

/// A zeroed buffer for `length` bytes of a file whose real length was checked to hold them.
pub(crate) fn allocate(path: &Path, what: &str, length: u64) -> Result<Vec<u8>> {
    checked::buffer(length).ok_or_else(|| StoreError::OutOfMemory {
        path: path.to_owned(),
        what: what.to_owned(),
        bytes: length,
    })
}

/// Whether something exists at `path`.
pub(crate) fn exists(fs: &dyn Fs, path: &Path) -> Result<bool> {
    match fs.metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The folder that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
