//! `cargo xtask quality`: every recipe of `benches/quality/rows.json` on the same model, calibration
//! rows and text, as one table. What has been measured is kept, so that it may be stopped and run
//! again.

use crate::context::Texts;
use crate::error::Error;
use crate::process::{Finished, parse, run};
use crate::setup;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only rows whose group and name contain one of these, as in `3.25,gptq`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Measure what has been measured before too
    #[arg(long)]
    again: bool,
    /// Perplexity on the whole text as well: some minutes a row
    #[arg(long)]
    whole: bool,
    /// Windows of 2048 tokens for perplexity and divergence
    #[arg(long, default_value_t = 20)]
    windows: usize,
    /// Measure with this `lapidary` instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Keep the compressed folders here
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Measures what is not measured yet, and writes the table.
pub(crate) fn run_all(options: &Options) -> Result<bool, Error> {
    let root = setup::root()?;
    let cache = setup::cache()?;
    let folder = root.join("benches/quality");
    let rows = read(&folder.join("rows.json"))?;
    let rows = rows.as_array().cloned().unwrap_or_default();
    let results_path = folder.join("results.json");
    let mut results = match results_path.exists() {
        true => read(&results_path)?.as_object().cloned().unwrap_or_default(),
        false => Map::new(),
    };
    let scratch = cache.join(format!("quality-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(Error::at(&scratch))?;
    let bench = Bench::new(&root, &cache, &scratch, options)?;
    for row in &rows {
        let key = key(row);
        let is_chosen = |part: &String| key.contains(part.as_str());
        if !(options.only.is_empty() || options.only.iter().any(is_chosen)) {
            continue;
        }
        let is_same = |known: &&Value| known["row"] == *row && known["windows"] == options.windows;
        let known = results.get(&key).filter(is_same).filter(|_| !options.again);
        let is_whole = known.is_some_and(|known| !known["perplexity_of_all"].is_null());
        if known.is_some() && (is_whole || !options.whole) {
            continue;
        }
        eprintln!("{key}");
        match bench.measure(row, &key) {
            Ok(result) => {
                results.insert(key, result);
                write(&results_path, &format!("{:#}\n", Value::Object(results.clone())))?;
            }
            Err(error) => eprintln!("  {error}"),
        }
    }
    std::fs::remove_dir_all(&scratch).map_err(Error::at(&scratch))?;
    let table = table(&rows, &results);
    write(&folder.join("table.md"), &table)?;
    print!("{table}");
    Ok(true)
}

/// What every row is measured with.
struct Bench<'a> {
    model: PathBuf,
    binary: PathBuf,
    text: PathBuf,
    calibration: String,
    scratch: &'a Path,
    options: &'a Options,
}

impl<'a> Bench<'a> {
    fn new(
        root: &Path,
        cache: &Path,
        scratch: &'a Path,
        options: &'a Options,
    ) -> Result<Self, Error> {
        let python = setup::python(root, cache, setup::SCRIPTS, "xtask/real/requirements.txt")?;
        let models = setup::models(root, &python, cache, &BTreeSet::from(["smollm2"]))?;
        let texts = Texts::find(root, scratch)?;
        Ok(Self {
            model: PathBuf::from(models["offgrid"].as_str().unwrap_or_default()),
            binary: setup::binary(root, options.binary.as_deref())?,
            text: texts.evaluation,
            calibration: texts.calibration,
            scratch,
            options,
        })
    }

    fn measure(&self, row: &Value, key: &str) -> Result<Value, Error> {
        let recipe = self.scratch.join("recipe.yaml");
        write(&recipe, &row["recipe"].to_string())?;
        let name = key.replace([' ', '/'], "-");
        let output = self.options.keep.as_deref().unwrap_or(self.scratch).join(name);
        let mut compress = Command::new(&self.binary);
        compress.arg("compress").arg(&self.model).arg("--recipe").arg(&recipe).arg("-o");
        compress.arg(&output).args(["--json", "--quiet", "--samples", "128", "--seq-len", "512"]);
        compress.arg("--calibration").arg(&self.calibration);
        for argument in row["arguments"].as_array().into_iter().flatten() {
            compress.arg(argument.as_str().unwrap_or_default());
        }
        let Finished { stdout, wall_seconds, peak_bytes } = run(&mut compress)?;
        let compressed = parse(&compress, &stdout)?;
        let processor = compressed["processor_seconds"].as_object().into_iter().flatten();
        let processor: f64 = processor.filter_map(|(_, seconds)| seconds.as_f64()).sum();
        let windows = self.options.windows.to_string();
        let mut evaluated = match self.options.whole {
            true => self.evaluate(&output, &["--reference-windows", &windows])?,
            false => self.evaluate(&output, &["--windows", &windows])?,
        };
        let whole = match self.options.whole {
            true => evaluated["perplexity"].clone(),
            false => Value::Null,
        };
        if let Some(perplexity) = evaluated.get("compared_perplexity").cloned() {
            evaluated["perplexity"] = perplexity;
        }
        if self.options.keep.is_none() {
            std::fs::remove_dir_all(&output).map_err(Error::at(&output))?;
        }
        Ok(json!({
            "row": row,
            "windows": self.options.windows,
            "bits_per_weight": evaluated["bits_per_weight"],
            "bytes": evaluated["bytes"],
            "perplexity": evaluated["perplexity"],
            "reference_perplexity": evaluated["reference_perplexity"],
            "kl_divergence": evaluated["kl_divergence"],
            "top1_agreement": evaluated["top1_agreement"],
            "perplexity_of_all": whole,
            "seconds": wall_seconds,
            "processor_seconds": processor,
            "peak_bytes": peak_bytes,
        }))
    }

    fn evaluate(&self, folder: &Path, more: &[&str]) -> Result<Value, Error> {
        let mut evaluate = Command::new(&self.binary);
        evaluate.arg("eval").arg(folder).args(["--json", "--quiet", "--precision", "bf16"]);
        evaluate.arg("--text").arg(&self.text).args(more).arg("--reference").arg(&self.model);
        let finished = run(&mut evaluate)?;
        parse(&evaluate, &finished.stdout)
    }
}

/// What tells a row from the others: its group and its name.
fn key(row: &Value) -> String {
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    format!("{} {}", text("group"), text("name"))
}

/// The rows that have been measured, in Markdown, those of a group together, the best last.
fn table(rows: &[Value], results: &Map<String, Value>) -> String {
    let mut groups: Vec<&str> = rows.iter().filter_map(|row| row["group"].as_str()).collect();
    groups.dedup();
    let mut text = String::new();
    for group in groups {
        let of_group = rows.iter().filter(|row| row["group"].as_str() == Some(group));
        let mut measured: Vec<&Value> = of_group.filter_map(|row| results.get(&key(row))).collect();
        let divergence = |result: &Value| result["kl_divergence"].as_f64().unwrap_or(f64::NAN);
        measured.sort_by(|a, b| divergence(b).total_cmp(&divergence(a)));
        let _ = writeln!(
            text,
            "\n### {group}\n\n| recipe | bits a weight | MB | KL | top-1 % | perplexity | \
             windows | perplexity, all | s | CPU s | peak MB |\n|---|---|---|---|---|---|---|---|---|---|---|"
        );
        for result in measured {
            text.push_str(&line(result));
        }
    }
    text
}

fn line(result: &Value) -> String {
    let number = |key: &str| result[key].as_f64();
    let shown = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
    };
    let scaled = |key: &str, factor: f64| number(key).map(|value| value * factor);
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
        result["row"]["name"].as_str().unwrap_or_default(),
        shown(number("bits_per_weight"), 3),
        shown(scaled("bytes", 1e-6), 1),
        shown(number("kl_divergence"), 4),
        shown(scaled("top1_agreement", 100.0), 1),
        shown(number("perplexity"), 2),
        shown(number("windows"), 0),
        shown(number("perplexity_of_all"), 2),
        shown(number("seconds"), 0),
        shown(number("processor_seconds"), 0),
        shown(scaled("peak_bytes", 1e-6), 0),
    )
}

fn read(path: &Path) -> Result<Value, Error> {
    let bytes = std::fs::read(path).map_err(Error::at(path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::Unexpected(format!("{}: {error}", path.display())))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(Error::at(path))
}
