//! The residual stream of all calibration rows between two blocks: in memory, or in a file.

use crate::EngineError;
use lapidary_store::Fs;
use lapidary_store::fs::{ReadAt, WriteFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The calibration rows on their way through the blocks.
pub(super) struct Streams {
    /// Past the compressed blocks.
    pub(super) compressed: Activations,
    /// Past the same blocks uncompressed, where a method wants to know how the two drift apart. They
    /// are never kept for a resumed job: it computes them again.
    pub(super) uncompressed: Option<Activations>,
}

/// Values of every token, `[tokens, width]`, read and replaced chunk by chunk in order.
pub(super) struct Activations {
    pub(super) width: usize,
    pub(super) tokens: usize,
    place: Place,
}

enum Place {
    Memory(Vec<f32>),
    Disk { fs: Arc<dyn Fs>, file: Box<dyn ReadAt>, next: Option<Next> },
}

struct Next {
    path: PathBuf,
    file: Box<dyn WriteFile>,
}

impl Activations {
    /// In memory.
    pub(super) fn in_memory(values: Vec<f32>, width: usize) -> Self {
        Self { width, tokens: values.len() / width.max(1), place: Place::Memory(values) }
    }

    /// In a file that was written by [`Writer`].
    pub(super) fn on_disk(
        fs: &Arc<dyn Fs>,
        path: &Path,
        width: usize,
        tokens: usize,
    ) -> Result<Self, EngineError> {
        let file = fs.open(path)?;
        let place = Place::Disk { fs: Arc::clone(fs), file, next: None };
        Ok(Self { width, tokens, place })
    }

    /// Whether they are in a file already.
    pub(super) fn is_on_disk(&self) -> bool {
        matches!(self.place, Place::Disk { .. })
    }

    /// The values of some tokens.
    pub(super) fn read(&self, start: usize, tokens: usize) -> Result<Vec<f32>, EngineError> {
        let (start, count) = (start * self.width, tokens * self.width);
        match &self.place {
            Place::Memory(values) => Ok(values[start..start + count].to_vec()),
            Place::Disk { file, .. } => {
                let mut bytes = vec![0; 4 * count];
                file.read_exact_at(&mut bytes, 4 * start as u64)?;
                Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
        }
    }

    /// Begins a pass that replaces all values; on the disk they go to a new file.
    pub(super) fn begin(&mut self, next: &Path) -> Result<(), EngineError> {
        if let Place::Disk { fs, next: slot, .. } = &mut self.place {
            *slot = Some(Next { path: next.to_owned(), file: fs.create(next)? });
        }
        Ok(())
    }

    /// Replaces the values of the chunk that begins at token `start`; chunks come in order.
    pub(super) fn write(&mut self, start: usize, values: &[f32]) -> Result<(), EngineError> {
        match &mut self.place {
            Place::Memory(all) => {
                let start = start * self.width;
                all[start..start + values.len()].copy_from_slice(values);
            }
            Place::Disk { next, .. } => {
                let next = next
                    .as_mut()
                    .ok_or_else(|| EngineError::Internal("no pass begun".to_owned()))?;
                next.file.write_all(&to_bytes(values))?;
            }
        }
        Ok(())
    }

    /// Ends a pass.
    pub(super) fn finish(&mut self) -> Result<(), EngineError> {
        if let Place::Disk { fs, file, next } = &mut self.place
            && let Some(Next { path, file: mut written }) = next.take()
        {
            written.sync()?;
            drop(written);
            *file = fs.open(&path)?;
        }
        Ok(())
    }

    /// Writes values that are in memory to a file, so that a resumed job need not compute them.
    pub(super) fn save(&self, fs: &Arc<dyn Fs>, path: &Path) -> Result<(), EngineError> {
        if let Place::Memory(values) = &self.place {
            let mut file = fs.create(path)?;
            for chunk in values.chunks(1 << 18) {
                file.write_all(&to_bytes(chunk))?;
            }
            file.sync()?;
        }
        Ok(())
    }
}

/// Writes values as they come, for activations that never were in memory.
pub(super) struct Writer {
    file: Box<dyn WriteFile>,
}

impl Writer {
    pub(super) fn create(fs: &Arc<dyn Fs>, path: &Path) -> Result<Self, EngineError> {
        Ok(Self { file: fs.create(path)? })
    }

    pub(super) fn append(&mut self, values: &[f32]) -> Result<(), EngineError> {
        Ok(self.file.write_all(&to_bytes(values))?)
    }

    pub(super) fn finish(mut self) -> Result<(), EngineError> {
        Ok(self.file.sync()?)
    }
}

fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
