//! `config.json` and `generation_config.json` from the metadata of a GGUF file.

use lapidary_store::TensorInfo;
use lapidary_store::gguf::{MetaValue, Metadata};
use serde_json::{Map, Value, json};

use super::names::Architecture;
use super::tokenizer::SpecialIds;
use super::{GgufError, keys, rope};

/// The version of transformers whose form the file has. Version 5 takes a file without a version for
/// one with a faulty tokenizer when the vocabulary is large, and warns.
const VERSION: &str = "4.57.0";

/// The `config.json` of the model: what its architecture's configuration class in transformers
/// needs, and no more.
///
/// `tensors` are those of the file (their presence decides about biases and the tied head, their
/// shapes about the vocabulary); `rope_factors` the values of the tensor for which
/// [`super::Names::to_hugging_face`] gives [`super::Destination::RopeFactors`], if there is one; `dtype`
/// the type that the weights will be written in, as torch spells it (`bfloat16`).
///
/// # Errors
/// When a key or tensor is missing or wrong, or the model has a feature that its class has not.
pub fn config(
    metadata: &Metadata,
    tensors: &[TensorInfo],
    rope_factors: Option<&[f32]>,
    dtype: &str,
) -> Result<Value, GgufError> {
    let architecture = Architecture::of(metadata)?;
    let source = Source { metadata, tensors, architecture };
    let mut config = match architecture {
        Architecture::Bert => bert(&source)?,
        _ => decoder(&source, rope_factors)?,
    };
    let special = SpecialIds::read(metadata)?;
    for (name, id) in [("bos", special.bos), ("eos", special.eos), ("pad", special.pad)] {
        if let Some(id) = id {
            config.insert(format!("{name}_token_id"), json!(id));
        }
    }
    config.insert("torch_dtype".to_owned(), json!(dtype));
    config.insert("transformers_version".to_owned(), json!(VERSION));
    config.sort_keys();
    Ok(Value::Object(config))
}

/// The `generation_config.json` of the model: where generation starts and stops. `None` for
/// encoders, which do not generate.
///
/// # Errors
/// When a key is wrong.
pub fn generation_config(metadata: &Metadata) -> Result<Option<Value>, GgufError> {
    if Architecture::of(metadata)? == Architecture::Bert {
        return Ok(None);
    }
    let special = SpecialIds::read(metadata)?;
    let mut config = Map::new();
    if let Some(bos) = special.bos {
        config.insert("bos_token_id".to_owned(), json!(bos));
    }
    match special.ends()[..] {
        [] => {}
        [end] => _ = config.insert("eos_token_id".to_owned(), json!(end)),
        ref ends => _ = config.insert("eos_token_id".to_owned(), json!(ends)),
    }
    if let Some(pad) = special.pad {
        config.insert("pad_token_id".to_owned(), json!(pad));
    }
    Ok(Some(Value::Object(config)))
}

/// The numbers of query heads and of key and value heads.
pub(super) fn heads(
    metadata: &Metadata,
    architecture: Architecture,
) -> Result<(usize, usize), GgufError> {
    let source = Source { metadata, tensors: &[], architecture };
    let heads = source.size("attention.head_count")?;
    let kv_heads = match source.optional_size("attention.head_count_kv")? {
        Some(kv_heads) => kv_heads,
        None => heads,
    };
    Ok((heads, kv_heads))
}

/// What a configuration is made from.
struct Source<'a> {
    metadata: &'a Metadata,
    tensors: &'a [TensorInfo],
    architecture: Architecture,
}

impl Source<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture.name())
    }

    /// A positive integer under `<architecture>.<suffix>`.
    fn size(&self, suffix: &str) -> Result<usize, GgufError> {
        keys::required(&self.key(suffix), self.optional_size(suffix))
    }

    /// As [`Self::size`]. An array, which gives each layer its own value, must have one value only:
    /// no class of transformers that is written here has layers that differ.
    fn optional_size(&self, suffix: &str) -> Result<Option<usize>, GgufError> {
        let key = self.key(suffix);
        let bad = |problem: String| GgufError::BadValue { key: key.clone(), problem };
        let value = match self.metadata.get(&key) {
            Some(MetaValue::Array(_)) => {
                let values = keys::integers(self.metadata, &key)?.unwrap_or_default();
                let first = values.first().copied().unwrap_or(0);
                if values.iter().any(|&value| value != first) {
                    return Err(bad("layers that differ are not supported".to_owned()));
                }
                Some(u64::try_from(first).unwrap_or(0))
            }
            _ => keys::unsigned(self.metadata, &key)?,
        };
        match value.map(usize::try_from) {
            None => Ok(None),
            Some(Ok(value)) if value > 0 => Ok(Some(value)),
            Some(_) => Err(bad("it is not a positive integer".to_owned())),
        }
    }

    fn float(&self, suffix: &str) -> Result<f64, GgufError> {
        let key = self.key(suffix);
        keys::required(&key, keys::float(self.metadata, &key))
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name)?;
        Some(&tensor.shape)
    }

    /// The rows of a tensor that must be a matrix with `width` columns.
    fn rows(&self, name: &str, width: usize) -> Result<usize, GgufError> {
        match self.shape(name) {
            None => Err(GgufError::MissingTensor { name: name.to_owned() }),
            Some(&[rows, columns]) if columns == width => Ok(rows),
            Some(shape) => Err(GgufError::BadShape {
                name: name.to_owned(),
                shape: shape.to_owned(),
                expected: format!("[_, {width}] by the metadata"),
            }),
        }
    }

    /// Whether the tensors of these names in the first layer are all there; some is an error.
    fn all_or_none(&self, names: &[&str]) -> Result<bool, GgufError> {
        let name = |stem: &&str| format!("blk.0.{stem}");
        let (there, missing): (Vec<_>, Vec<_>) =
            names.iter().map(name).partition(|name| self.shape(name).is_some());
        match (&there[..], &missing[..]) {
            (_, []) => Ok(true),
            ([], _) => Ok(false),
            ([there, ..], [missing, ..]) => {
                Err(self.unsupported(format!("`{there}` without `{missing}`")))
            }
        }
    }

    fn unsupported(&self, feature: String) -> GgufError {
        GgufError::Unsupported { feature, architecture: self.architecture.name() }
    }
}

