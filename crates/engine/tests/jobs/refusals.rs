//! What a job refuses, before any work, in one line that says what, where and what to do.

use crate::support::{Setup, copy, entries, scratch};
use lapidary_engine::{EngineError, Failure};
use std::path::Path;

/// Runs a job that must fail, and leave nothing behind.
fn refusal(setup: &Setup, folder: &Path) -> EngineError {
    let before = entries(folder);
    let error = setup.run(&folder.join("out")).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    assert_eq!(entries(folder), before, "{error}");
    error
}

#[test]
fn recipes_that_do_not_fit_the_model() {
    let cases = [
        ("method: rtn, targets: [\"re:.*dense\"]", "llama-tied", "matches no linear layer"),
        ("method: rtn, ignore: [nowhere]", "llama-tied", "\"nowhere\" matches no linear layer"),
        (
            "method: rtn, targets: [lm_head]",
            "llama-tied",
            "embed_tokens: format compressed-tensors",
        ),
        ("method: rtn, group_size: tensor, symmetric: false", "llama-tied", "cannot hold it"),
        (
            "method: rtn}, {method: omse, targets: [\"re:.*q_proj\"]",
            "llama-tied",
            "model.layers.0.self_attn.q_proj (rtn + omse): step omse encodes what a step before it",
        ),
        ("method: awq}, {method: rtn, bits: [3, 4]", "llama-tied", "and a search measures each"),
        ("method: lqer", "llama-tied", "step lqer corrects what a step before it lost"),
        ("method: awq", "llama-tied", "(awq): no step encodes it"),
        ("method: rtn}, {method: awq", "llama-tied", "(rtn + awq): step awq scales weights before"),
        (
            "method: awq}, {method: awq}, {method: rtn",
            "llama-tied",
            "step awq-2 scales what a step",
        ),
        (
            "method: awq}, {method: smoothquant}, {method: rtn",
            "llama-tied",
            "step smoothquant scales what a step before it has scaled already",
        ),
        ("method: rtn}, {method: smoothquant", "llama-tied", "step smoothquant scales weights"),
        ("method: awq}, {method: rotate}, {method: rtn", "llama-tied", "rotate: it rewrites the"),
        ("method: rotate}, {method: rotate}, {method: rtn", "llama-tied", "put it first, and only"),
        (
            "method: rotate, ignore: [\"re:.*q_proj\"]}, {method: rtn",
            "llama-tied",
            "leave out targets",
        ),
        ("method: rotate}, {method: rtn", "bert-masked-lm", "has layer norms, which subtract the"),
        ("method: rotate}, {method: lqer", "llama-tied", "none before it encodes this layer"),
        (
            "method: awq, targets: [lm_head]}, {method: rtn, targets: [lm_head]",
            "llama-tied",
            "are looked up",
        ),
        ("method: lqer}, {method: rtn", "llama-tied", "put a step such as rtn or gptq before it"),
        ("method: rtn}, {method: lqer", "llama-tied", "cannot hold it: it holds one affine"),
        ("method: wanda", "llama-tied", "add --format native, or dense for zeros"),
        ("method: rtn}, {method: wanda", "llama-tied", "prunes weights, and a step before it has"),
        ("method: wanda}, {method: magnitude", "llama-tied", "prunes what a step before it has"),
        (
            "method: wanda}, {method: awq}, {method: rtn",
            "llama-tied",
            "step awq scales weights, and",
        ),
        (
            "method: wanda}, {method: rtn}, {method: lqer",
            "llama-tied",
            "step lqer adds a matrix without zeros",
        ),
        ("method: wanda}, {method: hqq", "llama-tied", "step hqq does not keep exactly 0"),
        (
            "method: sparsegpt, act_order: true}, {method: gptq",
            "llama-tied",
            "step gptq prunes and rounds in one sweep",
        ),
        ("method: wanda, pattern: \"7:11\"", "llama-tied", "needs columns that 11 divides"),
    ];
    for (step, model, expected) in cases {
        let scratch = scratch();
        let mut setup = Setup::new(model, step, scratch.path(), "compressed-tensors");
        if expected.contains("a search") {
            setup.recipe.push_str("budget: {bpw: 4.5}\n");
        }
        let error = refusal(&setup, scratch.path());
        assert_eq!(error.failure(), Failure::Refused, "{error}");
        assert!(error.to_string().contains(expected), "{step}: {error}");
    }
}

