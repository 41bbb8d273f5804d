//! Pruned folders load in transformers, and have there the perplexity they have here.

use super::load::{agrees, loads};
use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;

pub(crate) const CHECK: Check = Check {
    name: "pruned",
    summary: "pruned folders, plain and rounded to 4 bits, are the same models in transformers",
    models: &["smollm2"],
    run,
};

/// Recipes, with what is asked beside them.
const CASES: [(&str, &[&str]); 3] = [
    ("sparse-2-4", &[]),
    ("sparse-50", &["--format", "dense"]),
    ("sparse-50-W4A16", &["--group-size", "64"]),
];

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("offgrid")?;
    for (recipe, more) in CASES {
        let chosen = ["--recipe", recipe];
        let chosen = chosen.iter().chain(more).map(|text| (*text).to_owned());
        let arguments: Vec<String> = chosen.chain(context.rows(16, 256)).collect();
        let made = context.compressed(&model, &arguments)?;
        loads(context, report, recipe, &made.folder)?;
        agrees(context, report, recipe, &made.folder, "1")?;
    }
    Ok(())
}
