//! Number formats and their arithmetic on plain slices: no tensor library, no files.

pub mod ggml;
pub mod pack;
