//! The architectures of llama.cpp that are known here, and what each is at Hugging Face: names of
//! tensors, fields of `config.json` beyond those that all decoders have, and what llama.cpp computes
//! whatever a file says. Reading and writing follow the same rows of these tables.

use super::{GgufError, keys};
use crate::source::experts;
use lapidary_store::gguf::Metadata;

/// A model architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, Mistral, SmolLM and all that share their code.
    Llama,
    /// Mixtral: Llama with experts, which GGUF calls a Llama too.
    Mixtral,
    /// Qwen 2 and 2.5: biases in the query, key and value projections.
    Qwen2,
    /// Qwen 3: norms of queries and keys.
    Qwen3,
    /// Qwen 3's mixtures of experts.
    Qwen3Moe,
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

const ALL: [Architecture; 14] = [
    Architecture::Llama,
    Architecture::Mixtral,
    Architecture::Qwen2,
    Architecture::Qwen3,
    Architecture::Qwen3Moe,
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
    /// Key and field of what is added to variances.
    pub(super) epsilon: (&'static str, &'static str),
    /// Fields beyond those of all decoders.
    pub(super) fields: &'static [Field],
    /// Flags for biases, with the tensors that have them; those of an empty list llama.cpp has not.
    pub(super) biases: &'static [(&'static str, &'static [&'static str])],
    /// The part of each head that is rotated where no field says so; `None` where it is the whole.
    pub(super) partial: Option<f64>,
    /// Base of the rotary frequencies where no field says so.
    pub(super) theta: f64,
    pub(super) head: Head,
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
}

const fn size(key: &'static str, config: &'static str) -> Field {
    Field { key, config, kind: Kind::Size, default: None }
}

const fn number(key: &'static str, config: &'static str, default: Option<f64>) -> Field {
    Field { key, config, kind: Kind::Number, default }
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

const WINDOW: Field = size("attention.sliding_window", "sliding_window");
const CAP: &str = "final_logit_softcapping";
const SCORE_CAP: &str = "attn_logit_softcapping";
const LAYER_NORM: &str = "attention.layer_norm_epsilon";

const LLAMA: Traits = Traits {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    activation: (&["hidden_act"], &["silu", "swish"]),
    epsilon: ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    fields: &[],
    biases: &[("attention_bias", QKVO), ("mlp_bias", GATED)],
    partial: None,
    theta: 10_000.0,
    head: Head::Apart,
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

const QWEN2: Traits =
    Traits { name: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", biases: &[], ..LLAMA };

const QWEN3: Traits = Traits {
    name: "qwen3",
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    biases: &[("attention_bias", QKVO)],
    ..LLAMA
};

/// What GGUF calls a Llama is a Mixtral if it has experts.
const MIXTRAL: Traits = Traits {
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    fields: &[WINDOW],
    biases: &[],
    theta: 1_000_000.0,
    ..LLAMA
};

const QWEN3_MOE: Traits = Traits {
    name: "qwen3moe",
    model_type: "qwen3_moe",
    class: "Qwen3MoeForCausalLM",
    biases: &[("attention_bias", &[])],
    ..LLAMA
};

const GEMMA3: Traits = Traits {
    name: "gemma3",
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    fields: &[WINDOW, number(CAP, CAP, None)],
    theta: 1_000_000.0,
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
    fields: &[WINDOW],
    biases: &[],
    partial: Some(1.0),
    ..LLAMA
};

const SMOLLM3: Traits = Traits {
    name: "smollm3",
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    biases: &[("attention_bias", &[]), ("mlp_bias", &[])],
    theta: 2_000_000.0,
    head: Head::Tied,
    ..LLAMA
};

const STABLELM: Traits = Traits {
    name: "stablelm",
    model_type: "stablelm",
    class: "StableLmForCausalLM",
    epsilon: (LAYER_NORM, "layer_norm_eps"),
    fields: &[Field {
        key: "use_parallel_residual",
        config: "use_parallel_residual",
        kind: Kind::Flag,
        default: Some(0.0),
    }],
    biases: &[("use_qkv_bias", QKV)],
    partial: Some(0.25),
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
        if found == Some(Self::Llama)
            && keys::unsigned(metadata, "llama.expert_count")?.is_some_and(|experts| experts > 0)
        {
            return Ok(Self::Mixtral);
        }
        found.ok_or_else(|| GgufError::UnknownArchitecture(name.to_owned()))
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

    /// How experts are named at Hugging Face, where there are any.
    pub(super) fn experts(self) -> Option<&'static experts::Names> {
        experts::names(self.traits()?.model_type)
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
            Self::Gemma2 | Self::Gemma3 => (GEMMA, DECODER),
            Self::Olmo2 => (OLMO, DECODER),
            Self::Mixtral => (MIXTRAL_ROUTER, DECODER),
            Self::Qwen3Moe => (QWEN_ROUTER, DECODER),
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

/// The tensors of all experts of a layer: gates, ups, downs.
pub(super) const EXPERTS: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

const MIXTRAL_ROUTER: &Renamings =
    &[("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.gate")];

const QWEN_ROUTER: &Renamings = &[("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.gate")];

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
