//! The directory of a zip archive whose entries are stored as they are, which is how PyTorch writes
//! them.
//!
//! PKWARE's APPNOTE 6.3.10: the end record (4.3.16), with 64-bit sizes its locator and record (4.3.14,
//! 4.3.15), the central directory (4.3.12) and the local headers (4.3.7).

use std::collections::HashMap;
use std::path::Path;

use crate::checked::{FileInt, Span};
use crate::error::{Place, Quoted, Result, StoreError};
use crate::fs::{self, ReadAt};

/// Bytes of the end record, without its comment.
const END_BYTES: u64 = 22;
/// The longest comment after it.
const LONGEST_COMMENT: u64 = 65_535;
/// Bytes of the locator of the 64-bit record, and of that record.
const LOCATOR_BYTES: u64 = 20;
const END_64_BYTES: usize = 56;
/// Bytes of an entry of the directory and of a local header, without names.
const ENTRY_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;
/// A state dict of a million tensors has a directory and a pickle far below these.
const MAX_DIRECTORY: u64 = 256 << 20;
const MAX_PICKLE: u64 = 256 << 20;

/// The entries of an archive that `torch.save` wrote.
#[derive(Debug)]
pub(super) struct Archive {
    /// Where the bytes of each entry are.
    entries: HashMap<String, Span>,
    /// The folder that all entries stand in.
    prefix: String,
}

/// A record, whose numbers are read at fixed places.
struct Record<'a>(&'a [u8]);

impl Record<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn u16(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(|bytes| u64::from(u16::from_le_bytes(bytes)))
    }

    fn u32(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(|bytes| u64::from(u32::from_le_bytes(bytes)))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}

impl Archive {
    /// Reads the directory of an archive.
    pub(super) fn open(file: &dyn ReadAt) -> Result<Self> {
        let path = file.path();
        let length = file.len()?;
        let directory = directory(file, length)?;
        let mut bytes = fs::allocate(path, "the directory of the archive", directory.len())?;
        file.read_exact_at(&mut bytes, directory.start())?;
        let damaged = || damaged(path, "its directory is cut off");
        let mut entries = HashMap::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (entry, after) = Entry::read(path, rest)?.ok_or_else(damaged)?;
            let span = entry.span(file, length)?;
            if entries.insert(entry.name.clone(), span).is_some() {
                let problem = format!("two entries are called {}", Quoted(&entry.name));
                return Err(StoreError::malformed(path, Place::File, problem));
            }
            rest = after;
        }
        let mut prefixes = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
        let prefix = match (prefixes.next(), prefixes.next()) {
            (Some(only), None) if !only.contains('/') => only.to_owned(),
            _ => {
                let problem = "an archive without one data.pkl, so not one of torch.save";
                return Err(StoreError::malformed(path, Place::File, problem));
            }
        };
        let archive = Self { entries, prefix };
        archive.check_byte_order(file)?;
        Ok(archive)
    }

    /// Where the bytes of an entry are.
    pub(super) fn entry(&self, name: &str) -> Option<Span> {
        self.entries.get(&format!("{}/{name}", self.prefix)).copied()
    }

    /// The pickle.
    pub(super) fn read_pickle(&self, file: &dyn ReadAt) -> Result<Vec<u8>> {
        let span = self.entry("data.pkl").filter(|span| span.len() <= MAX_PICKLE);
        let Some(span) = span else {
            let problem = format!("its pickle is larger than {MAX_PICKLE} bytes");
            return Err(StoreError::malformed(file.path(), Place::File, problem));
        };
        let mut bytes = fs::allocate(file.path(), "the pickle", span.len())?;
        file.read_exact_at(&mut bytes, span.start())?;
        Ok(bytes)
    }

    fn check_byte_order(&self, file: &dyn ReadAt) -> Result<()> {
        let Some(span) = self.entry("byteorder") else { return Ok(()) };
        let mut bytes = [0; 6];
        if span.len() == 6 {
            file.read_exact_at(&mut bytes, span.start())?;
        }
        if &bytes == b"little" {
            return Ok(());
        }
        let problem = "it was saved on a big-endian machine; save it again on another".to_owned();
        Err(StoreError::Unsupported { path: file.path().to_owned(), problem })
    }
}

/// An entry of the directory.
struct Entry {
    name: String,
    length: FileInt,
    /// Where its local header is.
    header: FileInt,
}

