//! The methods of compression, one file each, named as its paper is.
//!
//! A method sees only what its scope needs: here, one weight with its statistics. The loop, the
//! files, resuming, memory, threads and randomness belong to the engine. A method names no format.

mod factor;
mod grid;
mod registry;
mod site;

pub use grid::{GridParams, GroupSize};
pub use registry::{Entry, Method, ParamError, entries, find, method_ids};
pub use site::{Encoded, Needs, Note, NoteKind, Site, Statistics};

use lapidary_weight::{Grouping, Outline, WeightError};

registry::methods! {
    gptq,
    omse,
    rtn,
}

/// Turns one weight, with the statistics it asks for, into terms.
pub trait Tensorwise: Send + Sync {
    /// What the engine must gather for each site before [`encode`](Self::encode).
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// What `encode` will emit for a weight of this shape: the promise that plans are made on.
    fn outline(&self, rows: usize, cols: usize, scales: lapidary_weight::FloatType) -> Outline;

    /// Encodes one weight.
    ///
    /// # Errors
    /// When the numbers do not allow it even after every fallback the method has.
    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError>;

    /// The same method with another sharing of scales, for formats that cannot store the one asked
    /// for; `None` when it has no such choice.
    fn regroup(&self, _grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        None
    }

    /// The method that takes this one's place, with the same outline, where there are no inputs to
    /// gather statistics of: for a table whose rows are looked up. `None` when it has none.
    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        None
    }
}

/// Why a method could not encode a site.
#[derive(Debug, thiserror::Error)]
pub enum MethodError {
    /// The engine did not provide what [`Tensorwise::needs`] asks for.
    #[error("{site}: the method needs {what}, which was not gathered")]
    MissingStatistics {
        /// The site.
        site: String,
        /// The statistic.
        what: &'static str,
    },
    /// Numbers that no fallback can mend.
    #[error("{site}: {what}")]
    Numerical {
        /// The site.
        site: String,
        /// What happened.
        what: String,
    },
    /// The terms do not fit the shape: a defect of the method.
    #[error("{site}: {error}")]
    Weight {
        /// The site.
        site: String,
        /// What is wrong.
        error: WeightError,
    },
}
