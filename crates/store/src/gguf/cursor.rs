//! A cursor over a file that hands out checked little-endian values.
//!
//! It reads the file in chunks, knows where it is for error messages, and refuses every length and
//! count that the rest of the file cannot hold before anything is allocated for it.

use std::path::Path;

use super::{MAX_HEADER, MAX_STRING};
use crate::checked::FileInt;
use crate::error::{Place, Result, StoreError};
use crate::fs::ReadAt;

/// Bytes read from the file at a time.
const CHUNK: u64 = 256 << 10;

/// Elements of an array for which memory is taken at once; beyond, it grows as they are read.
const RESERVE: usize = 64 << 10;

pub(super) struct Cursor<'a> {
    file: &'a dyn ReadAt,
    length: u64,
    /// Offset in the file of the first byte of `buffer`.
    base: u64,
    buffer: Vec<u8>,
    /// How much of `buffer` was handed out.
    used: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a dyn ReadAt) -> Result<Self> {
        let length = file.len()?;
        Ok(Self { file, length, base: 0, buffer: Vec::new(), used: 0 })
    }

    pub(super) fn path(&self) -> &'a Path {
        self.file.path()
    }

    /// The length of the file.
    pub(super) fn file_length(&self) -> u64 {
        self.length
    }

    /// Where the next byte comes from.
    pub(super) fn position(&self) -> u64 {
        self.base.saturating_add(u64::try_from(self.used).unwrap_or(u64::MAX))
    }

    /// An error at the current position.
    pub(super) fn error(&self, problem: impl Into<String>) -> StoreError {
        StoreError::malformed(self.path(), Place::Byte(self.position()), problem)
    }

    /// Bytes that may still be read: the rest of the file, but no more than headers may have.
    fn remaining(&self) -> u64 {
        self.length.min(MAX_HEADER).saturating_sub(self.position())
    }

    /// Refuses `count` items of at least `size` bytes each if they cannot be in the rest.
    pub(super) fn check_count(&self, count: FileInt, size: u64, what: &str) -> Result<usize> {
        let needed = count.times(size).map(FileInt::get);
        let remaining = self.remaining();
        match (needed, count.at_most(remaining)) {
            (Some(needed), Some(count)) if needed <= remaining => Ok(count),
            _ if self.length > MAX_HEADER => Err(self.error(format!(
                "{count} {what} are stated, more than the {MAX_HEADER} bytes of a header can hold"
            ))),
            _ => Err(self.error(format!(
                "{count} {what} are stated, but only {remaining} bytes follow; the file is \
                 truncated or damaged, download it again"
            ))),
        }
    }

    /// The next `count` bytes.
    fn take(&mut self, count: usize, what: &str) -> Result<&[u8]> {
        let end = self.used.saturating_add(count);
        if end > self.buffer.len() {
            self.refill(count, what)?;
        }
        let start = self.used;
        self.used = start.saturating_add(count);
        // `refill` either made `count` bytes available or failed.
        Ok(self.buffer.get(start..self.used).unwrap_or_default())
    }

    /// Reads the next chunk, starting at the current position, with at least `count` bytes.
    fn refill(&mut self, count: usize, what: &str) -> Result<()> {
        let needed = u64::try_from(count).unwrap_or(u64::MAX);
        if self.remaining() < needed {
            let end = self.position().saturating_add(needed);
            if end <= self.length {
                return Err(self.error(format!("the header is longer than {MAX_HEADER} bytes")));
            }
            return Err(StoreError::Truncated {
                path: self.path().to_owned(),
                what: what.to_owned(),
                needed: end,
                length: self.length,
            });
        }
        self.base = self.position();
        self.used = 0;
        self.buffer.clear();
        let size = self.length.saturating_sub(self.base).min(CHUNK.max(needed));
        self.buffer.resize(usize::try_from(size).unwrap_or(0), 0);
        self.file.read_exact_at(&mut self.buffer, self.base)
    }

    pub(super) fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut value = [0; N];
        value.copy_from_slice(self.take(N, what)?);
        Ok(value)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<FileInt> {
        Ok(FileInt::new(u64::from_le_bytes(self.bytes(what)?)))
    }

    /// A string: u64 length and as many bytes of UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        if length.get() > MAX_STRING {
            return Err(self.error(format!("{what} of {length} bytes, the limit is {MAX_STRING}")));
        }
        let length = self.check_count(length, 1, &format!("bytes of {what}"))?;
        let start = self.position();
        let text = std::str::from_utf8(self.take(length, what)?).map(str::to_owned);
        text.map_err(|error| {
            let place = Place::Byte(start);
            StoreError::malformed(self.path(), place, format!("{what} is not UTF-8: {error}"))
        })
    }

    /// `count` values of `N` bytes each; the caller has checked `count` against the rest.
    pub(super) fn values<T, const N: usize>(
        &mut self,
        count: usize,
        convert: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        self.list(count, |cursor| Ok(convert(cursor.bytes("an array")?)))
    }

    /// `count` items read by `read`; memory grows with what was really there.
    pub(super) fn list<T>(
        &mut self,
        count: usize,
        mut read: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut list = Vec::new();
        for _ in 0..count {
            if list.len() == list.capacity() {
                let missing = count.saturating_sub(list.len());
                let reserve = missing.min(RESERVE.max(list.len()));
                list.try_reserve(reserve).map_err(|_| StoreError::OutOfMemory {
                    path: self.path().to_owned(),
                    what: "an array".to_owned(),
                    bytes: u64::try_from(count).unwrap_or(u64::MAX),
                })?;
            }
            list.push(read(self)?);
        }
        Ok(list)
    }
}
