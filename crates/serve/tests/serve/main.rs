//! The server as its clients see it, over sockets: the demo's model, and one that takes its time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should panic"
)]

mod chat;
mod client;
mod completions;
mod garbage;
mod life;
mod limits;
mod support;
