//! Hugging Face folders from the metadata of small synthetic GGUF files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod builder;
mod config;
mod names;
mod tokenizer;
