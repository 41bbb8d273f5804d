"""Makes the tiny random models of this folder and the outputs that `transformers` gives for them.

Each case becomes a folder: `config.json` and `model.safetensors` as `save_pretrained` writes them,
`config.old.json` (the same model in the spelling of transformers 4 and before, written here by
hand) and `golden.safetensors`, computed in float32 with eager attention:

    input_ids          I64 [batch, seq]          token_type_ids   I64 [batch, seq]      (bert)
    logits             F32 [batch, seq, vocab]   (causal and masked language models)
    last_hidden_state  F32 [batch, seq, hidden]  (encoders without a head, with pooler_output
                                                  F32 [batch, hidden] where there is one)
    hidden.{i}         F32 [batch, seq, hidden]  (one case: the residual stream after block i,
                                                  before the final norm)

The models are made so that a mistake shows: no gain is one, no bias is zero, attention is neither
flat nor saturated. `check` proves it for every case: each stored tensor, when disturbed, and each
option of the configuration that the case is about, when it is put back to its default, must move
the output by far more than the tolerance of a comparison. Whoever adds a case gets that for free.

    pip install -r ../../xtask/real/requirements.txt
    python make.py                # all cases, and README.md
    python make.py llama-gelu     # only those named; README.md is left alone
"""
import copy
import json
import shutil
import sys
import zlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

import cases
from case import Case, old_rope

HERE = Path(__file__).resolve().parent
BATCH = 2
# An output moves by at least this much when a tensor or an option is wrong; comparisons use 1e-4.
VISIBLE = 5e-4


SMALL = dict(
    vocab_size=67, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    bos_token_id=1, eos_token_id=2,
)
LLAMA = dict(SMALL, model_type="llama", rms_norm_eps=1e-5, tie_word_embeddings=False)
MISTRAL = dict(SMALL, model_type="mistral", rms_norm_eps=1e-5, sliding_window=None)
QWEN2 = dict(SMALL, model_type="qwen2", rms_norm_eps=1e-6, use_sliding_window=False,
             rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
QWEN3 = dict(QWEN2, model_type="qwen3", head_dim=12)
BERT = dict(
    model_type="bert", vocab_size=73, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=48, type_vocab_size=2, layer_norm_eps=1e-12,
    hidden_act="gelu", pad_token_id=0,
)
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 0.9,
    "beta_slow": 0.1, "original_max_position_embeddings": 32,
}
USUAL_YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "attention_factor": 1.3,
    "original_max_position_embeddings": 32,
}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}


