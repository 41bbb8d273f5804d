//! Number formats and their arithmetic on plain slices: no tensor library, no files.

pub mod activation;
pub mod attention;
pub mod convert;
pub mod gram;
pub mod isa;
pub mod matrix;
pub mod norm;
pub mod rope;
pub mod softmax;

mod math;
mod shared;
mod simd;
mod tile;
