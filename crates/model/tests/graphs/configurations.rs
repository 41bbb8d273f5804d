//! Configurations that are not those of a model: each field that is wrong is named.

use crate::support::{BATCH, Edited, embedded, executor, model, run, tokens};
use lapidary_model::{Batch, Graph, GraphWeights, ModelError, families, spec};
use lapidary_weight::{TensorError, Tensors};
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 50,
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "hidden_act": "silu",
    })
}

fn bert() -> Value {
    json!({
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 50, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 128,
    })
}

#[track_caller]
fn complaint(config: &Value) -> String {
    spec(config).unwrap_err().to_string()
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

#[test]
fn the_configurations_to_start_from_are_good() {
    assert!(spec(&llama()).is_ok() && spec(&bert()).is_ok());
}

#[test]
fn an_unknown_architecture_is_named_with_the_known_ones() {
    let config = json!({"model_type": "mamba", "architectures": ["MambaForCausalLM"]});
    let said = complaint(&config);
    assert!(said.contains("\"mamba\"") && said.contains("MambaForCausalLM"), "{said}");
    for family in families() {
        assert!(!family.model_types.is_empty());
        family.model_types.iter().for_each(|known| assert!(said.contains(known), "{said}"));
    }
    for config in [json!({}), json!({"model_type": null}), json!({"model_type": 3}), json!([])] {
        assert!(complaint(&config).contains("llama"), "{config}");
    }
}

#[test]
fn missing_fields_are_named() {
    let keys = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "rms_norm_eps",
    ];
    for key in keys {
        let mut config = llama();
        config.as_object_mut().unwrap().remove(key);
        assert_eq!(complaint(&config), format!("config.json: {key}: is missing"));
        // As transformers does, null is no value.
        let config = with(llama(), key, Value::Null);
        assert_eq!(complaint(&config), format!("config.json: {key}: is missing"));
    }
    for key in [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    ] {
        let mut config = bert();
        config.as_object_mut().unwrap().remove(key);
        assert_eq!(complaint(&config), format!("config.json: {key}: is missing"));
    }
}

#[test]
fn absurd_sizes_are_named() {
    let sizes = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "max_position_embeddings",
        "head_dim",
    ];
    let absurd = [
        json!(0),
        json!(-1),
        json!(1.5),
        json!("64"),
        json!(true),
        json!([]),
        json!(1_u64 << 25),
        json!(u64::MAX),
        json!(1e30),
    ];
    for key in sizes {
        for value in &absurd {
            let said = complaint(&with(llama(), key, value.clone()));
            assert!(said.starts_with(&format!("config.json: {key}: is {value}")), "{said}");
        }
    }
    // A graph is built for each layer: sizes that are fine elsewhere would fill the memory.
    for config in [llama(), bert()] {
        let said = complaint(&with(config, "num_hidden_layers", json!(1 << 24)));
        assert!(said.starts_with("config.json: num_hidden_layers: is 16777216"), "{said}");
    }
    for value in [json!(0.0), json!(-1e-5), json!("1e-5")] {
        let said = complaint(&with(llama(), "rms_norm_eps", value));
        assert!(said.starts_with("config.json: rms_norm_eps: is "), "{said}");
    }
}

#[test]
fn head_counts_that_do_not_divide_are_named() {
    let said = complaint(&with(llama(), "num_key_value_heads", json!(3)));
    assert!(said.contains("num_key_value_heads: is 3, which does not divide the 4"), "{said}");
    let said = complaint(&with(llama(), "num_key_value_heads", json!(8)));
    assert!(said.contains("num_key_value_heads"), "{said}");
    let three = with(llama(), "num_key_value_heads", json!(null));
    let said = complaint(&with(three, "num_attention_heads", json!(3)));
    assert!(said.contains("hidden_size: is 32, which 3 heads do not divide"), "{said}");
    let said = complaint(&with(llama(), "head_dim", json!(7)));
    assert!(said.contains("head_dim: is 7"), "{said}");
    let said = complaint(&with(bert(), "num_attention_heads", json!(5)));
    assert!(said.contains("hidden_size: is 32, which 5 heads do not divide"), "{said}");
}

