//! Tasks that are not the product: `cargo xtask real` checks it on real models against other
//! packages, `cargo xtask compare` measures it beside llm-compressor, `cargo xtask quality` measures
//! its methods against each other, `cargo xtask study` the groups of methods on a sentence encoder,
//! `cargo xtask load` puts its server under load.
//!
//! All fetch what they need into a cache outside the tree: `LAPIDARY_CACHE`, else `lapidary` in
//! the user's cache folder. With `LAPIDARY_WIKITEXT`, a folder with WikiText-2's `wiki.test.raw`
//! and `wiki.valid.tokens`, they run on that text; without it on the texts of this repository.

mod check;
mod checks;
mod compare;
mod context;
mod error;
mod load;
mod process;
mod quality;
mod random;
mod real;
mod server;
mod setup;
mod study;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Tasks that are not the product.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check `lapidary` on real models, against transformers and compressed-tensors
    Real(real::Options),
    /// Measure our GPTQ and llm-compressor's on the same model, rows and settings
    Compare(compare::Options),
    /// Measure the methods against each other at equal bits
    Quality(quality::Options),
    /// Measure quantization, pruning, low rank and dropped layers on a sentence encoder
    Study(study::Options),
    /// Put `lapidary serve` under the load of several hundred clients, good and bad
    Load(load::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Real(options) => real::run(&options),
        Task::Compare(options) => compare::run(&options),
        Task::Quality(options) => quality::run_all(&options),
        Task::Study(options) => study::run_all(&options),
        Task::Load(options) => load::run(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
