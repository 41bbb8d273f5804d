//! The work folder of a job, `.{output}.lapidary` beside the output: a lock, a journal, one file for
//! each committed stage, and the activations where they are kept.
//!
//! The journal's first line is the identity of the job; each commit adds a line after its file is
//! on the disk. What the journal does not name does not count.

use super::activations::Activations;
use super::block::{Done, StoredTensor};
use super::{Job, difference};
use crate::EngineError;
use crate::manifest::SiteRecord;
use crate::plan::{Plan, SitePlan};
use crate::search::{Measured, Trial};
use crate::structure::CutRecord;
use lapidary_formats::FormatError;
use lapidary_store::fs::FileLock;
use lapidary_store::journal::Journal;
use lapidary_store::safetensors::Writer;
use lapidary_store::{Checkpoint, Dtype, Fs, TensorSpec, hash};
use lapidary_weight::Weight;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Activations in memory are written down this often, so that a resumed job repeats little.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// How the names of files of activations begin.
const ACTIVATIONS: &str = "activations-";

/// An open work folder.
pub(super) struct Work {
    fs: Arc<dyn Fs>,
    folder: PathBuf,
    journal: Journal,
    stages: Vec<StageRecord>,
    measured: Vec<MeasuredStage>,
    cuts: Vec<CutRecord>,
    trials: Vec<Trial>,
    /// The stage that the kept activations stand before.
    kept: Option<usize>,
    last_kept: Instant,
    _lock: FileLock,
}

/// A line of the journal.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Identity(Value),
    Trial(Trial),
    Cut(CutRecord),
    Measured(MeasuredStage),
    Stage(StageRecord),
    Activations(usize),
}

/// What a search has measured of a stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MeasuredStage {
    stage: usize,
    pub(super) units: Vec<Measured>,
}

/// A committed stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StageRecord {
    stage: usize,
    file: String,
    sha256: String,
    pub(super) sites: Vec<SiteRecord>,
}

/// How a stage's file has a tensor: blocks of ggml, which safetensors cannot hold, as bytes.
fn as_stage_holds_it((spec, bytes): &StoredTensor) -> TensorSpec {
    match spec.dtype.safetensors_name() {
        Some(_) => spec.clone(),
        None => TensorSpec::new(&spec.name, Dtype::U8, [bytes.len()]),
    }
}

