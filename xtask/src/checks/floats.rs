//! FP8, FP4 and one-byte folders load in transformers, and have there the perplexity they have here.

use super::load::{agrees, loads};
use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;

pub(crate) const CHECK: Check = Check {
    name: "floats",
    summary: "FP8, NVFP4, MXFP4, MXFP8 and int8 folders are the same models in transformers",
    models: &["smollm2"],
    run,
};

/// Recipes, with what is asked beside them.
const CASES: [(&str, &[&str]); 7] = [
    ("W8A16-rtn", &["--group-size", "64"]),
    ("W8A16-rtn", &["--group-size", "row", "--format", "int-quantized"]),
    ("FP8", &[]),
    ("FP8_BLOCK", &[]),
    ("MXFP8A16", &[]),
    ("NVFP4A16", &[]),
    ("MXFP4A16", &[]),
];

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("offgrid")?;
    for (recipe, more) in CASES {
        let chosen = ["--recipe", recipe];
        let arguments = chosen.iter().chain(more).map(|text| (*text).to_owned());
        let made = context.compressed(&model, &arguments.collect::<Vec<_>>())?;
        let what = [&[recipe][..], &more[more.len().min(2)..]].concat().join(" ");
        loads(context, report, &what, &made.folder)?;
        agrees(context, report, &what, &made.folder, "1")?;
    }
    Ok(())
}
