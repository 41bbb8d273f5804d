//! The metadata of a model from its `config.json`: the inverse of [`super::config()`].
//!
//! What has no key in GGUF is refused by its name in `config.json`.

use lapidary_store::gguf::{MetaValue, Metadata};
use serde_json::Value;

use super::GgufError;
use super::architecture::{Architecture, EXPERTS, Field, Head, Kind, Rope, Traits};
use super::config::attention_scalar;
use super::rope::{self, RopeFactors, Scaling};

/// The version of the block layouts, `general.quantization_version`.
const QUANTIZATION_VERSION: u32 = 2;

/// What a configuration says of its model.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) architecture: Architecture,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Rows of the embedding table.
    pub(super) vocabulary: usize,
    /// Whether the head is the embedding table.
    pub(super) tied: bool,
    /// The tensors of rotary factors.
    pub(super) rope_factors: RopeFactors,
    /// What llama.cpp will do otherwise.
    pub(super) departures: Vec<String>,
    entries: Vec<(&'static str, MetaValue)>,
}

impl Model {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// When a field is missing or wrong, or has no place in GGUF.
    pub(super) fn read(config: &Value) -> Result<Self, GgufError> {
        let config = Config(config);
        let model_type = config.text("model_type").unwrap_or_default();
        let architecture = Architecture::of_model_type(model_type).ok_or_else(|| {
            let problem = match model_type {
                "opt" => {
                    "\"opt\": llama.cpp has no loader for OPT; choose another format".to_owned()
                }
                _ => format!("{model_type:?} has no counterpart that GGUF is written for"),
            };
            wrong("model_type", problem)
        })?;
        match architecture.traits() {
            None => bert(config),
            Some(traits) => decoder(config, architecture, &traits, model_type),
        }
    }

    /// The metadata without the tokenizer's; `file_type` is llama.cpp's number for what most of the
    /// weights are.
    pub(super) fn metadata(&self, file_type: u32) -> Metadata {
        let mut metadata = Metadata::default();
        let name = self.architecture.name();
        metadata.set("general.architecture", MetaValue::String(name.to_owned()));
        metadata.set("general.type", MetaValue::String("model".to_owned()));
        mark(&mut metadata, file_type);
        for (key, value) in self.sizes() {
            metadata.set(&key, value);
        }
        metadata
    }

    /// Experts of a layer; none where the model is no mixture.
    pub(super) fn experts(&self) -> usize {
        let count = self.entries.iter().find(|(key, _)| *key == EXPERTS);
        count.and_then(|(_, value)| value.as_u64()).map_or(0, |count| count as usize)
    }

    /// What the architecture's keys say.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (String, MetaValue)> {
        let name = self.architecture.name();
        self.entries.iter().map(move |(key, value)| (format!("{name}.{key}"), value.clone()))
    }
}

/// Sets what depends on the weights.
pub(super) fn mark(metadata: &mut Metadata, file_type: u32) {
    metadata.set("general.file_type", MetaValue::U32(file_type));
    metadata.set("general.quantization_version", MetaValue::U32(QUANTIZATION_VERSION));
}

