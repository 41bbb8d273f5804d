//! Terms to named tensors and back, one file per format.

pub mod gguf;
