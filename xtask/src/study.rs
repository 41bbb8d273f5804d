//! `cargo xtask study`: the survey of BERT's compression by Ganesh et al. (2021, arXiv 2002.11985) on
//! all-MiniLM-L6-v2. Every recipe of `benches/study/rows.json` with the same calibration rows, measured by
//! its size, its speed, and how much the embeddings of sentences agree with the original's.

mod agreement;
mod encoder;
mod sentences;

use crate::context::Texts;
use crate::error::Error;
use crate::process::run;
use crate::setup;
use agreement::{Agreement, agreement};
use encoder::{Encoder, Size};
use lapidary_engine::tokenizer;
use sentences::{Pairs, pairs};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rows of calibration, and tokens of each.
const CALIBRATION: [&str; 4] = ["--samples", "64", "--seq-len", "128"];

/// Pairs of neighbouring sentences; as many are drawn.
const NEIGHBOURS: usize = 200;

/// Most tokens of a sentence.
const LONGEST: usize = 128;

/// Tokens of the row that the time of a forward pass is taken on.
const TIMED: usize = 128;

const SEED: u64 = 0;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only rows whose group and name contain one of these; the table is then printed, not written
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Compress with this `lapidary` instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// Measures the rows one after another, and writes the table. A row that fails says why in its place.
pub(crate) fn run_all(options: &Options) -> Result<bool, Error> {
    let root = setup::root()?;
    let cache = setup::cache()?;
    let folder = root.join("benches/study");
    let rows = rows(&folder.join("rows.json"))?;
    let scratch = cache.join(format!("study-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(Error::at(&scratch))?;
    let study = Study::new(&root, &cache, &scratch, options)?;
    let mut table = study.heading();
    let mut all_done = true;
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        // As it stands in the table.
        let name = format!("{} | {}", text("group"), text("name"));
        if !(options.only.is_empty() || options.only.iter().any(|part| name.contains(part))) {
            continue;
        }
        let line = match study.measure(row) {
            Ok(measured) => study.line(&name, &measured),
            Err(error) => {
                eprintln!("{name}: {error}");
                all_done = false;
                format!("| {name} | {} | | | | | |\n", reason(&error))
            }
        };
        eprint!("{line}");
        table.push_str(&line);
    }
    std::fs::remove_dir_all(&scratch).map_err(Error::at(&scratch))?;
    if options.only.is_empty() {
        let path = folder.join("table.md");
        std::fs::write(&path, &table).map_err(Error::at(&path))?;
    }
    print!("{table}");
    Ok(all_done)
}

/// What every row is measured with.
struct Study<'a> {
    model: PathBuf,
    original: Encoder,
    size: Size,
    binary: PathBuf,
    calibration: String,
    text_name: String,
    scratch: &'a Path,
    /// Tokens of each sentence.
    sentences: Vec<Vec<u32>>,
    pairs: Vec<(usize, usize)>,
    embeddings: Vec<Vec<f64>>,
}

/// What is measured of a row.
struct Measured {
    size: Size,
    /// Times as fast as the original.
    speed: f64,
    agreement: Agreement,
}