fn decoder(
    config: Config<'_>,
    architecture: Architecture,
    traits: &Traits,
    model_type: &str,
) -> Result<Model, GgufError> {
    let sizes = traits.sizes;
    let (hidden, heads) = (config.size(sizes.hidden)?, config.size(sizes.heads)?);
    let of_head = |field| if traits.grouped { config.optional_size(field) } else { Ok(None) };
    let kv_heads = of_head("num_key_value_heads")?.unwrap_or(heads);
    let head_dim = of_head("head_dim")?.unwrap_or(hidden / heads);
    let multiple = sizes.multiple.map(|multiple| hidden.saturating_mul(multiple));
    let intermediate = config.optional_size(sizes.intermediate)?.or(multiple);
    let intermediate = intermediate.ok_or_else(|| wrong(sizes.intermediate, "is missing"))?;
    check_computed(config, architecture, traits)?;
    let vocabulary = config.size("vocab_size")?;
    let context = config.optional_size(sizes.context)?.unwrap_or(2048);
    let mut entries = vec![
        ("vocab_size", unsigned("vocab_size", vocabulary)?),
        ("context_length", unsigned(sizes.context, context)?),
        ("embedding_length", unsigned(sizes.hidden, hidden)?),
        ("block_count", unsigned(sizes.layers, config.size(sizes.layers)?)?),
        ("feed_forward_length", unsigned(sizes.intermediate, intermediate)?),
        ("attention.head_count", unsigned(sizes.heads, heads)?),
        ("attention.head_count_kv", unsigned("num_key_value_heads", kv_heads)?),
        (traits.epsilon.0, config.float(traits.epsilon.1)?),
    ];
    if traits.grouped {
        entries.push(("attention.key_length", unsigned("head_dim", head_dim)?));
        entries.push(("attention.value_length", unsigned("head_dim", head_dim)?));
    }
    let mut departures = vec![];
    let rope_factors = match traits.rope {
        Some(rope) => {
            let scaling = rotary(config, architecture, rope, head_dim, &mut entries)?;
            entries.extend(scaling.entries);
            departures.extend(scaling.departure);
            scaling.factors
        }
        None => RopeFactors::new(),
    };
    for field in traits.fields {
        entries.extend(entry(config, field)?.map(|value| (field.key, value)));
    }
    if let Some(window) = sliding_window(config, model_type)? {
        if architecture == Architecture::Llama {
            entries.push(("attention.sliding_window", unsigned("sliding_window", window)?));
        }
        departures.push(format!(
            "llama.cpp has no sliding window for this architecture: beyond {window} tokens its \
             attention sees more than the model was trained with"
        ));
    }
    let (fields, names) = traits.activation;
    let activation = fields.iter().find_map(|field| config.text(field)).unwrap_or(names[0]);
    let nearly = traits.nearly.filter(|(name, _)| *name == activation);
    departures.extend(nearly.map(|(_, departure)| departure.to_owned()));
    let tied = is_tied(config, traits)?;
    Ok(Model { architecture, heads, kv_heads, vocabulary, tied, rope_factors, departures, entries })
}

/// Refuses what llama.cpp would compute otherwise whatever the file says.
fn check_computed(
    config: Config<'_>,
    architecture: Architecture,
    traits: &Traits,
) -> Result<(), GgufError> {
    let (fields, names) = traits.activation;
    let given = fields.iter().find_map(|field| Some((*field, config.text(field)?)));
    if let Some((field, activation)) = given.filter(|(_, name)| !names.contains(name)) {
        let computed = names[0];
        let problem =
            format!("{activation:?}: llama.cpp computes {computed} for this architecture");
        return Err(wrong(field, problem));
    }
    if architecture.raises_gains() {
        check_scores(config, architecture)?;
    }
    let granted = |(flag, default, computed): &&(&str, bool, bool)| {
        config.get(flag).and_then(Value::as_bool).unwrap_or(*default) != *computed
    };
    if let Some((flag, _, computed)) = traits.granted.iter().find(granted) {
        let problem = format!("is {}: llama.cpp computes as if it were {computed}", !computed);
        return Err(wrong(flag, problem));
    }
    let has_plain_layers = config
        .optional_size("decoder_sparse_step")?
        .is_some_and(|step| step > 1)
        || config.get("mlp_only_layers").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
    if architecture.experts().is_some() && has_plain_layers {
        let problem = "is not empty, or decoder_sparse_step is not 1: llama.cpp wants experts in \
                       every layer";
        return Err(wrong("mlp_only_layers", problem));
    }
    let without = traits.biases.iter().filter(|(_, tensors)| tensors.is_empty());
    let qwen3 = (architecture == Architecture::Qwen3).then_some("attention_bias");
    match without.map(|(flag, _)| *flag).chain(qwen3).find(|flag| config.flag(flag)) {
        Some(flag) => {
            let name = traits.name;
            Err(wrong(flag, format!("is true, but llama.cpp has no such biases in {name}")))
        }
        None => Ok(()),
    }
}

