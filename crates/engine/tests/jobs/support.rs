//! Tiny models, calibration rows, and jobs on them.

use lapidary_engine::plan::Limits;
use lapidary_engine::recipe::Recipe;
use lapidary_engine::{EngineError, Failure, Job, Outcome, Progress, Silent, compress};
use lapidary_formats::Source;
use lapidary_store::fs::{Calls, Fault, FaultFs};
use lapidary_store::safetensors::Writer;
use lapidary_store::{Dtype, Fs, RealFs, TensorSpec, hash};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) fn real() -> Arc<dyn Fs> {
    Arc::new(RealFs)
}

/// A folder of `testdata/models`.
pub(crate) fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

/// A folder for a test, in memory where there is such a place.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Writes 12 rows of 16 tokens below 51; returns the file.
pub(crate) fn rows(folder: &Path) -> PathBuf {
    let path = folder.join("rows.safetensors");
    let token = |i: u64| (i * i * 31 + i * 7 + 5) % 51;
    let bytes: Vec<u8> = (0..12 * 16).flat_map(|i| (token(i) as i64).to_le_bytes()).collect();
    let specs = [TensorSpec::new("input_ids", Dtype::I64, vec![12, 16])];
    let mut writer = Writer::create(&real(), &path, &specs, &BTreeMap::new()).unwrap();
    writer.append("input_ids", &bytes).unwrap();
    writer.finish().unwrap();
    path
}

/// A job with everything at its plainest.
pub(crate) struct Setup {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) model: PathBuf,
    pub(crate) recipe: String,
    pub(crate) limits: Limits,
    pub(crate) strict: bool,
    pub(crate) shard_bytes: u64,
}

impl Setup {
    /// A model of `testdata/models` and one step, calibrated on `rows` where it needs it.
    pub(crate) fn new(name: &str, step: &str, folder: &Path, format: &str) -> Self {
        let rows = rows(folder);
        let recipe = format!(
            "steps: [{{{step}}}]\ncalibration: {{text: {:?}, samples: 12, seq_len: 16}}\n\
             format: {format}\n",
            rows.display().to_string()
        );
        let (limits, shard_bytes) = (Limits::default(), 1 << 30);
        Self { fs: real(), model: model(name), recipe, limits, strict: false, shard_bytes }
    }

    pub(crate) fn run(&self, output: &Path) -> Result<Outcome, EngineError> {
        self.run_with(output, &AtomicBool::new(false), &Silent)
    }

    pub(crate) fn run_with(
        &self,
        output: &Path,
        stop: &AtomicBool,
        progress: &dyn Progress,
    ) -> Result<Outcome, EngineError> {
        let source = Source::open(Arc::clone(&self.fs), &self.model)?;
        let recipe = Recipe::parse(&self.recipe)?;
        compress(&Job {
            fs: Arc::clone(&self.fs),
            source: &source,
            recipe: &recipe,
            output,
            seed: 0,
            limits: self.limits,
            strict: self.strict,
            shard_bytes: Some(self.shard_bytes),
            base_model: "tiny",
            stop,
            progress,
        })
    }
}

/// Asks for a stop when some blocks are done.
pub(crate) struct StopAfter<'a> {
    stop: &'a AtomicBool,
    blocks: u64,
}

impl<'a> StopAfter<'a> {
    pub(crate) fn new(stop: &'a AtomicBool, blocks: u64) -> Self {
        Self { stop, blocks }
    }
}

impl Progress for StopAfter<'_> {
    fn advance(&self, done: u64, detail: &str) {
        if done == self.blocks && detail.starts_with(&format!("block {done} ")) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// The disk goes away at every `every`th call that changes it, one after the other, with activations
/// in memory and under a limit that `tight` finds; nothing unfinished is visible then, and the next
/// run gives the bytes of an undisturbed one.
pub(crate) fn dies_anywhere(
    setup: impl Fn(&Path) -> Setup,
    every: usize,
    tight: impl Fn(&Setup) -> u64,
) {
    let undisturbed = scratch();
    let mut job = setup(undisturbed.path());
    let counting = FaultFs::counting(real());
    job.fs = Arc::new(counting.clone());
    job.run(&undisturbed.path().join("out")).unwrap();
    let wanted = files(&undisturbed.path().join("out"));
    let calls = counting.count(Calls::Mutating);
    assert!(calls > 50, "{calls} calls");
    for on_disk in [false, true] {
        for at in (1..=calls).step_by(every) {
            let scratch = scratch();
            let output = scratch.path().join("out");
            let mut job = setup(scratch.path());
            if on_disk {
                job.limits.memory = Some(tight(&job));
            }
            let fault =
                Fault { calls: Calls::Mutating, at, kind: ErrorKind::StorageFull, forever: true };
            job.fs = Arc::new(FaultFs::new(real(), fault));
            if let Err(error) = job.run(&output) {
                assert_eq!(error.failure(), Failure::InputOutput, "call {at}: {error}");
            }
            if output.exists() {
                assert_eq!(files(&output), wanted, "call {at}: a result with a name is whole");
            }
            job.fs = real();
            job.run(&output).unwrap_or_else(|error| panic!("after call {at}: {error}"));
            assert_eq!(files(&output), wanted, "after call {at}");
            assert_eq!(entries(scratch.path()), ["out", "rows.safetensors"], "after call {at}");
        }
    }
}

/// Names and hashes of all files of a folder.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, hash::sha256(&std::fs::read(&path).unwrap()))
        })
        .collect()
}

/// What a folder holds besides the files a test put there.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Copies a model so that a test can damage it.
pub(crate) fn copy(name: &str, folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    std::fs::create_dir(&copy).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model(name).join(file), copy.join(file)).unwrap();
    }
    copy
}
