//! The methods of compression, one file each, named as its paper is.
//!
//! A method sees only what its scope needs: one weight with its statistics ([`Tensorwise`]), that and
//! what an encoder made of it ([`Correction`]), the layers of a block that share an input
//! ([`Blockwise`]), or the model as a value ([`Graphwise`]). The loop, the files, resuming, memory,
//! threads and randomness belong to the engine. A method names no format. [`Chain`] makes one method
//! of the steps that encode and correct one layer.

pub mod allocate;
mod block_grid;
mod blocks;
mod chain;
mod codebook;
mod drift;
mod eigen;
mod factor;
mod float_grid;
mod grid;
mod group;
mod inputs;
mod least_squares;
mod low_rank;
mod masked_sweep;
pub mod owl;
mod pruning;
mod registry;
mod residual;
mod site;
mod structural;

pub use block_grid::BlockGrid;
pub use chain::Chain;
pub use grid::{GridParams, GroupSize};
pub use group::{Group, Reader, Rescaled, Shared};
pub use inputs::Inputs;
pub use pruning::{Masked, Pruned, Pruner, Pruning, Selection};
pub use registry::{Entry, Method, ParamError, entries, find, method_ids};
pub use site::{Corrected, Encoded, Needs, Note, NoteKind, Site, Statistics};
pub use structural::{Chosen, Seen, Structural, Walk};

use lapidary_model::Spec;
use lapidary_weight::{Edits, FloatType, Grouping, Outline, TermOutline, Weight, WeightError};

registry::methods! {
    awq,
    bcq,
    bit_split = "bit-split",
    experts,
    fp4,
    fp8,
    gptq,
    heads,
    hqq,
    kbit,
    keep,
    layers,
    llm_pruner = "llm-pruner",
    lqer,
    magnitude,
    minitron,
    mxfp4,
    mxfp8,
    nf4,
    nvfp4,
    omse,
    rotate,
    rtn,
    scop,
    slice,
    smoothquant,
    sparsegpt,
    spqr,
    squeezellm,
    svd,
    trellis,
    wanda,
}

/// Turns one weight, with the statistics it asks for, into terms.
pub trait Tensorwise: Send + Sync {
    /// What the engine must gather for each site before [`encode`](Self::encode).
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Whether of the Gram matrix it asks for it looks at nothing but the diagonal, so that
    /// [`Statistics::gram`] may be that alone.
    fn needs_only_diagonal(&self) -> bool {
        false
    }

    /// Whether [`Site::peak`] must be there: layers with a common input then share a number that
    /// follows from it.
    fn shares_range(&self) -> bool {
        false
    }

    /// What `encode` will emit for a weight of this shape: the promise that plans are made on.
    fn outline(&self, rows: usize, cols: usize, scales: FloatType) -> Outline;

    /// What it will do otherwise than it was asked to, with a matrix of this many columns.
    fn departure(&self, _cols: usize) -> Option<Note> {
        None
    }

    /// Encodes one weight.
    ///
    /// # Errors
    /// When the numbers do not allow it even after every fallback the method has.
    fn encode(&self, site: &Site<'_>) -> Result<Encoded, MethodError>;

    /// Whether it keeps what the source holds of a layer, so that it must be bound to that by
    /// [`for_stored`](Self::for_stored).
    fn keeps_stored(&self) -> bool {
        false
    }

    /// The method for a layer that the source holds compressed, as `stored`, with an outline that the
    /// format accepts; `None` when there is none, or the method sees only values.
    fn for_stored(
        &self,
        _stored: &Outline,
        _scales: FloatType,
        _accepts: &dyn Fn(&Outline) -> Result<(), String>,
    ) -> Option<Stored> {
        None
    }

    /// Encodes a weight that the source holds as `stored`: by its values, unless the method
    /// [keeps](Self::keeps_stored) more of it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn encode_stored(&self, site: &Site<'_>, _stored: &Weight) -> Result<Encoded, MethodError> {
        self.encode(site)
    }

    /// The same method with another sharing of scales, for formats that cannot store the one asked
    /// for; `None` when it has no such choice.
    fn regroup(&self, _grouping: Grouping) -> Option<Box<dyn Tensorwise>> {
        None
    }