/// Refuses Gemmas whose scores llama.cpp would divide by another root.
fn check_scores(config: Config<'_>, architecture: Architecture) -> Result<(), GgufError> {
    let key = "query_pre_attn_scalar";
    let share = config.size("hidden_size")? / config.size("num_attention_heads")?;
    let (layers, head_dim) = (config.size("num_hidden_layers")?, config.size("head_dim")?);
    let computed = attention_scalar(architecture, layers, share, head_dim);
    let given = config.number(config.get(key), key)?.unwrap_or(256.0);
    match given == computed as f64 {
        true => Ok(()),
        false => Err(wrong(key, format!("is {given}: llama.cpp computes with {computed}"))),
    }
}

/// Whether the head multiplies by the embedding table.
fn is_tied(config: Config<'_>, traits: &Traits) -> Result<bool, GgufError> {
    let key = "tie_word_embeddings";
    let default = matches!(traits.head, Head::Tied | Head::AlwaysTied);
    let tied = config.get(key).and_then(Value::as_bool).unwrap_or(default);
    match (traits.head, tied) {
        (Head::AlwaysTied, false) => {
            Err(wrong(key, "is false: llama.cpp multiplies by the embedding table all the same"))
        }
        (Head::NeverTied, true) => {
            Err(wrong(key, "is true: llama.cpp wants a head of its own for this architecture"))
        }
        _ => Ok(tied),
    }
}

/// The value of a field as that of its key; nothing where it is absent and has no default.
fn entry(config: Config<'_>, field: &Field) -> Result<Option<MetaValue>, GgufError> {
    let also = field.also.filter(|_| config.get(field.config).is_none());
    let key = also.unwrap_or(field.config);
    if config.0.get(key).is_some_and(Value::is_null) && field.default.is_some() {
        return Err(wrong(key, "is null, but llama.cpp has one for this architecture"));
    }
    Ok(match field.kind {
        Kind::Size => config.optional_size(key)?.map(|size| unsigned(key, size)).transpose()?,
        Kind::Number => {
            let number = config.number(config.get(key), key)?.or(field.default);
            number.map(|number| single(key, number)).transpose()?
        }
        Kind::Flag => {
            let flag = config.get(key).and_then(Value::as_bool);
            Some(MetaValue::Bool(flag.unwrap_or_else(|| field.default == Some(1.0))))
        }
        Kind::Word => config.text(key).map(|word| MetaValue::String(word.to_owned())),
    })
}

/// Adds what rotary positions are made from; gives how they are stretched.
fn rotary(
    config: Config<'_>,
    architecture: Architecture,
    rope: Rope,
    head_dim: usize,
    entries: &mut Vec<(&'static str, MetaValue)>,
) -> Result<Scaling, GgufError> {
    let (theta, scaling) = rope_parameters(config, rope.theta.0);
    let theta = config.number(theta, rope.theta.0)?.unwrap_or(rope.theta.1);
    let rotated = match rope.partial {
        None => head_dim,
        Some((field, default)) => {
            let given = scaling.and_then(|parameters| parameters.get("partial_rotary_factor"));
            let part = config.number(given.or_else(|| config.get(field)), field)?;
            ((part.unwrap_or(default) * head_dim as f64) as usize).clamp(1, head_dim)
        }
    };
    entries.push(("rope.dimension_count", unsigned("head_dim", rotated)?));
    entries.push(("rope.freq_base", single(rope.theta.0, theta)?));
    match scaling {
        None => Ok(Scaling::default()),
        Some(scaling) => rope::written(Config(scaling), config, architecture, rotated, theta),
    }
}

/// The window of all layers; windows of some layers have no place in GGUF.
fn sliding_window(config: Config<'_>, model_type: &str) -> Result<Option<usize>, GgufError> {
    match model_type {
        "mistral" | "mixtral" | "phi3" | "starcoder2" => config.optional_size("sliding_window"),
        "qwen2" | "qwen3" | "qwen3_moe" if config.flag("use_sliding_window") => Err(wrong(
            "use_sliding_window",
            "llama.cpp has no sliding window for this architecture",
        )),
        _ => Ok(None),
    }
}

/// Base and scaling, from `rope_parameters` (transformers 5) or as they stood before.
fn rope_parameters<'a>(config: Config<'a>, field: &str) -> (Option<&'a Value>, Option<&'a Value>) {
    let object = |key: &str| config.get(key).filter(|value| value.is_object());
    let parameters = object("rope_parameters").map(|parameters| {
        // Gemma 3 has those of either kind of layer apart; llama.cpp knows those with a window.
        parameters.get("full_attention").filter(|inner| inner.is_object()).unwrap_or(parameters)
    });
    match parameters {
        Some(parameters) => {
            let theta = parameters.get("rope_theta").filter(|theta| !theta.is_null());
            (theta.or_else(|| config.get(field)), Some(parameters))
        }
        None => (config.get(field), object("rope_scaling")),
    }
}

