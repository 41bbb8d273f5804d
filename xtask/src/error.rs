//! What can keep a task from being done; a check that comes out wrong is not an error.

use std::path::Path;

/// Anything that ends a task, or a check of one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or a folder.
    #[error("{what}: {source}")]
    Io {
        /// The path, or what was being done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A command that did not end well.
    #[error("{command}\nended with {status}:\n{stderr}")]
    Command {
        /// What was run.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote to standard output.
        stdout: String,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// Something that is there, but not as it should be.
    #[error("{0}")]
    Unexpected(String),
}

impl Error {
    /// Names the path in an input/output error.
    pub(crate) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let what = path.display().to_string();
        move |source| Self::Io { what, source }
    }

    /// An error of the library crates.
    pub(crate) fn library(error: impl std::fmt::Display) -> Self {
        Self::Unexpected(error.to_string())
    }
}