impl Entry {
    /// The first entry of the bytes, and the bytes after it; `None` when they are cut off.
    fn read<'a>(path: &Path, bytes: &'a [u8]) -> Result<Option<(Self, &'a [u8])>> {
        let record = Record(bytes);
        let fields = || {
            let head: [u8; 4] = record.bytes(0)?;
            let numbers = [8, 10, 28, 30, 32].map(|at| record.u16(at));
            let [flags, method, name, extra, comment] = numbers;
            let sizes = [20, 24, 42].map(|at| record.u32(at));
            let [packed, length, header] = sizes;
            let lengths = [name?, extra?, comment?].map(usize::try_from);
            let [Ok(name), Ok(extra), Ok(comment)] = lengths else { return None };
            let (name, rest) = bytes.get(ENTRY_BYTES..)?.split_at_checked(name)?;
            let (extra, rest) = rest.split_at_checked(extra)?;
            let (_, rest) = rest.split_at_checked(comment)?;
            Some((head, flags?, method?, [packed?, length?, header?], name, extra, rest))
        };
        let Some((head, flags, method, sizes, name, extra, rest)) = fields() else {
            return Ok(None);
        };
        if head != *b"PK\x01\x02" {
            return Err(damaged(path, "its directory holds something else than entries"));
        }
        let Ok(name) = std::str::from_utf8(name) else {
            return Err(damaged(path, "the name of an entry is not UTF-8"));
        };
        if method != 0 || flags & 1 != 0 {
            let problem = format!(
                "entry {} is compressed or encrypted, which torch.save does not do; save the state \
                 dict again",
                Quoted(name)
            );
            return Err(StoreError::Unsupported { path: path.to_owned(), problem });
        }
        let Some([packed, length, header]) = wide(sizes, extra) else { return Ok(None) };
        if packed != length {
            return Err(damaged(path, "an entry that is not compressed has two lengths"));
        }
        let (length, header) = (FileInt::new(length), FileInt::new(header));
        Ok(Some((Self { name: name.to_owned(), length, header }, rest)))
    }

    /// The bytes of the entry, behind its local header.
    fn span(&self, file: &dyn ReadAt, file_length: u64) -> Result<Span> {
        let outside = || {
            let problem = format!("entry {} lies outside of the file", Quoted(&self.name));
            damaged(file.path(), &problem)
        };
        let bytes = FileInt::new(LOCAL_BYTES as u64);
        let header = Span::within(file_length, self.header, bytes).ok_or_else(outside)?;
        let mut local = [0; LOCAL_BYTES];
        file.read_exact_at(&mut local, header.start())?;
        let record = Record(&local);
        let (Some(head), Some(name), Some(extra)) =
            (record.bytes::<4>(0), record.u16(26), record.u16(28))
        else {
            return Err(outside());
        };
        if head != *b"PK\x03\x04" {
            return Err(outside());
        }
        let start = FileInt::new(header.end()).plus(name).and_then(|start| start.plus(extra));
        Span::within(file_length, start.ok_or_else(outside)?, self.length).ok_or_else(outside)
    }
}

/// Sizes and offset with those that take 64 bits from the extra field 0x0001, in their order there:
/// length, packed length, offset.
fn wide([packed, length, header]: [u64; 3], extra: &[u8]) -> Option<[u64; 3]> {
    const FULL: u64 = 0xffff_ffff;
    if packed != FULL && length != FULL && header != FULL {
        return Some([packed, length, header]);
    }
    let mut rest = extra;
    loop {
        let record = Record(rest);
        let (id, size) = (record.u16(0)?, usize::try_from(record.u16(2)?).ok()?);
        let (field, after) = rest.get(4..)?.split_at_checked(size)?;
        rest = after;
        if id != 1 {
            continue;
        }
        let mut numbers = field.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut of = |value| if value == FULL { numbers.next() } else { Some(value) };
        let (length, packed) = (of(length)?, of(packed)?);
        return Some([packed, length, of(header)?]);
    }
}

/// Where the central directory is.
fn directory(file: &dyn ReadAt, length: u64) -> Result<Span> {
    let path = file.path();
    let none = || {
        let problem = "not an archive as torch.save writes since PyTorch 1.6, or cut off; load it \
                       with PyTorch and save the state dict again"
            .to_owned();
        StoreError::Unsupported { path: path.to_owned(), problem }
    };
    let tail = length.min(END_BYTES.saturating_add(LONGEST_COMMENT));
    let start = length.saturating_sub(tail);
    let mut bytes = fs::allocate(path, "the end of the archive", tail)?;
    file.read_exact_at(&mut bytes, start)?;
    // The last place where an end record with a comment of the right length can stand.
    let places = bytes.windows(END_BYTES as usize).enumerate().rev();
    let mut ends = places.filter(|(at, record)| {
        let comment = Record(record).u16(20).and_then(|comment| usize::try_from(comment).ok());
        let after = at.checked_add(END_BYTES as usize).and_then(|end| bytes.len().checked_sub(end));
        record.starts_with(b"PK\x05\x06") && comment == after
    });
    let (at, end) = ends.next().ok_or_else(none)?;
    let (record, at) = (Record(end), FileInt::new(at as u64));
    let at = at.plus(start).ok_or_else(none)?.get();
    let (size, offset) = (record.u32(12).ok_or_else(none)?, record.u32(16).ok_or_else(none)?);
    let (size, offset) = match end_64(file, at, length)? {
        Some(wide) => wide,
        None => (size, offset),
    };
    let span = Span::within(at, FileInt::new(offset), FileInt::new(size));
    span.filter(|span| span.len() <= MAX_DIRECTORY)
        .ok_or_else(|| damaged(path, "its directory lies outside of the file"))
}

/// Size and offset of the directory by the 64-bit record, where there is one before the end record.
fn end_64(file: &dyn ReadAt, end: u64, length: u64) -> Result<Option<(u64, u64)>> {
    let Some(at) = end.checked_sub(LOCATOR_BYTES) else { return Ok(None) };
    let mut locator = [0; LOCATOR_BYTES as usize];
    file.read_exact_at(&mut locator, at)?;
    let Some(at) = Record(&locator).u64(8).filter(|_| locator.starts_with(b"PK\x06\x07")) else {
        return Ok(None);
    };
    let damaged = || damaged(file.path(), "its 64-bit end record is missing");
    let bytes = FileInt::new(END_64_BYTES as u64);
    let span = Span::within(length, FileInt::new(at), bytes).ok_or_else(damaged)?;
    let mut record = [0; END_64_BYTES];
    file.read_exact_at(&mut record, span.start())?;
    if !record.starts_with(b"PK\x06\x06") {
        return Err(damaged());
    }
    let record = Record(&record);
    Ok(record.u64(40).zip(record.u64(48)))
}

fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::malformed(
        path,
        Place::File,
        format!("a damaged archive: {what}; download it again"),
    )
}
