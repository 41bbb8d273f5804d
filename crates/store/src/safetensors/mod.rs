//! The safetensors format: eight bytes of header length, a JSON header, the tensors end to end.
//!
//! The reader accepts what the reference implementation accepts and nothing else: a header of at
//! most 100 MB, tensors without holes or overlaps that cover the file exactly, and for each tensor
//! a span that is its shape times its type. See
//! <https://github.com/huggingface/safetensors#format>.

mod header;
mod sharded;
mod writer;

pub use crate::atomic::Written;
pub use header::{Header, read_header};
pub use sharded::{INDEX_NAME, Index, Plan, SINGLE_NAME, Shard, ShardedWriter, plan};
pub use writer::Writer;

/// The longest header that is read or written, in bytes, as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;

/// The usual limit of a shard, in bytes of tensor data.
pub const DEFAULT_SHARD: u64 = 5_000_000_000;

/// The most dimensions that a tensor may have.
pub const MAX_RANK: usize = 64;

/// The key of the header that is not a tensor.
const METADATA_KEY: &str = "__metadata__";
