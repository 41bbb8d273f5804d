//! Mixtures of experts, and models that no family knows.

use crate::support::{Setup, copy, model, real, scratch};
use lapidary_engine::Failure;
use lapidary_formats::Source;
use lapidary_methods::NoteKind;
use lapidary_weight::Tensors;
use serde_json::{Value, json};

const GPTQ: &str = "method: gptq, bits: 4, group_size: 8";

/// 192 tokens of calibration, of which an expert gets what the router gives it.
#[test]
fn tokens_are_counted_expert_by_expert_and_routers_left_alone() {
    for name in ["mixtral", "qwen3-moe", "mixtral-together", "qwen3-moe-together"] {
        let scratch = scratch();
        let setup = Setup::new(name, GPTQ, scratch.path(), "compressed-tensors");
        let manifest = setup.run(&scratch.path().join("out")).unwrap().manifest;
        assert!(manifest.sites.iter().all(|site| !site.name.ends_with(".gate")), "{name}");
        let experts: Vec<_> =
            manifest.sites.iter().filter(|site| site.name.contains(".experts.")).collect();
        assert!(experts.len() >= 24, "{name}: {}", experts.len());
        assert!(experts.iter().all(|site| site.weight_error > 0.0 && site.weight_error < 0.05));
        let written = Source::open(real(), &scratch.path().join("out")).unwrap();
        let original = Source::open(real(), &model(name)).unwrap();
        for tensor in original.tensors().iter().filter(|t| t.name.ends_with(".gate.weight")) {
            let have = written.read(&tensor.name).unwrap();
            assert_eq!(have, original.read(&tensor.name).unwrap(), "{}", tensor.name);
        }
    }
}

/// A router whose weights are zero but for one expert's sends no token to some others.
#[test]
fn an_expert_that_no_token_reaches_is_encoded_without_statistics_and_that_is_said() {
    let scratch = scratch();
    let mut setup = Setup::new("mixtral", GPTQ, scratch.path(), "native");
    setup.model = copy("mixtral", scratch.path());
    // All scores are equal: of equal ones the first two are taken.
    zero(&setup.model.join("model.safetensors"), "block_sparse_moe.gate.weight");
    let manifest = setup.run(&scratch.path().join("out")).unwrap().manifest;
    for site in manifest.sites.iter().filter(|site| site.name.contains(".experts.")) {
        let is_reached = [".experts.0.", ".experts.1."].iter().any(|e| site.name.contains(e));
        let said = site.notes.iter().find(|note| {
            note.kind == NoteKind::Fallback && note.what.starts_with("0 calibration tokens reach")
        });
        assert_eq!(said.is_none(), is_reached, "{}: {:?}", site.name, site.notes);
        assert!(site.weight_error > 0.0 && site.weight_error < 0.05, "{}", site.name);
    }
    setup.strict = true;
    let error = setup.run(&scratch.path().join("strict")).unwrap_err();
    assert!(error.to_string().contains("calibration tokens reach"), "{error}");
}

/// Sets the values of tensors whose names end so to zero, in the file.
fn zero(file: &std::path::Path, end: &str) {
    let mut bytes = std::fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensors = header.as_object().unwrap().iter().filter(|(name, _)| name.ends_with(end));
    let mut count = 0;
    for (_, tensor) in tensors {
        let at = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize;
        bytes[8 + length + at(0)..8 + length + at(1)].fill(0);
        count += 1;
    }
    assert!(count > 0);
    std::fs::write(file, bytes).unwrap();
}

fn unknown(folder: &std::path::Path, step: &str, more: &str) -> Setup {
    let mut setup = Setup::new("llama-untied", step, folder, "native");
    setup.recipe.push_str(more);
    setup.model = copy("llama-untied", folder);
    let path = setup.model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["model_type"] = json!("mamba9");
    config["state_size"] = json!(16);
    std::fs::write(&path, config.to_string()).unwrap();
    setup
}

#[test]
fn a_model_that_no_family_knows_is_compressed_by_shapes_when_that_is_allowed() {
    let step = "method: rtn, bits: 8, group_size: 8";
    let folder = scratch();
    let error = unknown(folder.path(), step, "").run(&folder.path().join("out")).unwrap_err();
    let said = error.to_string();
    for part in ["mamba9", "qwen3_moe", "state_size"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("hidden_size"), "a field that families read: {said}");

    let folder = scratch();
    let output = folder.path().join("out");
    let setup = unknown(folder.path(), step, "allow_unknown: true\n");
    let manifest = setup.run(&output).unwrap().manifest;
    assert_eq!(manifest.sites.len(), 14, "seven layers in each of two blocks");
    assert!(manifest.notes.iter().any(|note| note.note.what.contains("found by their shapes")));
    let (written, original) =
        (Source::open(real(), &output).unwrap(), Source::open(real(), &setup.model).unwrap());
    for tensor in original.tensors() {
        let (have, want) =
            (written.read(&tensor.name).unwrap(), original.read(&tensor.name).unwrap());
        let is_site = tensor.name.ends_with("proj.weight");
        assert_eq!(have == want, !is_site, "{}", tensor.name);
        let most = want.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        assert!(have.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 0.01 * most));
    }
}

#[test]
fn what_would_have_to_run_an_unknown_model_is_refused() {
    for (step, more) in [
        (GPTQ, "allow_unknown: true\n"),
        ("method: rotate, residual: false}, {method: rtn", "allow_unknown: true\n"),
        ("method: rtn", "allow_unknown: true\nuntie: true\n"),
    ] {
        let folder = scratch();
        let setup = unknown(folder.path(), step, more);
        let error = setup.run(&folder.path().join("out")).unwrap_err();
        assert_eq!(error.failure(), Failure::Refused, "{step}: {error}");
        assert!(error.to_string().contains("no family knows this model"), "{error}");
    }
}
