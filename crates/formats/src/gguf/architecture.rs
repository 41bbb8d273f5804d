//! The architectures of llama.cpp that are known here, and what each is at Hugging Face: names of
//! tensors, fields of `config.json` beyond those that all decoders have, and what llama.cpp computes
//! whatever a file says. Reading and writing follow the same rows of these tables.

use super::{GgufError, keys};
use crate::source::ExpertNames;
use lapidary_store::gguf::Metadata;

/// A model architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, Mistral, SmolLM and all that share their code.
    Llama,
    /// Mixtral: to llama.cpp a Llama with experts.
    Mixtral,
    /// Qwen 2 and 2.5: biases in the query, key and value projections.
    Qwen2,
    /// Qwen 3: norms of queries and keys.
    Qwen3,
    /// Qwen 3 with experts in every layer.
    Qwen3Moe,
    /// GPT-2: learned positions, one layer for queries, keys and values.
    Gpt2,
    /// GPT-NeoX and Pythia: attention and feed-forward side by side.
    GptNeoX,
    /// Gemma 2: four norms a block, caps of scores and logits.
    Gemma2,
    /// Gemma 3, its text model.
    Gemma3,
    /// Granite 3: Llama with multipliers.
    Granite,
    /// OLMo 2: norms of what is added to the stream.
    Olmo2,
    /// Phi 3 and 4: one layer for queries, keys and values, one for gate and up.
    Phi3,
    /// SmolLM 3: every fourth layer without rotary positions.
    SmolLm3,
    /// StableLM 2: layer norms, a part of each head rotated.
    StableLm,
    /// StarCoder 2: layer norms, biases, a feed-forward without a gate.
    StarCoder2,
    /// BERT and its like, as sentence embedders use them.
    Bert,
}

const ALL: [Architecture; 16] = [
    Architecture::Llama,
    Architecture::Mixtral,
    Architecture::Qwen2,
    Architecture::Qwen3,
    Architecture::Qwen3Moe,
    Architecture::Gpt2,
    Architecture::GptNeoX,
    Architecture::Gemma2,
    Architecture::Gemma3,
    Architecture::Granite,
    Architecture::Olmo2,
    Architecture::Phi3,
    Architecture::SmolLm3,
    Architecture::StableLm,
    Architecture::StarCoder2,
    Architecture::Bert,
];

/// What a decoder is, in both vocabularies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Traits {
    /// How GGUF spells it.
    pub(super) name: &'static str,
    /// `model_type` and class in transformers.
    pub(super) model_type: &'static str,
    pub(super) class: &'static str,
    /// Fields of the activation at Hugging Face, the one that is written first, and the names of the
    /// one that llama.cpp computes.
    pub(super) activation: (&'static [&'static str], &'static [&'static str]),
    /// One of these that llama.cpp computes nearly, and how it departs from it.
    pub(super) nearly: Option<(&'static str, &'static str)>,
    /// Key and field of what is added to variances.
    pub(super) epsilon: (&'static str, &'static str),
    pub(super) sizes: Sizes,
    /// Whether heads may be of any width and share keys and values, which fields say then.
    pub(super) grouped: bool,
    /// Whether one layer makes queries, keys and values.
    pub(super) fused: bool,
    /// Fields beyond those of all decoders.
    pub(super) fields: &'static [Field],
    /// Flags for biases, with the tensors that have them; those of an empty list llama.cpp has not.
    pub(super) biases: &'static [(&'static str, &'static [&'static str])],
    /// Biases that every model has.
    pub(super) always: &'static [&'static str],
    /// Flags that llama.cpp takes for granted: the field, what it is where it is missing, and what
    /// llama.cpp computes with.
    pub(super) granted: &'static [(&'static str, bool, bool)],
    /// Rotary positions; `None` where positions are learned.
    pub(super) rope: Option<Rope>,
    pub(super) head: Head,
}

/// Fields of the sizes that all decoders have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: &'static str,
    pub(super) heads: &'static str,
    pub(super) layers: &'static str,
    pub(super) context: &'static str,
    pub(super) intermediate: &'static str,
    /// How many times the hidden size that is where it is null, in families that let it be.
    pub(super) multiple: Option<usize>,
}

