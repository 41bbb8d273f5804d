//! lm-evaluation-harness, driving `lapidary serve`, gets the log-likelihoods that transformers gives
//! on the float model, and the same greedy answers.

use crate::check::{Check, Report};
use crate::context::Context;
use crate::error::Error;
use crate::process::{json, number, run as run_command};
use crate::server::Server;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const CHECK: Check = Check {
    name: "harness",
    summary: "lm-evaluation-harness against `serve`, and its figures against transformers'",
    models: &["smollm2"],
    run,
};

const TASKS: [&str; 3] = ["lapidary_choice", "lapidary_rolling", "lapidary_greedy"];

/// Largest difference of two log-likelihoods of the same tokens, in nats.
const TOLERANCE: f64 = 2e-3;

fn run(context: &Context, report: &mut Report) -> Result<(), Error> {
    let harness = context.environment("lm-eval", "xtask/real/lm_eval.txt")?;
    let model = context.model("offgrid")?;
    let exact = ["--precision", "f32", "--cache", "f32", "--context", "2048"];
    let server = Server::start(context.binary(), &model, &exact)?;
    let out = context.scratch("lm-eval");
    // Token ids and texts, one at a time and several in a request.
    for (what, tokenized, batch) in [("token ids", "True", "1"), ("texts", "False", "4")] {
        let out = out.join(tokenized);
        drive(&harness, context, &server, (tokenized, batch), &out)?;
        let mut script = context.python("loglikelihoods.py");
        let found = json(script.arg(&model).args(samples(&out)?))?;
        compare(report, what, &found)?;
    }
    let (time, well) = server.end()?;
    let figures =
        format!("{:.1} s, {}", time.as_secs_f64(), if well { "well" } else { "not well" });
    report.line(well, "the server ends when it is told to", &figures);
    Ok(())
}

/// Runs the harness, as anybody would.
fn drive(
    python: &Path,
    context: &Context,
    server: &Server,
    (tokenized, batch): (&str, &str),
    out: &Path,
) -> Result<(), Error> {
    let tasks = context.root().join("xtask/real/harness");
    let model = format!(
        "model=m,base_url=http://{}/v1/completions,num_concurrent=4,max_length=2048,\
         tokenized_requests={tokenized}",
        server.address
    );
    let home = context.scratch("lm-eval-home");
    let mut command = Command::new(python);
    command.args(["-m", "lm_eval", "--model", "local-completions", "--model_args", &model]);
    command.args(["--tasks", &TASKS.join(","), "--include_path"]).arg(&tasks);
    command.args(["--batch_size", batch, "--log_samples", "--output_path"]).arg(out);
    // The tasks name their files relative to this folder; the network is not needed.
    command.current_dir(&tasks).env("HF_HOME", home).env("HF_HUB_OFFLINE", "1");
    command.env("HF_DATASETS_OFFLINE", "1").env("PYTHONDONTWRITEBYTECODE", "1");
    run_command(&mut command).map(drop)
}

/// The samples that the harness wrote, somewhere below its output folder.
fn samples(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).map_err(Error::at(folder))? {
        let path = entry.map_err(Error::at(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(samples(&path)?);
        } else if name.starts_with("samples_") {
            found.push(path);
        }
    }
    Ok(found)
}

fn compare(report: &mut Report, what: &str, found: &Value) -> Result<(), Error> {
    let rows = found["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (mut scored, mut worst, mut greedy, mut texts, mut wrong) = (0, 0.0_f64, 0, 0, vec![]);
    for row in rows {
        let (ours, theirs) = (&row["ours"], &row["theirs"]);
        if let Some(text) = ours["text"].as_str() {
            texts += 1;
            if theirs["text"] != text {
                wrong.push(format!("{text:?} for {}", theirs["text"]));
            }
            continue;
        }
        scored += 1;
        let difference = (number(ours, "logprob")? - number(theirs, "logprob")?).abs();
        worst = worst.max(difference);
        // Where two tokens are as likely as each other, rounding decides.
        if let Some(ours) = ours["greedy"].as_bool() {
            greedy += 1;
            if theirs["greedy"] != ours && number(theirs, "margin")? > TOLERANCE {
                wrong.push(format!("greedy {ours} for {}", row["request"]));
            }
        }
    }
    let figures = format!("{scored} log-likelihoods, the largest difference {worst:.1e} nats");
    report.line(scored >= 52 && worst <= TOLERANCE, what, &figures);
    let figures = match wrong.first() {
        None => format!("{greedy} verdicts and {texts} answers are the same"),
        Some(first) => format!("{} differ, the first {first}", wrong.len()),
    };
    report.line(wrong.is_empty() && greedy >= 48 && texts == 4, what, &figures);
    Ok(())
}