/// The folder that holds an output.
pub(super) fn parent(output: &Path) -> PathBuf {
    match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Where the work of an output is kept.
pub(super) fn folder(output: &Path) -> Result<PathBuf, EngineError> {
    let name = output.file_name().ok_or_else(|| {
        EngineError::Refused(format!("{} is not a name for a new folder", output.display()))
    })?;
    Ok(parent(output).join(format!(".{}.lapidary", name.to_string_lossy())))
}

/// Removes the work folder of a job whose result is complete, if there is one.
///
/// # Errors
/// When another process works there, or the disk refuses.
pub(super) fn discard(job: &Job<'_>) -> Result<(), EngineError> {
    let folder = folder(job.output)?;
    match job.fs.metadata(&folder) {
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => {
            let _lock = job.fs.lock(&folder.join("lock"))?;
            Ok(job.fs.remove_dir_all(&folder)?)
        }
    }
}

impl Work {
    /// Opens the work folder of a job, or starts one.
    ///
    /// # Errors
    /// When another process works there, or the folder is of another job.
    pub(super) fn open(job: &Job<'_>, identity: &Value) -> Result<Self, EngineError> {
        let fs = Arc::clone(&job.fs);
        let folder = folder(job.output)?;
        fs.create_dir_all(&folder)?;
        let lock = fs.lock(&folder.join("lock"))?;
        let (mut journal, recovered) = Journal::open(&fs, &folder.join("journal"))?;
        let mut lines = recovered.entries.into_iter().map(|line| {
            serde_json::from_value(line).map_err(|error| {
                EngineError::BadInput(format!("{}: journal: {error}", folder.display()))
            })
        });
        match lines.next().transpose()? {
            None => journal.append(&json!(Line::Identity(identity.clone())))?,
            Some(Line::Identity(found)) if found == *identity => {}
            Some(Line::Identity(found)) => {
                return Err(EngineError::Refused(format!(
                    "{} holds an unfinished job, and {}; finish that one, or remove the folder",
                    folder.display(),
                    difference(&found, identity)
                )));
            }
            Some(_) => {
                let what = format!("{}: the journal has no identity", folder.display());
                return Err(EngineError::BadInput(what));
            }
        }
        let (mut stages, mut kept): (Vec<StageRecord>, _) = (vec![], None);
        let (mut measured, mut trials, mut cuts) = (vec![], vec![], vec![]);
        for line in lines {
            match line? {
                Line::Identity(_) => {}
                Line::Trial(record) => trials.push(record),
                Line::Cut(record) => cuts.push(record),
                Line::Measured(record) => measured.push(record),
                Line::Stage(record) => {
                    stages.truncate(record.stage);
                    stages.push(record);
                }
                Line::Activations(stage) => kept = Some(stage),
            }
        }
        let now = Instant::now();
        let mut work = Self {
            fs,
            folder,
            journal,
            stages,
            measured,
            cuts,
            trials,
            kept,
            last_kept: now,
            _lock: lock,
        };
        work.check_files(job);
        Ok(work)
    }

    /// Forgets committed stages from the first one on whose file is gone or damaged.
    fn check_files(&mut self, job: &Job<'_>) {
        let intact = |record: &StageRecord| {
            let hash = hash::sha256_file(&*self.fs, &self.folder.join(&record.file));
            hash.is_ok_and(|hash| hash == record.sha256)
        };
        let good = self.stages.iter().take_while(|record| intact(record)).count();
        if good < self.stages.len() {
            job.progress.note(&format!(
                "the file of stage {good} in {} is gone or damaged; going on from there",
                self.folder.display()
            ));
            self.stages.truncate(good);
        }
        self.kept = self.kept.filter(|stage| *stage <= good);
    }

    /// Stages committed so far.
    pub(super) fn committed(&self) -> usize {
        self.stages.len()
    }

    /// Commits a stage: its tensors to a file, then a line to the journal.
    pub(super) fn commit(&mut self, stage: usize, done: &Done) -> Result<(), EngineError> {
        let file = format!("stage-{stage:05}.safetensors");
        let specs: Vec<TensorSpec> = done.tensors.iter().map(as_stage_holds_it).collect();
        let path = self.folder.join(&file);
        let mut writer = Writer::create(&self.fs, &path, &specs, &BTreeMap::new())?;
        let order: Vec<String> = writer.order().map(str::to_owned).collect();
        for name in order {
            let tensor = done.tensors.iter().find(|(spec, _)| spec.name == name);
            writer.append(&name, tensor.map_or(&[], |(_, bytes)| bytes.as_slice()))?;
        }
        let sha256 = writer.finish()?.sha256;
        let record = StageRecord { stage, file, sha256, sites: done.sites.clone() };
        self.journal.append(&json!(Line::Stage(record.clone())))?;
        self.stages.truncate(stage);
        self.stages.push(record);
        Ok(())
    }

    /// What steps have cut so far, in their order.
    pub(super) fn cuts(&self) -> &[CutRecord] {
        &self.cuts
    }

    /// Records what the next step cuts.
    pub(super) fn commit_cut(&mut self, record: CutRecord) -> Result<(), EngineError> {
        self.journal.append(&json!(Line::Cut(record.clone())))?;
        self.cuts.push(record);
        Ok(())
    }

    /// What a search for a shape has tried so far.
    pub(super) fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// Records what came of the next shape.
    pub(super) fn commit_trial(&mut self, trial: Trial) -> Result<(), EngineError> {
        self.journal.append(&json!(Line::Trial(trial.clone())))?;
        self.trials.push(trial);
        Ok(())
    }

    /// Files of the activations of a walk before a cut, which take turns.
    pub(super) fn walk_path(&self, turn: usize) -> PathBuf {
        self.folder.join(format!("walk-{turn}.f32"))
    }

    /// What a search has measured so far, by stage.
    pub(super) fn measured(&self) -> &[MeasuredStage] {
        &self.measured
    }

    /// Records what a search has measured of the next stage.
    pub(super) fn commit_measured(
        &mut self,
        stage: usize,
        units: Vec<Measured>,
    ) -> Result<(), EngineError> {
        let record = MeasuredStage { stage, units };
        self.journal.append(&json!(Line::Measured(record.clone())))?;
        self.measured.push(record);
        Ok(())
    }

    /// Removes the file of the activations before a stage, where they are in one.
    pub(super) fn remove_activations(
        &self,
        activations: &Activations,
        stage: usize,
    ) -> Result<(), EngineError> {
        match activations.is_on_disk() {
            true => Ok(self.fs.remove_file(&self.activations_path(stage))?),
            false => Ok(()),
        }
    }

    /// Records the activations before `stage`: those in a file always, those in memory when the
    /// last record is old enough to be worth a write.
    pub(super) fn keep(
        &mut self,
        activations: &Activations,
        stage: usize,
    ) -> Result<(), EngineError> {
        if !activations.is_on_disk() {
            if self.last_kept.elapsed() < KEEP_EVERY {
                return Ok(());
            }
            activations.save(&self.fs, &self.activations_path(stage))?;
        }
        self.journal.append(&json!(Line::Activations(stage)))?;
        self.kept = Some(stage);
        let kept = self.activations_path(stage);
        for entry in self.fs.list(&self.folder)? {
            let path = self.folder.join(&entry.name);
            if entry.name.to_string_lossy().starts_with(ACTIVATIONS) && path != kept {
                self.fs.remove_file(&path)?;
            }
        }
        self.last_kept = Instant::now();
        Ok(())
    }

    /// File of the activations before a stage.
    pub(super) fn activations_path(&self, stage: usize) -> PathBuf {
        self.folder.join(format!("{ACTIVATIONS}{stage:05}.f32"))
    }

    /// File of the activations of the uncompressed model before a stage. There are never more than
    /// two, which take turns: one is read while the other is written.
    pub(super) fn uncompressed_path(&self, stage: usize) -> PathBuf {
        self.folder.join(format!("uncompressed-{}.f32", stage % 2))
    }

    /// The kept activations that stand before `committed` or an earlier stage.
    pub(super) fn kept_activations(&self, committed: usize) -> Option<(PathBuf, usize)> {
        let stage = self.kept.filter(|stage| *stage <= committed)?;
        let path = self.activations_path(stage);
        self.fs.metadata(&path).is_ok().then_some((path, stage))
    }

    /// The weight of a committed site.
    pub(super) fn read_site(
        &self,
        stage: usize,
        site: &SitePlan,
        plan: &Plan,
    ) -> Result<Weight, EngineError> {
        let file = self.open_stage(stage)?;
        let read =
            |name: &str| -> Result<Vec<u8>, FormatError> { Ok(file.read(file.require(name)?)?) };
        Ok(site.format.decode(&site.linear.module, &site.outline, plan.float_type, &read)?)
    }

    /// The bytes of a tensor that a committed stage has changed.
    pub(super) fn read_tensor(&self, stage: usize, name: &str) -> Result<Vec<u8>, EngineError> {
        let file = self.open_stage(stage)?;
        Ok(file.read(file.require(name)?)?)
    }

    /// The file of a committed stage.
    pub(super) fn open_stage(&self, stage: usize) -> Result<Checkpoint, EngineError> {
        let record = self.stages.get(stage);
        let missing = || EngineError::Internal(format!("stage {stage} is not committed"));
        let path = self.folder.join(&record.ok_or_else(missing)?.file);
        Ok(Checkpoint::open(Arc::clone(&self.fs), &path)?)
    }

    /// What happened to every site, in order.
    pub(super) fn site_records(&self) -> Vec<SiteRecord> {
        self.stages.iter().flat_map(|record| record.sites.clone()).collect()
    }

    /// The folder where the result is put together.
    pub(super) fn staging(&self) -> PathBuf {
        self.folder.join("result")
    }

    /// Removes the folder, after the result is published.
    pub(super) fn remove(self) -> Result<(), EngineError> {
        Ok(self.fs.remove_dir_all(&self.folder)?)
    }
}
