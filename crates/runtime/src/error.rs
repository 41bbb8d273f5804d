//! What can go wrong in the runtime.

use lapidary_formats::FormatError;
use lapidary_kernels::packed::PackError;
use lapidary_model::ModelError;
use lapidary_store::StoreError;

/// Why a model cannot be loaded, a step not be taken, or a request not be answered.
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
    /// Requests that are not answered any more.
    #[error("{0}")]
    Ended(String),
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
    /// A parameter of a request that is out of range.
    #[error("{name}: {problem}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// More tokens than the model has room for.
    #[error(
        "the prompt has {prompt} tokens and {asked} more are asked for, but the context is \
         {context} tokens; shorten the prompt or ask for fewer"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to be generated.
        asked: usize,
        /// What there is room for.
        context: usize,
    },
    /// A chat template that cannot be parsed or rendered, or that refused the messages.
    #[error("chat template: {0}")]
    Template(String),
    /// Something that the model's files lack.
    #[error("{0}")]
    Missing(String),
    /// Logits that are not numbers.
    #[error("the model's logits are not finite; its weights are damaged or overflow")]
    NotFinite,
    /// The tokenizer.
    #[error(transparent)]
    Store(#[from] StoreError),
}
