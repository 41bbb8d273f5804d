//! An append-only record of what was done, which survives being killed at any moment.
//!
//! Each line is `{"sha256":"<16 hex digits>","entry":<JSON>}`, where the digits begin the SHA-256
//! of the digits of the line before and the text of the entry. So a line that was changed, removed
//! or moved breaks the chain. A line counts only when it is complete and on the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::error::{Place, Result, StoreError};
use crate::fs::{self, Fs, WriteFile};
use crate::hash::Sha256;
use crate::json;

/// Hexadecimal digits of a checksum.
const DIGITS: usize = 16;

/// The longest journal that is read, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Box<dyn WriteFile>,
    /// The checksum of the last line; empty before the first.
    last: String,
    /// Whether an append failed, so that the file may end in half a line.
    broken: bool,
}

/// What a journal held when it was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// The entries, in the order in which they were appended.
    pub entries: Vec<Value>,
    /// Bytes of an unfinished last line that were cut off; 0 if there was none.
    pub dropped_bytes: u64,
}

impl Journal {
    /// Opens a journal, or starts one. A last line that is not complete is cut off: it was being
    /// written when the process or the machine died.
    ///
    /// # Errors
    /// When an earlier line is damaged, or the disk refuses.
    pub fn open(fs: &Arc<dyn Fs>, path: &Path) -> Result<(Self, Recovered)> {
        let text = match fs::read(&**fs, path, "the journal", MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error),
        };
        let (entries, last, valid) = replay(path, &text)?;
        let length = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let dropped_bytes = length(text.len()).saturating_sub(length(valid));
        if dropped_bytes > 0 {
            fs.truncate(path, length(valid))?;
        }
        let mut file = fs.append(path)?;
        // So that the name of a journal that was just created is on the disk before its first line.
        file.sync()?;
        fs.sync_dir(fs::parent(path))?;
        let journal = Self { path: path.to_owned(), file, last, broken: false };
        Ok((journal, Recovered { entries, dropped_bytes }))
    }

    /// Appends an entry; when this returns, it is on the disk.
    ///
    /// # Errors
    /// When the disk refuses. The journal can then no longer be appended to, only opened again.
    pub fn append(&mut self, entry: &Value) -> Result<()> {
        if self.broken {
            return Err(StoreError::misuse(&self.path, "an append after one that failed"));
        }
        let text = entry.to_string();
        let sum = checksum(&self.last, &text);
        let line = format!("{{\"sha256\":\"{sum}\",\"entry\":{text}}}\n");
        self.broken = true;
        self.file.write_all(line.as_bytes())?;
        self.file.sync()?;
        self.broken = false;
        self.last = sum;
        Ok(())
    }
}

/// The entries, the checksum of the last line, and how many bytes hold complete lines.
fn replay(path: &Path, text: &[u8]) -> Result<(Vec<Value>, String, usize)> {
    let mut entries = Vec::new();
    let mut last = String::new();
    let mut valid = 0_usize;
    let mut lines = text.split_inclusive(|&byte| byte == b'\n').zip(1_usize..).peekable();
    while let Some((line, number)) = lines.next() {
        let Some((sum, entry)) = split(line).filter(|(sum, entry)| *sum == checksum(&last, entry))
        else {
            if lines.peek().is_none() {
                break;
            }
            let problem = "this line was changed after it was written; start again in a new folder";
            let place = Place::Line { line: number, column: 1 };
            return Err(StoreError::malformed(path, place, problem));
        };
        entries.push(json::parse(entry.as_bytes(), path)?);
        sum.clone_into(&mut last);
        valid = valid.saturating_add(line.len());
    }
    Ok((entries, last, valid))
}

/// The checksum and the text of the entry of a complete line.
fn split(line: &[u8]) -> Option<(&str, &str)> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix("}\n")?;
    let (sum, entry) = line.strip_prefix("{\"sha256\":\"")?.split_at_checked(DIGITS)?;
    Some((sum, entry.strip_prefix("\",\"entry\":")?))
}

fn checksum(last: &str, entry: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(last.as_bytes());
    hash.update(entry.as_bytes());
    let mut digits = hash.finish();
    digits.truncate(DIGITS);
    digits
}
