//! `config.json` and `generation_config.json`.

use lapidary_formats::gguf::{GgufError, RopeFactors, config, generation_config};
use lapidary_store::gguf::Gguf;
use serde_json::{Value, json};

use crate::builder::Builder;

fn llama() -> Builder {
    Builder::default()
        .set("general.architecture", "llama")
        .set("llama.block_count", 2)
        .set("llama.context_length", 2048)
        .set("llama.embedding_length", 8)
        .set("llama.feed_forward_length", 24)
        .set("llama.attention.head_count", 4)
        .set("llama.attention.head_count_kv", 2)
        .set("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .set("llama.rope.freq_base", 500_000.0)
        .set("llama.rope.dimension_count", 2)
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.tokens", ["a", "b", "<s>", "</s>", "<end>"])
        .set("tokenizer.ggml.bos_token_id", 2)
        .set("tokenizer.ggml.eos_token_id", 3)
        .tensor("token_embd.weight", &[5, 8])
        .tensor("blk.0.attn_q.weight", &[8, 8])
}

/// The same model with another architecture's keys.
fn as_architecture(name: &str) -> Builder {
    let mut builder = llama().set("general.architecture", name);
    for (key, value) in [
        ("block_count", 2),
        ("context_length", 2048),
        ("embedding_length", 8),
        ("feed_forward_length", 24),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        builder = builder.set(&format!("{name}.{key}"), value);
    }
    builder.set(&format!("{name}.attention.layer_norm_rms_epsilon"), 1e-6)
}

fn of(gguf: &Gguf) -> Result<Value, GgufError> {
    config(&gguf.metadata, &gguf.tensors, &RopeFactors::new(), "bfloat16")
}

fn error(builder: Builder) -> String {
    of(&builder.read()).unwrap_err().to_string()
}

#[test]
fn a_llama_has_what_its_class_needs() {
    let config = of(&llama().read()).unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "head_dim": 2,
        "hidden_act": "silu",
        "hidden_size": 8,
        "intermediate_size": 24,
        "max_position_embeddings": 2048,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": null,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0",
        "use_cache": true,
        "vocab_size": 5,
    });
    assert_eq!(config, expected);
    // The short decimals, not those of the doubles nearest to the singles.
    assert_eq!(config["rms_norm_eps"].to_string(), "0.00001");
    assert_eq!(config["rope_theta"].to_string(), "500000.0");
}

#[test]
fn tensors_decide_about_the_head_and_biases() {
    let mut builder = llama().tensor("output.weight", &[5, 8]);
    for stem in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        builder = builder.tensor(&format!("blk.0.{stem}.bias"), &[8]);
    }
    let config = of(&builder.read()).unwrap();
    assert_eq!(config["tie_word_embeddings"], json!(false));
    assert_eq!(config["attention_bias"], json!(true));
    assert_eq!(config["mlp_bias"], json!(true));
    assert_eq!(
        error(llama().tensor("blk.0.attn_q.bias", &[8])),
        "`blk.0.attn_q.bias` without `blk.0.attn_k.bias` is not supported for architecture `llama`"
    );
}

#[test]
fn defaults_are_those_of_llama_cpp() {
    let builder = llama()
        .remove("llama.attention.head_count_kv")
        .remove("llama.rope.freq_base")
        .remove("llama.rope.dimension_count");
    let config = of(&builder.read()).unwrap();
    assert_eq!(config["num_key_value_heads"], json!(4));
    assert_eq!(config["rope_theta"], json!(10_000.0));
}

#[test]
fn the_head_size_may_differ_from_the_quotient() {
    let builder = llama()
        .set("llama.attention.key_length", 6)
        .set("llama.attention.value_length", 6)
        .set("llama.rope.dimension_count", 6);
    assert_eq!(
        error(builder.clone()),
        "tensor `blk.0.attn_q.weight` has shape [8, 8], expected 4 heads of 6 rows by the metadata"
    );
    let wide = Builder::default().tensor("blk.0.attn_q.weight", &[24, 8]);
    let gguf = builder.read();
    let mut tensors = wide.read().tensors;
    tensors.extend(gguf.tensors.into_iter().filter(|tensor| tensor.name == "token_embd.weight"));
    let config = config(&gguf.metadata, &tensors, &RopeFactors::new(), "float32").unwrap();
    assert_eq!(config["head_dim"], json!(6));
    assert_eq!(
        error(llama().set("llama.rope.dimension_count", 1)),
        "`llama.rope.dimension_count` unlike the head size, 2, is not supported for architecture \
         `llama`"
    );
}

