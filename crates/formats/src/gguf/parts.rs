//! A model in one file, or in several no larger than was asked for: `model-00001-of-00003.gguf`, whose
//! first has the metadata and all of which say their place among the others.

use crate::FormatError;
use lapidary_store::gguf::{MetaValue, Metadata, Writer};
use lapidary_store::{Fs, TensorSpec};
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the files, without what tells them apart.
const STEM: &str = "model";

/// One file.
#[derive(Debug)]
pub(super) struct Part {
    name: String,
    metadata: Metadata,
    tensors: Vec<TensorSpec>,
}

/// The files of a model, none with more than `most` bytes of tensors unless it is of one tensor.
///
/// # Errors
/// When there would be more than the format can count.
pub(super) fn parts(
    metadata: Metadata,
    tensors: Vec<TensorSpec>,
    most: Option<u64>,
) -> Result<Vec<Part>, FormatError> {
    let (total, mut files, mut filled) = (tensors.len(), vec![vec![]], 0_u64);
    for tensor in tensors {
        let bytes = tensor.byte_len().unwrap_or(u64::MAX);
        let is_full = most.is_some_and(|most| filled.saturating_add(bytes) > most);
        match files.last_mut() {
            Some(file) if file.is_empty() || !is_full => {
                file.push(tensor);
                filled = filled.saturating_add(bytes);
            }
            _ => {
                files.push(vec![tensor]);
                filled = bytes;
            }
        }
    }
    if files.len() == 1 {
        let tensors = files.remove(0);
        return Ok(vec![Part { name: format!("{STEM}.gguf"), metadata, tensors }]);
    }
    let (Ok(count), Ok(stated)) = (u16::try_from(files.len()), i32::try_from(total)) else {
        let what = format!("{} files of {total} tensors are more than GGUF counts", files.len());
        return Err(FormatError::malformed(STEM, what));
    };
    let mut all = Some(metadata);
    let part = |(number, tensors): (u16, Vec<TensorSpec>)| {
        let mut metadata = all.take().unwrap_or_default();
        metadata.set("split.no", MetaValue::U16(number));
        metadata.set("split.count", MetaValue::U16(count));
        metadata.set("split.tensors.count", MetaValue::I32(stated));
        let name = format!("{STEM}-{:05}-of-{count:05}.gguf", u32::from(number) + 1);
        Part { name, metadata, tensors }
    };
    Ok((0..count).zip(files).map(part).collect())
}

/// Bytes of the files together.
///
/// # Errors
/// When one of them cannot be written.
pub(super) fn file_bytes(parts: &[Part]) -> Result<u64, FormatError> {
    let bytes = |part: &Part| Ok(Writer::file_bytes(&part.metadata, &part.tensors)?);
    parts.iter().map(bytes).sum()
}

/// The files being written, one after the other.
pub(super) struct PartsWriter {
    fs: Arc<dyn Fs>,
    folder: PathBuf,
    waiting: VecDeque<Part>,
    /// The file being written, and the names of its tensors.
    open: Option<(Writer, BTreeSet<String>)>,
    written: u64,
}

impl PartsWriter {
    /// Starts the first file.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub(super) fn create(
        fs: &Arc<dyn Fs>,
        folder: &Path,
        parts: Vec<Part>,
    ) -> Result<Self, FormatError> {
        let (fs, folder) = (Arc::clone(fs), folder.to_owned());
        let mut writer = Self { fs, folder, waiting: parts.into(), open: None, written: 0 };
        writer.next()?;
        Ok(writer)
    }

    /// Completes the file being written and starts the one after it; whether there is one.
    fn next(&mut self) -> Result<bool, FormatError> {
        if let Some((writer, _)) = self.open.take() {
            self.written = self.written.saturating_add(writer.finish()?.bytes);
        }
        let Some(Part { name, metadata, tensors }) = self.waiting.pop_front() else {
            return Ok(false);
        };
        let writer = Writer::create(&self.fs, &self.folder.join(name), &metadata, &tensors)?;
        self.open = Some((writer, tensors.into_iter().map(|tensor| tensor.name).collect()));
        Ok(true)
    }

    /// Writes the next bytes of a tensor, as [`Writer::append`] does.
    ///
    /// # Errors
    /// As there.
    pub(super) fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        let is_here = |open: &Option<(Writer, BTreeSet<String>)>| {
            open.as_ref().is_none_or(|(_, names)| names.contains(name))
        };
        while !is_here(&self.open) && !self.waiting.is_empty() {
            self.next()?;
        }
        let closed = || FormatError::malformed(name, "comes after the end");
        let (writer, _) = self.open.as_mut().ok_or_else(closed)?;
        Ok(writer.append(name, bytes)?)
    }

    /// Completes what is left; returns the bytes of all files.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    pub(super) fn finish(mut self) -> Result<u64, FormatError> {
        while self.next()? {}
        Ok(self.written)
    }
}
