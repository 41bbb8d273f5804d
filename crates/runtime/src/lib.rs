//! The packed executor: compressed models as they are stored, run on a processor.
//!
//! A [`Decoder`] is a model's graphs compiled to stages over buffers that are allocated once, its
//! weights packed in the layout their products read, and the keys and values of several sequences.

mod attention;
mod decoder;
mod error;
mod linear;
mod load;
mod measure;
mod plan;
mod work;

pub use decoder::{Decoder, LogitRow, Logits, Options, Piece, Want};
pub use error::RuntimeError;
pub use lapidary_kernels::attention::CacheType;
pub use lapidary_kernels::packed::Precision;
pub use measure::{Rate, Timing};
