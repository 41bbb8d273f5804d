//! Bytes and files: the only door to the disk.
//!
//! Everything that arrives from outside is hostile until checked. Readers take lengths, offsets and
//! shapes only through [`checked`] types, never allocate more than the file could hold, and answer
//! bad input with a [`StoreError`] that names the file, the place and the remedy. Writers publish
//! by rename, after the bytes are on the disk.
//!
//! Every access goes through the [`fs::Fs`] trait, so that faults can be injected at any call.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod atomic;
pub mod checked;
pub mod checkpoint;
pub mod dtype;
mod error;
pub mod fs;
pub mod gguf;
pub mod hash;
pub mod journal;
pub mod json;
pub mod pytorch;
pub mod safetensors;
mod stream;
mod tensor;
pub mod tokenizer;

pub use checkpoint::{Checkpoint, Environment, resolve};
pub use dtype::{Dtype, GgmlType};
pub use error::{Category, Place, Result, StoreError};
pub use fs::{Fs, RealFs};
pub use tensor::{TensorInfo, TensorSpec};
pub use tokenizer::Tokenizer;