/// Fields of rotary positions, and what they are where they are missing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rope {
    /// Base of the frequencies.
    pub(super) theta: (&'static str, f64),
    /// The part of each head that is rotated; `None` where it is the whole.
    pub(super) partial: Option<(&'static str, f64)>,
}

/// Whether the head multiplies by the embedding table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Either way; not where no field says so.
    Apart,
    /// Either way; it does where no field says so.
    Tied,
    /// In llama.cpp it always does.
    AlwaysTied,
    /// In llama.cpp it never does.
    NeverTied,
}

/// A field that is a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) config: &'static str,
    /// Another name that it has in some versions of transformers.
    pub(super) also: Option<&'static str>,
    pub(super) kind: Kind,
    /// What it is where it is missing, on either side; null in `config.json` if nothing.
    pub(super) default: Option<f64>,
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Size,
    Number,
    Flag,
    /// A word that llama.cpp does not read, kept for whoever reads the file as a folder.
    Word,
}

const fn size(key: &'static str, config: &'static str) -> Field {
    Field { key, config, also: None, kind: Kind::Size, default: None }
}

const fn number(key: &'static str, config: &'static str, default: Option<f64>) -> Field {
    Field { key, config, also: None, kind: Kind::Number, default }
}

const QKV: &[&str] = &["attn_q.bias", "attn_k.bias", "attn_v.bias"];
const QKVO: &[&str] = &["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"];
const GATED: &[&str] = &["ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"];
const EVERYWHERE: &[&str] = &[
    "attn_q.bias",
    "attn_k.bias",
    "attn_v.bias",
    "attn_output.bias",
    "ffn_up.bias",
    "ffn_down.bias",
];

/// Where one layer makes queries, keys and values.
const FUSED: &[&str] = &["attn_qkv.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"];

const SIZES: Sizes = Sizes {
    hidden: "hidden_size",
    heads: "num_attention_heads",
    layers: "num_hidden_layers",
    context: "max_position_embeddings",
    intermediate: "intermediate_size",
    multiple: None,
};

const ROPE: Rope = Rope { theta: ("rope_theta", 10_000.0), partial: None };

/// Names of the activation that is GELU by the hyperbolic tangent.
const GELU_TANH: &[&str] = &["gelu_new", "gelu_pytorch_tanh", "gelu_fast"];

pub(super) const EXPERTS: &str = "expert_count";
const EXPERTS_USED: Field = size("expert_used_count", "num_experts_per_tok");

const WINDOW: Field = size("attention.sliding_window", "sliding_window");
const PARALLEL: Field = Field {
    kind: Kind::Flag,
    default: Some(0.0),
    ..size("use_parallel_residual", "use_parallel_residual")
};
const PARTIAL: &str = "partial_rotary_factor";
const CAP: &str = "final_logit_softcapping";
const SCORE_CAP: &str = "attn_logit_softcapping";
const LAYER_NORM: &str = "attention.layer_norm_epsilon";

const LLAMA: Traits = Traits {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    activation: (&["hidden_act"], &["silu", "swish"]),
    nearly: None,
    epsilon: ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    sizes: SIZES,
    grouped: true,
    fused: false,
    fields: &[],
    biases: &[("attention_bias", QKVO), ("mlp_bias", GATED)],
    always: &[],
    granted: &[],
    rope: Some(ROPE),
    head: Head::Apart,
};

const MIXTRAL: Traits = Traits {
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    fields: &[size(EXPERTS, "num_local_experts"), EXPERTS_USED, WINDOW],
    biases: &[],
    rope: Some(Rope { theta: ("rope_theta", 1_000_000.0), ..ROPE }),
    ..LLAMA
};

