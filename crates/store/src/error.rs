//! The one error type of this crate: what went wrong, in which file, where, and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A result whose error is a [`StoreError`].
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What kind of trouble an error is; the command line turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// A file does not hold what it should.
    BadInput,
    /// The operating system refused: disk full, no permission, a device that fails.
    Io,
    /// The thing asked for does not exist.
    NotFound,
    /// Doing it would break a promise: overwrite a result, or write where another process writes.
    Refused,
    /// The calling code broke the contract of an interface of this crate.
    Misuse,
}

/// Where in a file the trouble is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A byte offset.
    Byte(u64),
    /// A line and column of a text file, both counted from 1.
    Line {
        /// Line number.
        line: usize,
        /// Column, in bytes.
        column: usize,
    },
    /// A tensor, by name.
    Tensor(String),
    /// A metadata key or the name of an entry.
    Key(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Byte(offset) => write!(f, ", byte {offset}"),
            Self::Line { line, column } => write!(f, ", line {line} column {column}"),
            Self::Tensor(name) => write!(f, ", tensor {}", Quoted(name)),
            Self::Key(name) => write!(f, ", key {}", Quoted(name)),
        }
    }
}

/// A name from a file made fit for a terminal: control characters escaped, long names cut.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 120;
        write!(f, "`")?;
        write_visible(f, self.0.chars().take(LONGEST))?;
        if self.0.chars().nth(LONGEST).is_some() {
            write!(f, "…")?;
        }
        write!(f, "`")
    }
}

/// A path made fit for a terminal: control characters escaped.
struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_visible(f, self.0.to_string_lossy().chars())
    }
}

fn write_visible(f: &mut fmt::Formatter<'_>, mut text: impl Iterator<Item = char>) -> fmt::Result {
    text.try_for_each(|character| match character.is_control() {
        true => write!(f, "{}", character.escape_default()),
        false => write!(f, "{character}"),
    })
}

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refused an operation on a file.
    #[error("cannot {action} {}: {cause}", Shown(path))]
    Io {
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The answer of the operating system.
        cause: io::Error,
    },
    /// The disk, or the quota on it, is full.
    #[error(
        "cannot {action} {}: the disk is full; free some space or choose another folder, then run \
         the same command again",
        Shown(path)
    )]
    DiskFull {
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// A file or folder that was asked for does not exist.
    #[error("{} does not exist; {advice}", Shown(path))]
    NotFound {
        /// The missing path.
        path: PathBuf,
        /// What to do.
        advice: String,
    },
    /// A model argument names nothing that can be found on this machine.
    #[error("model {} not found; {advice}; looked at: {}", Quoted(model), Paths(looked))]
    ModelNotFound {
        /// The model argument as given.
        model: String,
        /// Every path that was tried, in order.
        looked: Vec<PathBuf>,
        /// How to get it.
        advice: String,
    },
    /// A path names a directory, pipe or device where a regular file is needed.
    #[error("{} is a {found}, not a regular file; give the path of a file", Shown(path))]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// A file does not follow its format.
    #[error("{}{place}: {problem}", Shown(path))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong and, where there is a choice, what to do.
        problem: String,
    },
    /// A file ends before what its own header promises.
    #[error(
        "{} is truncated: {what} needs {needed} bytes, the file has {length}; download or export \
         it again",
        Shown(path)
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What does not fit, for example a tensor by name.
        what: String,
        /// The length the file must have at least.
        needed: u64,
        /// The length it has.
        length: u64,
    },
    /// A file is larger than a reader of its kind accepts, or states a size that is.
    #[error("{}: {what} is {bytes} bytes, the limit is {limit}", Shown(path))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file changed its length or its modification time while it was in use.
    #[error("{} changed while it was being read; start again once it stays as it is", Shown(path))]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A well-formed file of a kind or version that is not supported.
    #[error("{}: {problem}", Shown(path))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported and what to use instead.
        problem: String,
    },
    /// A name or link in a checkpoint points outside of it.
    #[error("{}: {problem}", Shown(path))]
    OutsideCheckpoint {
        /// The file that holds the name, or the link.
        path: PathBuf,
        /// Where it points, and what to do.
        problem: String,
    },
    /// Memory for a block whose size was checked could not be had.
    #[error(
        "{}: not enough memory for {bytes} bytes of {what}; close other programs or use a \
             machine with more memory",
        Shown(path)
    )]
    OutOfMemory {
        /// The file being read.
        path: PathBuf,
        /// What was to be read.
        what: String,
        /// How many bytes.
        bytes: u64,
    },
    /// Another process holds the lock of a folder.
    #[error(
        "{} is in use by {}; wait for it to end, or choose another folder", Shown(path),
        Holder(*holder)
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process that holds it, when the lock file says so.
        holder: Option<u32>,
    },
    /// The target of a publication exists already.
    #[error("{} exists already; remove it or choose another output", Shown(path))]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// A tensor was asked for that the checkpoint does not have.
    #[error("{} has no tensor {}{}", Shown(path), Quoted(name), Near(near.as_deref()))]
    NoSuchTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// A name the checkpoint does have that looks much like it.
        near: Option<String>,
    },
    /// A tokenizer definition cannot be used, or a text cannot be encoded with it.
    #[error("tokenizer {what}: {problem}")]
    Tokenizer {
        /// Which tokenizer, as the caller named it.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// The calling code used an interface of this crate against its contract.
    #[error("internal error, please report it: {problem} ({})", Shown(path))]
    Misuse {
        /// The file concerned.
        path: PathBuf,
        /// What was done.
        problem: String,
    },
}

impl StoreError {
    /// Which exit code and which kind of remedy this error calls for.
    pub fn category(&self) -> Category {
        match self {
            Self::Io { .. } | Self::DiskFull { .. } | Self::OutOfMemory { .. } => Category::Io,
            Self::NotFound { .. } | Self::ModelNotFound { .. } | Self::NoSuchTensor { .. } => {
                Category::NotFound
            }
            Self::Locked { .. } | Self::Exists { .. } => Category::Refused,
            Self::Misuse { .. } => Category::Misuse,
            Self::NotAFile { .. }
            | Self::Malformed { .. }
            | Self::Truncated { .. }
            | Self::TooLarge { .. }
            | Self::Changed { .. }
            | Self::Unsupported { .. }
            | Self::OutsideCheckpoint { .. }
            | Self::Tokenizer { .. } => Category::BadInput,
        }
    }

    /// Turns an answer of the operating system into the error that says the most about it.
    pub fn io(action: &'static str, path: &Path, cause: io::Error) -> Self {
        let path = path.to_owned();
        let not_found = |advice| Self::NotFound { path: path.clone(), advice };
        if cause.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            return not_found("it is a link that leads back to itself".to_owned());
        }
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { action, path }
            }
            // What is to be made need not exist; then the trouble is the place it is to be made in.
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                if !action.starts_with("create") =>
            {
                not_found("check the path".to_owned())
            }
            _ => Self::Io { action, path, cause },
        }
    }

    /// Whether the error says that a path does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub(crate) fn malformed(path: &Path, place: Place, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), place, problem: problem.into() }
    }

    pub(crate) fn misuse(path: &Path, problem: impl Into<String>) -> Self {
        Self::Misuse { path: path.to_owned(), problem: problem.into() }
    }
}

struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, path) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{}", Shown(path))?;
        }
        Ok(())
    }
}

struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(process) => write!(f, "process {process}"),
            None => write!(f, "another process"),
        }
    }
}

struct Near<'a>(Option<&'a str>);

impl fmt::Display for Near<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "; it has {}", Quoted(name)),
            None => Ok(()),
        }
    }
}