LLAMA_CASES = [
    Case(
        "llama-tied", "grouped-query attention, tied head; hidden state after each block",
        dict(LLAMA, num_hidden_layers=3, tie_word_embeddings=True), seq=17, hidden=True,
        overlooked=[{"num_hidden_layers": 2}], old=old_rope(10000.0),
    ),
    Case(
        "llama-untied", "the head has weights of its own; one k/v head per query head, which the "
        "old configuration says by leaving `num_key_value_heads` out",
        dict(LLAMA, num_key_value_heads=4), seq=19,
        overlooked=[{"tie_word_embeddings": True}],
        old=old_rope(10000.0) | {"num_key_value_heads": None, "head_dim": None},
    ),
    Case(
        "llama-head-dim", "head_dim 12 with hidden 40 and 5 heads (q is 60 wide), one k/v head, "
        "intermediate 50",
        dict(LLAMA, hidden_size=40, num_attention_heads=5, num_key_value_heads=1, head_dim=12,
             intermediate_size=50, vocab_size=71),
        seq=23, old=old_rope(10000.0),
    ),
    Case(
        "llama-biases", "attention_bias and mlp_bias: all seven linear layers have biases",
        dict(LLAMA, attention_bias=True, mlp_bias=True), seq=21, old=old_rope(10000.0),
    ),
    Case(
        "llama-rope-llama3", "rope_type llama3 with all three branches inside head_dim 16",
        dict(LLAMA, head_dim=16, num_attention_heads=2, num_key_value_heads=1,
             rope_parameters=LLAMA3_ROPE),
        seq=40,
        overlooked=[
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            {"rope_parameters": LLAMA3_ROPE | {"factor": 4.0}},
            {"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 2.0}},
            {"rope_parameters": LLAMA3_ROPE | {"high_freq_factor": 8.0}},
            {"rope_parameters": LLAMA3_ROPE | {"original_max_position_embeddings": 127}},
        ],
        old=old_rope(10000.0, {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}),
    ),
    Case(
        "llama-rope-linear", "rope_type linear, factor 2.5; the old configuration says `type`",
        dict(LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
        seq=33,
        overlooked=[{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}],
        old=old_rope(10000.0, {"type": "linear", "factor": 2.5}),
    ),
    Case(
        "llama-rope-yarn", "rope_type yarn, kept, blended and divided pairs inside head_dim 16",
        dict(LLAMA, head_dim=16, rope_parameters=dict(YARN)), seq=40,
        overlooked=[
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            {"rope_parameters": dict(YARN, attention_factor=1.0)},
            {"rope_parameters": dict(YARN, beta_fast=32.0)},
            {"rope_parameters": dict(YARN, original_max_position_embeddings=64)},
        ],
        old=old_rope(10000.0, {"type": "yarn", "factor": 4.0, "beta_fast": 0.9, "beta_slow": 0.1,
                               "original_max_position_embeddings": 32}),
    ),
    Case(
        "llama-theta", "rope_theta 500000 and an rms_norm_eps large enough to be seen",
        dict(LLAMA, rms_norm_eps=2e-2,
             rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
        seq=29,
        overlooked=[
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            {"rms_norm_eps": 1e-6},
        ],
        old=old_rope(500000.0),
    ),
    Case(
        "llama-gelu", "hidden_act gelu (by the error function)",
        dict(LLAMA, hidden_act="gelu"), seq=17,
        overlooked=[{"hidden_act": "silu"}, {"hidden_act": "gelu_pytorch_tanh"}],
        old=old_rope(10000.0),
    ),
    Case(
        "llama-gelu-tanh", "hidden_act gelu_pytorch_tanh",
        dict(LLAMA, hidden_act="gelu_pytorch_tanh"), seq=17,
        overlooked=[{"hidden_act": "silu"}, {"hidden_act": "gelu"}], old=old_rope(10000.0),
    ),
    Case(
        "llama-bf16", "stored in bfloat16; outputs are of the weights widened to float32",
        dict(LLAMA, hidden_size=48, intermediate_size=88, vocab_size=97, num_attention_heads=6,
             num_key_value_heads=2),
        seq=24, dtype=torch.bfloat16, old=old_rope(10000.0),
    ),
    Case(
        "llama-sharded", "several shards and an index",
        dict(LLAMA, num_hidden_layers=3), seq=18, shard="32KB", old=old_rope(10000.0),
    ),
]
MISTRAL_CASES = [
    Case(
        "mistral", "no sliding window (null); the old configuration has no head_dim",
        dict(MISTRAL, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}), seq=20,
        overlooked=[{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}],
        old=old_rope(1000000.0) | {"head_dim": None},
    ),
    Case(
        "mistral-sliding", "a sliding window of 7 tokens in every layer, rows of 31",
        dict(MISTRAL, sliding_window=7), seq=31,
        overlooked=[{"sliding_window": None}, {"sliding_window": 6}, {"sliding_window": 8}],
        old=old_rope(10000.0),
    ),
    Case(
        "mistral-head-dim-f16", "head_dim 20 given (q is 60 wide, hidden 48); stored in float16",
        dict(MISTRAL, hidden_size=48, num_attention_heads=3, num_key_value_heads=1, head_dim=20,
             intermediate_size=72),
        seq=22, dtype=torch.float16, old=old_rope(10000.0),
    ),
]
QWEN_CASES = [
    Case(
        "qwen2-tied", "biases on q, k and v only; tied head; the old configuration has a "
        "sliding_window that use_sliding_window switches off",
        dict(QWEN2, tie_word_embeddings=True), seq=20,
        old=old_rope(1000000.0)
        | {"sliding_window": 4, "max_window_layers": 0, "layer_types": None},
    ),
    Case(
        "qwen2-untied", "odd widths: hidden 42, 3 heads of 14, intermediate 50",
        dict(QWEN2, hidden_size=42, num_attention_heads=3, num_key_value_heads=1,
             intermediate_size=50, vocab_size=79, tie_word_embeddings=False),
        seq=26, overlooked=[{"tie_word_embeddings": True}], old=old_rope(1000000.0),
    ),
    Case(
        "qwen2-sliding", "use_sliding_window from layer 1 on (max_window_layers 1), window 6; the "
        "old configuration has no layer_types",
        dict(QWEN2, num_hidden_layers=3, use_sliding_window=True, sliding_window=6,
             max_window_layers=1),
        seq=28,
        overlooked=[
            {"use_sliding_window": False}, {"max_window_layers": 0}, {"max_window_layers": 2},
            {"sliding_window": 5},
        ],
        old=old_rope(1000000.0) | {"layer_types": None},
    ),
    Case(
        "qwen3", "q_norm and k_norm per head, head_dim 12 (q is 48 wide, hidden 32), tied",
        dict(QWEN3, tie_word_embeddings=True), seq=24, old=old_rope(1000000.0),
    ),
    Case(
        "qwen3-yarn", "yarn with the usual betas, and an attention_factor of its own",
        dict(QWEN3, head_dim=16, tie_word_embeddings=True, rope_parameters=dict(USUAL_YARN)),
        seq=40,
        overlooked=[
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            {"rope_parameters": dict(USUAL_YARN, attention_factor=None)},
            {"rope_parameters": dict(USUAL_YARN, original_max_position_embeddings=64)},
        ],
        old=old_rope(10000.0, {"type": "yarn", "factor": 4.0, "attention_factor": 1.3,
                               "original_max_position_embeddings": 32}),
    ),
    Case(
        "qwen3-biases", "attention_bias: q, k, v and o have biases; untied",
        dict(QWEN3, attention_bias=True, rms_norm_eps=1e-2), seq=25,
        overlooked=[{"rms_norm_eps": 1e-6}], old=old_rope(1000000.0),
    ),
]
BERT_CASES = [
    Case(
        "bert-model", "BertModel: post-norm, token types, a pooler that the output does not use",
        dict(BERT), seq=24, kind="base", overlooked=[{"hidden_act": "gelu_new"}],
    ),
    Case(
        "bert-masked-lm", "BertForMaskedLM: decoder tied to the embedding, with its own bias",
        dict(BERT), seq=21, kind="masked", overlooked=[{"hidden_act": "gelu_new"}],
    ),
    Case(
        "bert-relu", "BertModel with relu, 3 heads of 11, intermediate 47, three token types and "
        "a layer_norm_eps large enough to be seen",
        dict(BERT, hidden_size=33, num_attention_heads=3, intermediate_size=47, hidden_act="relu",
             type_vocab_size=3, layer_norm_eps=1e-2),
        seq=27, kind="base", overlooked=[{"layer_norm_eps": 1e-12}],
    ),
    Case(
        "bert-gelu-new", "BertForMaskedLM with gelu_new, which the head's transform uses too",
        dict(BERT, hidden_size=30, num_attention_heads=5, intermediate_size=50,
             hidden_act="gelu_new"),
        seq=19, kind="masked", overlooked=[{"hidden_act": "gelu"}],
    ),
]
CASES = LLAMA_CASES + MISTRAL_CASES + QWEN_CASES + BERT_CASES + cases.DECODERS + cases.OTHERS


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    wanted = sys.argv[1:]
    unknown = set(wanted) - {case.name for case in CASES}
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}")
    rows = [make(case) for case in CASES if not wanted or case.name in wanted]
    if not wanted:
        write_readme(rows)


def make(case: Case) -> dict:
    """Writes one folder; returns its line of the table."""
    folder = HERE / case.name
    shutil.rmtree(folder, ignore_errors=True)
    model = build(case.kind, make_config(case.config))
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    randomize(model, generator, case.dtype)
    inputs = make_inputs(case, generator)
    # A copy is narrowed: casting the model itself there and back would round its RoPE frequencies.
    narrow = copy.deepcopy(model).to(case.dtype)
    narrow.save_pretrained(folder, max_shard_size=case.shard or "1GB",
                           save_original_format=not case.as_held)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_old_config(case, folder)

    golden = run(model, case.kind, inputs)
    if case.hidden:
        golden |= hidden_states(model, inputs)
    save_file(inputs | golden, folder / "golden.safetensors",
              metadata={"made_with": f"transformers {transformers.__version__}, float32, eager"})
    return check(case, folder, model, inputs, golden)


def make_config(options: dict):
    options = json.loads(json.dumps(options))
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def build(kind: str, config):
    auto = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "base": AutoModel}
    model = auto[kind].from_config(config)
    assert model.config._attn_implementation == "eager"
    return model.eval().float()


