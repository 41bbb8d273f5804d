"""Writes a random Llama of SmolLM2's widths and any number of layers, to measure memory on.

    python random_model.py FOLDER --layers 120 --rows 8 --length 128

FOLDER gets config.json and float16 weights in shards of 30 layers; beside it
FOLDER.rows.safetensors gets calibration rows, `input_ids` I64 [rows, length], since such a model
has no tokenizer.
"""
import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SEED = 20261122
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 576, 1536, 9, 3, 64, 1024
SHARD_LAYERS = 30
QUERIES, KEYS = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
LINEAR = {
    "self_attn.q_proj": (QUERIES, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN), "self_attn.o_proj": (HIDDEN, QUERIES),
    "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    write_config(options.folder, options.layers)
    size = write_weights(options.folder, options.layers, rng)
    ids = rng.integers(0, VOCABULARY, (options.rows, options.length))
    rows = options.folder.with_name(f"{options.folder.name}.rows.safetensors")
    save_file({"input_ids": ids}, rows)
    print(json.dumps({"folder": str(options.folder), "layers": options.layers, "bytes": size}))


def write_config(folder: Path, layers: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float16",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def write_weights(folder: Path, layers: int, rng: np.random.Generator) -> int:
    """Shard by shard, so that no more than one is in memory. Returns the bytes of all."""
    starts = range(0, layers, SHARD_LAYERS)
    where, size = {}, 0
    for number, start in enumerate(starts):
        tensors = shard(start, min(start + SHARD_LAYERS, layers), rng)
        name = f"model-{number + 1:05}-of-{len(starts):05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return size


def shard(start: int, end: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    tensors = {}
    if start == 0:
        tensors["model.embed_tokens.weight"] = normal(rng, VOCABULARY, HIDDEN)
        tensors["model.norm.weight"] = np.ones(HIDDEN, np.float16)
    for layer in range(start, end):
        block = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{norm}.weight"] = np.ones(HIDDEN, np.float16)
        for name, shape in LINEAR.items():
            tensors[f"{block}.{name}.weight"] = normal(rng, *shape)
    return tensors


def normal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return (rng.standard_normal((rows, columns), np.float32) / columns**0.5).astype(np.float16)


if __name__ == "__main__":
    main()
