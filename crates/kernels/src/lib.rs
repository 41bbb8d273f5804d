//! Number formats and their arithmetic on plain slices: no tensor library, no files.

pub mod ggml;
pub mod grid;
pub mod isa;
pub mod pack;
mod simd;
pub mod sweep;
