//! The command's errors and their exit codes.

use lapidary_engine::recipe::RecipeError;
use lapidary_engine::{EngineError, Failure};
use lapidary_eval::EvalError;
use lapidary_formats::FormatError;
use lapidary_model::ModelError;
use lapidary_runtime::RuntimeError;
use lapidary_serve::ServeError;
use lapidary_store::StoreError;
use std::sync::Arc;

/// Anything that ends a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A job, a plan, a manifest.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// A recipe, with the file it stands in.
    #[error("{}{error}", standing_in(file, error))]
    Recipe { file: String, error: RecipeError },
    /// An evaluation.
    #[error("{0}")]
    Eval(#[from] EvalError),
    /// A running model.
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    /// An answer that ended before its end.
    #[error("{0}")]
    Answer(Arc<RuntimeError>),
    /// A server.
    #[error("{0}")]
    Serve(#[from] ServeError),
    /// Arguments that do not go together, or input that is not what they say.
    #[error("{0}")]
    Usage(String),
    /// Another program that was asked for.
    #[error("{0}")]
    Program(String),
    /// Standard output.
    #[error(
        "cannot write to standard output: {0}; files that were written are whole, run the command \
         again to see the result"
    )]
    Output(#[from] std::io::Error),
    /// A folder that does not verify.
    #[error("{0}")]
    Unverified(String),
}

/// The file, for errors that have a place in it; the others come from the command line.
fn standing_in(file: &str, error: &RecipeError) -> String {
    if error.place.line == 0 { String::new() } else { format!("{file}: ") }
}

impl CliError {
    pub(crate) fn exit_code(&self) -> u8 {
        let failure = match self {
            Self::Engine(error) => error.failure(),
            Self::Recipe { .. } => Failure::Usage,
            Self::Eval(error) => of_eval(error),
            Self::Runtime(error) => of_runtime(error),
            Self::Answer(error) => of_runtime(error),
            Self::Serve(_) => Failure::InputOutput,
            Self::Usage(_) => Failure::Usage,
            Self::Program(_) => Failure::Refused,
            Self::Output(_) => Failure::InputOutput,
            Self::Unverified(_) => Failure::BadInput,
        };
        match failure {
            Failure::Usage => 2,
            Failure::Refused => 3,
            Failure::BadInput => 4,
            Failure::InputOutput => 5,
            Failure::Numerical => 6,
            Failure::Internal => 70,
            Failure::Interrupted => 130,
        }
    }
}

fn of_eval(error: &EvalError) -> Failure {
    match error {
        EvalError::Unusable(_) => Failure::BadInput,
        EvalError::NotFinite { .. } => Failure::Numerical,
        EvalError::Interrupted => Failure::Interrupted,
        EvalError::Store(StoreError::Io { .. }) => Failure::InputOutput,
        EvalError::Store(_) | EvalError::Format(_) | EvalError::Model(_) => Failure::BadInput,
    }
}

fn of_runtime(error: &RuntimeError) -> Failure {
    match error {
        RuntimeError::Format(FormatError::Store(StoreError::Io { .. })) => Failure::InputOutput,
        RuntimeError::Store(StoreError::Io { .. }) => Failure::InputOutput,
        RuntimeError::Format(_)
        | RuntimeError::Model(_)
        | RuntimeError::Pack { .. }
        | RuntimeError::Store(_)
        | RuntimeError::Template(_)
        | RuntimeError::Missing(_) => Failure::BadInput,
        RuntimeError::NotFinite => Failure::Numerical,
        RuntimeError::Parameter { .. } | RuntimeError::TooLong { .. } => Failure::Usage,
        RuntimeError::NotCausal { .. } | RuntimeError::Unsupported(_) => Failure::Refused,
        RuntimeError::Threads { .. } => Failure::InputOutput,
        RuntimeError::Context { .. } => Failure::Usage,
        RuntimeError::Sequence { .. } | RuntimeError::Ended(_) => Failure::Internal,
    }
}

macro_rules! through_engine {
    ($($error:ty),*) => {
        $(impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::Engine(error.into())
            }
        })*
    };
}

through_engine!(StoreError, FormatError, ModelError);
