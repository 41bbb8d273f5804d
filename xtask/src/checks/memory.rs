//! Memory is one block, its statistics, the activations and a constant, whatever the model's size;
//! and `lapidary plan` predicts it.

use super::load::w4a16;
use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::{json, number};
use lapidary_model::{Graph, spec};
use std::path::Path;

pub(crate) const CHECK: Check = Check {
    name: "memory",
    summary: "peak memory: within one block, statistics, activations and 150 MB; as planned; not \
              growing with the layers",
    models: &["smollm2"],
    run,
};

const CONSTANT: u64 = 150_000_000;
const PREDICTION: f64 = 0.15;
const GROWTH: f64 = 0.10;
/// Layers of the synthetic models: as many as SmolLM2 has, and four times that.
const LAYERS: [usize; 2] = [30, 120];
/// Rows and tokens of the synthetic models' calibration.
const ROWS: [usize; 2] = [8, 128];

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let model = context.model("offgrid")?;
    let options = w4a16(context);
    let peak = context.compressed(&model, &options)?.peak_bytes;
    if peak == 0 {
        let what = "this system does not tell a process's peak memory (no /proc)";
        return Err(Error::Unexpected(what.to_owned()));
    }
    let bound = bound(context, &model, 16 * 256)? + CONSTANT;
    report.line(peak <= bound, "SmolLM2, peak", &format!("{} (at most {})", mb(peak), mb(bound)));
    predicted(context, report, "SmolLM2", &model, &options, peak)?;

    let mut peaks = vec![];
    for layers in LAYERS {
        let folder = context.scratch(&format!("layers-{layers}"));
        let mut make = context.python("random_model.py");
        make.arg(&folder).args(["--layers", &layers.to_string()]);
        make.args(["--rows", &ROWS[0].to_string(), "--length", &ROWS[1].to_string()]);
        json(&mut make)?;
        let rows = folder.with_extension("rows.safetensors").display().to_string();
        // The grid search is left out: it takes time and no memory to speak of.
        let options = ["--recipe", "W4A16", "--group-size", "64", "--calibration", &rows];
        let options = options.into_iter().chain(["--samples", "8", "--set", "gptq.scale=min-max"]);
        let options: Vec<String> = options.map(str::to_owned).collect();
        let peak = context.compressed(&folder, &options)?.peak_bytes;
        predicted(context, report, &format!("{layers} layers"), &folder, &options, peak)?;
        peaks.push(peak);
        std::fs::remove_dir_all(&folder).map_err(Error::at(&folder))?;
    }
    let growth = peaks[1] as f64 / peaks[0] as f64 - 1.0;
    let figures = format!(
        "{} with {} layers, {} with {}: {:+.1} % (at most {:.0} %)",
        mb(peaks[0]),
        LAYERS[0],
        mb(peaks[1]),
        LAYERS[1],
        100.0 * growth,
        100.0 * GROWTH
    );
    report.line(growth < GROWTH, "growth with the layers", &figures);
    Ok(())
}

fn predicted(
    context: &Context,
    report: &mut Report,
    what: &str,
    model: &Path,
    options: &[String],
    peak: u64,
) -> Result<(), Error> {
    let plan = json(context.lapidary("plan").arg(model).args(options))?;
    let planned = number(&plan, "peak_memory_bytes")?;
    let difference = planned / peak as f64 - 1.0;
    let figures = format!(
        "{} planned, {} taken: {:+.1} % (at most {:.0} %)",
        mb(planned as u64),
        mb(peak),
        100.0 * difference,
        100.0 * PREDICTION
    );
    report.line(difference.abs() <= PREDICTION, &format!("{what}, plan"), &figures);
    Ok(())
}

/// One block in 16 bits, the Gram matrices of its inputs in 32, and the activations in 32.
fn bound(context: &Context, model: &Path, tokens: u64) -> Result<u64, Error> {
    let spec = spec(context.open(model)?.config()).map_err(Error::library)?;
    let weights = |block: &Graph| -> u64 {
        block.linears().map(|linear| 2 * (linear.in_features * linear.out_features) as u64).sum()
    };
    let statistics = |block: &Graph| -> u64 {
        let widths = block.shared_inputs().into_iter().map(|group| group.linears[0].in_features);
        widths.map(|width| 4 * (width * width) as u64).sum()
    };
    let largest = |bytes: &dyn Fn(&Graph) -> u64| spec.blocks.iter().map(bytes).max().unwrap_or(0);
    Ok(largest(&weights) + largest(&statistics) + 4 * tokens * spec.hidden_size as u64)
}

/// Megabytes.
fn mb(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}