impl<'a> Study<'a> {
    fn new(root: &Path, cache: &Path, scratch: &'a Path, options: &Options) -> Result<Self, Error> {
        let python = setup::python(root, cache, setup::SCRIPTS, "xtask/real/requirements.txt")?;
        let models = setup::models(root, &python, cache, &BTreeSet::from(["minilm"]))?;
        let model = PathBuf::from(models["minilm"].as_str().unwrap_or_default());
        let texts = Texts::find(root, scratch)?;
        let text = std::fs::read_to_string(&texts.evaluation);
        let text = text.map_err(Error::at(&texts.evaluation))?;
        let Pairs { sentences, pairs } = pairs(&text, NEIGHBOURS, SEED);
        let original = Encoder::open(&model)?;
        let tokenizer = tokenizer(original.source()).map_err(Error::library)?;
        let tokens = |sentence: &String| -> Result<Vec<u32>, Error> {
            let mut ids = tokenizer.encode(sentence, true).map_err(Error::library)?;
            ids.truncate(LONGEST);
            Ok(ids)
        };
        let sentences = sentences.iter().map(tokens).collect::<Result<Vec<_>, _>>()?;
        if sentences.iter().map(Vec::len).sum::<usize>() < TIMED {
            let what = format!("{} has too few sentences to compare", texts.name);
            return Err(Error::Unexpected(what));
        }
        let embeddings = sentences.iter().map(|ids| original.embedding(ids));
        Ok(Self {
            embeddings: embeddings.collect::<Result<_, _>>()?,
            size: original.size(),
            model,
            original,
            binary: setup::binary(root, options.binary.as_deref())?,
            calibration: texts.calibration,
            text_name: texts.name,
            scratch,
            sentences,
            pairs,
        })
    }

    fn measure(&self, row: &Value) -> Result<Measured, Error> {
        if row["recipe"].is_null() {
            return self.compare(&Encoder::open(&self.model)?);
        }
        let recipe = self.scratch.join("recipe.yaml");
        std::fs::write(&recipe, row["recipe"].to_string()).map_err(Error::at(&recipe))?;
        let output = self.scratch.join("compressed");
        let mut compress = Command::new(&self.binary);
        compress.arg("compress").arg(&self.model).arg("--recipe").arg(&recipe);
        compress.arg("-o").arg(&output).args(["--json", "--quiet"]).args(CALIBRATION);
        run(compress.arg("--calibration").arg(&self.calibration))?;
        let measured = Encoder::open(&output).and_then(|encoder| self.compare(&encoder));
        std::fs::remove_dir_all(&output).map_err(Error::at(&output))?;
        measured
    }

    fn compare(&self, encoder: &Encoder) -> Result<Measured, Error> {
        let embeddings = self.sentences.iter().map(|ids| encoder.embedding(ids));
        let embeddings = embeddings.collect::<Result<Vec<_>, _>>()?;
        let timed: Vec<u32> = self.sentences.iter().flatten().copied().collect();
        Ok(Measured {
            size: encoder.size(),
            speed: encoder.speed(&self.original, &timed[..TIMED])?,
            agreement: agreement(&embeddings, &self.embeddings, &self.pairs),
        })
    }

    /// What was measured on what, and the names of the columns.
    fn heading(&self) -> String {
        let Size { bytes, table_bytes, parameters } = self.size;
        format!(
            "all-MiniLM-L6-v2: {:.2} million parameters, {:.1} MB in float32, {:.1} MB of them tables; \
             {} pairs of sentences of {}.\n\n\
             | group | what is done | bytes % | without tables % | parameters % | speed | cosine | Spearman |\n\
             |---|---|---|---|---|---|---|---|\n",
            parameters as f64 * 1e-6,
            bytes as f64 * 1e-6,
            table_bytes as f64 * 1e-6,
            self.pairs.len(),
            self.text_name,
        )
    }

    fn line(&self, name: &str, measured: &Measured) -> String {
        let Measured { size, speed, agreement: Agreement { cosine, spearman } } = measured;
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let blocks = |size: &Size| size.bytes - size.table_bytes;
        let mut line = String::new();
        let _ = writeln!(
            line,
            "| {name} | {:.1} | {:.1} | {:.1} | {speed:.2} | {cosine:.4} | {spearman:.4} |",
            share(size.bytes, self.size.bytes),
            share(blocks(size), blocks(&self.size)),
            share(size.parameters, self.size.parameters),
        );
        line
    }
}

/// The last line of what went wrong, for a cell of a table.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    last.trim().replace('|', "/")
}

fn rows(path: &Path) -> Result<Vec<Value>, Error> {
    let bytes = std::fs::read(path).map_err(Error::at(path))?;
    let wrong =
        |error: serde_json::Error| Error::Unexpected(format!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).map_err(wrong)
}
