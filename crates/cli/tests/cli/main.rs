//! The real binary, from its arguments to what it writes, says and returns.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod bad_input;
mod budget;
mod convert;
mod damage;
mod devices;
mod interruption;
mod json;
mod main_path;
mod running;
mod support;
