//! Hugging Face folders from the metadata of small synthetic GGUF files.

mod builder;
mod config;
mod names;
mod tokenizer;
