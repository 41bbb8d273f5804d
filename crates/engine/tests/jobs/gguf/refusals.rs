//! What llama.cpp computes otherwise is refused by name, or a fallback.

use super::*;
use lapidary_engine::{EngineError, Failure};

#[test]
fn a_model_without_a_place_is_refused_by_name() {
    let refused = |name: &str, why: &str| {
        let scratch = scratch();
        let model = with_tokenizer(name, scratch.path());
        let output = scratch.path().join("out");
        let error = setup(model, EIGHT, scratch.path()).run(&output).unwrap_err();
        assert_eq!(error.failure(), Failure::Refused, "{name}: {error}");
        assert!(error.to_string().contains(why), "{name}: {error}");
        assert!(!output.exists());
    };
    refused("llama-gelu", "hidden_act");
    refused("qwen2-sliding", "use_sliding_window");
    refused("qwen3-biases", "attention_bias");
    refused("gemma2", "query_pre_attn_scalar");
    refused("gemma3", "query_pre_attn_scalar");
    refused("olmo2-biases", "attention_bias");
    refused("smollm3-window", "attention_bias");
    refused("qwen3-moe", "norm_topk_prob");
    refused("qwen3-moe-mixed", "experts in every layer");
    refused("gpt2-inner", "activation_function");
    refused("gpt-neox-sequential", "attention_bias");
    refused("opt", "llama.cpp has no loader for OPT");
    refused("bert-masked-lm", "architectures");
    refused("bert-relu", "hidden_act");
}

/// Changes a model's `config.json`.
fn configure(model: &Path, change: impl FnOnce(&mut Value)) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn factors_that_single_precision_rounds_are_the_same_model() {
    // The usual factor of attention is √1.5; what is near it is not it.
    for (attention, wanted) in [
        (1.2345678912345, json!(1.2345679)),
        (1.22476, json!(1.22476)),
        (1.5_f64.sqrt(), json!(null)),
    ] {
        let scratch = scratch();
        let model = with_tokenizer("phi3-longrope", scratch.path());
        configure(&model, |config| {
            let scaling = &mut config["rope_parameters"];
            scaling["long_factor"] = json!([1.0800000429153442, 1.1, 2.7, 3.3000000000000003]);
            scaling["attention_factor"] = json!(attention);
        });
        let output = scratch.path().join("out");
        setup(model, EIGHT, scratch.path()).run(&output).unwrap();
        let config = open(&output).config().clone();
        assert_eq!(config["rope_scaling"]["long_factor"], json!([1.08, 1.1, 2.7, 3.3]));
        assert_eq!(config["rope_scaling"]["attention_factor"], wanted);
    }
}

#[test]
fn stretched_positions_are_refused_where_llama_cpp_computes_others() {
    let refused = |name: &str, changes: Value, why: &str| {
        let scratch = scratch();
        let model = with_tokenizer(name, scratch.path());
        configure(&model, |config| {
            for (key, value) in changes.as_object().unwrap() {
                config["rope_parameters"][key] = value.clone();
            }
        });
        let output = scratch.path().join("out");
        let error = setup(model, EIGHT, scratch.path()).run(&output).unwrap_err().to_string();
        assert!(error.contains(why), "{name}: {error}");
    };
    refused("llama-rope-yarn", json!({}), "beta_fast");
    refused("qwen3-yarn", json!({"truncate": false}), "truncate");
    refused("qwen3-yarn", json!({"rope_type": "dynamic"}), "rope_type");
    let llama3 = json!({
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    refused("granite", llama3, "for llama only");
    refused("phi3-longrope", json!({"long_factor": [1.0, 1.0]}), "divisors for 4 pairs");
}

#[test]
fn windows_of_a_mixture_are_refused() {
    let scratch = scratch();
    let model = with_tokenizer("qwen3-moe-blocks", scratch.path());
    configure(&model, |config| {
        config["use_sliding_window"] = json!(true);
        config["sliding_window"] = json!(8);
    });
    let error = setup(model, EIGHT, scratch.path()).run(&scratch.path().join("out")).unwrap_err();
    assert!(error.to_string().contains("use_sliding_window"), "{error}");
}

#[test]
fn a_window_that_llama_cpp_has_not_is_a_fallback() {
    let scratch = scratch();
    let model = with_tokenizer("mistral-sliding", scratch.path());
    let mut setup = setup(model, "method: omse, grid: q8_0, targets: [q_proj]", scratch.path());
    let manifest = setup.run(&scratch.path().join("out")).unwrap().manifest;
    assert!(manifest.fallbacks().any(|(_, note)| note.what.contains("beyond 7 tokens")));
    setup.strict = true;
    let error = setup.run(&scratch.path().join("strict")).unwrap_err();
    assert!(error.to_string().contains("sliding window"), "{error}");
}

#[test]
fn a_folder_or_a_name_that_does_not_do_is_refused() {
    let scratch = scratch();
    let run = |model: PathBuf, output: &str| -> EngineError {
        setup(model, EIGHT, scratch.path()).run(&scratch.path().join(output)).unwrap_err()
    };
    let error = run(model("llama-tied"), "out").to_string();
    assert!(error.contains("tokenizer.json: is missing"), "{error}");
    let model = with_tokenizer("llama-tied", scratch.path());
    let error = run(model.clone(), "out.gguf").to_string();
    assert!(error.contains("out/model.gguf"), "{error}");
    let tokenizer = model.join("tokenizer.json");
    let mut changed: Value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
    changed["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": "x+" }, "behavior": "Isolated" },
        { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false }
    ] });
    std::fs::write(&tokenizer, changed.to_string()).unwrap();
    let error = run(model.clone(), "out").to_string();
    assert!(error.contains("rules of splitting text"), "{error}");
    changed["model"]["vocab"]["too far"] = json!(1_000_000);
    std::fs::write(&tokenizer, changed.to_string()).unwrap();
    let error = run(model, "out").to_string();
    assert!(error.contains("the embedding table has"), "{error}");
}
