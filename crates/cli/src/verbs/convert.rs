//! `lapidary convert`: the same model in another format, compressed layers kept as they are where the
//! format can hold them.

use super::compress::{to_json, worst};
use super::{base_model, disk, locate};
use crate::arguments::ConvertArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Shown;
use crate::signal::stop_flag;
use crate::table::megabytes;
use lapidary_engine::plan::Limits;
use lapidary_engine::recipe::{Place, Recipe, RecipeError};
use lapidary_engine::{Job, Outcome, SiteRecord, compress};
use lapidary_formats::Source;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

pub(crate) fn run(
    arguments: &ConvertArguments,
    quiet: bool,
    output: &mut Output,
) -> Result<(), CliError> {
    let fs = disk();
    let path = locate(&*fs, &arguments.model)?;
    let source = Source::open(Arc::clone(&fs), &path)?;
    let steps = json!([{ "method": "keep", "targets": ["re:.*"] }]);
    let recipe = json!({ "steps": steps, "format": arguments.to });
    let recipe = Recipe::parse(&recipe.to_string()).map_err(|error| CliError::Recipe {
        file: "--to".to_owned(),
        error: RecipeError { place: Place::default(), ..error },
    })?;
    let outcome = compress(&Job {
        fs,
        source: &source,
        recipe: &recipe,
        output: &arguments.output,
        seed: 0,
        limits: Limits { target: arguments.target.target(), ..Limits::default() },
        strict: arguments.strict,
        shard_bytes: arguments.shard_size,
        base_model: &base_model(&arguments.model, &path),
        stop: &stop_flag(),
        progress: &Shown::new(quiet),
    })?;
    let (folder, changed) = (&arguments.output, changed(&outcome));
    output.result(
        || {
            let mut json = to_json(&outcome, folder);
            json["exact"] = json!(outcome.manifest.sites.len() - changed.len());
            json["changed"] = changed.iter().map(error_of).collect();
            json
        },
        || describe(&outcome, folder, changed.len()),
    )
}

/// The layers whose values are not those of the source.
fn changed(outcome: &Outcome) -> Vec<SiteRecord> {
    let sites = outcome.manifest.sites.iter();
    sites.filter(|site| site.weight_error > 0.0).cloned().collect()
}

fn error_of(site: &SiteRecord) -> Value {
    json!({ "name": site.name, "weight_error": site.weight_error })
}

fn describe(outcome: &Outcome, folder: &Path, changed: usize) -> String {
    let manifest = &outcome.manifest;
    let done = if outcome.was_complete { "was complete already" } else { "written" };
    let mut text = format!(
        "{} {done}\n{} -> {} ({}): {} layers kept exactly, {changed} changed, {} tensors copied\n",
        folder.display(),
        megabytes(manifest.bytes.source),
        megabytes(manifest.bytes.result),
        manifest.format,
        manifest.sites.len() - changed,
        manifest.tensors.copied.len(),
    );
    if changed > 0 {
        let _ = write!(text, "\n{}", worst(&manifest.sites));
    }
    text.trim_end().to_owned()
}
