//! `config.json` and `generation_config.json` from the metadata of a GGUF file.

use lapidary_store::TensorInfo;
use lapidary_store::gguf::{MetaValue, Metadata};
use serde_json::{Map, Value, json};

use super::architecture::{Architecture, Kind, Traits};
use super::tokenizer::SpecialIds;
use super::{GgufError, RopeFactors, keys, rope};

/// The version of transformers whose form the file has. Version 5 takes a file without a version for
/// one with a faulty tokenizer when the vocabulary is large, and warns.
const VERSION: &str = "4.57.0";

/// The `config.json` of the model: what its architecture's configuration class in transformers
/// needs, and no more.
///
/// `tensors` are those of the file (their presence decides about biases and the tied head, their
/// shapes about the vocabulary); `rope_factors` the values of the tensors for which
/// [`super::Names::to_hugging_face`] gives [`super::Destination::RopeFactors`]; `dtype` the type that
/// the weights will be written in, as torch spells it (`bfloat16`).
///
/// # Errors
/// When a key or tensor is missing or wrong, or the model has a feature that its class has not.
pub fn config(
    metadata: &Metadata,
    tensors: &[TensorInfo],
    rope_factors: &RopeFactors,
    dtype: &str,
) -> Result<Value, GgufError> {
    let architecture = Architecture::of(metadata)?;
    let source = Source { metadata, tensors, architecture };
    let mut config = match architecture.traits() {
        None => bert(&source)?,
        Some(traits) => decoder(&source, &traits, rope_factors)?,
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

/// Any decoder.
fn decoder(
    source: &Source<'_>,
    traits: &Traits,
    factors: &RopeFactors,
) -> Result<Map<String, Value>, GgufError> {
    let architecture = source.architecture;
    let experts = keys::unsigned(source.metadata, &source.key("expert_count"))?;
    if experts.is_some_and(|experts| experts > 0) && architecture.experts().is_none() {
        return Err(source.unsupported("a mixture of experts".to_owned()));
    }
    if architecture.experts().is_some() {
        source.size("expert_count")?;
        source.size("expert_used_count")?;
    }
    let hidden = source.size("embedding_length")?;
    let (heads, kv_heads) = heads(source.metadata, architecture)?;
    let (head_dim, rotated) = head_dim(source, traits, hidden, heads)?;
    let (projection, groups) = match traits.fused {
        true => ("blk.0.attn_qkv.weight", kv_heads.saturating_mul(2).saturating_add(heads)),
        false => ("blk.0.attn_q.weight", heads),
    };
    let rows = source.rows(projection, hidden)?;
    if Some(rows) != groups.checked_mul(head_dim) {
        return Err(GgufError::BadShape {
            name: projection.to_owned(),
            shape: vec![rows, hidden],
            expected: format!("{groups} heads of {head_dim} rows by the metadata"),
        });
    }
    let (sizes, layers) = (traits.sizes, source.size("block_count")?);
    let mut config = object(json!({
        "architectures": [traits.class],
        "model_type": traits.model_type,
        traits.activation.0[0]: traits.activation.1[0],
        sizes.hidden: hidden,
        sizes.intermediate: source.size("feed_forward_length")?,
        sizes.context: source.size("context_length")?,
        sizes.heads: heads,
        sizes.layers: layers,
        traits.epsilon.1: source.float(traits.epsilon.0)?,
        "tie_word_embeddings": source.shape("output.weight").is_none(),
        "use_cache": true,
        "vocab_size": source.rows("token_embd.weight", hidden)?,
    }));
    if traits.grouped {
        config.insert("head_dim".to_owned(), json!(head_dim));
        config.insert("num_key_value_heads".to_owned(), json!(kv_heads));
    } else if kv_heads != heads {
        return Err(source.unsupported("heads that share keys and values".to_owned()));
    }
    if let Some(rope) = traits.rope {
        // llama.cpp's default.
        let theta =
            keys::float(source.metadata, &source.key("rope.freq_base"))?.unwrap_or(10_000.0);
        config.insert(rope.theta.0.to_owned(), json!(theta));
        let (scaling, original) = rope::read(source.metadata, architecture, factors, theta)?;
        config.insert("rope_scaling".to_owned(), scaling);
        if let Some(original) = original {
            config.insert("original_max_position_embeddings".to_owned(), json!(original));
        }
        if let Some((field, _)) = rope.partial {
            config.insert(field.to_owned(), json!(rotated as f64 / head_dim as f64));
        }
    }
    config.extend(traits.granted.iter().map(|(flag, _, value)| ((*flag).to_owned(), json!(value))));
    config.extend(fields(source, traits)?);
    config.extend(biases(source, traits)?);
    match architecture {
        Architecture::Llama => {
            if let Some(window) = window(source)? {
                config.insert("architectures".to_owned(), json!(["MistralForCausalLM"]));
                config.insert("model_type".to_owned(), json!("mistral"));
                config.insert("sliding_window".to_owned(), json!(window));
                if ["attention_bias", "mlp_bias"].iter().any(|flag| config[*flag] == true) {
                    return Err(source.unsupported("a bias in `blk.0`".to_owned()));
                }
                config.retain(|key, _| !matches!(key.as_str(), "attention_bias" | "mlp_bias"));
            }
        }
        Architecture::Gemma2 | Architecture::Gemma3 => {
            let scalar = attention_scalar(architecture, layers, hidden / heads, head_dim);
            config.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
            if architecture == Architecture::Gemma3 {
                config.insert("rope_local_base_freq".to_owned(), json!(GEMMA3_LOCAL_THETA));
                config.insert("sliding_window_pattern".to_owned(), json!(GEMMA3_PATTERN));
            }
        }
        _ if !config.contains_key("sliding_window") && window(source)?.is_some() => {
            return Err(source.unsupported("a sliding window".to_owned()));
        }
        _ => {}
    }
    Ok(config)
}

/// Base of the rotary frequencies in Gemma 3's layers with a window; llama.cpp knows no other.
const GEMMA3_LOCAL_THETA: f64 = 10_000.0;

/// One of so many layers of Gemma 3 sees everything.
const GEMMA3_PATTERN: usize = 6;

/// The number whose root divides Gemma's scores: the head size, but for the largest model of each
/// generation the width of the stream over the heads. llama.cpp knows those by their layers.
pub(super) fn attention_scalar(
    architecture: Architecture,
    layers: usize,
    share: usize,
    head_dim: usize,
) -> usize {
    match (architecture, layers) {
        (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62) => share,
        _ => head_dim,
    }
}

/// The width of the sliding window, if there is one.
fn window(source: &Source<'_>) -> Result<Option<u64>, GgufError> {
    let window = keys::unsigned(source.metadata, &source.key("attention.sliding_window"))?;
    Ok(window.filter(|&window| window > 0))
}

/// The fields beyond those of all decoders.
fn fields(source: &Source<'_>, traits: &Traits) -> Result<Map<String, Value>, GgufError> {
    let field = |field: &super::architecture::Field| {
        let key = source.key(field.key);
        let value = match field.kind {
            Kind::Size => json!(keys::unsigned(source.metadata, &key)?.filter(|&size| size > 0)),
            Kind::Number => json!(keys::float(source.metadata, &key)?.or(field.default)),
            Kind::Flag => {
                let flag = keys::boolean(source.metadata, &key)?;
                json!(flag.unwrap_or_else(|| field.default == Some(1.0)))
            }
            Kind::Word => match keys::string(source.metadata, &key)? {
                Some(word) => json!(word),
                None => return Ok(None),
            },
        };
        Ok(Some((field.config.to_owned(), value)))
    };
    traits.fields.iter().filter_map(|known| field(known).transpose()).collect()
}

/// The flags that say which layers have biases, in the projections that the class of the
/// architecture gives them.
fn biases(source: &Source<'_>, traits: &Traits) -> Result<Map<String, Value>, GgufError> {
    const ALL: [&str; 7] = [
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "attn_output.bias",
        "ffn_gate.bias",
        "ffn_up.bias",
        "ffn_down.bias",
    ];
    let is_there = |name: &str| source.shape(&format!("blk.0.{name}")).is_some();
    let (mut flags, mut known): (Map<String, Value>, Vec<&str>) = (Map::new(), vec![]);
    known.extend(traits.always);
    if let (Some(first), false) = (known.first(), source.all_or_none(&known)?) {
        return Err(GgufError::MissingTensor { name: format!("blk.0.{first}") });
    }
    for (flag, tensors) in traits.biases {
        let has_them = !tensors.is_empty() && source.all_or_none(tensors)?;
        flags.insert((*flag).to_owned(), json!(has_them));
        known.extend(tensors.iter());
    }
    match ALL.into_iter().find(|name| is_there(name) && !known.contains(name)) {
        Some(name) => Err(source.unsupported(format!("`blk.0.{name}`"))),
        None => Ok(flags),
    }
}

/// Values per head, the same for queries, keys and values, and how many of them are rotated: all, but
/// where the architecture has partial rotary positions.
fn head_dim(
    source: &Source<'_>,
    traits: &Traits,
    hidden: usize,
    heads: usize,
) -> Result<(usize, usize), GgufError> {
    let key = source.optional_size("attention.key_length")?;
    let head_dim = key.unwrap_or(hidden / heads);
    let rotated = source.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
    let is_partial = traits.rope.is_some_and(|rope| rope.partial.is_some()) && rotated <= head_dim;
    let checked = [
        ("attention.value_length", source.optional_size("attention.value_length")?),
        ("rope.dimension_count", (!is_partial).then_some(rotated)),
    ];
    for (suffix, value) in checked {
        if value.is_some_and(|value| value != head_dim) {
            let key = source.key(suffix);
            return Err(source.unsupported(format!("`{key}` unlike the head size, {head_dim},")));
        }
    }
    Ok((head_dim, rotated))
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
