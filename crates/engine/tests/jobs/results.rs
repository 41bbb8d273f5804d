//! What is written.

use crate::support::{Setup, entries, files, model, real, scratch};
use lapidary_engine::plan::{ActivationsIn, Limits};
use lapidary_engine::recipe::presets;
use lapidary_engine::{MANIFEST, Manifest, Plan, hash_folder, recipe::Recipe};
use lapidary_formats::Source;
use lapidary_weight::Tensors;

/// Every family, tied and untied, biased and not, with the widths that groups do not divide.
const MODELS: [&str; 8] = [
    "llama-tied",
    "llama-biases",
    "llama-head-dim",
    "llama-sharded",
    "mistral",
    "qwen2-tied",
    "qwen3",
    "bert-model",
];

#[test]
fn every_family_is_written_whole_in_every_format() {
    for name in MODELS {
        for format in ["compressed-tensors", "native", "dense"] {
            let scratch = scratch();
            let output = scratch.path().join("out");
            let step = "method: gptq, bits: 4, group_size: 32";
            let setup = Setup::new(name, step, scratch.path(), format);
            let outcome = setup.run(&output).unwrap_or_else(|e| panic!("{name} {format}: {e}"));
            check(name, &output, &outcome.manifest);
            assert_eq!(
                entries(scratch.path()),
                ["out", "rows.safetensors"],
                "nothing is left over"
            );
        }
    }
}

/// What each folder format holds: a step, and a model of which the layers have sizes that fit.
const FOLDERS: [(&str, &str, &str); 9] = [
    ("gptq", "method: gptq, bits: 4, group_size: 32", "llama-untied"),
    ("gptq-v2", "method: gptq, bits: 3, group_size: 32, symmetric: false", "llama-untied"),
    ("awq", "method: gptq, bits: 4, group_size: 32, symmetric: false", "llama-biases"),
    ("mlx", "method: gptq, bits: 6, group_size: 32, symmetric: false", "llama-untied"),
    ("bitsandbytes", "method: nf4, group_size: 32", "llama-untied"),
    ("bitsandbytes-fp4", "method: fp4, levels: bitsandbytes, group_size: 32", "llama-untied"),
    ("bitsandbytes", "method: rtn, bits: 8, group_size: row", "qwen3"),
    ("hqq", "method: hqq, group_size: 32", "llama-untied"),
    ("bitnet", "method: kbit, bits: 2, data_type: int, group_size: tensor", "llama-untied"),
];

#[test]
fn folders_of_other_tools_are_written_read_back_and_compressed_again() {
    for (format, step, name) in FOLDERS {
        let scratch = scratch();
        let output = scratch.path().join("out");
        let step = format!("{step}, targets: [q_proj, v_proj]");
        let mut setup = Setup::new(name, &step, scratch.path(), format);
        let outcome = setup.run(&output).unwrap_or_else(|e| panic!("{name} {format}: {e}"));
        let source = Source::open(real(), &setup.model).unwrap();
        let written = Source::open(real(), &output).unwrap();
        for tensor in source.tensors() {
            let (before, after) = (source.read(&tensor.name), written.read(&tensor.name));
            let (before, after) = (before.unwrap(), after.unwrap());
            let is_site = outcome.manifest.tensors.compressed.contains(&tensor.name);
            assert_eq!(is_site, before != after, "{format}: {}", tensor.name);
            assert_eq!(is_site, written.get(&tensor.name).unwrap().is_compressed(), "{format}");
        }
        assert_eq!(hash_folder(&*real(), &output).unwrap(), outcome.manifest.files);
        let own = output.join("quantize_config.json");
        assert_eq!(own.exists(), format.starts_with("gptq"), "{format}");
        // What the folder says of its layers is not left in the next one.
        setup.model = output;
        setup.recipe = setup.recipe.replace(&format!("format: {format}\n"), "format: dense\n");
        let again = scratch.path().join("again");
        setup.run(&again).unwrap_or_else(|e| panic!("{name} {format}: {e}"));
        assert!(!again.join("quantize_config.json").exists());
        let config = std::fs::read_to_string(again.join("config.json")).unwrap();
        assert!(!config.contains("quantization"), "{format}: {config}");
    }
}

#[test]
fn layers_that_cannot_stand_in_one_folder_are_refused_before_any_work() {
    let scratch = scratch();
    let steps = "method: rtn, bits: 8, group_size: row, targets: [q_proj]}, \
                 {method: nf4, group_size: 32, targets: [k_proj]";
    let setup = Setup::new("llama-untied", steps, scratch.path(), "bitsandbytes");
    let error = setup.run(&scratch.path().join("out")).err().unwrap().to_string();
    assert!(error.contains("in one folder: all layers have 4 bits"), "{error}");
    assert_eq!(entries(scratch.path()), ["rows.safetensors"]);
}