    /// Refuses a shape that it cannot encode: the reason, and what to do.
    ///
    /// # Errors
    /// Where a pattern does not divide the columns.
    fn check_shape(&self, _rows: usize, _cols: usize) -> Result<(), String> {
        Ok(())
    }

    /// Whether its floats are weights and not scales of codes: they are then of the model's own type.
    fn keeps_floats(&self) -> bool {
        false
    }

    /// Weights of such a matrix that will be exactly 0 because they were pruned; `None` where none
    /// is pruned.
    fn pruned(&self, _rows: usize, _cols: usize) -> Option<usize> {
        None
    }

    /// How it encodes a weight of which some entries are pruned, so that these decode to exactly 0;
    /// `None` where it cannot keep them so.
    fn masked(&self) -> Option<&dyn Masked> {
        None
    }

    /// The method that takes this one's place, with the same outline, where there are no inputs to
    /// gather statistics of: for a table whose rows are looked up. `None` when it has none.
    fn without_statistics(&self) -> Option<Box<dyn Tensorwise>> {
        None
    }

    /// A quicker stand-in whose errors are about this method's times a factor that depends little on
    /// the weight, so that comparing layers by it comes to the same; `None` when there is none.
    fn sketch(&self) -> Option<Box<dyn Tensorwise>> {
        None
    }

    /// A quick stand-in that rounds on the same grid, for searches that encode a weight many times;
    /// `None` when the method itself is the quickest there is.
    fn draft(&self) -> Option<Box<dyn Tensorwise>> {
        None
    }
}

/// A method for a layer that is compressed already, and what is to be said of it.
pub struct Stored {
    /// The method.
    pub method: Box<dyn Tensorwise>,
    /// What is lost, where something is.
    pub note: Option<Note>,
}

/// Adds terms to a weight that is encoded already, for what the encoding lost.
pub trait Correction: Send + Sync {
    /// What the engine must gather for each site before [`correct`](Self::correct).
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// What `correct` will add to a weight of this shape, with floats of this type.
    fn terms(&self, rows: usize, cols: usize, floats: FloatType) -> Vec<TermOutline>;

    /// The terms to be added to `encoded`, which stands for the weight of `site`.
    ///
    /// # Errors
    /// When the numbers do not allow it.
    fn correct(&self, site: &Site<'_>, encoded: &Weight) -> Result<Corrected, MethodError>;

    /// Times that the weight less its correction is encoded anew and corrected again, the best of
    /// them kept.
    fn rounds(&self) -> usize {
        1
    }
}

/// Chooses scales for the inputs of a block's layers before these are encoded.
pub trait Blockwise: Send + Sync {
    /// What the engine must gather for each input before [`rescale`](Self::rescale).
    fn needs(&self) -> Needs;

    /// Scales for the input that some layers share: the layers' columns are multiplied by them, and
    /// what makes the input divided, so that the float model stays as it is.
    ///
    /// # Errors
    /// When the layers cannot be encoded.
    fn rescale(&self, group: &Group<'_>) -> Result<Rescaled, MethodError>;
}

/// Rewrites a model as another with the same function.
pub trait Graphwise: Send + Sync {
    /// Whether the head must have a weight of its own, apart from the embedding's.
    fn unties(&self) -> bool;

    /// The edits of tensors that make the other model; the graphs stay. `seed` keys random choices.
    ///
    /// # Errors
    /// When the model is of a structure that does not allow it.
    fn rewrite(&self, spec: &Spec, seed: u64) -> Result<Edits, MethodError>;

    /// What of the model stays as it is though the parameters name it: the part, and why.
    fn notes(&self, spec: &Spec) -> Vec<(String, Note)> {
        let _ = spec;
        vec![]
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
    /// What a walk over the rows was ended by.
    #[error(transparent)]
    Walk(Box<dyn std::error::Error + Send + Sync>),
    /// A model that the method cannot rewrite or cut.
    #[error("{place} {what}")]
    Structure {
        /// The part of the model.
        place: String,
        /// What stands in the way, as the rest of a sentence.
        what: String,
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
