//! What every check works with: the models, the texts, `lapidary` and Python as commands.

use crate::error::Error;
use crate::process::{Finished, parse, run};
use crate::setup;
use lapidary_formats::Source;
use lapidary_store::{Fs, RealFs};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Lines between two headings of the text that stands in for WikiText-2.
const PAGE_LINES: usize = 60;

/// What the command line sets.
pub(crate) struct Settings {
    pub(crate) kills: usize,
    pub(crate) seed: u64,
}

/// What every check works with.
pub(crate) struct Context {
    root: PathBuf,
    cache: PathBuf,
    /// Removed in the end.
    scratch: PathBuf,
    python: PathBuf,
    models: Value,
    binary: PathBuf,
    pub(crate) settings: Settings,
    /// The text that perplexity is measured on.
    pub(crate) text: PathBuf,
    /// Name of it in reports.
    pub(crate) text_name: String,
    /// Calibration text, as `--calibration` takes it.
    pub(crate) calibration: String,
    compressed: RefCell<BTreeMap<String, Arc<Compressed>>>,
}

/// A folder written by `lapidary compress`.
pub(crate) struct Compressed {
    pub(crate) folder: PathBuf,
    /// Most memory that it took, in bytes.
    pub(crate) peak_bytes: u64,
    pub(crate) wall_seconds: f64,
}

impl Context {
    pub(crate) fn new(
        root: PathBuf,
        cache: PathBuf,
        python: PathBuf,
        models: Value,
        binary: PathBuf,
        settings: Settings,
    ) -> Result<Self, Error> {
        let scratch = cache.join(format!("real-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).map_err(Error::at(&scratch))?;
        let texts = Texts::find(&root, &scratch)?;
        Ok(Self {
            root,
            cache,
            scratch,
            python,
            models,
            binary,
            settings,
            text: texts.evaluation,
            text_name: texts.name,
            calibration: texts.calibration,
            compressed: RefCell::default(),
        })
    }

    /// What is checked, in one line.
    pub(crate) fn describe(&self) -> String {
        format!("{} on {}", self.binary.display(), self.text_name)
    }

    /// A path for a file or folder of a check.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A model that `fetch.py` fetched: `smollm2`, `offgrid` (the same off its grid), `minilm`.
    pub(crate) fn model(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.models[name].as_str().map(PathBuf::from);
        path.ok_or_else(|| Error::Unexpected(format!("the model {name} was not fetched")))
    }

    /// The repository.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `lapidary`.
    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// The Python of an environment apart from that of the scripts.
    pub(crate) fn environment(&self, name: &str, requirements: &str) -> Result<PathBuf, Error> {
        setup::python(&self.root, &self.cache, name, requirements)
    }

    /// `lapidary VERB --json`, to be completed.
    pub(crate) fn lapidary(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.args([verb, "--json", "--quiet"]);
        command
    }

    /// The user's own Python, with what the check says it needs: `LAPIDARY_PYTHON` names it, else it is
    /// `python3`.
    pub(crate) fn own_python(&self, script: &str) -> Command {
        let python = std::env::var_os("LAPIDARY_PYTHON").unwrap_or_else(|| "python3".into());
        let mut command = Command::new(python);
        command.arg(self.root.join("xtask/real").join(script));
        command
    }

    /// A script of `xtask/real`, to be completed. It stays off the network.
    pub(crate) fn python(&self, script: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(self.root.join("xtask/real").join(script));
        command.env("HF_HUB_OFFLINE", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// `--calibration`, `--samples` and `--seq-len`.
    pub(crate) fn rows(&self, samples: usize, seq_len: usize) -> Vec<String> {
        let (samples, seq_len) = (samples.to_string(), seq_len.to_string());
        let named = [("--calibration", &self.calibration), ("--samples", &samples)];
        let named = named.into_iter().chain([("--seq-len", &seq_len)]);
        named.flat_map(|(name, value)| [name.to_owned(), value.clone()]).collect()
    }

    /// Compresses a model into a folder.
    pub(crate) fn compress(
        &self,
        model: &Path,
        options: &[String],
        folder: PathBuf,
    ) -> Result<Compressed, Error> {
        let mut command = self.lapidary("compress");
        command.arg(model).args(options).arg("--output").arg(&folder);
        let Finished { stdout, wall_seconds, peak_bytes } = run(&mut command)?;
        parse(&command, &stdout)?;
        Ok(Compressed { folder, peak_bytes, wall_seconds })
    }

    /// The same, but what another check has compressed already in this way is used again.
    pub(crate) fn compressed(
        &self,
        model: &Path,
        options: &[String],
    ) -> Result<Arc<Compressed>, Error> {
        let key = format!("{} {}", model.display(), options.join(" "));
        if let Some(found) = self.compressed.borrow().get(&key) {
            return Ok(Arc::clone(found));
        }
        let folder = self.scratch(&format!("compressed-{}", self.compressed.borrow().len()));
        let made = Arc::new(self.compress(model, options, folder)?);
        self.compressed.borrow_mut().insert(key, Arc::clone(&made));
        Ok(made)
    }

    /// Opens a checkpoint with our own library.
    pub(crate) fn open(&self, path: &Path) -> Result<Source, Error> {
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        Source::open(fs, path).map_err(Error::library)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // What is left behind is in the cache, under a name that says what it is.
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// The texts of the checks.
pub(crate) struct Texts {
    pub(crate) evaluation: PathBuf,
    pub(crate) calibration: String,
    pub(crate) name: String,
}

impl Texts {
    /// WikiText-2 where `LAPIDARY_WIKITEXT` says it is, else the texts of the repository: for
    /// evaluation the demo's held-out text, with headings as WikiText has them, which make pages.
    pub(crate) fn find(root: &Path, scratch: &Path) -> Result<Self, Error> {
        if let Some(folder) = std::env::var_os("LAPIDARY_WIKITEXT") {
            let folder = PathBuf::from(folder);
            let file = |name: &str| {
                let path = folder.join(name);
                path.canonicalize().map_err(Error::at(&path))
            };
            return Ok(Self {
                evaluation: file("wiki.test.raw")?,
                calibration: file("wiki.valid.tokens")?.display().to_string(),
                name: "WikiText-2".to_owned(),
            });
        }
        let original = root.join("assets/demo/evaluation.txt");
        let text = std::fs::read_to_string(&original).map_err(Error::at(&original))?;
        let lines: Vec<&str> = text.lines().collect();
        let pages = lines.chunks(PAGE_LINES).enumerate();
        let headed: String =
            pages.map(|(i, page)| format!(" = Page {i} = \n\n{}\n", page.join("\n"))).collect();
        let evaluation = scratch.join("evaluation.raw");
        std::fs::write(&evaluation, headed).map_err(Error::at(&evaluation))?;
        Ok(Self {
            evaluation,
            calibration: "builtin".to_owned(),
            name: "the demo's held-out text (LAPIDARY_WIKITEXT is not set)".to_owned(),
        })
    }
}