/// Gemma 2; its class knows the old name of the activation and the new one.
const GEMMA2: Traits = Traits {
    name: "gemma2",
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    activation: (&["hidden_activation", "hidden_act"], &["gelu_pytorch_tanh"]),
    fields: &[WINDOW, number(SCORE_CAP, SCORE_CAP, Some(50.0)), number(CAP, CAP, Some(30.0))],
    biases: &[("attention_bias", &[])],
    head: Head::AlwaysTied,
    ..LLAMA
};

const QWEN2: Traits = Traits {
    name: "qwen2",
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    biases: &[],
    always: QKV,
    ..LLAMA
};

const QWEN3: Traits = Traits {
    name: "qwen3",
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    biases: &[("attention_bias", QKVO)],
    ..LLAMA
};

/// llama.cpp makes the weights of the chosen experts add up to one, always.
const QWEN3_MOE: Traits = Traits {
    name: "qwen3moe",
    model_type: "qwen3_moe",
    class: "Qwen3MoeForCausalLM",
    fields: &[
        Field { also: Some("num_local_experts"), ..size(EXPERTS, "num_experts") },
        EXPERTS_USED,
        size("expert_feed_forward_length", "moe_intermediate_size"),
    ],
    biases: &[("attention_bias", &[])],
    granted: &[("norm_topk_prob", false, true)],
    ..LLAMA
};

const GPT2: Traits = Traits {
    name: "gpt2",
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    activation: (&["activation_function"], GELU_TANH),
    epsilon: (LAYER_NORM, "layer_norm_epsilon"),
    sizes: Sizes {
        hidden: "n_embd",
        heads: "n_head",
        layers: "n_layer",
        context: "n_positions",
        intermediate: "n_inner",
        multiple: Some(4),
    },
    grouped: false,
    fused: true,
    biases: &[],
    always: FUSED,
    granted: &[
        ("scale_attn_weights", true, true),
        ("scale_attn_by_inverse_layer_idx", false, false),
    ],
    rope: None,
    head: Head::Tied,
    ..LLAMA
};

const GPT_NEOX: Traits = Traits {
    name: "gptneox",
    model_type: "gpt_neox",
    class: "GPTNeoXForCausalLM",
    activation: (&["hidden_act"], &["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"]),
    nearly: Some((
        "gelu",
        "llama.cpp computes GELU by the hyperbolic tangent for this architecture, where the model has \
         the error function: activations differ by up to 0.0005",
    )),
    epsilon: (LAYER_NORM, "layer_norm_eps"),
    grouped: false,
    fused: true,
    fields: &[
        Field { default: Some(1.0), ..PARALLEL },
        Field { kind: Kind::Word, ..size("hidden_act", "hidden_act") },
    ],
    biases: &[],
    always: FUSED,
    granted: &[("attention_bias", true, true)],
    rope: Some(Rope { theta: ("rotary_emb_base", 10_000.0), partial: Some(("rotary_pct", 0.25)) }),
    head: Head::NeverTied,
    ..LLAMA
};

const GEMMA3: Traits = Traits {
    name: "gemma3",
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    fields: &[WINDOW, number(CAP, CAP, None)],
    rope: Some(Rope { theta: ("rope_theta", 1_000_000.0), ..ROPE }),
    ..GEMMA2
};

const GRANITE: Traits = Traits {
    name: "granite",
    model_type: "granite",
    class: "GraniteForCausalLM",
    fields: &[
        number("attention.scale", "attention_multiplier", Some(1.0)),
        number("embedding_scale", "embedding_multiplier", Some(1.0)),
        number("residual_scale", "residual_multiplier", Some(1.0)),
        number("logit_scale", "logits_scaling", Some(1.0)),
    ],
    ..LLAMA
};

const OLMO2: Traits = Traits {
    name: "olmo2",
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    biases: &[("attention_bias", &[])],
    head: Head::NeverTied,
    ..LLAMA
};

const PHI3: Traits = Traits {
    name: "phi3",
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    fused: true,
    fields: &[WINDOW],
    biases: &[],
    rope: Some(Rope { partial: Some((PARTIAL, 1.0)), ..ROPE }),
    ..LLAMA
};