#[test]
fn settings_that_would_change_the_numbers_are_refused() {
    for (key, value, parts) in [
        ("hidden_act", json!("mish"), &["hidden_act", "mish", "silu"][..]),
        ("rope_theta", json!(0), &["rope_theta"]),
        ("rope_theta", json!("10000"), &["rope_theta"]),
        ("rope_scaling", json!({"rope_type": "spiral", "factor": 2.0}), &["spiral", "llama3"]),
        ("rope_scaling", json!({"type": "linear"}), &["factor", "is missing"]),
        ("rope_scaling", json!({"type": "linear", "factor": -2.0}), &["factor"]),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), &["low_freq_factor"]),
        ("rope_parameters", json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor"]),
        ("attention_bias", json!("yes"), &["attention_bias"]),
        ("tie_word_embeddings", json!(1), &["tie_word_embeddings"]),
        // What other families have, and Llama would overlook.
        ("attn_logit_softcapping", json!(50.0), &["attn_logit_softcapping", "50", "llama"]),
        ("clip_qkv", json!(8.0), &["clip_qkv"]),
        ("use_qkv_norm", json!(true), &["use_qkv_norm"]),
        ("num_local_experts", json!(8), &["num_local_experts"]),
        ("residual_multiplier", json!(0.5), &["residual_multiplier"]),
        ("layer_types", json!(["full_attention", "sliding_attention"]), &["layer_types"]),
    ] {
        let said = complaint(&with(llama(), key, value.clone()));
        assert!(parts.iter().all(|part| said.contains(part)), "{key} {value}: {said}");
    }
    for (key, neutral) in [
        ("clip_qkv", json!(null)),
        ("use_qkv_norm", json!(false)),
        ("residual_multiplier", json!(1.0)),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("pretraining_tp", json!(1)),
    ] {
        assert!(spec(&with(llama(), key, neutral)).is_ok(), "{key}");
    }
    let said = complaint(&with(bert(), "position_embedding_type", json!("relative_key")));
    assert!(said.contains("relative_key"), "{said}");
}

/// Settings that each family has and this does not follow, on a configuration of its own.
#[test]
fn settings_of_other_families_that_are_not_followed_are_refused() {
    for (name, key, value) in [
        ("stablelm", "qk_layernorm", json!(true)),
        ("gemma2", "use_bidirectional_attention", json!(true)),
        ("gemma3", "rope_parameters", json!({"full_attention": {"rope_type": "spiral"}})),
        ("phi3", "rope_scaling", json!({"type": "longrope", "long_factor": [1.0]})),
        ("phi3", "partial_rotary_factor", json!(0.0)),
        ("smollm3", "no_rope_layers", json!([1, 0])),
        ("smollm3", "layer_types", json!(["full_attention"])),
        ("gpt-neox", "rotary_pct", json!(1.5)),
        ("opt", "word_embed_proj_dim", json!(12)),
        ("opt", "layer_norm_elementwise_affine", json!(false)),
        ("gpt2", "add_cross_attention", json!(true)),
        ("roberta", "pad_token_id", json!(40)),
        ("roberta", "is_decoder", json!(true)),
        ("albert", "num_hidden_groups", json!(9)),
        ("mixtral", "num_experts_per_tok", json!(9)),
        ("mixtral", "num_local_experts", json!(1 << 20)),
        ("granite", "logits_scaling", json!(0.0)),
    ] {
        let mut config = model(name).source.config().clone();
        if matches!(key, "rope_scaling" | "partial_rotary_factor" | "rotary_pct") {
            // As it was spelled before.
            config.as_object_mut().unwrap().remove("rope_parameters");
        }
        let said = complaint(&with(config, key, value.clone()));
        let named = if key == "rotary_pct" { "partial_rotary_factor" } else { key };
        let named = if key == "rope_parameters" { "rope_scaling" } else { named };
        assert!(said.starts_with(&format!("config.json: {named}")), "{name} {key}: {said}");
    }
}