#[test]
fn mistral_is_llama_with_a_window() {
    let config = of(&llama().set("llama.attention.sliding_window", 4096).read()).unwrap();
    assert_eq!(config["architectures"], json!(["MistralForCausalLM"]));
    assert_eq!(config["model_type"], json!("mistral"));
    assert_eq!(config["sliding_window"], json!(4096));
    assert_eq!(config.get("attention_bias"), None);
}

#[test]
fn qwen2_has_biases_and_qwen3_need_not() {
    let qwen2 = as_architecture("qwen2");
    assert_eq!(error(qwen2.clone()), MISSING_BIAS);
    let qwen2 = ["q", "k", "v"]
        .iter()
        .fold(qwen2, |qwen2, part| qwen2.tensor(&format!("blk.0.attn_{part}.bias"), &[8]));
    let config = of(&qwen2.read()).unwrap();
    assert_eq!(config["model_type"], json!("qwen2"));
    assert_eq!(config["architectures"], json!(["Qwen2ForCausalLM"]));
    assert_eq!(config["rms_norm_eps"].to_string(), "1e-6");

    let config = of(&as_architecture("qwen3").read()).unwrap();
    assert_eq!(config["architectures"], json!(["Qwen3ForCausalLM"]));
    assert_eq!(config["attention_bias"], json!(false));
    assert_eq!(config["head_dim"], json!(2));
}

const MISSING_BIAS: &str =
    "the file has no tensor `blk.0.attn_q.bias`; is it complete, and the first of its parts?";

#[test]
fn bert_is_an_encoder() {
    let builder = as_architecture("bert")
        .set("bert.attention.layer_norm_epsilon", 1e-12)
        .set("tokenizer.ggml.model", "bert")
        .set("tokenizer.ggml.padding_token_id", 0)
        .tensor("position_embd.weight", &[512, 8])
        .tensor("token_types.weight", &[2, 8]);
    let gguf = builder.read();
    let expected = json!({
        "architectures": ["BertModel"],
        "hidden_act": "gelu",
        "hidden_size": 8,
        "intermediate_size": 24,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0",
        "type_vocab_size": 2,
        "vocab_size": 5,
    });
    assert_eq!(of(&gguf).unwrap(), expected);
    assert_eq!(generation_config(&gguf.metadata), Ok(None));
}

#[test]
fn generation_stops_at_every_end() {
    let generation = |builder: Builder| generation_config(&builder.read().metadata).unwrap();
    assert_eq!(generation(llama()), Some(json!({"bos_token_id": 2, "eos_token_id": 3})));
    let chat = llama()
        .set("tokenizer.ggml.eot_token_id", 4)
        .set("tokenizer.ggml.eom_token_id", 3)
        .set("tokenizer.ggml.padding_token_id", 3);
    let expected = json!({"bos_token_id": 2, "eos_token_id": [3, 4], "pad_token_id": 3});
    assert_eq!(generation(chat), Some(expected));
}

#[test]
fn errors_name_the_key() {
    for key in ["block_count", "embedding_length", "feed_forward_length", "context_length"] {
        let key = format!("llama.{key}");
        assert_eq!(
            error(llama().remove(&key)),
            format!(
                "the metadata has no `{key}`; convert the model to GGUF again with a newer \
                 llama.cpp"
            )
        );
    }
    let key = "llama.attention.head_count";
    assert_eq!(
        error(llama().set(key, "4")),
        format!("metadata `{key}` is not a non-negative integer")
    );
    assert_eq!(
        error(llama().set(key, 0)),
        format!("metadata `{key}`: it is not a positive integer")
    );
    assert_eq!(
        error(llama().set(key, vec![4, 2])),
        format!("metadata `{key}`: layers that differ are not supported")
    );
    assert!(of(&llama().set(key, vec![4, 4]).read()).is_ok());
    let key = "llama.attention.layer_norm_rms_epsilon";
    assert_eq!(error(llama().set(key, f32::NAN)), format!("metadata `{key}`: it is NaN"));
    let key = "tokenizer.ggml.eos_token_id";
    assert_eq!(
        error(llama().set(key, 5)),
        format!("metadata `{key}`: it is not the id of one of the 5 tokens")
    );
    assert_eq!(
        error(as_architecture("qwen2").set("qwen2.expert_count", 8)),
        "a mixture of experts is not supported for architecture `qwen2`"
    );
    let mixture = || llama().set("llama.expert_count", 8);
    assert!(error(mixture()).contains("`llama.expert_used_count`"));
    let config = of(&mixture().set("llama.expert_used_count", 2).read()).unwrap();
    assert_eq!(config["model_type"], json!("mixtral"));
    assert_eq!(config["num_local_experts"], json!(8));
    assert!(of(&llama().set("llama.expert_count", 0).read()).is_ok());
    assert_eq!(
        error(llama().set("llama.embedding_length", 12).remove("llama.rope.dimension_count")),
        "tensor `blk.0.attn_q.weight` has shape [8, 8], expected [_, 12] by the metadata"
    );
}

