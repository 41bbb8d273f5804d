//! What `lapidary compress` writes, transformers loads as any user would, and it is the same model.

use super::{perplexity, tokens};
use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::{json, number};
use serde_json::Value;
use std::path::Path;

pub(crate) const CHECK: Check = Check {
    name: "load",
    summary: "what we write loads in transformers, and has there the perplexity it has here",
    models: &["smollm2"],
    run,
};

const TOLERANCE: f64 = 0.005;

/// The recipe that this and other checks compress SmolLM2 by.
pub(crate) fn w4a16(context: &Context) -> Vec<String> {
    let recipe = ["--recipe", "W4A16", "--group-size", "64", "--symmetric"];
    recipe.map(str::to_owned).into_iter().chain(context.rows(16, 256)).collect()
}

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("offgrid")?;
    let packed = context.compressed(&model, &w4a16(context))?;
    loads(context, report, "W4A16, pack-quantized", &packed.folder)?;
    agrees(context, report, "W4A16, pack-quantized", &packed.folder, "2")?;
    let written = tokens::theirs(context, &packed.folder, &context.text)?;
    let source = tokens::ours(context, &model, &context.text)?;
    let figures = format!("{} ids there, {} with us", written.len(), source.len());
    report.line(written == source, "ids by the tokenizer.json made from the GGUF", &figures);

    let dense = ["--recipe", "W8A16-rtn", "--group-size", "64", "--format", "dense"];
    let dense = context.compressed(&model, &dense.map(str::to_owned))?;
    loads(context, report, "W8A16, dense", &dense.folder)?;
    agrees(context, report, "W8A16, dense", &dense.folder, "1")
}

/// Loads by the Auto classes with nothing missing, left over or complained about.
pub(crate) fn loads(
    context: &Context,
    report: &mut Report,
    what: &str,
    folder: &Path,
) -> Result<(), Error> {
    let found = match json(context.python("load_check.py").arg(folder)) {
        // The script prints what it found and fails when that is not all well; say what it was.
        Err(Error::Command { stdout, .. }) if stdout.starts_with('{') => {
            serde_json::from_str(&stdout).map_err(Error::library)?
        }
        other => other?,
    };
    let class = |key: &str| found[key].as_str().unwrap_or("nothing").to_owned();
    let figures = if found["ok"] == true {
        format!("{} and {}", class("model"), class("tokenizer"))
    } else {
        format!("{found}")
    };
    report.line(found["ok"] == true, &format!("{what} loads"), &figures);
    Ok(())
}

/// The perplexity there is the one here.
pub(crate) fn agrees(
    context: &Context,
    report: &mut Report,
    what: &str,
    folder: &Path,
    windows: &str,
) -> Result<(), Error> {
    let perplexity = |value: &Value| number(value, "perplexity");
    let ours = perplexity::ours(context, folder, &["--windows", windows])?;
    let theirs = perplexity::theirs(context, folder, &["--windows", windows])?;
    let (ours, theirs) = (perplexity(&ours)?, perplexity(&theirs)?);
    report.close(&format!("{what}, perplexity"), ours, theirs, TOLERANCE);
    Ok(())
}
