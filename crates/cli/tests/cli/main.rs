//! The real binary, from its arguments to what it writes, says and returns.

mod bad_input;
mod damage;
mod devices;
mod interruption;
mod json;
mod main_path;
mod support;
