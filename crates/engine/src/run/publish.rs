//! The result: shards, configuration, the source's other files, model card and manifest, checked
//! against what was committed and given its name by one rename.

use super::work::Work;
use super::{Job, stages};
use crate::calibration::Rows;
use crate::manifest::{
    Bytes, CalibrationRecord, FILE_NAME, JobNote, Manifest, TensorLists, hash_folder,
};
use crate::plan::Plan;
use crate::recipe::BUILTIN_TEXT;
use crate::search::{RECIPE_NAME, SEARCH};
use crate::structure::STRUCTURE;
use crate::{EngineError, card};
use lapidary_formats::{Layout, LogicalTensor, QUANTIZATION_KEYS, Source, WeightFiles};
use lapidary_store::atomic::{publish_dir, write};
use lapidary_store::hash::{Sha256, sha256};
use lapidary_store::{Checkpoint, Dtype};
use lapidary_weight::Tensors;
use serde_json::{Value, json, to_vec};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// SHA-256 of tensors, by name.
type Hashes = HashMap<String, String>;

/// Name under which a model card of the source is kept.
const SOURCE_CARD: &str = "README.source.md";

pub(super) fn publish(
    job: &Job<'_>,
    plan: &Plan,
    rows: Option<&Rows>,
    identity: &Value,
    work: Work,
    more_files: &[(&str, Vec<u8>)],
) -> Result<Manifest, EngineError> {
    let staging = work.staging();
    if job.fs.metadata(&staging).is_ok() {
        job.fs.remove_dir_all(&staging)?;
    }
    job.fs.create_dir_all(&staging)?;
    let (shards, copied) = write_tensors(job, plan, &work, &staging)?;
    if plan.container.has_files() {
        write_files(job, &staging)?;
        write_config(job, plan, &staging)?;
    }
    for (name, bytes) in more_files {
        write(&job.fs, &staging.join(name), bytes)?;
    }
    if !work.cuts().is_empty() {
        let bytes = to_vec(&json!(work.cuts()));
        let bytes = bytes.map_err(|error| EngineError::Internal(error.to_string()))?;
        write(&job.fs, &staging.join(STRUCTURE), &bytes)?;
    }
    let mut manifest = manifest(job, plan, rows, identity, &work, shards);
    write(&job.fs, &staging.join("README.md"), card::card(job, plan, &manifest).as_bytes())?;
    manifest.files = hash_folder(&*job.fs, &staging)?;
    write(&job.fs, &staging.join(FILE_NAME), &manifest.to_bytes()?)?;
    check(job, plan, &work, &staging, &copied)?;
    publish_dir(&*job.fs, &staging, job.output)?;
    work.remove()?;
    Ok(manifest)
}

/// Streams every tensor into the weight files; returns the bytes of the weight files, and the hash of each
/// tensor that was copied.
fn write_tensors(
    job: &Job<'_>,
    plan: &Plan,
    work: &Work,
    staging: &Path,
) -> Result<(u64, Hashes), EngineError> {
    let mut stage_of: HashMap<String, usize> = HashMap::new();
    for (index, stage) in stages(plan).into_iter().enumerate() {
        for site in plan.sites_in(stage) {
            let tensors = site.format.tensors(&site.linear.module, &site.outline, plan.float_type);
            stage_of.extend(tensors.into_iter().map(|tensor| (tensor.name, index)));
        }
        stage_of.extend(plan.rewritten_in(stage).map(|name| (name.to_owned(), index)));
    }
    let container = &plan.container;
    let mut writer =
        container.create(&job.fs, staging, job.source, &plan.tensors, job.shard_bytes)?;
    let order = writer.order();
    job.progress.begin("writing", order.len() as u64);
    let mut open: Option<(usize, Checkpoint)> = None;
    let mut copied = Hashes::new();
    for (done, name) in order.into_iter().enumerate() {
        let Some(stage) = stage_of.get(&name) else {
            let hash = copy(job.source, plan, &name, &mut *writer)?;
            copied.insert(name, hash);
            continue;
        };
        if open.as_ref().is_none_or(|(index, _)| index != stage) {
            open = Some((*stage, work.open_stage(*stage)?));
        }
        if let Some((_, file)) = &open {
            writer.append(&name, &file.read(file.require(&name)?)?)?;
        }
        job.progress.advance(done as u64 + 1, &name);
    }
    let bytes = writer.finish()?;
    job.progress.end();
    Ok((bytes, copied))
}