/// Llama, Mistral, Qwen 2 and Qwen 3.
fn decoder(source: &Source<'_>, factors: Option<&[f32]>) -> Result<Map<String, Value>, GgufError> {
    let architecture = source.architecture;
    let experts = keys::unsigned(source.metadata, &source.key("expert_count"))?;
    if experts.is_some_and(|experts| experts > 0) {
        return Err(source.unsupported("a mixture of experts".to_owned()));
    }
    let window_key = source.key("attention.sliding_window");
    let window = keys::unsigned(source.metadata, &window_key)?.filter(|&window| window > 0);
    let (class, model_type) = match (architecture, window) {
        (Architecture::Llama, None) => ("LlamaForCausalLM", "llama"),
        (Architecture::Llama, Some(_)) => ("MistralForCausalLM", "mistral"),
        (Architecture::Qwen2, None) => ("Qwen2ForCausalLM", "qwen2"),
        (Architecture::Qwen3, None) => ("Qwen3ForCausalLM", "qwen3"),
        _ => return Err(source.unsupported("a sliding window".to_owned())),
    };
    let hidden = source.size("embedding_length")?;
    let (heads, kv_heads) = heads(source.metadata, architecture)?;
    let head_dim = head_dim(source, hidden, heads)?;
    let bias = attention_bias(source)?;
    let theta_key = source.key("rope.freq_base");
    // llama.cpp's default.
    let theta = keys::float(source.metadata, &theta_key)?.unwrap_or(10_000.0);

    let rows = source.rows("blk.0.attn_q.weight", hidden)?;
    if Some(rows) != heads.checked_mul(head_dim) {
        return Err(GgufError::BadShape {
            name: "blk.0.attn_q.weight".to_owned(),
            shape: vec![rows, hidden],
            expected: format!("{heads} heads of {head_dim} rows by the metadata"),
        });
    }
    let mut config = object(json!({
        "architectures": [class],
        "model_type": model_type,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": source.size("feed_forward_length")?,
        "max_position_embeddings": source.size("context_length")?,
        "num_attention_heads": heads,
        "num_hidden_layers": source.size("block_count")?,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": source.float("attention.layer_norm_rms_epsilon")?,
        "rope_scaling": rope::scaling(source.metadata, architecture, factors, theta)?,
        "rope_theta": theta,
        "tie_word_embeddings": source.shape("output.weight").is_none(),
        "use_cache": true,
        "vocab_size": source.rows("token_embd.weight", hidden)?,
    }));
    let mlp = source.all_or_none(&["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"])?;
    match model_type {
        "llama" => {
            config.insert("attention_bias".to_owned(), json!(bias));
            config.insert("mlp_bias".to_owned(), json!(mlp));
        }
        "mistral" => _ = config.insert("sliding_window".to_owned(), json!(window)),
        "qwen3" => _ = config.insert("attention_bias".to_owned(), json!(bias)),
        _ => {}
    }
    if mlp && model_type != "llama" || bias && model_type == "mistral" {
        return Err(source.unsupported("a bias in `blk.0`".to_owned()));
    }
    Ok(config)
}

/// Values per head, the same for queries, keys and values, all of them rotated.
fn head_dim(source: &Source<'_>, hidden: usize, heads: usize) -> Result<usize, GgufError> {
    let key = source.optional_size("attention.key_length")?;
    let head_dim = key.unwrap_or(hidden / heads);
    for suffix in ["attention.value_length", "rope.dimension_count"] {
        let value = source.optional_size(suffix)?;
        if value.is_some_and(|value| value != head_dim) {
            let key = source.key(suffix);
            return Err(source.unsupported(format!("`{key}` unlike the head size, {head_dim},")));
        }
    }
    Ok(head_dim)
}

/// Whether the attention has biases, in the projections that the class of the architecture gives
/// them.
fn attention_bias(source: &Source<'_>) -> Result<bool, GgufError> {
    const INPUTS: [&str; 3] = ["attn_q.bias", "attn_k.bias", "attn_v.bias"];
    const OUTPUT: &str = "attn_output.bias";
    if source.architecture != Architecture::Qwen2 {
        return source.all_or_none(&[INPUTS[0], INPUTS[1], INPUTS[2], OUTPUT]);
    }
    if !source.all_or_none(&INPUTS)? {
        return Err(GgufError::MissingTensor { name: format!("blk.0.{}", INPUTS[0]) });
    }
    if source.shape(&format!("blk.0.{OUTPUT}")).is_some() {
        return Err(source.unsupported(format!("`blk.0.{OUTPUT}`")));
    }
    Ok(true)
}

fn bert(source: &Source<'_>) -> Result<Map<String, Value>, GgufError> {
    let hidden = source.size("embedding_length")?;
    Ok(object(json!({
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": source.size("feed_forward_length")?,
        "layer_norm_eps": source.float("attention.layer_norm_epsilon")?,
        "max_position_embeddings": source.rows("position_embd.weight", hidden)?,
        "num_attention_heads": source.size("attention.head_count")?,
        "num_hidden_layers": source.size("block_count")?,
        "position_embedding_type": "absolute",
        "type_vocab_size": source.rows("token_types.weight", hidden)?,
        "vocab_size": source.rows("token_embd.weight", hidden)?,
    })))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
