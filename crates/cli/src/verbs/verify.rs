//! `lapidary verify`: a folder is what its manifest says, and a whole model.

use super::disk;
use crate::arguments::VerifyArguments;
use crate::error::CliError;
use crate::output::Output;
use lapidary_engine::target::Stored;
use lapidary_engine::{MANIFEST, Manifest, hash_folder};
use lapidary_formats::Source;
use lapidary_model::{ModelError, Spec, spec};
use lapidary_store::Fs;
use lapidary_weight::Tensors;
use serde_json::json;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

pub(crate) fn run(arguments: &VerifyArguments, output: &mut Output) -> Result<(), CliError> {
    let fs = disk();
    let folder = &arguments.folder;
    let has_manifest = fs.metadata(&folder.join(MANIFEST)).is_ok();
    let mut problems = vec![];
    let (mut files, mut sparsity) = (0, None);
    if has_manifest {
        let manifest = Manifest::read(&*fs, folder)?;
        (files, sparsity) = (manifest.files.len(), manifest.sparsity);
        problems.extend(hash_problems(&*fs, &manifest, arguments)?);
    }
    // A changed file is best named as such, before its content is tried.
    refuse(folder, &problems)?;
    let source = Source::open(Arc::clone(&fs), folder)?;
    let model = match spec(source.config()) {
        Err(ModelError::UnknownArchitecture { .. }) => None,
        known => Some(known?),
    };
    let checked = structure_problems(&source, model.as_ref(), &mut problems);
    let findings = arguments.target.target().zip(model.as_ref()).map(|(target, model)| {
        let findings = target.findings(&Stored { sparsity, ..Stored::in_source(&source, model) });
        (target.engine, findings)
    });
    let refused = findings.iter().flat_map(|(_, findings)| findings).filter(|f| f.is_refused);
    problems.extend(refused.map(ToString::to_string));
    refuse(folder, &problems)?;
    let hashes = if has_manifest {
        format!("{files} files match their hashes")
    } else {
        format!("no {MANIFEST}, so no hashes were checked")
    };
    let warnings: Vec<String> =
        findings.iter().flat_map(|(_, findings)| findings).map(ToString::to_string).collect();
    let mut text =
        format!("{}: {hashes}; {checked} tensors are there and finite", folder.display());
    if let Some((engine, _)) = &findings {
        let _ = write!(text, "; {engine} loads it");
    }
    for warning in &warnings {
        let _ = write!(text, "\nwarning: {warning}");
    }
    let json = json!({
        "verified": true,
        "manifest": has_manifest,
        "files": files,
        "tensors": checked,
        "target": findings.as_ref().map(|(engine, _)| engine.to_string()),
        "warnings": warnings,
    });
    output.result(|| json, || text)
}

/// An error that names the first problem, if there is one.
fn refuse(folder: &Path, problems: &[String]) -> Result<(), CliError> {
    let Some(first) = problems.first() else { return Ok(()) };
    let more = match problems.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Err(CliError::Unverified(format!("{}: {first}{more}", folder.display())))
}

/// Files that are missing, changed, or not in the manifest.
fn hash_problems(
    fs: &dyn Fs,
    manifest: &Manifest,
    arguments: &VerifyArguments,
) -> Result<Vec<String>, CliError> {
    let found = hash_folder(fs, &arguments.folder)?;
    let mut problems = vec![];
    for wanted in &manifest.files {
        match found.iter().find(|file| file.name == wanted.name) {
            None => problems.push(format!("{} is missing", wanted.name)),
            Some(file) if file.sha256 != wanted.sha256 => {
                problems.push(format!("{} was changed after it was written", wanted.name));
            }
            Some(_) => {}
        }
    }
    for file in &found {
        if !manifest.files.iter().any(|wanted| wanted.name == file.name) {
            problems.push(format!("{} is not in the manifest", file.name));
        }
    }
    Ok(problems)
}

/// Tensors that the configuration asks for and the folder lacks, has in another shape, or damaged;
/// of a model that no family knows, all that the folder has.
fn structure_problems(source: &Source, model: Option<&Spec>, problems: &mut Vec<String>) -> usize {
    let all = source.tensors().iter();
    let all = || all.map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let tensors = model.map_or_else(all, Spec::tensors);
    for (name, need) in &tensors {
        match source.shape(name) {
            None => problems.push(format!("tensor {name} is missing")),
            Some(have) if have != *need => {
                problems.push(format!("tensor {name} has shape {have:?}, not {need:?}"));
            }
            Some(_) => {
                if let Err(error) = source.read(name) {
                    problems.push(error.to_string());
                }
            }
        }
    }
    tensors.len()
}