const SMOLLM3: Traits = Traits {
    name: "smollm3",
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    biases: &[("attention_bias", &[]), ("mlp_bias", &[])],
    rope: Some(Rope { theta: ("rope_theta", 2_000_000.0), ..ROPE }),
    head: Head::Tied,
    ..LLAMA
};

const STABLELM: Traits = Traits {
    name: "stablelm",
    model_type: "stablelm",
    class: "StableLmForCausalLM",
    epsilon: (LAYER_NORM, "layer_norm_eps"),
    fields: &[PARALLEL],
    biases: &[("use_qkv_bias", QKV)],
    rope: Some(Rope { partial: Some((PARTIAL, 0.25)), ..ROPE }),
    head: Head::NeverTied,
    ..LLAMA
};

const STARCODER2: Traits = Traits {
    name: "starcoder2",
    model_type: "starcoder2",
    class: "Starcoder2ForCausalLM",
    activation: (&["hidden_act"], &["gelu_pytorch_tanh", "gelu_new", "gelu_fast"]),
    epsilon: (LAYER_NORM, "norm_epsilon"),
    fields: &[WINDOW],
    biases: &[("use_bias", EVERYWHERE)],
    head: Head::Tied,
    ..LLAMA
};

impl Architecture {
    /// The architecture that the metadata state.
    ///
    /// # Errors
    /// When `general.architecture` is missing or not supported.
    pub fn of(metadata: &Metadata) -> Result<Self, GgufError> {
        let key = "general.architecture";
        let name = keys::required(key, keys::string(metadata, key))?;
        let found = ALL.into_iter().find(|architecture| architecture.name() == name);
        let experts = keys::unsigned(metadata, &format!("{name}.{EXPERTS}"))?.unwrap_or(0);
        match found {
            Some(Self::Llama) if experts > 0 => Ok(Self::Mixtral),
            Some(found) => Ok(found),
            None => {
                let (name, mut known) = (name.to_owned(), ALL.map(Self::name).to_vec());
                known.dedup();
                Err(GgufError::UnknownArchitecture { name, known: known.join(", ") })
            }
        }
    }

    /// How GGUF spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.traits().map_or("bert", |traits| traits.name)
    }

    /// The architecture that holds models of a `model_type`, where one does.
    #[must_use]
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "mistral" => Some(Self::Llama),
            "bert" => Some(Self::Bert),
            _ => ALL.into_iter().find(|architecture| {
                architecture.traits().is_some_and(|traits| traits.model_type == model_type)
            }),
        }
    }

    /// What a decoder is; nothing for an encoder.
    pub(super) fn traits(self) -> Option<Traits> {
        Some(match self {
            Self::Llama => LLAMA,
            Self::Mixtral => MIXTRAL,
            Self::Qwen2 => QWEN2,
            Self::Qwen3 => QWEN3,
            Self::Qwen3Moe => QWEN3_MOE,
            Self::Gpt2 => GPT2,
            Self::GptNeoX => GPT_NEOX,
            Self::Gemma2 => GEMMA2,
            Self::Gemma3 => GEMMA3,
            Self::Granite => GRANITE,
            Self::Olmo2 => OLMO2,
            Self::Phi3 => PHI3,
            Self::SmolLm3 => SMOLLM3,
            Self::StableLm => STABLELM,
            Self::StarCoder2 => STARCODER2,
            Self::Bert => return None,
        })
    }

    /// Whether llama.cpp's converter puts the rows of queries and keys in pairs.
    pub(super) fn pairs_rows(self) -> bool {
        matches!(self, Self::Llama | Self::Mixtral | Self::Granite | Self::SmolLm3)
    }

    /// Whether it puts all heads' queries before all keys and values, where Hugging Face has them head by
    /// head.
    pub(super) fn parts_rows(self) -> bool {
        self == Self::GptNeoX
    }

    /// The names of the experts at Hugging Face, where there are any.
    pub(super) fn experts(self) -> Option<&'static ExpertNames> {
        ExpertNames::of(self.traits()?.model_type)
    }

    /// Whether gains that Hugging Face stores less one are stored whole.
    pub(super) fn raises_gains(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// GGUF and Hugging Face names, without `.weight` and `.bias`; `{}` is the number of the layer. The
    /// first that fits counts.
    pub(super) fn names(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let (own, common) = match self {
            Self::Bert => (&[][..], BERT),
            Self::Gpt2 => (&[][..], GPT2_NAMES),
            Self::GptNeoX => (&[][..], NEOX_NAMES),
            Self::Mixtral => {
                (&[("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.gate")][..], DECODER)
            }
            Self::Qwen3Moe => (&[("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.gate")][..], DECODER),
            Self::Gemma2 | Self::Gemma3 => (GEMMA, DECODER),
            Self::Olmo2 => (OLMO, DECODER),
            Self::Phi3 => (PHI, DECODER),
            Self::StarCoder2 => (STARCODER, DECODER),
            _ => (&[][..], DECODER),
        };
        own.iter().chain(common).copied()
    }
}

