"""The cases of `make.py` for families beyond Llama, Mistral, Qwen and BERT."""
import torch

from case import Case, old_rope

TINY = dict(
    vocab_size=53, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
OLMO2 = dict(TINY, model_type="olmo2", rms_norm_eps=1e-5)
GRANITE = dict(
    TINY, model_type="granite", rms_norm_eps=1e-5, embedding_multiplier=3.0,
    residual_multiplier=0.6, attention_multiplier=0.3, logits_scaling=1.7,
)
SMOLLM3 = dict(TINY, model_type="smollm3", rms_norm_eps=1e-6)
STARCODER2 = dict(TINY, model_type="starcoder2")
STABLELM = dict(TINY, model_type="stablelm", hidden_size=32)
GEMMA2 = dict(
    TINY, model_type="gemma2", head_dim=8, query_pre_attn_scalar=5, sliding_window=6,
    attn_logit_softcapping=1.5, final_logit_softcapping=2.5, rms_norm_eps=1e-6,
)
GEMMA3 = dict(
    TINY, model_type="gemma3_text", head_dim=8, query_pre_attn_scalar=5, sliding_window=6,
    rms_norm_eps=1e-6,
)
PHI3 = dict(TINY, model_type="phi3", rms_norm_eps=1e-5)
MIXTRAL = dict(TINY, model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
QWEN3_MOE = dict(
    TINY, model_type="qwen3_moe", head_dim=8, num_experts=5, num_experts_per_tok=2,
    moe_intermediate_size=18,
)


def default_rope(theta: float) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


# Divisors of four pairs, within sixteen positions and beyond.
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.2, 1.9, 3.1, 4.0],
}


def longer(**changes) -> dict:
    """LongRoPE with other numbers."""
    return {"rope_parameters": dict(LONG_ROPE, **changes)}


def old_partial(theta: float, part: float, key: str = "partial_rotary_factor") -> dict:
    return {"rope_parameters": None, "rope_theta": theta, key: part}


