//! What compression cost: perplexity in three named protocols, divergence from a reference, size.

mod language;
mod protocol;
mod runner;
mod score;
mod size;

pub use language::{Against, Evaluation, Report, Scored, evaluate};
pub use protocol::{Protocol, Segment};
pub use runner::{EncoderAgreement, compare_encoders};
pub use size::{Size, size};

use lapidary_formats::FormatError;
use lapidary_model::ModelError;
use lapidary_store::StoreError;

/// What can go wrong in an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The text, the protocol and the model do not go together.
    #[error("{0}")]
    Unusable(String),
    /// Bytes and files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A checkpoint's format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Logits that are not finite.
    #[error("the model's logits are not finite in window {window}; the weights are damaged")]
    NotFinite {
        /// The window.
        window: usize,
    },
    /// Stopped by a signal.
    #[error("interrupted")]
    Interrupted,
}
