//! The engine's errors, and what kind of failure each is.

use crate::recipe::RecipeError;
use lapidary_formats::FormatError;
use lapidary_methods::MethodError;
use lapidary_model::ModelError;
use lapidary_store::{Category, StoreError};
use std::path::PathBuf;

/// Kinds of failure; the command line gives each its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The command or the recipe does not make sense.
    Usage,
    /// The plan, or a check before any work, refuses.
    Refused,
    /// An input file is not what it should be.
    BadInput,
    /// The disk or the operating system.
    InputOutput,
    /// Numbers that no fallback mends.
    Numerical,
    /// Stopped from outside, resumable.
    Interrupted,
    /// A defect of this program.
    Internal,
}

/// What can go wrong in a job.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The recipe.
    #[error("{0}")]
    Recipe(#[from] RecipeError),
    /// A check before any work.
    #[error("{0}")]
    Refused(String),
    /// An input that cannot be used.
    #[error("{0}")]
    BadInput(String),
    /// Bytes and files.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A checkpoint's format.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The model.
    #[error("{0}")]
    Model(#[from] ModelError),
    /// A method.
    #[error("{0}")]
    Method(#[from] MethodError),
    /// A fallback under `--strict`.
    #[error("{site}: {what}; --strict does not allow it")]
    Strict {
        /// The site.
        site: String,
        /// The fallback.
        what: String,
    },
    /// Activations that are not finite.
    #[error(
        "after block {block}: {what}; the model cannot be calibrated on this text in this precision \
         (try --set calibration.precision=f32)"
    )]
    NotFinite {
        /// The block.
        block: usize,
        /// What was found.
        what: String,
    },
    /// Stopped by a signal.
    #[error("interrupted; run the same command again to go on from block {next}")]
    Interrupted {
        /// The first block that is not committed.
        next: usize,
    },
    /// What was written does not read back as it was made.
    #[error("{path}: {what}; nothing was published", path = .path.display())]
    Verification {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// A value that serde cannot represent: a defect.
    #[error("internal: {0}")]
    Internal(String),
}

impl EngineError {
    /// What kind of failure it is.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Recipe(_) => Failure::Usage,
            Self::Refused(_) | Self::Strict { .. } => Failure::Refused,
            Self::BadInput(_) => Failure::BadInput,
            Self::Store(error) => of_category(error.category()),
            Self::Format(error) => of_category(error.category()),
            Self::Model(error) => of_model(error),
            Self::Method(MethodError::Numerical { .. }) => Failure::Numerical,
            Self::Method(MethodError::Structure { .. }) => Failure::Refused,
            Self::Method(_) | Self::Internal(_) => Failure::Internal,
            Self::NotFinite { .. } => Failure::Numerical,
            Self::Interrupted { .. } => Failure::Interrupted,
            Self::Verification { .. } => Failure::InputOutput,
        }
    }
}

fn of_category(category: Category) -> Failure {
    match category {
        Category::BadInput | Category::NotFound => Failure::BadInput,
        Category::Io => Failure::InputOutput,
        Category::Refused => Failure::Refused,
        Category::Misuse => Failure::Internal,
    }
}

fn of_model(error: &ModelError) -> Failure {
    match error {
        ModelError::Tensor(tensor) => match tensor.0.downcast_ref::<FormatError>() {
            Some(error) => of_category(error.category()),
            None => Failure::BadInput,
        },
        ModelError::Graph(_) | ModelError::Arithmetic(_) => Failure::Internal,
        _ => Failure::BadInput,
    }
}
