//! Gradients and what is made of them, on tiny models, against differences of losses and formulas
//! written out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should panic"
)]

mod differences;
mod heads;
mod knockoff;
mod scop;
mod support;
mod taylor;
