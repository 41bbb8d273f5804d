//! `lapidary inspect`: what is in a checkpoint.

use super::{disk, open};
use crate::arguments::InspectArguments;
use crate::error::CliError;
use crate::output::Output;
use crate::table::{megabytes, table, with_inputs};
use lapidary_eval::size;
use lapidary_formats::Source;
use lapidary_model::{LinearOp, Matrix, Spec, spec};
use lapidary_weight::{Outline, Tensors};
use serde_json::{Value, json};

pub(crate) fn run(arguments: &InspectArguments, output: &mut Output) -> Result<(), CliError> {
    let source = open(&disk(), &arguments.model)?;
    let spec = spec(source.config())?;
    let size = size(&source, &spec);
    let sites: Vec<(Matrix, Outline)> = spec
        .matrices()
        .into_iter()
        .filter_map(|matrix| {
            let outline = source.outline(source.get(&matrix.linear.weight)?)?;
            Some((matrix, outline))
        })
        .collect();
    output.result(
        || {
            json!({
                "family": spec.family,
                "parameters": size.parameters,
                "bytes": size.bytes,
                "bits_per_weight": size.bits_per_weight,
                "embedding_bits_per_weight": size.embedding_bits_per_weight,
                "blocks": spec.blocks.len(),
                "hidden_size": spec.hidden_size,
                "vocab_size": spec.vocab_size,
                "tied": spec.tied,
                "notes": source.notes().map(note).collect::<Vec<_>>(),
                "sites": sites.iter().map(|site| site_json(&source, site)).collect::<Vec<_>>(),
            })
        },
        || describe(&source, &spec, &sites),
    )
}

/// What is not read as it is stored.
fn note((site, what): (&str, &str)) -> String {
    format!("{site}: {what}")
}

fn site_json(source: &Source, (matrix, outline): &(Matrix, Outline)) -> Value {
    let linear = &matrix.linear;
    json!({
        "name": linear.module,
        "shape": [linear.out_features, linear.in_features],
        "terms": outline.terms,
        "inputs": source.input_rounding(&linear.weight),
        "bits": stored_bits(source, linear),
    })
}

/// Bits that are stored for each weight of a layer or table.
fn stored_bits(source: &Source, linear: &LinearOp) -> f64 {
    let bytes = source.get(&linear.weight).map_or(0, |tensor| source.stored_bytes(tensor));
    8.0 * bytes as f64 / (linear.out_features * linear.in_features) as f64
}

fn describe(source: &Source, spec: &Spec, sites: &[(Matrix, Outline)]) -> String {
    let size = size(source, spec);
    let rows: Vec<Vec<String>> = sites
        .iter()
        .map(|(matrix, outline)| {
            let linear = &matrix.linear;
            vec![
                linear.module.clone(),
                format!("{} x {}", linear.out_features, linear.in_features),
                outline.describe() + &with_inputs(source.input_rounding(&linear.weight)),
                format!("{:.3}", stored_bits(source, linear)),
            ]
        })
        .collect();
    let notes: String = source.notes().map(|found| format!("\nnote: {}", note(found))).collect();
    format!(
        "{} with {} blocks, {} parameters, {}\n\
         {:.3} bits a weight in the blocks' linear layers, {:.3} in the embedding{}\n\n{}{notes}",
        spec.family,
        spec.blocks.len(),
        size.parameters,
        megabytes(size.bytes),
        size.bits_per_weight,
        size.embedding_bits_per_weight,
        if spec.tied { " (tied to the head)" } else { " and head" },
        table(&["layer or table", "shape", "terms", "bits"], &rows)
    )
}
