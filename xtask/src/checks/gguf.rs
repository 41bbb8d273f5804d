//! What is written for llama.cpp, in llama.cpp: every type of blocks, the presets on a real model.
//!
//! `LAPIDARY_PYTHON` names a Python with llama-cpp-python, else it is `python3`.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::json;
use serde_json::Value;
use std::path::Path;

pub(crate) const CHECK: Check = Check {
    name: "gguf",
    summary: "every type of blocks in llama.cpp; GPTQ in Q4_0 against llama.cpp's own Q4_0",
    models: &["smollm2"],
    run,
};

/// What the differences that `gguf` allows are.
pub(crate) const ROUNDING: Check = Check {
    name: "rounding",
    summary: "the same numbers in llama.cpp as blocks and as floats: how far its rounding of activations goes",
    models: &["smollm2"],
    run: run_rounding,
};

/// The types that are written for llama.cpp.
const GRIDS: [&str; 15] = [
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "mxfp4", "q2_k", "q3_k", "q4_k", "q5_k",
    "q6_k", "iq4_xs", "tq1_0", "tq2_0",
];

/// Those whose blocks have 32 columns.
const SHORT: usize = 7;

/// The presets.
const PRESETS: [&str; 9] =
    ["Q8_0", "Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q4_0"];

/// Rows of calibration where no quality is measured.
const FEW: usize = 16;

/// Most that llama.cpp's perplexity may be from ours: it rounds activations to 8 bits.
const TOLERANCE: f64 = 0.01;

/// The same where both multiply floats; llama.cpp rounds them to 16 bits.
const FLOATS: f64 = 0.0005;

/// Divergence of llama.cpp's Q4_0 with an importance matrix on the off-grid model, 20 windows.
const RIVAL: f64 = 0.227;

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let (demo, model) = (context.root().join("assets/demo"), context.model("offgrid")?);
    for (index, grid) in GRIDS.into_iter().enumerate() {
        // Blocks of 256 columns divide no row of the demo's model; SmolLM2 has some.
        let (name, source, window) = match index < SHORT {
            true => ("demo", &demo, 128),
            false => ("SmolLM2", &model, 512),
        };
        // Three levels a block leave nothing of a model: one layer has them. Nor do four, rounded to the
        // nearest. SmolLM2's table is too narrow for the types of the other kind as well.
        let (method, targets) = match grid {
            "tq1_0" | "tq2_0" => ("omse", "'re:.*\\.7\\.mlp\\.down_proj'"),
            "q2_k" => ("gptq", "Linear"),
            _ if index < SHORT => ("rtn", "Linear, Embedding"),
            _ => ("rtn", "Linear"),
        };
        let step = format!("steps: [{{method: {method}, targets: [{targets}], grid: {grid}}}]");
        let recipe = context.scratch(&format!("{grid}.yaml"));
        std::fs::write(&recipe, format!("{step}\nformat: gguf\n")).map_err(Error::at(&recipe))?;
        let mut options = vec!["--recipe".to_owned(), recipe.display().to_string()];
        if method == "gptq" {
            options.extend(context.rows(FEW, 512));
        }
        let made = context.compressed(source, &options)?;
        agree(context, report, &format!("{name}, {grid}"), &made.folder, window, TOLERANCE)?;
    }
    for preset in PRESETS {
        let mut options = vec!["--recipe".to_owned(), preset.to_owned()];
        // Whether two programs agree does not depend on how good the model is.
        options.extend(context.rows(if preset == "Q4_0" { 128 } else { FEW }, 512));
        let made = context.compressed(&model, &options)?;
        let name = format!("SmolLM2, {preset}");
        agree(context, report, &name, &made.folder, 512, TOLERANCE)?;
        if preset == "Q4_0" {
            let theirs = llama_cpp(context, &made.folder, 512, Some(model.as_path()))?;
            let divergence = number(&theirs, "kl_divergence")?;
            let figures = format!("{divergence:.4} in llama.cpp, where its own has {RIVAL}");
            report.line(divergence < RIVAL, &format!("{name}, divergence"), &figures);
        }
    }
    Ok(())
}

/// Blocks of three types, and the floats they decode to, each as a GGUF.
fn run_rounding(context: &Context, report: &mut Report) -> Result<(), Error> {
    for grid in ["q4_0", "q4_k", "q6_k"] {
        let step = format!("steps: [{{method: rtn, targets: [Linear], grid: {grid}}}]");
        let recipe = context.scratch(&format!("rounding-{grid}.yaml"));
        std::fs::write(&recipe, format!("{step}\nformat: gguf\n")).map_err(Error::at(&recipe))?;
        let options = ["--recipe".to_owned(), recipe.display().to_string()];
        let blocks = context.compressed(&context.model("offgrid")?, &options)?;
        agree(context, report, &format!("{grid} as blocks"), &blocks.folder, 512, TOLERANCE)?;
        let mut last = blocks.folder.clone();
        for format in ["dense", "gguf"] {
            let next = context.scratch(&format!("rounding-{grid}-{format}"));
            let mut convert = context.lapidary("convert");
            json(convert.arg(&last).args(["--to", format, "--output"]).arg(&next))?;
            last = next;
        }
        agree(context, report, &format!("{grid} as floats"), &last, 512, FLOATS)?;
    }
    Ok(())
}

/// Holds llama.cpp's perplexity of a result to ours.
fn agree(
    context: &Context,
    report: &mut Report,
    what: &str,
    folder: &Path,
    window: usize,
    tolerance: f64,
) -> Result<(), Error> {
    let theirs = llama_cpp(context, folder, window, None)?;
    let windows = number(&theirs, "windows")?.to_string();
    let mut eval = context.lapidary("eval");
    eval.arg(folder).arg("--text").arg(&context.text).args(["--protocol", "llama.cpp"]);
    let ours = json(eval.args(["--context", &window.to_string(), "--windows", &windows]))?;
    let (ours, theirs) = (number(&ours, "perplexity")?, number(&theirs, "perplexity")?);
    report.close(&format!("{what}, perplexity"), theirs, ours, tolerance);
    Ok(())
}

fn llama_cpp(
    context: &Context,
    folder: &Path,
    window: usize,
    reference: Option<&Path>,
) -> Result<Value, Error> {
    let mut script = context.own_python("llama_perplexity.py");
    script.arg(folder.join("model.gguf")).arg(&context.text);
    script.args(["--context", &window.to_string()]);
    if let Some(reference) = reference {
        script.arg("--reference").arg(reference);
    }
    json(&mut script)
}

fn number(value: &Value, key: &str) -> Result<f64, Error> {
    let missing = || Error::Unexpected(format!("no number under {key}: {value}"));
    value[key].as_f64().ok_or_else(missing)
}
