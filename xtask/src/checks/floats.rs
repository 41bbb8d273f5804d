//! FP8, FP4 and one-byte folders load in transformers, and have there the perplexity they have here;
//! those whose inputs are rounded as well.

use super::load::{agrees, loads};
use super::perplexity;
use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::number;
use std::path::Path;

pub(crate) const CHECK: Check = Check {
    name: "floats",
    summary: "FP8, NVFP4, MXFP4, MXFP8 and int8 folders, with rounded inputs too, are the same models \
              in transformers",
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

/// Recipes of layers whose inputs are rounded.
const ROUNDED: [(&str, &[&str]); 3] =
    [("W8A8", &[]), ("W4A8", &["--group-size", "64"]), ("FP8_DYNAMIC", &[])];

/// Windows that these are compared on. Rounding turns the last bit of a float into a step of a grid
/// some layers on: transformers with its embeddings moved by 1e-7 differs from itself as it does from
/// us, by 0.2 nats a token with FP8, which only more tokens average out.
const WINDOWS: &str = "4";

/// How far the two may be apart there.
const TOLERANCE: f64 = 0.01;

/// Steps that round the inputs of the first block alone, from which little of that comes.
const FIRST_BLOCK: [(&str, &str); 2] = [
    ("int8 inputs", "method: rtn, bits: 8, group_size: row, activations: int8"),
    ("FP8 inputs", "method: fp8, activations: fp8"),
];

/// How many times nearer our perplexity must be to theirs with rounded inputs than with floats.
const NEARER: f64 = 10.0;

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
    for (recipe, more) in ROUNDED {
        let chosen = ["--recipe", recipe];
        let chosen = chosen.iter().chain(more).map(|text| (*text).to_owned());
        let calibration = if recipe == "FP8_DYNAMIC" { vec![] } else { context.rows(16, 256) };
        let made = context.compressed(&model, &chosen.chain(calibration).collect::<Vec<_>>())?;
        loads(context, report, recipe, &made.folder)?;
        let windows = ["--windows", WINDOWS];
        let ours = number(&perplexity::ours(context, &made.folder, &windows)?, "perplexity")?;
        let theirs = number(&perplexity::theirs(context, &made.folder, &windows)?, "perplexity")?;
        report.close(&format!("{recipe}, perplexity"), ours, theirs, TOLERANCE);
    }
    for (what, step) in FIRST_BLOCK {
        let text = format!(
            "steps: [{{{step}, targets: [Linear], layers: block 0}}]\nformat: compressed-tensors\n"
        );
        let recipe = context.scratch(&format!("{}.yaml", what.replace(' ', "-")));
        std::fs::write(&recipe, text).map_err(Error::at(&recipe))?;
        let options = ["--recipe".to_owned(), recipe.display().to_string()];
        let made = context.compressed(&model, &options)?;
        rounds_there(context, report, &format!("{what} in block 0"), &made.folder)?;
    }
    Ok(())
}

/// The perplexity there is the one here because inputs are rounded there: left floats, it is another.
fn rounds_there(
    context: &Context,
    report: &mut Report,
    what: &str,
    folder: &Path,
) -> Result<(), Error> {
    let windows = ["--windows", "1"];
    let ours = number(&perplexity::ours(context, folder, &windows)?, "perplexity")?;
    let rounded = perplexity::theirs(context, folder, &windows)?;
    let floats = perplexity::theirs(context, folder, &["--windows", "1", "--float-inputs"])?;
    let layers = (number(&rounded, "rounded_inputs")?, number(&floats, "rounded_inputs")?);
    let (rounded, floats) = (number(&rounded, "perplexity")?, number(&floats, "perplexity")?);
    let nearer = (ours / floats).ln().abs() / (ours / rounded).ln().abs();
    let figures = format!(
        "{ours:.5} against {rounded:.5} with {} layers rounding theirs, and {floats:.5} with {}: \
         {nearer:.0} times nearer (at least {NEARER})",
        layers.0, layers.1
    );
    let holds = layers.0 > 0.0 && layers.1 == 0.0 && nearer >= NEARER;
    report.line(holds, &format!("{what}, perplexity"), &figures);
    Ok(())
}