/// The folder reads back, every tensor of the source is in one of the lists, every file is hashed.
fn check(name: &str, output: &std::path::Path, manifest: &Manifest) {
    let source = Source::open(real(), &model(name)).unwrap();
    let written = Source::open(real(), output).unwrap();
    let lists = &manifest.tensors;
    let dropped = lists.dropped.iter().map(|(name, _)| name).filter(|n| !n.starts_with("file "));
    let mut listed: Vec<&String> =
        lists.compressed.iter().chain(&lists.copied).chain(dropped).collect();
    let mut all: Vec<&String> = source.tensors().iter().map(|tensor| &tensor.name).collect();
    listed.sort();
    all.sort();
    assert_eq!(listed, all, "{name}: every tensor in one list");
    for tensor in source.tensors() {
        assert_eq!(written.shape(&tensor.name).as_ref(), Some(&tensor.shape), "{}", tensor.name);
        let (before, after) = (source.read(&tensor.name), written.read(&tensor.name));
        let (before, after) = (before.unwrap(), after.unwrap());
        let difference: f64 =
            before.iter().zip(&after).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let energy: f64 = before.iter().map(|a| f64::from(*a).powi(2)).sum();
        if lists.copied.contains(&tensor.name) {
            assert_eq!(before, after, "{name}: {} was copied", tensor.name);
        } else {
            assert!(difference > 0.0 && difference < 0.25 * energy, "{name}: {}", tensor.name);
        }
    }
    assert_eq!(manifest.sites.len(), lists.compressed.len());
    for site in &manifest.sites {
        let output_error = site.output_error.unwrap();
        assert!(output_error > 0.0 && output_error < 0.05, "{}: {output_error}", site.name);
    }
    assert_eq!(hash_folder(&*real(), output).unwrap(), manifest.files);
    let text = std::fs::read_to_string(output.join(MANIFEST)).unwrap();
    let parent = output.parent().unwrap().display().to_string();
    assert!(!text.contains(&parent), "no path in the manifest");
    let card = std::fs::read_to_string(output.join("README.md")).unwrap();
    assert!(card.starts_with("---\n") && card.contains("base_model: tiny"));
    assert!(!card.contains(&parent), "no path in the card");
}

#[test]
fn every_preset_runs() {
    // Those for llama.cpp want a model with a tokenizer, and have a test of their own.
    for preset in presets().into_iter().filter(|preset| !preset.name.starts_with(['Q', 'I'])) {
        let scratch = scratch();
        // Blocks of 32 floats divide the layers of few of the tiny models.
        let name = if preset.name.contains("FP") { "bert-model" } else { "llama-untied" };
        let mut setup = Setup::new(name, "method: rtn", scratch.path(), "native");
        let rows = scratch.path().join("rows.safetensors").display().to_string();
        let mut recipe = preset.recipe().unwrap().to_json();
        recipe["calibration"]["text"] = rows.into();
        setup.recipe = recipe.to_string();
        let outcome = setup.run(&scratch.path().join("out")).unwrap();
        let digit = preset.name.chars().find(char::is_ascii_digit).unwrap();
        let bits = match preset.name.as_str() {
            // Floats of 32 bits: half of them and a bit for each place; all of them.
            "sparse-50" => 17.0,
            "sparse-2-4" => 32.0,
            "sparse-50-W4A16" => 4.0,
            // Engines multiply integers from bytes.
            "W4A8" => 8.0,
            _ => f64::from(digit.to_digit(10).unwrap()),
        };
        let stored = outcome.manifest.bits_per_weight.unwrap();
        // 16-bit scales of rows this short weigh much.
        assert!(stored >= bits && stored < bits + 2.0, "{}: {stored}", preset.name);
    }
}

#[test]
fn errors_fall_with_bits_and_gptq_beats_rounding() {
    let error = |step: &str| {
        let scratch = scratch();
        let setup = Setup::new("llama-untied", step, scratch.path(), "native");
        let manifest = setup.run(&scratch.path().join("out")).unwrap().manifest;
        let errors = manifest.sites.iter().map(|site| (site.weight_error, site.output_error));
        errors.fold((0.0, 0.0), |sum, (weight, output)| {
            (sum.0 + weight, sum.1 + output.unwrap_or_default())
        })
    };
    let mut before = f64::INFINITY;
    for bits in [2, 3, 4, 6, 8] {
        let (weight, _) = error(&format!("method: rtn, bits: {bits}, group_size: 16"));
        let (omse, _) = error(&format!("method: omse, bits: {bits}, group_size: 16"));
        assert!(weight < before && omse <= weight, "{bits} bits: {weight} {omse}");
        before = weight;
        let plain = "dampening_frac: 0.01, scale: min-max";
        let (gptq_weight, gptq) =
            error(&format!("method: gptq, bits: {bits}, group_size: 16, {plain}"));
        assert!(gptq_weight > weight, "GPTQ trades the weights' error for the outputs'");
        assert!(gptq > 0.0);
    }
}