type Renamings = [(&'static str, &'static str)];

const DECODER: &Renamings = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("blk.{}.attn_norm", "model.layers.{}.input_layernorm"),
    ("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
    ("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_norm"),
    ("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_norm"),
    ("blk.{}.ffn_norm", "model.layers.{}.post_attention_layernorm"),
    ("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
];

/// Norms on both sides of attention and feed-forward.
const GEMMA: &Renamings = &[
    ("blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm"),
    ("blk.{}.ffn_norm", "model.layers.{}.pre_feedforward_layernorm"),
    ("blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"),
];

const OLMO: &Renamings = &[
    ("blk.{}.post_attention_norm", "model.layers.{}.post_attention_layernorm"),
    ("blk.{}.post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"),
];

const PHI: &Renamings = &[
    ("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
];

const STARCODER: &Renamings = &[
    ("blk.{}.ffn_up", "model.layers.{}.mlp.c_fc"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.c_proj"),
];

const GPT2_NAMES: &Renamings = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
    ("blk.{}.attn_norm", "transformer.h.{}.ln_1"),
    ("blk.{}.attn_qkv", "transformer.h.{}.attn.c_attn"),
    ("blk.{}.attn_output", "transformer.h.{}.attn.c_proj"),
    ("blk.{}.ffn_norm", "transformer.h.{}.ln_2"),
    ("blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc"),
    ("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj"),
];

const NEOX_NAMES: &Renamings = &[
    ("token_embd", "gpt_neox.embed_in"),
    ("output_norm", "gpt_neox.final_layer_norm"),
    ("output", "embed_out"),
    ("blk.{}.attn_norm", "gpt_neox.layers.{}.input_layernorm"),
    ("blk.{}.attn_qkv", "gpt_neox.layers.{}.attention.query_key_value"),
    ("blk.{}.attn_output", "gpt_neox.layers.{}.attention.dense"),
    ("blk.{}.ffn_norm", "gpt_neox.layers.{}.post_attention_layernorm"),
    ("blk.{}.ffn_up", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
    ("blk.{}.ffn_down", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
];

/// An encoder without a head.
const BERT: &Renamings = &[
    ("token_embd", "embeddings.word_embeddings"),
    ("token_types", "embeddings.token_type_embeddings"),
    ("position_embd", "embeddings.position_embeddings"),
    ("token_embd_norm", "embeddings.LayerNorm"),
    ("blk.{}.attn_q", "encoder.layer.{}.attention.self.query"),
    ("blk.{}.attn_k", "encoder.layer.{}.attention.self.key"),
    ("blk.{}.attn_v", "encoder.layer.{}.attention.self.value"),
    ("blk.{}.attn_output", "encoder.layer.{}.attention.output.dense"),
    ("blk.{}.attn_output_norm", "encoder.layer.{}.attention.output.LayerNorm"),
    ("blk.{}.ffn_up", "encoder.layer.{}.intermediate.dense"),
    ("blk.{}.ffn_down", "encoder.layer.{}.output.dense"),
    ("blk.{}.layer_output_norm", "encoder.layer.{}.output.LayerNorm"),
];