DECODERS = [
    Case(
        "olmo2", "norms after attention and feed-forward, and over whole queries and keys",
        dict(OLMO2, **default_rope(500000.0)), seq=19,
        overlooked=[default_rope(10000.0)], old=old_rope(500000.0),
    ),
    Case(
        "olmo2-biases", "attention_bias, one k/v head, tied, an rms_norm_eps to be seen",
        dict(OLMO2, attention_bias=True, num_key_value_heads=1, tie_word_embeddings=True,
             rms_norm_eps=2e-2),
        seq=22, overlooked=[{"rms_norm_eps": 1e-5}], old=old_rope(10000.0),
    ),
    Case(
        "granite", "multipliers of embedding, residual, scores and logits",
        dict(GRANITE, tie_word_embeddings=False), seq=18,
        overlooked=[
            {"embedding_multiplier": 1.0}, {"residual_multiplier": 1.0},
            {"attention_multiplier": 0.4}, {"logits_scaling": 1.0},
        ],
        old=old_rope(10000.0),
    ),
    Case(
        "granite-biases", "attention_bias and mlp_bias, tied, three heads of 8",
        dict(GRANITE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
             num_attention_heads=3, num_key_value_heads=3, logits_scaling=0.5),
        seq=21, old=old_rope(10000.0),
    ),
    Case(
        "smollm3", "every fourth layer without rotary positions; tied",
        dict(SMOLLM3, num_hidden_layers=4, hidden_size=16, intermediate_size=24), seq=20,
        overlooked=[{"no_rope_layers": [1, 1, 1, 1]}, default_rope(10000.0)],
        old=old_rope(2000000.0) | {"no_rope_layers": None, "layer_types": None},
    ),
    Case(
        "smollm3-window", "no_rope_layers listed, a window where there is no rotation, untied, biases",
        dict(SMOLLM3, num_hidden_layers=3, no_rope_layers=[1, 0, 1], use_sliding_window=True,
             sliding_window=5, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
        seq=23, unseen=("layers.1.self_attn.k_proj.bias",),
        overlooked=[
            {"no_rope_layers": [1, 1, 1]}, {"use_sliding_window": False}, {"sliding_window": 6},
            {"tie_word_embeddings": True},
        ],
        old=old_rope(2000000.0) | {"layer_types": None},
    ),
    Case(
        "starcoder2", "layer norms, a feed-forward without a gate, biases everywhere; tied",
        dict(STARCODER2), seq=20, old=old_rope(10000.0),
    ),
    Case(
        "starcoder2-window", "use_bias false, a window, untied, a norm_epsilon to be seen",
        dict(STARCODER2, use_bias=False, sliding_window=7, tie_word_embeddings=False,
             norm_epsilon=2e-2),
        seq=25,
        overlooked=[{"sliding_window": None}, {"norm_epsilon": 1e-5}], old=old_rope(10000.0),
    ),
    Case(
        "stablelm", "layer norms; a quarter of each head of 8 is rotated",
        dict(STABLELM), seq=20,
        overlooked=[
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                 "partial_rotary_factor": 0.5}}
        ],
        old=old_partial(10000.0, 0.25),
    ),
    Case(
        "stablelm-parallel", "use_parallel_residual, use_qkv_bias, half of each head of 12 rotated",
        dict(STABLELM, hidden_size=24, num_attention_heads=2, num_key_value_heads=1,
             use_parallel_residual=True, use_qkv_bias=True,
             rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                              "partial_rotary_factor": 0.5}),
        seq=21, overlooked=[{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                 "partial_rotary_factor": 1.0}}],
        old=old_partial(10000.0, 0.5),
    ),
    Case(
        "gemma2", "caps of scores and logits, windows in every other layer, query_pre_attn_scalar",
        dict(GEMMA2, num_hidden_layers=3), seq=19,
        overlooked=[
            {"attn_logit_softcapping": None}, {"final_logit_softcapping": None},
            {"query_pre_attn_scalar": 8}, {"sliding_window": 7},
            {"layer_types": ["full_attention"] * 3},
        ],
        old=old_rope(10000.0) | {"layer_types": None},
    ),
    Case(
        "gemma2-no-caps", "both caps null, untied, attention_bias, head_dim 10",
        dict(GEMMA2, attn_logit_softcapping=None, final_logit_softcapping=None, head_dim=10,
             tie_word_embeddings=False, attention_bias=True),
        seq=17, overlooked=[{"attn_logit_softcapping": 1.0}],
        old=old_rope(10000.0) | {"layer_types": None},
    ),
    Case(
        "gemma3", "norms of queries and keys; two layers of three see a window and have another base",
        dict(GEMMA3, num_hidden_layers=3, sliding_window_pattern=3), seq=24,
        overlooked=[
            {"sliding_window": 5}, {"layer_types": ["sliding_attention"] * 3},
            {"rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
        ],
        old=old_rope(1000000.0)
        | {"rope_local_base_freq": 10000.0, "layer_types": None, "sliding_window_pattern": 3},
    ),
    Case(
        "gemma3-scaled", "full layers stretched by 4, a base of 100 in the others, a final cap",
        dict(GEMMA3, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
             num_hidden_layers=3, final_logit_softcapping=2.0, tie_word_embeddings=False,
             rope_parameters={
                 "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
                 "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
        seq=26,
        overlooked=[
            {"final_logit_softcapping": None},
            {"rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}},
            {"rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}}},
        ],
        old=old_rope(1000.0, {"rope_type": "linear", "factor": 4.0})
        | {"rope_local_base_freq": 100.0},
    ),
    Case(
        "gemma2-published", "scores divided by the root of the head size, as in what is published",
        dict(GEMMA2, query_pre_attn_scalar=8), seq=18,
        overlooked=[{"attn_logit_softcapping": None}, {"sliding_window": 7}],
        old=old_rope(10000.0) | {"layer_types": None},
    ),
    Case(
        "gemma3-published", "five of six layers see a window, as in what is published",
        dict(GEMMA3, num_hidden_layers=6, hidden_size=16, intermediate_size=20,
             query_pre_attn_scalar=8),
        seq=19, overlooked=[{"sliding_window": 7}, {"layer_types": ["full_attention"] * 6}],
        old={"rope_parameters": None, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
             "rope_scaling": None, "layer_types": None, "sliding_window_pattern": 6},
    ),
    Case(
        "phi3", "one layer for queries, keys and values and one for gate and up",
        dict(PHI3), seq=20, old=old_rope(10000.0),
    ),
    Case(
        "phi3-partial", "half of each head of 12 rotated, a window, tied, one k/v head",
        dict(PHI3, num_attention_heads=2, num_key_value_heads=1, sliding_window=6,
             tie_word_embeddings=True,
             rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                              "partial_rotary_factor": 0.5}),
        seq=23, overlooked=[{"sliding_window": None}],
        old=old_partial(10000.0, 0.5),
    ),
    Case(
        "phi3-longrope", "rope_type longrope, rows of more tokens than the original context",
        dict(PHI3, hidden_size=32, original_max_position_embeddings=16, **longer()), seq=25,
        overlooked=[
            longer(short_factor=LONG_ROPE["long_factor"], long_factor=LONG_ROPE["short_factor"]),
            longer(attention_factor=1.0),
        ],
        old=old_rope(10000.0, {"type": "longrope", "short_factor": LONG_ROPE["short_factor"],
                               "long_factor": LONG_ROPE["long_factor"]}),
    ),
    Case(
        "phi3-longrope-short", "the same, rows within the original context",
        dict(PHI3, hidden_size=32, original_max_position_embeddings=16, **longer()), seq=15,
        overlooked=[longer(short_factor=LONG_ROPE["long_factor"]), longer(attention_factor=1.0)],
        old=old_rope(10000.0, {"type": "longrope", "short_factor": LONG_ROPE["short_factor"],
                               "long_factor": LONG_ROPE["long_factor"]}),
    ),
]
OTHERS = [
    Case(
        "mixtral", "four experts, two for each token",
        dict(MIXTRAL, hidden_size=16, intermediate_size=20), seq=18,
        overlooked=[{"num_experts_per_tok": 1}],
        old=old_rope(1000000.0) | {"head_dim": None},
    ),
    Case(
        "mixtral-window", "one expert of three for each token, a window",
        dict(MIXTRAL, num_local_experts=3, num_experts_per_tok=1, sliding_window=6, hidden_size=16,
             intermediate_size=24),
        seq=21, overlooked=[{"sliding_window": None}, {"num_experts_per_tok": 2}],
        # Where one expert is chosen and its weight made one, the scores only choose.
        unseen=("mlp.gate.weight",),
        old=old_rope(1000000.0) | {"head_dim": None},
    ),
    Case(
        "qwen3-moe", "experts narrower than the feed-forward, weights as the softmax gives them",
        dict(QWEN3_MOE), seq=20,
        overlooked=[{"norm_topk_prob": True}, {"num_experts_per_tok": 3}],
        old=old_rope(10000.0) | {"num_experts": 5, "num_local_experts": None},
    ),
    Case(
        "qwen3-moe-mixed", "one layer of three has experts (decoder_sparse_step, mlp_only_layers), "
        "norm_topk_prob, biases, tied",
        dict(QWEN3_MOE, num_hidden_layers=4, hidden_size=16, decoder_sparse_step=2,
             mlp_only_layers=[3], norm_topk_prob=True, attention_bias=True, tie_word_embeddings=True),
        seq=17, overlooked=[{"norm_topk_prob": False}],
        old=old_rope(10000.0) | {"num_experts": 5, "num_local_experts": None},
    ),
    Case(
        "mixtral-together", "all experts of a layer in one tensor, in bfloat16",
        dict(MIXTRAL, hidden_size=16, intermediate_size=20), seq=19, dtype=torch.bfloat16,
        as_held=True, old=old_rope(1000000.0) | {"head_dim": None},
    ),
    Case(
        "qwen3-moe-together", "all experts of a layer in one tensor",
        dict(QWEN3_MOE, norm_topk_prob=True), seq=18, as_held=True,
        old=old_rope(10000.0) | {"num_experts": 5, "num_local_experts": None},
    ),
    Case(
        "qwen3-moe-blocks", "experts as wide as a block of 32, as in what is published",
        dict(QWEN3_MOE, norm_topk_prob=True, hidden_size=32, moe_intermediate_size=32, num_experts=3),
        seq=18, overlooked=[{"norm_topk_prob": False}],
        old=old_rope(10000.0) | {"num_experts": 3, "num_local_experts": None},
    ),
]

GPT_NEOX = dict(TINY, model_type="gpt_neox", hidden_size=32)
GPT_NEOX.pop("num_key_value_heads")
OPT = dict(
    model_type="opt", vocab_size=53, hidden_size=24, ffn_dim=40, num_hidden_layers=2,
    num_attention_heads=3, max_position_embeddings=32, word_embed_proj_dim=24, pad_token_id=1,
    bos_token_id=2, eos_token_id=2,
)
GPT2 = dict(
    model_type="gpt2", vocab_size=53, n_embd=24, n_head=4, n_layer=2, n_positions=32,
    bos_token_id=1, eos_token_id=2,
)
ROBERTA = dict(
    model_type="roberta", vocab_size=53, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=34, type_vocab_size=1, layer_norm_eps=1e-5,
    pad_token_id=1, bos_token_id=0, eos_token_id=2,
)
DISTILBERT = dict(
    model_type="distilbert", vocab_size=53, dim=24, hidden_dim=40, n_layers=2, n_heads=4,
    max_position_embeddings=32, pad_token_id=0,
)
ALBERT = dict(
    model_type="albert", vocab_size=53, embedding_size=12, hidden_size=24, intermediate_size=40,
    num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=32, type_vocab_size=2,
    pad_token_id=0, bos_token_id=2, eos_token_id=3,
)
OTHERS += [
    Case(
        "gpt-neox", "attention beside feed-forward; a quarter of each head of 8 rotated",
        dict(GPT_NEOX), seq=19, overlooked=[{"use_parallel_residual": False}],
        old=old_partial(10000.0, 0.25, "rotary_pct")
        | {"rope_theta": None, "rotary_emb_base": 10000},
    ),
    Case(
        "gpt-neox-sequential", "use_parallel_residual false, no attention_bias, whole heads rotated",
        dict(GPT_NEOX, hidden_size=24, use_parallel_residual=False, attention_bias=False,
             hidden_act="gelu_new", layer_norm_eps=1e-2,
             rope_parameters={"rope_type": "default", "rope_theta": 500.0,
                              "partial_rotary_factor": 1.0}),
        seq=21, overlooked=[{"hidden_act": "gelu"}, {"layer_norm_eps": 1e-5}],
        old=old_partial(10000.0, 1.0, "rotary_pct")
        | {"rope_theta": None, "rotary_emb_base": 500},
    ),
    Case(
        "opt", "learned positions from the third row on, ReLU; tied", dict(OPT), seq=20,
        unseen=("k_proj.bias",), overlooked=[{"activation_function": "gelu"}],
    ),
    Case(
        "opt-post-norm", "do_layer_norm_before false, no biases, untied, gelu",
        dict(OPT, do_layer_norm_before=False, enable_bias=False, tie_word_embeddings=False,
             activation_function="gelu"),
        seq=22, overlooked=[{"activation_function": "relu"}],
    ),
    Case(
        "gpt2", "weights [in, out], one layer for queries, keys and values; tied", dict(GPT2), seq=20,
        overlooked=[{"activation_function": "gelu"}],
    ),
    Case(
        "gpt2-blocks", "as wide as a block of 32", dict(GPT2, n_embd=32, n_inner=64), seq=19,
    ),
    Case(
        "gpt2-inner", "n_inner, scores divided by the layer's number, ReLU, untied",
        dict(GPT2, n_inner=30, scale_attn_by_inverse_layer_idx=True, activation_function="relu",
             tie_word_embeddings=False, layer_norm_epsilon=1e-2),
        seq=17,
        overlooked=[{"scale_attn_by_inverse_layer_idx": False}, {"layer_norm_epsilon": 1e-5}],
    ),
    Case(
        "roberta", "positions from pad_token_id + 1 on, a head of its own", dict(ROBERTA), seq=20,
        kind="masked",
    ),
    Case(
        "roberta-model", "RobertaModel: no head, pad_token_id 2, two segments",
        dict(ROBERTA, pad_token_id=2, type_vocab_size=2, hidden_act="relu"), seq=18, kind="base",
    ),
    Case(
        "distilbert", "no segments, names of its own", dict(DISTILBERT), seq=19, kind="masked",
        unseen=("k_lin.bias",), overlooked=[{"activation": "relu"}],
    ),
    Case(
        "distilbert-model", "DistilBertModel with relu, three heads",
        dict(DISTILBERT, n_heads=3, activation="relu"), seq=21, kind="base", unseen=("k_lin.bias",),
    ),
    Case(
        "albert", "three layers of the same tensors, tables narrower than the stream", dict(ALBERT),
        seq=18, kind="masked", unseen=("attention.key.bias",),
        overlooked=[{"num_hidden_layers": 2}],
    ),
    Case(
        "albert-groups", "AlbertModel: two groups of two layers each, gelu",
        dict(ALBERT, num_hidden_layers=2, num_hidden_groups=2, inner_group_num=2, hidden_act="gelu"),
        seq=20, kind="base", unseen=("attention.key.bias",),
    ),
]
