//! Files made to break a reader. Each must be refused with one clear error, at once, and without
//! taking memory that the file could not fill.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod folders;
mod gguf;
mod safetensors;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapidary_store::fs::ReadAt;
use lapidary_store::{Category, Checkpoint, Result};

use support::Memory;

/// The longest a refusal may take; the fastest of three tries counts.
const SLOWEST: Duration = Duration::from_millis(100);

/// A hostile checkpoint: files, the one to open (empty for the folder), what the error must say.
pub(crate) struct Case {
    name: &'static str,
    files: Vec<(&'static str, Content)>,
    open: &'static str,
    expected: &'static str,
}

/// The content of a file of a hostile checkpoint.
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// These bytes, and then a hole up to this length.
    Sparse(Vec<u8>, u64),
    #[cfg(unix)]
    Link(&'static str),
}

impl Case {
    pub(crate) fn file(
        name: &'static str,
        open: &'static str,
        bytes: impl Into<Vec<u8>>,
        expected: &'static str,
    ) -> Self {
        Self { name, files: vec![(open, Content::Bytes(bytes.into()))], open, expected }
    }

    fn prepare(&self, dir: &Path) -> PathBuf {
        for (name, content) in &self.files {
            let path = dir.join(name);
            match content {
                Content::Bytes(bytes) => std::fs::write(path, bytes).unwrap(),
                Content::Sparse(bytes, length) => {
                    std::fs::write(&path, bytes).unwrap();
                    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                    file.set_len(*length).unwrap();
                }
                #[cfg(unix)]
                Content::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            }
        }
        if self.open.is_empty() { dir.to_owned() } else { dir.join(self.open) }
    }
}

/// A clock: the processor time of this thread where the system tells, since the machine may be busy
/// with other things; else the time of day.
fn now() -> Duration {
    let spent = || {
        let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let spent = statistics.split_whitespace().next()?.parse().ok()?;
        (spent > 0).then(|| Duration::from_nanos(spent))
    };
    spent().unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}

/// Peak resident memory of this process in KiB, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

// One test, so that nothing else runs meanwhile and the peak is its own.
#[test]
fn hostile_files_are_refused_at_once_and_without_memory() {
    let mut cases = safetensors::cases();
    cases.extend(gguf::cases());
    cases.extend(folders::cases());
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let before = peak_memory();
    for case in &cases {
        let dir = tempfile::tempdir().unwrap();
        let path = case.prepare(dir.path());
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            let start = now();
            let result = Checkpoint::open(support::real(), &path);
            fastest = fastest.min(now().saturating_sub(start));
            let Err(error) = result else { panic!("{}: accepted", case.name) };
            let message = error.to_string();
            assert!(message.contains(case.expected), "{}: {message}", case.name);
            assert!(
                matches!(error.category(), Category::BadInput | Category::NotFound),
                "{}: {:?}",
                case.name,
                error.category()
            );
            let control = message.chars().any(char::is_control);
            assert!(!control && message.len() < 1000, "{}: {message:?}", case.name);
        }
        assert!(fastest < SLOWEST, "{}: {fastest:?}", case.name);
    }
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        let grown = after - before;
        assert!(grown < 64 << 10, "{grown} KiB more at the peak");
    }
}

/// Cuts a header at every byte and flips every bit of it. Cut, it must be an error; flipped, it may
/// be another valid header, but a panic or a span outside of the file never.
fn shake(
    bytes: &[u8],
    header: usize,
    read: &dyn Fn(&Memory) -> Result<Vec<lapidary_store::TensorInfo>>,
) {
    for length in 0..header {
        let result = read(&Memory::new(&bytes[..length]));
        assert_eq!(result.unwrap_err().category(), Category::BadInput, "cut at {length}");
    }
    for cut in 1..bytes.len() - header {
        let result = read(&Memory::new(&bytes[..bytes.len() - cut]));
        assert_eq!(result.unwrap_err().category(), Category::BadInput, "without the last {cut}");
    }
    for position in 0..header {
        for bit in 0..8 {
            let mut flipped = Memory::new(bytes);
            flipped.bytes[position] ^= 1 << bit;
            match read(&flipped) {
                Ok(tensors) => {
                    let length = flipped.len().unwrap();
                    for tensor in tensors {
                        assert!(tensor.span.end() <= length, "byte {position} bit {bit}");
                        let size = tensor.dtype.byte_len(&tensor.shape);
                        assert_eq!(size, Ok(tensor.span.len()), "byte {position} bit {bit}");
                    }
                }
                Err(error) => assert_eq!(error.category(), Category::BadInput),
            }
        }
    }
}

#[test]
fn safetensors_headers_are_shaken() {
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"#,
        r#""a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
        r#""b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}"#,
    );
    let bytes = support::safetensors(header, 26);
    let read = |file: &Memory| lapidary_store::safetensors::read_header(file).map(|h| h.tensors);
    shake(&bytes, 8 + header.len(), &read);
}

#[test]
fn gguf_headers_are_shaken() {
    let builder = support::honest_gguf();
    let bytes = builder.build();
    let read = |file: &Memory| lapidary_store::gguf::read_gguf(file).map(|gguf| gguf.tensors);
    shake(&bytes, bytes.len() - builder.data, &read);
}
