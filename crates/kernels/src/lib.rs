//! Number formats and their arithmetic on plain slices: no tensor library, no files.

pub mod activation;
pub mod attention;
pub mod bandwidth;
pub mod convert;
pub mod cross;
pub mod ggml;
pub mod gram;
pub mod grid;
pub mod hadamard;
pub mod half_quadratic;
pub mod isa;
pub mod levels;
pub mod matrix;
pub mod memory;
pub mod norm;
pub mod pack;
pub mod packed;
pub mod pool;
pub mod process;
pub mod random;
pub mod rope;
pub mod rounding;
pub mod route;
pub mod rows;
pub mod softmax;
pub mod sweep;
pub mod trellis;

mod math;
mod shared;
mod simd;
mod tile;
