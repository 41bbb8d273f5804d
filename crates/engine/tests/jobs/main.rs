//! Whole jobs on tiny models: what they write, that they survive interruption, what they refuse.

mod interruption;
mod refusals;
mod results;
mod support;
