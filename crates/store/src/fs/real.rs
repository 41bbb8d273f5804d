//! The disk.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Entry, FileLock, Fs, Kind, Metadata, ReadAt, Stamp, WriteFile};
use crate::error::{Result, StoreError};

/// Small writes are gathered up to this many bytes.
const WRITE_BUFFER: usize = 256 * 1024;

/// The file system of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

impl Fs for RealFs {
    fn open(&self, path: &Path) -> Result<Box<dyn ReadAt>> {
        let wrap = |cause| StoreError::io("open", path, cause);
        // Opening a pipe would wait for a writer, so look at what it is first.
        let found = match kind(fs::metadata(path).map_err(wrap)?.file_type()) {
            Kind::File => {
                let file = File::open(path).map_err(wrap)?;
                return Ok(Box::new(RealFile { file, path: path.to_owned() }));
            }
            Kind::Dir => "folder",
            Kind::Symlink => "link",
            Kind::Other => "pipe or device",
        };
        Err(StoreError::NotAFile { path: path.to_owned(), found })
    }

    fn create(&self, path: &Path) -> Result<Box<dyn WriteFile>> {
        let file = File::create(path).map_err(|cause| StoreError::io("create", path, cause))?;
        Ok(RealWriter::boxed(file, path))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn WriteFile>> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let file = file.map_err(|cause| StoreError::io("append to", path, cause))?;
        Ok(RealWriter::boxed(file, path))
    }

    fn truncate(&self, path: &Path, length: u64) -> Result<()> {
        let cut = || {
            let file = OpenOptions::new().write(true).open(path)?;
            file.set_len(length)?;
            file.sync_all()
        };
        cut().map_err(|cause| StoreError::io("truncate", path, cause))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|cause| StoreError::io("rename a file to", to, cause))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => Err(StoreError::Exists { path: to.to_owned() }),
            // Some file systems cannot do it in one step; then look first.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if fs::symlink_metadata(to).is_ok() {
                    return Err(StoreError::Exists { path: to.to_owned() });
                }
                self.rename(from, to)
            }
            Err(errno) => Err(StoreError::io("rename a folder to", to, errno.into())),
        }
    }

    fn sync_file(&self, path: &Path) -> Result<()> {
        let sync = File::open(path).and_then(|file| file.sync_all());
        sync.map_err(|cause| StoreError::io("sync", path, cause))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let sync = File::open(path).and_then(|file| file.sync_all());
        sync.map_err(|cause| StoreError::io("sync the folder", path, cause))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(|cause| StoreError::io("remove", path, cause))
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        fs::remove_dir_all(path).map_err(|cause| StoreError::io("remove", path, cause))
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).map_err(|cause| StoreError::io("create the folder", path, cause))
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>> {
        let list = || -> io::Result<Vec<Entry>> {
            let mut entries = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                entries.push(Entry { name: entry.file_name(), kind: kind(entry.file_type()?) });
            }
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        };
        list().map_err(|cause| StoreError::io("list the folder", path, cause))
    }

    fn metadata(&self, path: &Path) -> Result<Metadata> {
        let found = fs::metadata(path).map_err(|cause| StoreError::io("look at", path, cause))?;
        Ok(Metadata { kind: kind(found.file_type()), length: found.len() })
    }

    fn canonicalize(&self, path: &Path) -> Result<PathBuf> {
        fs::canonicalize(path).map_err(|cause| StoreError::io("resolve", path, cause))
    }

    fn free_space(&self, path: &Path) -> Result<u64> {
        let mut place = path;
        loop {
            match rustix::fs::statvfs(place) {
                Ok(disk) => return Ok(disk.f_bavail.saturating_mul(disk.f_frsize)),
                Err(rustix::io::Errno::NOENT) if place != super::parent(place) => {
                    place = super::parent(place);
                }
                Err(errno) => {
                    return Err(StoreError::io("ask the free space of", path, errno.into()));
                }
            }
        }
    }

    fn lock(&self, path: &Path) -> Result<FileLock> {
        let wrap = |cause| StoreError::io("lock", path, cause);
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false);
        let mut file = open.open(path).map_err(wrap)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Ten digits are a process number; whatever else is there is not worth reading.
                let read = file.take(16).read_to_string(&mut holder);
                let holder = read.ok().and_then(|_| holder.trim().parse().ok());
                return Err(StoreError::Locked { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(cause)) => return Err(wrap(cause)),
        }
        let mut sign = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        sign().map_err(wrap)?;
        Ok(FileLock { _file: file })
    }
}

fn kind(file_type: fs::FileType) -> Kind {
    if file_type.is_file() {
        Kind::File
    } else if file_type.is_dir() {
        Kind::Dir
    } else if file_type.is_symlink() {
        Kind::Symlink
    } else {
        Kind::Other
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    path: PathBuf,
}

impl ReadAt for RealFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn stamp(&self) -> Result<Stamp> {
        let found = self.file.metadata();
        let found = found.map_err(|cause| StoreError::io("look at", &self.path, cause))?;
        let seconds = i128::from(found.mtime()).saturating_mul(1_000_000_000);
        let modified = seconds.saturating_add(i128::from(found.mtime_nsec()));
        Ok(Stamp { length: found.len(), modified })
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => {
                let wanted = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
                StoreError::Truncated {
                    path: self.path.clone(),
                    what: format!("a read at byte {offset}"),
                    needed: offset.saturating_add(wanted),
                    length: self.file.metadata().map_or(0, |found| found.len()),
                }
            }
            _ => StoreError::io("read", &self.path, cause),
        })
    }
}

#[derive(Debug)]
struct RealWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl RealWriter {
    fn boxed(file: File, path: &Path) -> Box<dyn WriteFile> {
        let file = BufWriter::with_capacity(WRITE_BUFFER, file);
        Box::new(Self { file, path: path.to_owned() })
    }
}

impl WriteFile for RealWriter {
    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|cause| StoreError::io("write", &self.path, cause))
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|cause| StoreError::io("write", &self.path, cause))
    }

    fn sync(&mut self) -> Result<()> {
        self.flush()?;
        let sync = self.file.get_ref().sync_all();
        sync.map_err(|cause| StoreError::io("sync", &self.path, cause))
    }
}