def randomize(model, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Fills every parameter so that it matters; values are those that `dtype` can hold."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                value = 0.4 * noise
            elif "norm" in name.lower() or ".ln_" in name:
                value = 0.5 + 1.2 * torch.rand(parameter.shape, generator=generator)
            elif "embed" in name or "lm_head" in name:
                # A tied head reads these rows too: logits of about unit spread.
                value = 1.3 * noise / parameter.shape[-1] ** 0.5
            elif any(part in name for part in ("q_proj", "k_proj", "query", "key")):
                value = 1.5 * noise / parameter.shape[-1] ** 0.5
            else:
                value = 1.5 * noise / parameter.shape[-1] ** 0.5
            parameter.copy_(value.to(dtype).float())


def make_inputs(case: Case, generator: torch.Generator) -> dict:
    shape = (BATCH, case.seq)
    inputs = {"input_ids": torch.randint(3, case.config["vocab_size"], shape, generator=generator)}
    if case.kind != "causal" and "type_vocab_size" in case.config:
        kinds = case.config["type_vocab_size"]
        inputs["token_type_ids"] = torch.randint(0, kinds, shape, generator=generator)
    return inputs


def write_old_config(case: Case, folder: Path) -> None:
    """The same model as transformers 4 and before would have written it."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in case.old.items():
        if value is None and key != "rope_scaling":
            config.pop(key, None)
        else:
            config[key] = value
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    (folder / "config.old.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def run(model, kind: str, inputs: dict) -> dict:
    """The outputs that are kept, contiguous and in the model's own precision."""
    output = model(**inputs, **({"use_cache": False} if kind == "causal" else {}))
    if kind == "base":
        names = ("last_hidden_state", "pooler_output")
        kept = {name: output[name] for name in names if output.get(name) is not None}
    else:
        kept = {"logits": output.logits}
    return {name: tensor.contiguous() for name, tensor in kept.items()}


@torch.no_grad()
def hidden_states(model, inputs: dict) -> dict:
    """The residual stream after each block, before the final norm."""
    found = {}
    hooks = [
        layer.register_forward_hook(
            lambda _module, _inputs, output, i=i: found.update({f"hidden.{i}": output.clone()})
        )
        for i, layer in enumerate(model.model.layers)
    ]
    model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def check(case: Case, folder: Path, model, inputs: dict, golden: dict) -> dict:
    """Holds the folder to what this file's first lines say, and returns its line of the table."""
    main_name = "last_hidden_state" if case.kind == "base" else "logits"
    target = golden[main_name]
    state = load_folder(folder)
    assert all(tensor.dtype == case.dtype for tensor in state.values())
    if set(state) != stored_names(model):
        # Held under other names, or together, than they are stored: loading undoes it.
        loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager",
                                                      experts_implementation="eager").float()
        assert torch.equal(run(loaded.eval(), case.kind, inputs)[main_name], target)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    for name in ("config.json", "config.old.json"):
        loaded = rebuild(case, json.loads((folder / name).read_text()), state)
        again = run(loaded, case.kind, inputs)[main_name]
        assert torch.equal(again, target), f"{case.name}: {name} gives other outputs"
    for options in case.overlooked:
        moved = distance(rebuild(case, case.config | options, state), case, inputs, target)
        assert moved > VISIBLE, f"{case.name}: {options} moves the output by {moved:.1e} only"
    weakest = least_visible_tensor(case, model, inputs, target)

    exact = run(model.double(), case.kind, inputs)[main_name]
    spread = target.std().item()
    assert 0.5 < spread < 3.0, f"{case.name}: outputs spread by {spread}"
    return {
        "case": case, "spread": spread, "weakest": weakest,
        "rounding": (exact - target).abs().max().item(),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }


