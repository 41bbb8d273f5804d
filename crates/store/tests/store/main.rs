//! The crate as its users see it: what is written is read, what is interrupted leaves no trace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod checkpoint;
mod faults;
mod files;
mod gguf;
mod journal;
mod pytorch;
mod resolve;
mod safetensors;
#[path = "../support/mod.rs"]
mod support;
mod tokenizer;
