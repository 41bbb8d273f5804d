//! What can go wrong in the runtime.

use lapidary_formats::FormatError;
use lapidary_kernels::packed::PackError;
use lapidary_model::ModelError;

/// Why a model cannot be loaded, or a step not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The checkpoint.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The configuration or the tensors it asks for.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A matrix that does not fit itself.
    #[error("{tensor}: {error}")]
    Pack {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        error: PackError,
    },
    /// A model that does not predict the next token.
    #[error("a {family} model does not predict the next token: there is nothing to generate")]
    NotCausal {
        /// The family.
        family: &'static str,
    },
    /// A model with something that the runtime does not know.
    #[error("this model cannot be run: {0}")]
    Unsupported(String),
    /// Threads could not be started.
    #[error("cannot start {threads} threads: {error}; ask for fewer with --threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system says.
        error: std::io::Error,
    },
    /// A sequence that there is no room for, or that has no room left.
    #[error("sequence {sequence}: {tokens} tokens do not fit in a context of {context}")]
    Context {
        /// The sequence.
        sequence: usize,
        /// What it would hold.
        tokens: usize,
        /// What it may hold.
        context: usize,
    },
    /// A step that names a sequence which is not there, or one twice.
    #[error("sequence {sequence} is not one of {sequences}, or stands twice in a step")]
    Sequence {
        /// The sequence.
        sequence: usize,
        /// How many there are.
        sequences: usize,
    },
}