def load_folder(folder: Path) -> dict:
    state = {}
    for file in sorted(folder.glob("model*.safetensors")):
        state |= load_file(file)
    return state


def stored_names(model) -> set:
    """A tied tensor is stored once, under its first name."""
    return {name for name, _ in model.named_parameters()}


def rebuild(case: Case, options: dict, state: dict):
    """The model that a reader of `options` would build from the stored tensors."""
    noise = {"architectures", "transformers_version", "torch_dtype", "dtype"}
    config = make_config({k: v for k, v in options.items() if k not in noise})
    model = build(case.kind, config)
    known = model.state_dict()
    tensors = {name: tensor.float() for name, tensor in state.items() if name in known}
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    return model


def distance(model, case: Case, inputs: dict, target: torch.Tensor) -> float:
    output = run(model, case.kind, inputs)
    return (output.get("logits", output.get("last_hidden_state")) - target).abs().max().item()


def least_visible_tensor(case: Case, model, inputs: dict, target: torch.Tensor) -> float:
    """The smallest effect on the output of leaving one tensor out (all zeros, or ones for a gain).

    A key bias of BERT shifts all scores of a query alike, so that softmax does not see it, and the
    pooler feeds another output: neither is asked for.
    """
    effects = {}
    for name, parameter in model.named_parameters():
        if name.endswith("self.key.bias") or name.startswith("pooler."):
            continue
        if any(name.endswith(end) for end in case.unseen):
            continue
        kept = parameter.detach().clone()
        neutral = torch.ones_like if "norm.weight" in name.lower() else torch.zeros_like
        parameter.data = neutral(kept)
        effects[name] = distance(model, case, inputs, target)
        parameter.data = kept
    name, effect = min(effects.items(), key=lambda item: item[1])
    assert effect > VISIBLE, f"{case.name}: nobody would miss {name} ({effect:.1e})"
    return effect


def write_readme(rows: list) -> None:
    versions = f"transformers {transformers.__version__} and torch {torch.__version__}"
    lines = [
        "# Tiny random models, with what `transformers` makes of them",
        "",
        f"Made by `make.py` with {versions}: float32, eager attention, batch {BATCH}.",
        "Its first lines say what each file holds. Every folder has the configuration twice:",
        "`config.json` as transformers 5 writes it, `config.old.json` as version 4 did; both",
        "describe the same model.",
        "",
        "- *spread*: standard deviation of the output.",
        "- *weakest*: how far the output moves at least when any one tensor is left out.",
        "- *rounding*: how far it moves when the matrix products are done in float64, so what no",
        "  implementation can promise to stay below.",
        "",
        "| case | what is odd | tensors | parameters | seq | spread | weakest | rounding | KB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        case = row["case"]
        lines.append(
            f"| {case.name} | {case.about} | {str(case.dtype).removeprefix('torch.')} "
            f"| {row['parameters']:,} | {case.seq} | {row['spread']:.2f} | {row['weakest']:.3f} "
            f"| {row['rounding']:.1e} | {row['bytes'] / 1000:.0f} |"
        )
    (HERE / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