/// The query of the first block shares its input with the key, so that rounding has an output error
/// too where the key is GPTQ's.
#[test]
fn gptq_loses_less_of_the_outputs_than_rounding() {
    let error = |steps: &str| {
        let scratch = scratch();
        let setup = Setup::new("llama-untied", steps, scratch.path(), "native");
        let manifest = setup.run(&scratch.path().join("out")).unwrap().manifest;
        manifest.sites.iter().find(|s| s.name.ends_with("0.self_attn.q_proj")).unwrap().clone()
    };
    for bits in [2, 3, 4, 6] {
        let grid = format!("bits: {bits}, group_size: 16");
        let gptq = "dampening_frac: 0.01, scale: min-max";
        let swept = error(&format!("method: gptq, {grid}, {gptq}, targets: [q_proj, k_proj]"));
        let rounded = error(&format!(
            "method: rtn, {grid}, targets: [q_proj]}}, {{method: gptq, {grid}, targets: [k_proj]"
        ));
        assert!(swept.weight_error > rounded.weight_error, "{bits} bits");
        let (swept, rounded) = (swept.output_error.unwrap(), rounded.output_error.unwrap());
        assert!(swept < 0.9 * rounded, "{bits} bits: {swept} {rounded}");
    }
}

#[test]
fn shards_and_one_file_hold_the_same() {
    let scratch = scratch();
    let step = "method: rtn, bits: 8, group_size: row";
    let mut setup = Setup::new("llama-untied", step, scratch.path(), "compressed-tensors");
    let (one, many) = (scratch.path().join("one"), scratch.path().join("many"));
    setup.run(&one).unwrap();
    setup.shard_bytes = 16 << 10;
    setup.run(&many).unwrap();
    assert!(files(&many).len() > files(&one).len() + 2);
    let (one, many) = (Source::open(real(), &one).unwrap(), Source::open(real(), &many).unwrap());
    assert_eq!(one.tensors().len(), many.tensors().len());
    for tensor in one.tensors() {
        assert_eq!(one.read(&tensor.name).unwrap(), many.read(&tensor.name).unwrap());
    }
}

#[test]
fn threads_and_the_place_of_the_activations_change_no_byte() {
    let scratch = scratch();
    let step = "method: gptq, bits: 3, group_size: 32";
    let mut setup = Setup::new("qwen3", step, scratch.path(), "native");
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (one, four, disk) =
        (scratch.path().join("a"), scratch.path().join("b"), scratch.path().join("c"));
    pool(1).install(|| setup.run(&one)).unwrap();
    pool(4).install(|| setup.run(&four)).unwrap();
    let source = Source::open(real(), &setup.model).unwrap();
    let recipe = Recipe::parse(&setup.recipe).unwrap();
    let plan = |limits| Plan::new(&real(), &source, &recipe, limits);
    let roomy = plan(Limits::default()).unwrap().memory;
    assert_eq!(roomy.activations_in, ActivationsIn::Memory);
    setup.limits.memory = Some(roomy.peak - 1);
    let tight = plan(setup.limits).unwrap().memory;
    assert_eq!(tight.activations_in, ActivationsIn::Disk);
    assert_eq!(tight.peak + tight.activations, roomy.peak);
    setup.run(&disk).unwrap();
    assert_eq!(files(&one), files(&four));
    assert_eq!(files(&one), files(&disk));
}

#[test]
fn what_is_compressed_already_can_be_compressed_again_and_says_so() {
    let scratch = scratch();
    let step = "method: rtn, bits: 8, group_size: 16";
    let mut setup = Setup::new("llama-tied", step, scratch.path(), "compressed-tensors");
    let first = scratch.path().join("first");
    setup.run(&first).unwrap();
    setup.model = first;
    let outcome = setup.run(&scratch.path().join("second")).unwrap();
    let notes: Vec<&str> = outcome.manifest.notes.iter().map(|n| n.note.what.as_str()).collect();
    assert!(notes.iter().any(|note| note.contains("compressed already")), "{notes:?}");
}

/// The first block has no drift; the others have, and what is written there is another.
#[test]
fn drift_is_corrected_where_there_is_any() {
    let scratch = scratch();
    let weight = |share: &str, layer: usize| {
        let output = scratch.path().join(format!("out-{share}"));
        let step = format!("method: gptq, bits: 3, group_size: 16, drift_correction: {share}");
        let setup = Setup::new("llama-tied", &step, scratch.path(), "native");
        setup.run(&output).unwrap();
        let written = Source::open(real(), &output).unwrap();
        written.read(&format!("model.layers.{layer}.self_attn.q_proj.weight")).unwrap()
    };
    assert_eq!(weight("0.0", 0), weight("1.0", 0));
    assert_ne!(weight("0.0", 1), weight("1.0", 1));
}
