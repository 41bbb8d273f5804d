//! Perplexities, divergences and sizes against a few lines of f64.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod divergence;
mod protocols;
mod size;
mod support;