#[test]
fn tokens_and_rows_that_do_not_fit_are_named() {
    let model = model("llama-untied");
    let executor = executor();
    let embed = |batch: Batch, tokens: &[u32]| {
        executor.embed(&model.spec, &model.source, batch, tokens.into()).unwrap_err().to_string()
    };
    let one = Batch { rows: 1, seq_len: 2 };
    let said = embed(one, &[3, model.spec.vocab_size as u32]);
    assert_eq!(
        said,
        format!(
            "token {0} is not in the vocabulary of {0}; is this the model's tokenizer?",
            model.spec.vocab_size
        )
    );
    let long = model.spec.context + 1;
    let said = embed(Batch { rows: 1, seq_len: long }, &vec![0; long]);
    assert!(said.contains(&format!("rows of {long} tokens are longer")), "{said}");
}

/// Tensors without one of them, or with one of another shape.
struct Damaged<'a> {
    tensors: Edited<'a>,
    name: &'a str,
    shape: Option<Vec<usize>>,
}

impl Tensors for Damaged<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        if name == self.name { self.shape.clone() } else { self.tensors.shape(name) }
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        self.tensors.read(name)
    }

    fn read_rows(&self, name: &str, rows: &[u32]) -> Result<Vec<f32>, TensorError> {
        self.tensors.read_rows(name, rows)
    }
}

#[test]
fn tensors_that_are_missing_or_of_another_shape_are_named() {
    for name in ["llama-biases", "qwen3", "bert-masked-lm"] {
        let model = model(name);
        let load = |graph: &Graph, tensors: &dyn Tensors| {
            GraphWeights::load(graph, tensors, executor().backend()).map(|_| ())
        };
        for graph in model.spec.blocks.iter().chain(&model.spec.head) {
            for (tensor, shape) in graph.tensors() {
                let damaged =
                    |shape| Damaged { tensors: Edited::new(&model.source), name: &tensor, shape };
                match load(graph, &damaged(None)).unwrap_err() {
                    ModelError::MissingTensor { name } => assert_eq!(name, tensor),
                    other => panic!("{tensor}: {other}"),
                }
                let mut wrong = shape.clone();
                *wrong.last_mut().unwrap() += 1;
                match load(graph, &damaged(Some(wrong.clone()))).unwrap_err() {
                    ModelError::Shape { name, have, need } => {
                        assert_eq!((name, have, need), (tensor.clone(), wrong, shape));
                    }
                    other => panic!("{tensor}: {other}"),
                }
            }
        }
    }
}

/// Rows of a batch do not see each other.
#[test]
fn a_row_is_computed_as_if_it_were_alone() {
    for name in ["llama-tied", "mistral-sliding", "bert-model"] {
        let model = model(name);
        let both = run(&model.spec.blocks[0], &model.source, &embedded(&model));
        let executor = executor();
        let alone = Batch { rows: 1, ..BATCH };
        let half = BATCH.seq_len * model.spec.hidden_size;
        let weights =
            GraphWeights::load(&model.spec.blocks[0], &model.source, executor.backend()).unwrap();
        for (row, ids) in tokens(&model.spec).chunks_exact(BATCH.seq_len).enumerate() {
            let x = executor.embed(&model.spec, &model.source, alone, ids.into()).unwrap();
            let x = executor.run(&model.spec.blocks[0], &weights, alone, x, None).unwrap();
            let difference = crate::support::largest_difference(&x, &both[row * half..][..half]);
            assert!(difference < 1e-5, "{name}: {difference}");
        }
    }
}