/// Copies a tensor that is not encoded; returns the hash of what a reader will hand on for it.
fn copy(
    source: &Source,
    plan: &Plan,
    name: &str,
    writer: &mut dyn WeightFiles,
) -> Result<String, EngineError> {
    let missing = || EngineError::Internal(format!("{name} is not in the plan"));
    let spec = plan.tensors.iter().find(|tensor| tensor.name == name).ok_or_else(missing)?;
    if let Dtype::Ggml(_) = spec.dtype {
        let blocks = source.blocks(name)?;
        let missing = || EngineError::Internal(format!("{name} has no blocks"));
        writer.append(name, &blocks.ok_or_else(missing)?.bytes)?;
        return hash_of(source, name);
    }
    let is_transposed = source.get(name).is_some_and(LogicalTensor::is_transposed);
    let is_turned = is_transposed && plan.container.is_upright();
    let mut hash = Sha256::new();
    source.raw_as(name, spec.dtype, |bytes| -> Result<(), EngineError> {
        hash.update(plan.container.as_read(spec, bytes).as_deref().unwrap_or(bytes));
        match is_turned {
            true => Ok(()),
            false => Ok(writer.append(name, bytes)?),
        }
    })?;
    if is_turned {
        writer.append(name, &source.upright(name, spec.dtype)?)?;
    }
    Ok(hash.finish())
}

/// Copies every file that goes with the weights, byte for byte.
fn write_files(job: &Job<'_>, staging: &Path) -> Result<(), EngineError> {
    for file in job.source.files() {
        let name = match file.name.as_str() {
            "README.md" => SOURCE_CARD,
            // What was found for the source need not hold for what is made of it.
            FILE_NAME | SOURCE_CARD | SEARCH | RECIPE_NAME | STRUCTURE => continue,
            name => name,
        };
        let path = staging.join(name);
        if let Some(folder) = path.parent() {
            job.fs.create_dir_all(folder)?;
        }
        write(&job.fs, &path, &job.source.read_file(&file.name)?)?;
    }
    Ok(())
}

/// `config.json` of the source with what the format needs in it, and the file of the format's own.
fn write_config(job: &Job<'_>, plan: &Plan, staging: &Path) -> Result<(), EngineError> {
    let mut config = job.source.config().clone();
    let compressed: Vec<_> =
        plan.sites.iter().map(|site| (site.linear.module.clone(), site.outline.clone())).collect();
    let inputs = plan.inputs();
    let layout = Layout { compressed: &compressed, plain: &plan.plain, inputs: &inputs };
    let quantization = plan.format.config(&layout);
    if let Some(fields) = config.as_object_mut() {
        QUANTIZATION_KEYS.iter().for_each(|key| drop(fields.shift_remove(*key)));
        for key in plan.format.config_keys() {
            fields.extend(quantization.clone().map(|value| ((*key).to_owned(), value)));
        }
    }
    let file = plan.format.config_file().zip(quantization.as_ref());
    for (name, value) in file.into_iter().chain([("config.json", &config)]) {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| EngineError::Internal(error.to_string()))?;
        bytes.push(b'\n');
        write(&job.fs, &staging.join(name), &bytes)?;
    }
    Ok(())
}

