//! GPTQ loses less than rounding to nearest, at each width.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::{json, number};
use std::path::Path;

pub(crate) const CHECK: Check = Check {
    name: "ordering",
    summary: "GPTQ's divergence below that of rounding to nearest, at 4, 3 and 2 bits",
    models: &["smollm2"],
    run,
};

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("offgrid")?;
    for bits in ["W4A16", "W3A16", "W2A16"] {
        let divergence = |method: &str, rows: Vec<String>| {
            let recipe = format!("{bits}{method}");
            let options = ["--recipe", &recipe, "--group-size", "64", "--symmetric"];
            let options: Vec<String> = options.map(str::to_owned).into_iter().chain(rows).collect();
            divergence(context, &model, &context.compressed(&model, &options)?.folder)
        };
        // `W4A16` is GPTQ, and another check has compressed by it already.
        let gptq = divergence(if bits == "W4A16" { "" } else { "-gptq" }, context.rows(16, 256))?;
        let rtn = divergence("-rtn", vec![])?;
        let figures = format!("{gptq:.4} by GPTQ, {rtn:.4} by rounding");
        report.line(gptq < rtn, &format!("{bits}, KL divergence"), &figures);
    }
    Ok(())
}

/// Mean divergence from the original over two windows.
fn divergence(context: &Context, model: &Path, folder: &Path) -> Result<f64, Error> {
    let mut eval = context.lapidary("eval");
    eval.arg(folder).arg("--reference").arg(model).args(["--windows", "2"]);
    number(&json(eval.arg("--text").arg(&context.text))?, "kl_divergence")
}
