//! Whole jobs on tiny models: what they write, that they survive interruption, what they refuse.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod activations;
mod chains;
mod experts;
mod floats;
mod gguf;
mod interruption;
mod pruning;
mod refusals;
mod results;
mod rewriting;
mod search;
mod shapes;
mod structure;
mod support;
mod tables;
mod targets;
