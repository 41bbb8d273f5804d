//! `cargo xtask compare`: sets up what `benches/compare/run.py` needs, and runs it.

use crate::error::Error;
use crate::process::show;
use crate::setup;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// What to compare.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Measure this `lapidary` instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Given to `benches/compare/run.py`: --bits, --group-size, --rows, --windows, --threads, …
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Runs the comparison; its figures are for reading, so that none of them makes it fail.
pub(crate) fn run(options: &Options) -> Result<bool, Error> {
    let root = setup::root()?;
    let cache = setup::cache()?;
    let python = setup::python(&root, &cache, setup::SCRIPTS, "benches/compare/requirements.txt")?;
    let models = setup::models(&root, &python, &cache, &BTreeSet::from(["smollm2"]))?;
    let model = models["offgrid"].as_str().unwrap_or_default();
    let binary = setup::binary(&root, options.binary.as_deref())?;
    let mut script = Command::new(python);
    script.arg(root.join("benches/compare/run.py")).arg(model).arg("--lapidary").arg(binary);
    script.arg("--cache").arg(cache.join("peers")).args(&options.options);
    show(script.env("HF_HUB_OFFLINE", "1").env("PYTHONDONTWRITEBYTECODE", "1"))?;
    Ok(true)
}
