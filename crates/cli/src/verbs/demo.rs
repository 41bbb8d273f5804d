//! `lapidary demo`: the whole job on a small language model inside the binary.

use super::disk;
use super::eval::HELD_OUT;
use crate::arguments::DemoArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Shown;
use crate::signal::stop_flag;
use crate::table::{megabytes, table};
use lapidary_engine::plan::Limits;
use lapidary_engine::recipe::{Recipe, RecipeError};
use lapidary_engine::{Job, compress, tokenizer};
use lapidary_eval::{Evaluation, Protocol, Report, Size, evaluate, size};
use lapidary_formats::Source;
use lapidary_model::{Precision, spec};
use lapidary_store::Fs;
use lapidary_store::atomic::write;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

macro_rules! model_files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../../../assets/demo/", $name)).as_slice())),*]
    };
}

/// The model in the binary; `assets/README.md` says how it was made.
const MODEL: &[(&str, &[u8])] = model_files![
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// What is shown: label, recipe.
const RECIPES: &[(&str, &str)] = &[
    ("4-bit round to nearest", "steps: [{method: rtn, bits: 4, group_size: 64}]"),
    ("4-bit GPTQ", "steps: [{method: gptq, bits: 4, group_size: 64}]"),
    ("3-bit round to nearest", "steps: [{method: rtn, bits: 3, group_size: 64}]"),
    ("3-bit GPTQ", "steps: [{method: gptq, bits: 3, group_size: 64}]"),
];

/// Tokens of an evaluation window: the model's context is short.
const CONTEXT: usize = 256;

/// One row of the demo's table.
struct Row {
    label: &'static str,
    folder: Option<PathBuf>,
    size: Size,
    report: Report,
}

pub(crate) fn run(
    arguments: &DemoArguments,
    quiet: bool,
    output: &mut Output,
) -> Result<(), CliError> {
    let fs = disk();
    let folder = match &arguments.output {
        Some(folder) => folder.clone(),
        None => std::env::temp_dir().join(format!("lapidary-demo-{}", std::process::id())),
    };
    let rows = show(&fs, &folder, quiet);
    if arguments.output.is_none() {
        // Nothing of a demo without -o stays behind, whether it went well or not.
        let _ = fs.remove_dir_all(&folder);
    }
    let rows = rows?;
    let kept = arguments.output.as_deref();
    output.result(|| rows.iter().map(|row| to_json(row, kept)).collect(), || describe(&rows, kept))
}

fn show(fs: &Arc<dyn Fs>, folder: &Path, quiet: bool) -> Result<Vec<Row>, CliError> {
    let stop = stop_flag();
    let model = folder.join("model");
    fs.create_dir_all(&model)?;
    for (name, bytes) in MODEL {
        write(fs, &model.join(name), bytes)?;
    }
    let source = Source::open(Arc::clone(fs), &model)?;
    let mut rows = vec![row("float", None, &source, &source, &stop)?];
    for (label, text) in RECIPES {
        let in_recipe = |error: RecipeError| CliError::Recipe { file: "demo".to_owned(), error };
        let recipe = Recipe::parse(text).map_err(in_recipe)?;
        let output = folder.join(label.replace(' ', "-"));
        compress(&Job {
            fs: Arc::clone(fs),
            source: &source,
            recipe: &recipe,
            output: &output,
            seed: 0,
            limits: Limits::default(),
            strict: false,
            shard_bytes: None,
            base_model: "lapidary-demo",
            stop: &stop,
            progress: &Shown::new(quiet),
        })?;
        let compressed = Source::open(Arc::clone(fs), &output)?;
        rows.push(row(label, Some(output), &compressed, &source, &stop)?);
    }
    Ok(rows)
}

fn row(
    label: &'static str,
    folder: Option<PathBuf>,
    source: &Source,
    reference: &Source,
    stop: &AtomicBool,
) -> Result<Row, CliError> {
    let (model, original) = (spec(source.config())?, spec(reference.config())?);
    let evaluation = Evaluation {
        model: (source, &model),
        reference: folder.is_some().then_some((reference, &original)),
        reference_limit: None,
        tokenizer: &tokenizer(source)?,
        text: HELD_OUT,
        protocol: Protocol::Windows,
        limit: None,
        context: Some(CONTEXT),
        precision: Precision::F32,
        stop,
    };
    let report = evaluate(&evaluation, &mut |_, _| {})?;
    Ok(Row { label, folder, size: size(source, &model), report })
}

fn to_json(row: &Row, kept: Option<&Path>) -> Value {
    json!({
        "model": row.label,
        "bytes": row.size.bytes,
        "bits_per_weight": row.size.bits_per_weight,
        "perplexity": row.report.scored.perplexity,
        "kl_divergence": row.report.against.map(|against| against.kl_divergence),
        "top1_agreement": row.report.against.map(|against| against.top1_agreement),
        "folder": kept.and(row.folder.as_ref()),
    })
}

fn describe(rows: &[Row], kept: Option<&Path>) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let against = |figure: &dyn Fn(&lapidary_eval::Against) -> String| {
                row.report.against.as_ref().map_or_else(|| "-".to_owned(), figure)
            };
            vec![
                row.label.to_owned(),
                megabytes(row.size.bytes),
                format!("{:.2}", row.size.bits_per_weight),
                format!("{:.3}", row.report.scored.perplexity),
                against(&|a| format!("{:.4}", a.kl_divergence)),
                against(&|a| format!("{:.1} %", 100.0 * a.top1_agreement)),
            ]
        })
        .collect();
    let header = ["model", "weights", "bits/weight", "perplexity", "KL", "same top token"];
    let next = match kept {
        Some(folder) => format!(
            "The folders are in {}; transformers and vLLM load them.\n\
             Try: lapidary inspect {}/4-bit-GPTQ",
            folder.display(),
            folder.display()
        ),
        None => "Next: lapidary compress MODEL -o OUT --recipe W4A16\n\
                 where MODEL is a folder, a .gguf file or org/name; `lapidary presets` has more recipes.\n\
                 With `lapidary demo -o FOLDER` the compressed models stay."
            .to_owned(),
    };
    format!("{}\n\n{next}", table(&header, &cells))
}
