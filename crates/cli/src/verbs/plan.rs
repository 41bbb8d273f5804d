//! `lapidary plan`: what a recipe would do, with nothing computed.

use super::{disk, open, recipe};
use crate::arguments::PlanArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::table::{in_tables, megabytes, table};
use lapidary_engine::Plan;
use lapidary_engine::plan::{ActivationsIn, Limits};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

pub(crate) fn run(arguments: &PlanArguments, output: &mut Output) -> Result<(), CliError> {
    let fs = disk();
    let source = open(&fs, &arguments.recipe.model)?;
    let recipe = recipe(&*fs, &arguments.recipe)?;
    let plan = Plan::new(&fs, &source, &recipe, Limits { memory: arguments.recipe.memory })?;
    output.result(|| to_json(&plan), || describe(&plan))
}

fn to_json(plan: &Plan) -> Value {
    let sites: Vec<Value> = plan
        .sites
        .iter()
        .map(|site| {
            json!({
                "name": site.linear.module,
                "shape": [site.outline.rows, site.outline.cols],
                "step": site.step,
                "method": site.method_id,
                "terms": site.outline.terms,
            })
        })
        .collect();
    let notes: Vec<Value> = plan
        .notes
        .iter()
        .map(|(site, note)| json!({ "site": site, "kind": note.kind, "what": note.what }))
        .collect();
    json!({
        "format": plan.format.id(),
        "bits_per_weight": plan.bits_per_weight(),
        "table_bits_per_weight": plan.table_bits_per_weight(),
        "source_bytes": plan.source_bytes,
        "output_bytes": plan.output_bytes(),
        "peak_memory_bytes": plan.memory.peak,
        "disk_bytes": plan.disk_bytes(),
        "activations_in": match plan.memory.activations_in {
            ActivationsIn::Memory => "memory",
            ActivationsIn::Disk => "disk",
        },
        "sites": sites,
        "plain": plan.plain,
        "copied": plan.copied,
        "dropped": plan.dropped,
        "notes": notes,
    })
}

fn describe(plan: &Plan) -> String {
    // Layers of a kind that are treated alike make one row.
    let mut kinds: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for site in &plan.sites {
        let kind = site.linear.module.rsplit('.').next().unwrap_or_default();
        let shape = format!("{} x {}", site.outline.rows, site.outline.cols);
        let how = format!("{}: {}", site.step, site.outline.describe());
        *kinds.entry((kind.to_owned(), shape, how)).or_default() += 1;
    }
    let rows: Vec<Vec<String>> = kinds
        .into_iter()
        .map(|((kind, shape, how), count)| vec![kind, count.to_string(), shape, how])
        .collect();
    let mut text = table(&["layers", "count", "shape", "step"], &rows);
    let _ = write!(
        text,
        "\n\nformat {} ({}), {:.3} bits a weight{}\nweights {} -> {}\nmemory at most {}{}\ndisk {}\n",
        plan.format.id(),
        plan.format.loaders(),
        plan.bits_per_weight(),
        in_tables(plan.table_bits_per_weight()),
        megabytes(plan.source_bytes),
        megabytes(plan.output_bytes()),
        megabytes(plan.memory.peak),
        match plan.memory.activations_in {
            ActivationsIn::Memory => "",
            ActivationsIn::Disk => ", activations on the disk",
        },
        megabytes(plan.disk_bytes()),
    );
    let _ = writeln!(
        text,
        "tensors: {} compressed, {} copied, {} dropped",
        plan.sites.len(),
        plan.copied.len(),
        plan.dropped.len()
    );
    for (name, why) in &plan.dropped {
        let _ = writeln!(text, "  dropped {name}: {why}");
    }
    for note in plan.summaries() {
        let _ = writeln!(text, "note: {note}");
    }
    text
}
