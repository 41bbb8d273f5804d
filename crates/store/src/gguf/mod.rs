//! The GGUF format, little endian: typed metadata, tensor descriptions, data. Versions 2 and 3 are
//! read, version 3 is written.
//!
//! Layout: magic `GGUF`, u32 version, u64 number of tensors, u64 number of metadata entries, the
//! entries, the tensor descriptions, padding to `general.alignment`, the data. See
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod cursor;
mod reader;
mod split;
mod value;
mod writer;

pub use reader::{Gguf, read_gguf};
pub use split::{GgufSet, Part, open_set};
pub use value::{MetaArray, MetaValue, Metadata};
pub use writer::Writer;

/// How a file begins.
const MAGIC: [u8; 4] = *b"GGUF";

/// What the data of tensors is aligned to where the metadata do not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The longest name of a tensor that llama.cpp reads, in bytes.
pub const MAX_NAME: usize = 63;

/// The most bytes that metadata and tensor descriptions may take together.
pub const MAX_HEADER: u64 = 256 << 20;

/// The most elements of an array of strings (vocabularies and merges are the largest there are).
pub const MAX_STRINGS: u64 = 1 << 24;

/// The longest string that is accepted, in bytes (chat templates are the longest there are).
pub const MAX_STRING: u64 = 16 << 20;

/// The largest accepted value of `general.alignment`.
pub const MAX_ALIGNMENT: u64 = 64 << 10;

/// The most dimensions a tensor may have, as in ggml.
pub const MAX_RANK: u32 = 4;