#[test]
fn a_group_that_does_not_divide_is_settled_by_the_plan() {
    let scratch = scratch();
    let step = "method: rtn, bits: 4, group_size: 24";
    let mut setup = Setup::new("llama-biases", step, scratch.path(), "compressed-tensors");
    let manifest = setup.run(&scratch.path().join("out")).unwrap().manifest;
    assert!(manifest.fallbacks().all(|(_, note)| note.what.contains("instead")));
    assert_eq!(manifest.fallbacks().count(), manifest.sites.len());
    setup.strict = true;
    let error = setup.run(&scratch.path().join("strict")).unwrap_err();
    assert!(error.to_string().contains("--strict does not allow it"), "{error}");
    assert!(!scratch.path().join("strict").exists());
    // The native format has ragged groups, so nothing changes.
    let mut native = Setup::new("llama-biases", step, scratch.path(), "native");
    native.strict = true;
    native.run(&scratch.path().join("native")).unwrap();
}

#[test]
fn weights_that_are_not_finite() {
    let scratch = scratch();
    let model = copy("llama-untied", scratch.path());
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let middle = header + (bytes.len() - header) / 8 * 4;
    bytes[middle..middle + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    for (out, step) in [("a", "method: rtn, bits: 8"), ("b", "method: gptq")] {
        let mut setup = Setup::new("llama-untied", step, scratch.path(), "native");
        setup.model.clone_from(&model);
        let error = setup.run(&scratch.path().join(out)).unwrap_err();
        assert_eq!(error.failure(), Failure::BadInput, "{error}");
        assert!(error.to_string().contains("finite"), "{error}");
        assert!(!scratch.path().join(out).exists());
    }
}

#[test]
fn a_model_that_lacks_a_tensor_or_has_it_in_another_shape() {
    for (from, to, expected) in [
        ("\"intermediate_size\": 56", "\"intermediate_size\": 48", "where config.json asks for"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "model.layers.2"),
        ("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"", "mamba"),
    ] {
        let scratch = scratch();
        let model = copy("llama-biases", scratch.path());
        let config = std::fs::read_to_string(model.join("config.json")).unwrap();
        assert!(config.contains(from));
        std::fs::write(model.join("config.json"), config.replace(from, to)).unwrap();
        let mut setup = Setup::new("llama-biases", "method: gptq", scratch.path(), "native");
        setup.model = model;
        let error = refusal(&setup, scratch.path());
        assert_eq!(error.failure(), Failure::BadInput, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn calibration_rows_that_cannot_be_used() {
    let scratch = scratch();
    let mut setup = Setup::new("llama-tied", "method: gptq", scratch.path(), "native");
    setup.recipe = setup.recipe.replace("rows.safetensors", "nowhere.safetensors");
    assert_eq!(refusal(&setup, scratch.path()).failure(), Failure::BadInput);
    // Without a tokenizer text cannot be used.
    let text = scratch.path().join("text.txt");
    std::fs::write(&text, "A text.").unwrap();
    let mut setup = Setup::new("llama-tied", "method: gptq", scratch.path(), "native");
    setup.recipe = setup.recipe.replace("rows.safetensors", "text.txt");
    let error = refusal(&setup, scratch.path());
    assert!(error.to_string().contains("no tokenizer.json"), "{error}");
}

#[test]
fn too_little_memory() {
    let scratch = scratch();
    let mut setup = Setup::new("llama-tied", "method: gptq", scratch.path(), "native");
    setup.limits.memory = Some(1 << 20);
    let error = refusal(&setup, scratch.path());
    assert_eq!(error.failure(), Failure::Refused);
    assert!(error.to_string().contains("raise --memory"), "{error}");
}
