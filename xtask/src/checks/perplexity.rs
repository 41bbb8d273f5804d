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

/// A protocol, and how much of the text is scored by it.
struct Part {
    protocol: &'static str,
    /// Options of `lapidary eval`.
    ours: &'static [&'static str],
    /// The same for `reference.py`.
    theirs: &'static [&'static str],
    /// What is compared.
    figures: &'static [&'static str],
}

const PARTS: [Part; 3] = [
    Part {
        protocol: "windows",
        ours: &["--windows", "2"],
        theirs: &["--windows", "2"],
        figures: &["perplexity"],
    },
    Part {
        protocol: "llama.cpp",
        ours: &["--windows", "6"],
        theirs: &["--chunks", "6"],
        figures: &["perplexity"],
    },
    // Windows shorter than the page, so that one follows on another.
    Part {
        protocol: "word",
        ours: &["--windows", "1", "--context", "512"],
        theirs: &["--pages", "1", "--max-length", "512"],
        figures: &["word_perplexity", "byte_perplexity"],
    },
];

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("smollm2")?;
    for Part { protocol, ours, theirs, figures } in PARTS {
        let name = ["--protocol", protocol];
        let options = theirs.join(" ");
        let ours = self::ours(context, &model, &[&name, ours].concat())?;
        let theirs = self::theirs(context, &model, &[&name, theirs].concat())?;
        for figure in figures {
            let (ours, theirs) = (number(&ours, figure)?, number(&theirs, figure)?);
            report.close(&format!("{protocol} {options}, {figure}"), ours, theirs, TOLERANCE);
        }
        let counted = (number(&ours, "tokens")?, number(&theirs, "tokens")?);
        let what = format!("{protocol} {options}, predictions scored");
        let figures = format!("{} against {}", counted.0, counted.1);
        report.line((counted.0 - counted.1).abs() < 0.5, &what, &figures);
    }
    Ok(())
}

/// What `lapidary eval` says of a model.
pub(crate) fn ours(context: &Context, model: &Path, options: &[&str]) -> Result<Value, Error> {
    json(context.lapidary("eval").arg(model).arg("--text").arg(&context.text).args(options))
}

/// What `reference.py` says of it.
pub(crate) fn theirs(context: &Context, model: &Path, options: &[&str]) -> Result<Value, Error> {
    let mut script = context.python("reference.py");
    json(script.arg(model).arg("--text").arg(&context.text).args(options))
}
