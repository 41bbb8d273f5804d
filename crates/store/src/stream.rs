//! A file whose tensors are declared first and then arrive in order, in pieces of any size.
//!
//! What the writers of both containers share: whose turn it is, how much of it is missing, and that
//! the file takes its name only when everything is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::atomic::{AtomicFile, Written};
use crate::error::{Quoted, Result, StoreError};
use crate::fs::Fs;
use crate::tensor::TensorSpec;

/// A file being written: its header first, then its tensors.
#[derive(Debug)]
pub(crate) struct TensorStream {
    path: PathBuf,
    file: AtomicFile,
    tensors: Vec<TensorSpec>,
    /// Zero bytes are put behind each tensor up to a multiple of this.
    alignment: u64,
    /// Which tensor is being written, and how many of its bytes are still to come.
    current: usize,
    missing: u64,
}

impl TensorStream {
    /// Starts a file with this header, whose end is aligned.
    ///
    /// # Errors
    /// When a size overflows, or the disk refuses.
    pub(crate) fn create(
        fs: &Arc<dyn Fs>,
        path: &Path,
        header: &[u8],
        tensors: Vec<TensorSpec>,
        alignment: u64,
    ) -> Result<Self> {
        let mut file = AtomicFile::create(fs, path)?;
        file.write_all(header)?;
        let path = path.to_owned();
        let mut stream = Self { path, file, tensors, alignment, current: 0, missing: 0 };
        stream.missing = stream.size()?;
        Ok(stream)
    }

    /// The names of the tensors in the order in which they have to be written.
    pub(crate) fn order(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Writes the next bytes of the tensor `name`.
    ///
    /// # Errors
    /// When it is not this tensor's turn, when it gets more bytes than it has, or when the disk
    /// refuses.
    pub(crate) fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        while self.missing == 0 && self.expected() != Some(name) && self.expected().is_some() {
            self.advance()?;
        }
        if self.expected() != Some(name) {
            let problem = match self.expected() {
                Some(expected) => format!(
                    "tensor {} was written while {} still misses {} bytes",
                    Quoted(name),
                    Quoted(expected),
                    self.missing
                ),
                None => format!("tensor {} was written after the last one", Quoted(name)),
            };
            return Err(StoreError::misuse(&self.path, problem));
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let Some(missing) = self.missing.checked_sub(length) else {
            let problem = format!(
                "tensor {} got {length} bytes while it misses only {}",
                Quoted(name),
                self.missing
            );
            return Err(StoreError::misuse(&self.path, problem));
        };
        self.file.write_all(bytes)?;
        self.missing = missing;
        Ok(())
    }

    /// Whether every byte of every tensor was written.
    pub(crate) fn is_complete(&self) -> bool {
        let rest = self.tensors.iter().skip(self.current).skip(1);
        self.missing == 0 && rest.clone().all(|tensor| tensor.byte_len() == Ok(0))
    }

    /// Brings the file to the disk and gives it its name.
    ///
    /// # Errors
    /// When a tensor was not written completely, or the disk refuses; there is no file then.
    pub(crate) fn finish(mut self) -> Result<Written> {
        if !self.is_complete() {
            let name = self.expected().unwrap_or_default();
            let problem = format!(
                "finished while tensor {} misses {} bytes, or one after it was not written",
                Quoted(name),
                self.missing
            );
            return Err(StoreError::misuse(&self.path, problem));
        }
        while self.expected().is_some() {
            self.advance()?;
        }
        self.file.commit()
    }

    fn expected(&self) -> Option<&str> {
        self.tensors.get(self.current).map(|tensor| tensor.name.as_str())
    }

    /// Fills up behind the current tensor and goes on to the next.
    fn advance(&mut self) -> Result<()> {
        let size = self.size()?;
        let padding = aligned(size, self.alignment).and_then(|end| end.checked_sub(size));
        let padding = padding.and_then(|padding| usize::try_from(padding).ok()).unwrap_or(0);
        if padding > 0 {
            self.file.write_all(&vec![0; padding])?;
        }
        self.current = self.current.saturating_add(1);
        self.missing = self.size()?;
        Ok(())
    }

    fn size(&self) -> Result<u64> {
        self.tensors.get(self.current).map_or(Ok(0), |tensor| byte_len(&self.path, tensor))
    }
}

/// The next multiple of an alignment, unless it exceeds 64 bits.
pub(crate) fn aligned(size: u64, alignment: u64) -> Option<u64> {
    size.checked_next_multiple_of(alignment)
}

/// The size of a tensor to be written, or an error that names it.
pub(crate) fn byte_len(path: &Path, tensor: &TensorSpec) -> Result<u64> {
    tensor.byte_len().map_err(|error| {
        StoreError::misuse(path, format!("tensor {}: {error}", Quoted(&tensor.name)))
    })
}