fn manifest(
    job: &Job<'_>,
    plan: &Plan,
    rows: Option<&Rows>,
    identity: &Value,
    work: &Work,
    result_bytes: u64,
) -> Manifest {
    let calibration = rows.zip(plan.calibration.as_ref()).map(|(rows, wanted)| CalibrationRecord {
        text: if wanted.text == BUILTIN_TEXT { BUILTIN_TEXT } else { "file" }.to_owned(),
        rows: rows.count(),
        seq_len: rows.seq_len,
        precision: format!("{:?}", wanted.precision).to_lowercase(),
    });
    let job_note = |(site, note): &(String, lapidary_methods::Note)| JobNote {
        site: site.clone(),
        note: note.clone(),
    };
    let mut notes: Vec<JobNote> = plan.notes.iter().map(job_note).collect();
    let of_cut = work.cuts().iter().flat_map(|cut| &cut.notes);
    notes.extend(of_cut.map(|note| JobNote { site: String::new(), note: note.clone() }));
    let of_rows = rows.into_iter().flat_map(|rows| &rows.notes);
    notes.extend(of_rows.map(|note| JobNote { site: String::new(), note: note.clone() }));
    let compressed = plan.sites.iter().map(|site| site.linear.weight.clone()).collect();
    let rewritten = plan.rewritten.iter().map(|(name, _)| name.clone()).collect();
    let skipped =
        job.source.skipped_files().map(|(name, why)| (format!("file {name}"), why.to_owned()));
    let dropped = plan.dropped.iter().cloned().chain(skipped).collect();
    Manifest {
        identity: identity.clone(),
        format: plan.format.id().to_owned(),
        bits_per_weight: plan.bits_per_weight(),
        table_bits_per_weight: plan.table_bits_per_weight(),
        sparsity: plan.sparsity(),
        bytes: Bytes { source: plan.source_bytes, result: result_bytes },
        structure: work.cuts().iter().map(|cut| cut.summary.clone()).collect(),
        calibration,
        sites: work.site_records(),
        notes,
        tensors: TensorLists { compressed, copied: plan.copied.clone(), rewritten, dropped },
        files: vec![],
    }
}

/// Opens the folder as any reader would and compares it with what was committed and copied.
fn check(
    job: &Job<'_>,
    plan: &Plan,
    work: &Work,
    staging: &Path,
    copied: &Hashes,
) -> Result<(), EngineError> {
    let written = Source::open(Arc::clone(&job.fs), staging)?;
    let differs = |name: &str| EngineError::Verification {
        path: staging.to_owned(),
        what: format!("{name} does not read back as it was committed"),
    };
    for (index, stage) in stages(plan).into_iter().enumerate() {
        for site in plan.sites_in(stage) {
            let committed = work.read_site(index, site, plan)?;
            let weight = written.weight(&site.linear.weight)?;
            // A plain folder has no terms; its values must agree.
            if weight != committed && weight.decode() != committed.decode() {
                return Err(differs(&site.linear.module));
            }
            if written.input_rounding(&site.linear.weight) != site.inputs {
                return Err(differs(&format!("the rounding of inputs of {}", site.linear.module)));
            }
        }
        for name in plan.rewritten_in(stage) {
            let bytes = work.read_tensor(index, name)?;
            let spec = plan.tensors.iter().find(|tensor| tensor.name == *name);
            let as_read = spec.and_then(|spec| plan.container.as_read(spec, &bytes));
            if hash_of(&written, name)? != sha256(as_read.as_deref().unwrap_or(&bytes)) {
                return Err(differs(name));
            }
        }
    }
    let rewritten = plan.rewritten.iter().filter(|(_, stage)| stage.is_none());
    for name in plan.copied.iter().chain(rewritten.map(|(name, _)| name)) {
        if copied.get(name) != Some(&hash_of(&written, name)?) {
            return Err(differs(name));
        }
    }
    match written.tensors().len() == plan.sites.len() + plan.copied.len() + plan.rewritten.len() {
        true => Ok(()),
        false => Err(differs("the list of tensors")),
    }
}

/// SHA-256 of a tensor as a folder hands it on.
fn hash_of(folder: &Source, name: &str) -> Result<String, EngineError> {
    let mut hash = Sha256::new();
    folder.raw(name, |bytes| -> Result<(), EngineError> {
        hash.update(bytes);
        Ok(())
    })?;
    Ok(hash.finish())
}
