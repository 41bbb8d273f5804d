//! `cargo xtask real`: the checks that need real models and other packages, behind one command.

use crate::check::Report;
use crate::checks::CHECKS;
use crate::context::{Context, Settings};
use crate::error::Error;
use crate::setup;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

/// What to check.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these checks
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Not these checks
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    skip: Vec<String>,
    /// Say which checks there are
    #[arg(long)]
    list: bool,
    /// How often the check `resume` kills a job
    #[arg(long, default_value_t = 3)]
    kills: usize,
    /// Key of the random moments
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write what each check says into a folder, a table a file
    #[arg(long, value_name = "FOLDER")]
    tables: Option<PathBuf>,
    /// Check this `lapidary` instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Runs the checks; false when one failed.
pub(crate) fn run(options: &Options) -> Result<bool, Error> {
    if options.list {
        for check in CHECKS {
            println!("{:<10}  {}", check.name, check.summary);
        }
        return Ok(true);
    }
    for name in options.only.iter().chain(&options.skip) {
        if !CHECKS.iter().any(|check| check.name == name) {
            let what = format!("there is no check {name:?}; --list says which there are");
            return Err(Error::Unexpected(what));
        }
    }
    let named = |names: &[String], name: &str| names.iter().any(|other| other == name);
    let wanted = |name: &str| options.only.is_empty() || named(&options.only, name);
    let chosen: Vec<_> = CHECKS
        .iter()
        .filter(|check| wanted(check.name) && !named(&options.skip, check.name))
        .collect();

    let root = setup::root()?;
    let cache = setup::cache()?;
    let python = setup::python(&root, &cache, setup::SCRIPTS, "xtask/real/requirements.txt")?;
    let names: BTreeSet<&str> = chosen.iter().flat_map(|check| check.models).copied().collect();
    let models = setup::models(&root, &python, &cache, &names)?;
    let binary = setup::binary(&root, options.binary.as_deref())?;
    let settings = Settings { kills: options.kills, seed: options.seed };
    let context = Context::new(root, cache, python, models, binary, settings)?;
    println!("{}", context.describe());

    let started = Instant::now();
    let mut report = Report::new();
    for check in chosen {
        report.run(check, &context);
        if let Some(folder) = &options.tables {
            report.write_table(folder, check, &context.text_name)?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{} ok, {} failed, {seconds:.0} s", report.passed, report.failed);
    Ok(report.failed == 0)
}
