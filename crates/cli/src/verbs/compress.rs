//! `lapidary compress`: the main job.

use super::{base_model, disk, locate, recipe};
use crate::arguments::CompressArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::progress::Shown;
use crate::signal::stop_flag;
use crate::table::{megabytes, stored_bits, table};
use lapidary_engine::{Cost, Costs, Job, Outcome, SiteRecord, compress};
use lapidary_formats::Source;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn run(
    arguments: &CompressArguments,
    quiet: bool,
    output: &mut Output,
) -> Result<(), CliError> {
    let fs = disk();
    let model = &arguments.recipe.model;
    let path = locate(&*fs, model)?;
    let source = Source::open(Arc::clone(&fs), &path)?;
    let recipe = recipe(&*fs, &arguments.recipe)?;
    let base_model = base_model(model, &path);
    let outcome = compress(&Job {
        fs,
        source: &source,
        recipe: &recipe,
        output: &arguments.output,
        seed: arguments.seed,
        limits: arguments.recipe.limits(),
        strict: arguments.strict,
        shard_bytes: arguments.shard_size,
        base_model: &base_model,
        stop: &stop_flag(),
        progress: &Shown::new(quiet),
    })?;
    let folder = &arguments.output;
    output.result(|| to_json(&outcome, folder), || describe(&outcome, folder, model))
}

pub(super) fn to_json(outcome: &Outcome, folder: &Path) -> Value {
    let manifest = &outcome.manifest;
    let fallbacks: Vec<Value> = manifest
        .fallbacks()
        .map(|(site, note)| json!({ "site": site, "what": note.what }))
        .collect();
    json!({
        "output": folder,
        "format": manifest.format,
        "bits_per_weight": manifest.bits_per_weight,
        "table_bits_per_weight": manifest.table_bits_per_weight,
        "source_bytes": manifest.bytes.source,
        "bytes": manifest.bytes.result,
        "compressed": manifest.tensors.compressed.len(),
        "copied": manifest.tensors.copied.len(),
        "rewritten": manifest.tensors.rewritten.len(),
        "dropped": manifest.tensors.dropped.len(),
        "fallbacks": fallbacks,
        "resumed_blocks": outcome.resumed,
        "was_complete": outcome.was_complete,
        "seconds": seconds(&outcome.costs, |cost| cost.wall),
        "processor_seconds": seconds(&outcome.costs, |cost| cost.processor),
        "search_seconds": outcome.search_costs.as_ref().map(|costs| seconds(costs, |c| c.wall)),
        "sites": manifest.sites,
    })
}

/// Seconds of each part.
fn seconds(costs: &Costs, clock: impl Fn(&Cost) -> Duration) -> Value {
    let part = |(name, cost): (&str, Cost)| (name.to_owned(), json!(clock(&cost).as_secs_f64()));
    Value::Object(costs.by_part().into_iter().map(part).collect())
}

/// One line: what the run cost, the parts that matter first.
fn cost_line(costs: &Costs) -> String {
    let mut parts = costs.by_part();
    parts.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.wall));
    let wall: Duration = parts.iter().map(|(_, cost)| cost.wall).sum();
    let processor: Duration = parts.iter().map(|(_, cost)| cost.processor).sum();
    let shares: Vec<String> = parts
        .iter()
        .map(|(name, cost)| (name, cost.wall.as_secs_f64() / wall.as_secs_f64().max(1e-9)))
        .filter(|(_, share)| *share >= 0.05)
        .map(|(name, share)| format!("{name} {:.0} %", 100.0 * share))
        .collect();
    format!(
        "{:.1} s, {:.1} s of processor time ({})",
        wall.as_secs_f64(),
        processor.as_secs_f64(),
        shares.join(", ")
    )
}

fn describe(outcome: &Outcome, folder: &Path, model: &str) -> String {
    let manifest = &outcome.manifest;
    let mut text = String::new();
    let done = if outcome.was_complete { "was complete already" } else { "written" };
    let _ = writeln!(text, "{} {done}", folder.display());
    let _ = writeln!(
        text,
        "{} -> {}, {} in {} layers ({})",
        megabytes(manifest.bytes.source),
        megabytes(manifest.bytes.result),
        stored_bits(manifest.bits_per_weight, manifest.table_bits_per_weight),
        manifest.sites.len(),
        manifest.format
    );
    if !outcome.was_complete {
        let _ = writeln!(text, "{}", cost_line(&outcome.costs));
        if let Some(costs) = &outcome.search_costs {
            let _ = writeln!(text, "the search in it: {}", cost_line(costs));
        }
    }
    let fallbacks = manifest.fallbacks().count();
    if fallbacks > 0 {
        let _ = writeln!(text, "{fallbacks} fallbacks, listed in lapidary.json");
    }
    let _ = write!(text, "\n{}", worst(&manifest.sites));
    let _ = write!(text, "\n\nnext: lapidary eval {} --reference {model}", folder.display());
    text
}

/// The layers that lost the most.
pub(super) fn worst(sites: &[SiteRecord]) -> String {
    let error = |site: &SiteRecord| site.output_error.unwrap_or(site.weight_error);
    let mut sites: Vec<&SiteRecord> = sites.iter().collect();
    sites.sort_by(|a, b| error(b).total_cmp(&error(a)));
    let figure = |error: f64| format!("{:.3} %", 100.0 * error);
    let rows: Vec<Vec<String>> = sites
        .iter()
        .take(5)
        .map(|site| {
            let output = site.output_error.map_or_else(|| "-".to_owned(), figure);
            vec![site.name.clone(), figure(site.weight_error), output]
        })
        .collect();
    table(&["layers that lost the most", "weight error", "output error"], &rows)
}
