//! The model card of a result: front matter that model hubs read, and how it was made.

use crate::manifest::Manifest;
use crate::plan::Plan;
use crate::run::Job;
use lapidary_formats::Source;
use lapidary_weight::TermOutline;
use std::fmt::Write;

/// `README.md` of the result.
pub(crate) fn card(job: &Job<'_>, plan: &Plan, manifest: &Manifest) -> String {
    let mut card = front_matter(job, plan);
    let name = job.base_model.rsplit('/').next().unwrap_or(job.base_model);
    let _ = writeln!(card, "# {name}, {}", title(plan));
    let _ = writeln!(card, "\nCompressed by Lapidary {}.\n", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(card, "| | |\n|---|---|");
    let _ = writeln!(card, "| format | {} |", manifest.format);
    for cut in &manifest.structure {
        let _ = writeln!(card, "| structure | {cut} |");
    }
    if let Some(bits) = manifest.bits_per_weight {
        let _ = writeln!(card, "| bits per weight of the compressed layers | {bits:.3} |");
    }
    if let Some(bits) = manifest.table_bits_per_weight {
        let _ = writeln!(card, "| bits per weight of the compressed tables and head | {bits:.3} |");
    }
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let (before, after) = (megabytes(manifest.bytes.source), megabytes(manifest.bytes.result));
    let _ = writeln!(card, "| weights | {after:.1} MB, from {before:.1} MB |");
    let _ = writeln!(card, "| compressed layers | {} |", plan.sites.len());
    if let Some(calibration) = &manifest.calibration {
        let (rows, seq_len, text) = (calibration.rows, calibration.seq_len, &calibration.text);
        let _ = writeln!(card, "| calibration | {rows} rows of {seq_len} tokens ({text}) |");
    }
    let fallbacks = manifest.fallbacks().count();
    let _ = writeln!(card, "| fallbacks | {fallbacks} (listed in `lapidary.json`) |");
    let recipe = serde_json::to_string_pretty(&job.recipe.to_json()).unwrap_or_default();
    let _ = writeln!(card, "\n## Recipe\n\n```json\n{recipe}\n```");
    let _ = writeln!(
        card,
        "\n`lapidary.json` holds the error of every layer and the hash of every file."
    );
    card
}

fn front_matter(job: &Job<'_>, plan: &Plan) -> String {
    let mut matter = "---\n".to_owned();
    if let Some(license) = license(job.source) {
        let _ = writeln!(matter, "license: {license}");
    }
    let library = if plan.container.has_files() { "transformers" } else { "gguf" };
    let _ = writeln!(matter, "library_name: {library}");
    if plan.spec.causal {
        matter.push_str("pipeline_tag: text-generation\n");
    }
    let _ = writeln!(matter, "base_model: {}", job.base_model);
    matter.push_str("base_model_relation: quantized\ntags:\n");
    let mut tags = vec![plan.format.id().to_owned()];
    for site in &plan.sites {
        let methods = site.method_id.split(" + ").map(str::to_owned);
        for tag in methods.chain([scheme(site)]) {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
    }
    for tag in tags {
        let _ = writeln!(matter, "- {tag}");
    }
    matter.push_str("quantized_by: lapidary\n---\n\n");
    matter
}

/// The scheme of a site as users name it, for instance `w4a16`.
fn scheme(site: &crate::SitePlan) -> String {
    match site.outline.terms.first() {
        Some(
            TermOutline::Affine { bits, .. }
            | TermOutline::Lookup { bits, .. }
            | TermOutline::Planes { planes: bits, .. },
        ) => format!("w{bits}a{}", site.inputs.map_or(16, |inputs| inputs.numbers.bits())),
        _ => "mixed".to_owned(),
    }
}

fn title(plan: &Plan) -> String {
    let mut kinds: Vec<String> = plan
        .sites
        .iter()
        .map(|site| {
            let inputs = site.inputs.map_or_else(String::new, |i| format!(", inputs {i}"));
            format!("{} {}{inputs}", site.method_id, site.outline.describe())
        })
        .collect();
    kinds.sort();
    kinds.dedup();
    kinds.join("; ")
}

/// The licence that the source's model card names.
fn license(source: &Source) -> Option<String> {
    let card = String::from_utf8(source.read_file("README.md").ok()?).ok()?;
    let matter = card.strip_prefix("---\n")?.split("\n---").next()?;
    let line = matter.lines().find_map(|line| line.strip_prefix("license:"))?;
    let license = line.trim().trim_matches(['"', '\'']);
    let is_plain = license.chars().all(|c| c.is_ascii_alphanumeric() || "-._+ ".contains(c));
    (is_plain && !license.is_empty()).then(|| license.to_owned())
}
