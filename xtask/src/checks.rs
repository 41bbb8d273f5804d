//! The checks, one file each, in the order in which they run.

mod architectures;
mod floats;
mod gguf;
mod harness;
mod load;
mod loaders;
mod memory;
mod minilm;
mod mixtures;
mod ordering;
mod perplexity;
mod pruned;
mod resume;
mod running;
mod smaller;
mod tokenizers;
mod tokens;

use crate::check::Check;

/// All checks.
pub(crate) const CHECKS: &[Check] = &[
    tokens::CHECK,
    perplexity::CHECK,
    load::CHECK,
    floats::CHECK,
    loaders::CHECK,
    pruned::CHECK,
    smaller::CHECK,
    minilm::CHECK,
    ordering::CHECK,
    resume::CHECK,
    memory::CHECK,
    running::CHECK,
    harness::CHECK,
    gguf::CHECK,
    gguf::ROUNDING,
    architectures::CHECK,
    tokenizers::CHECK,
    mixtures::CHECK,
];
