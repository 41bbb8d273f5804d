//! `lapidary plan`: what a recipe would do, or with a budget could, with nothing computed.

use super::{disk, open, recipe};
use crate::arguments::PlanArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::table::{megabytes, stored_bits, table, with_inputs};
use lapidary_engine::plan::ActivationsIn;
use lapidary_engine::search::{Candidate, Shape, Shapes};
use lapidary_engine::{Plan, Survey};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

pub(crate) fn run(arguments: &PlanArguments, output: &mut Output) -> Result<(), CliError> {
    let fs = disk();
    let source = open(&fs, &arguments.recipe.model)?;
    let recipe = recipe(&*fs, &arguments.recipe)?;
    let limits = arguments.recipe.limits();
    if Shapes::are_open(&recipe)? {
        let shapes = Shapes::new(&fs, &source, &recipe, limits, arguments.shard_size)?;
        return output.result(|| shapes_to_json(&shapes), || describe_shapes(&shapes));
    }
    if recipe.budget.is_some() {
        let survey = Survey::new(&fs, &source, &recipe, limits, arguments.shard_size)?;
        let (bits, sizes) = (survey.range_of_bits(), survey.range_of_sizes()?);
        return output.result(
            || survey_to_json(&survey, bits, sizes),
            || describe_survey(&survey, bits, sizes),
        );
    }
    let plan = Plan::new(&fs, &source, &recipe, limits)?;
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
                "inputs": site.inputs,
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
        "sparsity": plan.sparsity(),
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
        "rewritten": plan.rewritten.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "dropped": plan.dropped,
        "notes": notes,
    })
}

/// The shapes that a search chooses from.
fn shapes_to_json(shapes: &Shapes<'_>) -> Value {
    let refused: Vec<Value> =
        shapes.refused.iter().map(|(label, why)| json!({ "label": label, "why": why })).collect();
    json!({
        "budget": shapes.budget().to_json(),
        "format": shapes.largest().format.id(),
        "shapes": shapes.shapes.iter().map(Shape::to_json).collect::<Vec<_>>(),
        "refused": refused,
        "source_bytes": shapes.largest().source_bytes,
        "peak_memory_bytes": shapes.memory(),
    })
}

fn describe_shapes(shapes: &Shapes<'_>) -> String {
    let row = |shape: &Shape| {
        let is_tried = match (shape.fits, shape.is_tried) {
            (false, _) => "too large",
            (true, false) => "in a larger one",
            (true, true) => "yes",
        };
        vec![
            shape.label.clone(),
            format!("{:.2} M", shape.parameters as f64 / 1e6),
            megabytes(shape.file_bytes),
            format!("{:.2}", shape.speedup),
            is_tried.to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = shapes.shapes.iter().map(row).collect();
    let header = ["shape", "parameters", "weights", "expected speed", "is tried"];
    let plan = shapes.largest();
    let mut text = table(&header, &rows);
    let _ = write!(
        text,
        "\n\nbudget {}: each shape that may be the best is cut and compared with the whole model\n\
         format {} ({})\nmemory at most {}\n",
        shapes.budget(),
        plan.format.id(),
        plan.format.loaders(),
        megabytes(shapes.memory()),
    );
    for (label, why) in &shapes.refused {
        let _ = writeln!(text, "note: {label} is no candidate: {why}");
    }
    text
}

/// What a search chooses from; `bits` and `sizes` are the least and the most that can come out.
fn survey_to_json(survey: &Survey<'_>, bits: (f64, f64), sizes: (u64, u64)) -> Value {
    let candidates: Vec<Value> = survey
        .candidates
        .iter()
        .map(|candidate| {
            json!({
                "label": candidate.label,
                "bits_per_weight": candidate.plan.bits_per_weight(),
                "output_bytes": candidate.plan.output_bytes(),
            })
        })
        .collect();
    let refused: Vec<Value> =
        survey.refused.iter().map(|(label, why)| json!({ "label": label, "why": why })).collect();
    json!({
        "budget": survey.budget().to_json(),
        "format": survey.plan().format.id(),
        "candidates": candidates,
        "refused": refused,
        "units": survey.units.len(),
        "bits_per_weight": [bits.0, bits.1],
        "weight_file_bytes": [sizes.0, sizes.1],
        "source_bytes": survey.plan().source_bytes,
        "peak_memory_bytes": survey.memory(),
    })
}

fn describe_survey(survey: &Survey<'_>, bits: (f64, f64), sizes: (u64, u64)) -> String {
    let row = |candidate: &Candidate| {
        let bits = candidate.plan.bits_per_weight();
        let bits = bits.map_or_else(|| "-".to_owned(), |bits| format!("{bits:.3}"));
        vec![candidate.label.clone(), bits, megabytes(candidate.plan.output_bytes())]
    };
    let rows: Vec<Vec<String>> = survey.candidates.iter().map(row).collect();
    let mut text = table(&["candidate, everywhere", "bits a weight", "weights"], &rows);
    let layers: usize = survey.units.iter().map(|unit| unit.modules.len()).sum();
    let plan = survey.plan();
    let _ = write!(
        text,
        "\n\nbudget {}: the best candidate for each of {} groups of layers ({layers} layers)\n\
         reachable: {:.3} to {:.3} bits a weight, weights of {} to {}, from {}\n\
         format {} ({})\nmemory at most {}\n",
        survey.budget(),
        survey.units.len(),
        bits.0,
        bits.1,
        megabytes(sizes.0),
        megabytes(sizes.1),
        megabytes(plan.source_bytes),
        plan.format.id(),
        plan.format.loaders(),
        megabytes(survey.memory()),
    );
    for (label, why) in &survey.refused {
        let _ = writeln!(text, "note: {label} is no candidate: {why}");
    }
    text
}

fn describe(plan: &Plan) -> String {
    // Layers of a kind that are treated alike make one row.
    let mut kinds: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for site in &plan.sites {
        let kind = site.linear.module.rsplit('.').next().unwrap_or_default();
        let shape = format!("{} x {}", site.outline.rows, site.outline.cols);
        let how = format!("{}: {}{}", site.step, site.outline.describe(), with_inputs(site.inputs));
        *kinds.entry((kind.to_owned(), shape, how)).or_default() += 1;
    }
    let rows: Vec<Vec<String>> = kinds
        .into_iter()
        .map(|((kind, shape, how), count)| vec![kind, count.to_string(), shape, how])
        .collect();
    let mut text = table(&["layers", "count", "shape", "step"], &rows);
    let _ = write!(
        text,
        "\n\nformat {} ({}), {}{}\nweights {} -> {}\nmemory at most {}{}\ndisk {}\n",
        plan.format.id(),
        plan.format.loaders(),
        stored_bits(plan.bits_per_weight(), plan.table_bits_per_weight()),
        plan.sparsity().map_or_else(String::new, |share| {
            format!("\npruned {:.2} % of the weights of these layers", 100.0 * share)
        }),
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
        "tensors: {} compressed, {} copied, {} rewritten, {} dropped",
        plan.sites.len(),
        plan.copied.len(),
        plan.rewritten.len(),
        plan.dropped.len()
    );
    let mut alike: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, why) in &plan.dropped {
        alike.entry(why).or_default().push(name);
    }
    for (why, names) in alike {
        let _ = match names[..] {
            [_, _, _, _, ..] => writeln!(text, "  dropped {} tensors: {why}", names.len()),
            _ => writeln!(text, "  dropped {}: {why}", names.join(", ")),
        };
    }
    for note in plan.summaries() {
        let _ = writeln!(text, "note: {note}");
    }
    text
}