fn bert(config: Config<'_>) -> Result<Model, GgufError> {
    let activation = config.text("hidden_act").unwrap_or("gelu");
    if activation != "gelu" {
        let problem = format!("{activation:?}: llama.cpp computes gelu for BERT");
        return Err(wrong("hidden_act", problem));
    }
    let architectures = config.get("architectures").and_then(Value::as_array);
    let with_head = architectures.into_iter().flatten().find(|name| *name != "BertModel");
    if let Some(name) = with_head {
        let problem = format!("{name}: GGUF holds BERT without a head; save its BertModel alone");
        return Err(wrong("architectures", problem));
    }
    let vocabulary = config.size("vocab_size")?;
    let heads = config.size("num_attention_heads")?;
    let epsilon = match config.get("layer_norm_eps") {
        Some(_) => config.float("layer_norm_eps")?,
        None => MetaValue::F32(1e-12),
    };
    let size = |key: &'static str| unsigned(key, config.size(key)?);
    let entries = vec![
        ("vocab_size", unsigned("vocab_size", vocabulary)?),
        ("context_length", size("max_position_embeddings")?),
        ("embedding_length", size("hidden_size")?),
        ("block_count", size("num_hidden_layers")?),
        ("feed_forward_length", size("intermediate_size")?),
        ("attention.head_count", unsigned("num_attention_heads", heads)?),
        ("attention.layer_norm_epsilon", epsilon),
        ("attention.causal", MetaValue::Bool(false)),
    ];
    let (architecture, kv_heads, tied) = (Architecture::Bert, heads, true);
    let (rope_factors, departures) = (RopeFactors::new(), vec![]);
    Ok(Model { architecture, heads, kv_heads, vocabulary, tied, rope_factors, departures, entries })
}

/// A `config.json`, or an object in it.
#[derive(Clone, Copy)]
pub(super) struct Config<'a>(&'a Value);

impl<'a> Config<'a> {
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    pub(super) fn flag(self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn size(self, key: &str) -> Result<usize, GgufError> {
        self.optional_size(key)?.ok_or_else(|| wrong(key, "is missing"))
    }

    pub(super) fn optional_size(self, key: &str) -> Result<Option<usize>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().filter(|size| *size > 0);
        match size.and_then(|size| usize::try_from(size).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(wrong(key, format!("is {value}, where a whole number is needed"))),
        }
    }

    pub(super) fn number(self, value: Option<&Value>, key: &str) -> Result<Option<f64>, GgufError> {
        let Some(value) = value else { return Ok(None) };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(key, format!("is {value}, where a number is needed"))),
        }
    }

    pub(super) fn float(self, key: &str) -> Result<MetaValue, GgufError> {
        let number = self.number(self.get(key), key)?;
        single(key, number.ok_or_else(|| wrong(key, "is missing"))?)
    }
}

pub(super) fn wrong(key: &str, problem: impl Into<String>) -> GgufError {
    GgufError::folder(format!("config.json: {key}"), problem)
}

pub(super) fn unsigned(key: &str, value: usize) -> Result<MetaValue, GgufError> {
    let value = u32::try_from(value);
    value.map(MetaValue::U32).map_err(|_| wrong(key, "is larger than 32 bits can say"))
}

pub(super) fn single(key: &str, value: f64) -> Result<MetaValue, GgufError> {
    let single = value as f32;
    match single.is_finite() && single != 0.0 {
        true => Ok(MetaValue::F32(single)),
        false => Err(wrong(key, format!("is {value}, which 32 bits cannot hold"))),
    }
}
