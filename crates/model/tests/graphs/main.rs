//! What can be asked of a model's graphs, and what is refused before there is one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod absorbers;
mod configurations;
mod queries;
mod support;
mod taps;
