//! SHA-256, of bytes and of files as a stream.

use std::path::Path;

use sha2::Digest;

use crate::error::Result;
use crate::fs::{self, Fs, ReadAt};

/// Bytes read at a time when hashing or copying a file.
const CHUNK: u64 = 1 << 20;

/// A running SHA-256.
#[derive(Clone, Debug, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest, as 64 lower-case hexadecimal digits.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytes);
    hash.finish()
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_file(fs: &dyn Fs, path: &Path) -> Result<String> {
    sha256_of(&*fs.open(path)?, &mut |_| ())
}

/// The SHA-256 of an open file; `progress` is told the bytes read after each chunk.
pub(crate) fn sha256_of(file: &dyn ReadAt, progress: &mut dyn FnMut(u64)) -> Result<String> {
    let length = file.len()?;
    let mut hash = Sha256::new();
    let mut buffer = fs::allocate(file.path(), "a file", length.min(CHUNK))?;
    let mut offset = 0_u64;
    while offset < length {
        let size = length.saturating_sub(offset).min(CHUNK);
        // `buffer` holds min(length, CHUNK) bytes, so the first `size` of them are there.
        let chunk = usize::try_from(size).ok().and_then(|size| buffer.get_mut(..size));
        let chunk = chunk.unwrap_or_default();
        file.read_exact_at(chunk, offset)?;
        hash.update(chunk);
        progress(size);
        offset = offset.saturating_add(size);
    }
    Ok(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::RealFs;

    #[test]
    fn digests_are_those_of_fips_180() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b""), empty);
        assert_eq!(sha256(b"abc"), abc);
    }

    #[test]
    fn a_file_hashes_as_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for length in [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1] {
            let bytes: Vec<u8> = (0..length).map(|i: u32| (i % 251) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(sha256_file(&RealFs, &path).unwrap(), sha256(&bytes));
        }
    }
}