#[test]
fn linear_and_yarn_scaling_are_kept() {
    let scaling =
        |builder: Builder| of(&builder.read()).map(|config| config["rope_scaling"].clone());
    let linear = llama().set("llama.rope.scaling.type", "linear");
    assert_eq!(scaling(linear.clone()), Ok(json!(null)));
    let factor = linear.set("llama.rope.scaling.factor", 2.5);
    assert_eq!(scaling(factor), Ok(json!({"rope_type": "linear", "factor": 2.5})));
    assert_eq!(
        scaling(llama().set("llama.rope.scale_linear", 4.0)),
        Ok(json!({"rope_type": "linear", "factor": 4.0}))
    );
    let yarn = llama()
        .set("llama.rope.scaling.type", "yarn")
        .set("llama.rope.scaling.factor", 4.0)
        .set("llama.rope.scaling.original_context_length", 32768);
    let expected =
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    assert_eq!(scaling(yarn.clone()), Ok(expected));
    // A factor on top of the usual one, which is 0.1 ln 4 + 1.
    let attention =
        |factor: f32| scaling(yarn.clone().set("llama.rope.scaling.attn_factor", factor));
    assert_eq!(attention(1.0).unwrap().get("attention_factor"), None);
    let given = attention(2.0).unwrap()["attention_factor"].as_f64().unwrap();
    assert!((given - 2.277_258_872).abs() < 1e-6, "{given}");
    assert_eq!(
        error(yarn.clone().set("llama.rope.scaling.yarn_ext_factor", 0.5)),
        "`llama.rope.scaling.yarn_ext_factor` of 0.5 is not supported for architecture `llama`"
    );
    assert_eq!(
        error(llama().set("llama.rope.scaling.type", "longrope")),
        "rope scaling of type `longrope` is not supported for architecture `llama`"
    );
}

/// The factors that the converter writes, in single precision as it computes them.
fn llama3_factors(count: usize, theta: f32, scale: f32, context: f32) -> Vec<f32> {
    let factor = |i: usize| {
        let wavelength = std::f32::consts::TAU * theta.powf(i as f32 / count as f32);
        if wavelength < context / 4.0 {
            1.0
        } else if wavelength > context {
            scale
        } else {
            let smooth = (context / wavelength - 1.0) / 3.0;
            1.0 / ((1.0 - smooth) / scale + smooth)
        }
    };
    (0..count).map(factor).collect()
}

#[test]
fn llama3_scaling_is_found_from_its_factors() {
    let gguf = llama().read();
    let scaling = |factors: &[f32]| {
        let factors = RopeFactors::from([("rope_freqs.weight", factors.to_vec())]);
        let config = config(&gguf.metadata, &gguf.tensors, &factors, "float32");
        config.map(|config| config["rope_scaling"].clone())
    };
    for (count, scale, context) in [(64, 8.0, 8192.0), (32, 32.0, 8192.0), (64, 16.0, 4096.0)] {
        let expected = json!({
            "rope_type": "llama3",
            "factor": scale,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context as u64,
        });
        let mut factors = llama3_factors(count, 500_000.0, scale, context);
        assert_eq!(scaling(&factors), Ok(expected), "{scale} {context}");
        factors[0] = 1.01;
        assert!(matches!(scaling(&factors), Err(GgufError::BadValue { .. })));
        factors[0] = f32::NAN;
        assert!(matches!(scaling(&factors), Err(GgufError::BadValue { .. })));
    }
    assert_eq!(scaling(&[1.0; 32]), Ok(json!(null)));
    let linear = llama().set("llama.rope.scaling.factor", 2.0).read();
    let factors = RopeFactors::from([("rope_freqs.weight", vec![2.0; 32])]);
    let error = config(&linear.metadata, &linear.tensors, &factors, "float32");
    assert_eq!(
        error.unwrap_err().to_string(),
        "rope scaling of type `linear` together with a tensor of factors is not supported for \
         architecture `llama`"
    );
}
