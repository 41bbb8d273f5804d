//! The packed executor: compressed models as they are stored, run on a processor.
//!
//! A [`Decoder`] is a model's graphs compiled to stages over buffers that are allocated once, its
//! weights packed in the layout their products read, and the keys and values of several sequences.
//! Around it stands what makes text of it: the vocabulary and the chat template ([`text`], [`chat`]),
//! [`sampling`], and the scheduler that answers several requests at a time ([`generate`]).

mod attention;
pub mod chat;
mod decoder;
mod error;
pub mod generate;
mod linear;
mod load;
mod measure;
mod plan;
pub mod sampling;
pub mod text;
mod work;

#[cfg(test)]
mod stand_ins;

pub use decoder::{Decoder, LogitRow, Logits, Options, Piece, Want};
pub use error::RuntimeError;
pub use lapidary_kernels::attention::CacheType;
pub use lapidary_kernels::packed::Precision;
pub use linear::other_rounding;
pub use measure::{Rate, Timing};
