//! A file system that fails on order. For tests.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Entry, FileLock, Fs, Metadata, ReadAt, Stamp, WriteFile};
use crate::error::{Result, StoreError};

/// Which calls are counted and failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Those that change the disk: create, write, sync, rename, remove, lock.
    Mutating,
    /// Those that do not: open, read, list, look at, resolve.
    Reading,
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which calls are counted.
    pub calls: Calls,
    /// The first call that fails, counted from 1.
    pub at: u64,
    /// How it fails.
    pub kind: io::ErrorKind,
    /// Whether every later call of the same sort fails as well, as if the disk (or the process)
    /// were gone.
    pub forever: bool,
}

/// Wraps another [`Fs`], counts its calls and fails them as a [`Fault`] says. For tests.
///
/// A write that fails has written the first half of its bytes, as on a disk that runs full.
#[derive(Clone, Debug)]
pub struct FaultFs {
    inner: Arc<dyn Fs>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    fault: Option<Fault>,
    mutating: AtomicU64,
    reading: AtomicU64,
}

impl FaultFs {
    /// Fails as `fault` says.
    pub fn new(inner: Arc<dyn Fs>, fault: Fault) -> Self {
        Self::build(inner, Some(fault))
    }

    /// Fails never; only counts.
    pub fn counting(inner: Arc<dyn Fs>) -> Self {
        Self::build(inner, None)
    }

    /// How many calls of this sort there were.
    pub fn count(&self, calls: Calls) -> u64 {
        self.state.counter(calls).load(Ordering::SeqCst)
    }

    fn build(inner: Arc<dyn Fs>, fault: Option<Fault>) -> Self {
        let state = State { fault, mutating: AtomicU64::new(0), reading: AtomicU64::new(0) };
        Self { inner, state: Arc::new(state) }
    }
}

impl State {
    fn counter(&self, calls: Calls) -> &AtomicU64 {
        match calls {
            Calls::Mutating => &self.mutating,
            Calls::Reading => &self.reading,
        }
    }

    /// Counts a call and says whether it has to fail.
    fn check(&self, calls: Calls, action: &'static str, path: &Path) -> Result<()> {
        let number = self.counter(calls).fetch_add(1, Ordering::SeqCst).saturating_add(1);
        match self.fault {
            Some(fault)
                if fault.calls == calls
                    && (number == fault.at || (fault.forever && number > fault.at)) =>
            {
                Err(StoreError::io(action, path, io::Error::from(fault.kind)))
            }
            _ => Ok(()),
        }
    }

    fn mutate(&self, action: &'static str, path: &Path) -> Result<()> {
        self.check(Calls::Mutating, action, path)
    }

    fn read(&self, action: &'static str, path: &Path) -> Result<()> {
        self.check(Calls::Reading, action, path)
    }
}

impl Fs for FaultFs {
    fn open(&self, path: &Path) -> Result<Box<dyn ReadAt>> {
        self.state.read("open", path)?;
        let inner = self.inner.open(path)?;
        Ok(Box::new(FaultFile { inner, state: Arc::clone(&self.state) }))
    }

    fn create(&self, path: &Path) -> Result<Box<dyn WriteFile>> {
        self.state.mutate("create", path)?;
        let inner = self.inner.create(path)?;
        Ok(Box::new(FaultWriter { inner, path: path.to_owned(), state: Arc::clone(&self.state) }))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn WriteFile>> {
        self.state.mutate("append to", path)?;
        let inner = self.inner.append(path)?;
        Ok(Box::new(FaultWriter { inner, path: path.to_owned(), state: Arc::clone(&self.state) }))
    }

    fn truncate(&self, path: &Path, length: u64) -> Result<()> {
        self.state.mutate("truncate", path)?;
        self.inner.truncate(path, length)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.state.mutate("rename", to)?;
        self.inner.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        self.state.mutate("rename", to)?;
        self.inner.rename_new(from, to)
    }

    fn sync_file(&self, path: &Path) -> Result<()> {
        self.state.mutate("sync", path)?;
        self.inner.sync_file(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.state.mutate("sync the folder", path)?;
        self.inner.sync_dir(path)
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        self.state.mutate("remove", path)?;
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        self.state.mutate("remove", path)?;
        self.inner.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        self.state.mutate("create the folder", path)?;
        self.inner.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>> {
        self.state.read("list the folder", path)?;
        self.inner.list(path)
    }

    fn metadata(&self, path: &Path) -> Result<Metadata> {
        self.state.read("look at", path)?;
        self.inner.metadata(path)
    }

    fn canonicalize(&self, path: &Path) -> Result<PathBuf> {
        self.state.read("resolve", path)?;
        self.inner.canonicalize(path)
    }

    fn free_space(&self, path: &Path) -> Result<u64> {
        self.state.read("ask the free space of", path)?;
        self.inner.free_space(path)
    }

    fn lock(&self, path: &Path) -> Result<FileLock> {
        self.state.mutate("lock", path)?;
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct FaultFile {
    inner: Box<dyn ReadAt>,
    state: Arc<State>,
}

impl ReadAt for FaultFile {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn stamp(&self) -> Result<Stamp> {
        self.state.read("look at", self.inner.path())?;
        self.inner.stamp()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.state.read("read", self.inner.path())?;
        self.inner.read_exact_at(buffer, offset)
    }
}

#[derive(Debug)]
struct FaultWriter {
    inner: Box<dyn WriteFile>,
    path: PathBuf,
    state: Arc<State>,
}

impl WriteFile for FaultWriter {
    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = self.state.mutate("write", &self.path);
        if failed.is_err() {
            let half = bytes.len().checked_div(2).and_then(|half| bytes.get(..half));
            self.inner.write_all(half.unwrap_or_default())?;
            return failed;
        }
        self.inner.write_all(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.state.mutate("write", &self.path)?;
        self.inner.flush()
    }

    fn sync(&mut self) -> Result<()> {
        self.state.mutate("sync", &self.path)?;
        self.inner.sync()
    }
}
