//! Number formats and their arithmetic on plain slices: no tensor library, no files.

pub mod grid;
pub mod isa;
mod simd;
pub mod sweep;
