//! `lapidary eval` gives the perplexity that transformers gives, in each protocol.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::{json, number};
use serde_json::Value;
use std::path::Path;

pub(crate) const CHECK: Check = Check {
    name: "perplexity",
    summary: "SmolLM2's perplexity in three protocols against transformers, to 0.2 %",
    models: &["smollm2"],
    run,
};

const TOLERANCE: f64 = 0.002;

/// Protocol, the option of `reference.py` that limits it, the limit, figures to compare.
const PROTOCOLS: [(&str, &str, &str, &[&str]); 3] = [
    ("windows", "--windows", "2", &["perplexity"]),
    ("llama.cpp", "--chunks", "8", &["perplexity"]),
    ("word", "--pages", "2", &["word_perplexity", "byte_perplexity"]),
];

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("smollm2")?;
    for (protocol, limit, count, figures) in PROTOCOLS {
        let ours = ours(context, &model, protocol, count)?;
        let theirs = theirs(context, &model, &["--protocol", protocol, limit, count])?;
        for figure in figures {
            let what = format!("{protocol}, first {count} {}, {figure}", &limit[2..]);
            let (ours, theirs) = (number(&ours, figure)?, number(&theirs, figure)?);
            report.close(&what, ours, theirs, TOLERANCE);
        }
        let counted = (number(&ours, "tokens")?, number(&theirs, "tokens")?);
        let what = format!("{protocol}, predictions scored");
        let figures = format!("{} against {}", counted.0, counted.1);
        report.line((counted.0 - counted.1).abs() < 0.5, &what, &figures);
    }
    Ok(())
}

/// What `lapidary eval` says of a model.
pub(crate) fn ours(
    context: &Context,
    model: &Path,
    protocol: &str,
    windows: &str,
) -> Result<Value, Error> {
    let mut eval = context.lapidary("eval");
    eval.arg(model).args(["--protocol", protocol, "--windows", windows]);
    json(eval.arg("--text").arg(&context.text))
}

/// What `reference.py` says of it.
pub(crate) fn theirs(context: &Context, model: &Path, options: &[&str]) -> Result<Value, Error> {
    let mut script = context.python("reference.py");
    json(script.arg(model).arg("--text").arg(&context.text).args(options))
}
