//! Weights through each format and back, and the folders that are made of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod activations;
#[path = "../gguf/builder.rs"]
mod builder;
mod compressed_tensors;
mod dense;
mod float_folders;
mod folders;
mod golden;
mod hostile;
mod hostile_folders;
mod native;
mod source;
mod support;
