"""What llama.cpp makes of awkward texts with each tokenizer of a folder, written into GGUF.

    llama_tokenizers.py LAPIDARY TOKENIZERS SCRATCH

TOKENIZERS is `testdata/golden/gguf/tokenizers`. Each `NAME.json` gets a model of zeros with as many rows
as it has tokens, which LAPIDARY converts to `SCRATCH/tokenizer-NAME-gguf`. Prints as JSON
`{name: [[token, ...], ...]}`, a list for each text, or what stood in the way. Needs llama-cpp-python.
"""
import json
import struct
import subprocess
import sys
from pathlib import Path

import llama_cpp

CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", max_position_embeddings=64,
    rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True, hidden_act="silu",
    bos_token_id=1, eos_token_id=2, torch_dtype="float16",
)


def main() -> None:
    lapidary, tokenizers, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    texts = json.loads((tokenizers / "texts.json").read_text())
    found = {}
    for name in json.loads((tokenizers / "golden.json").read_text()):
        folder, result = scratch / f"tokenizer-{name}", scratch / f"tokenizer-{name}-gguf"
        make_model(folder, tokenizers / f"{name}.json")
        command = [lapidary, "convert", folder, "--to", "gguf", "--output", result, "--quiet"]
        ran = subprocess.run(command, capture_output=True, text=True)
        found[name] = ran.stderr.strip() if ran.returncode else tokens(result, texts)
    print(json.dumps(found))


def make_model(folder: Path, tokenizer: Path, hidden=32, inner=32, layers=1, heads=2, groups=2) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer.read_text())
    definition = json.loads(tokenizer.read_text())
    ids = set(definition["model"]["vocab"].values())
    rows = max(ids | {token["id"] for token in definition["added_tokens"]}) + 1
    sizes = dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                 num_attention_heads=heads, num_key_value_heads=groups, vocab_size=rows)
    (folder / "config.json").write_text(json.dumps(CONFIG | sizes))
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    shapes = {"model.embed_tokens": [rows, hidden], "model.norm": [hidden]}
    narrow = hidden // heads * groups
    for block in (f"model.layers.{layer}." for layer in range(layers)):
        shapes |= {block + norm: [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, shape in {
            "self_attn.q": [hidden, hidden], "self_attn.k": [narrow, hidden],
            "self_attn.v": [narrow, hidden], "self_attn.o": [hidden, hidden],
            "mlp.gate": [inner, hidden], "mlp.up": [inner, hidden], "mlp.down": [hidden, inner],
        }.items():
            shapes[f"{block}{name}_proj"] = shape
    header, length = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[f"{name}.weight"] = {"dtype": "F16", "shape": shape,
                                    "data_offsets": [length, length + size]}
        length += size
    head = json.dumps(header).encode()
    data = struct.pack("<Q", len(head)) + head + bytes(length)
    (folder / "model.safetensors").write_bytes(data)


def tokens(result: Path, texts: list):
    try:
        model = llama_cpp.Llama(model_path=str(result / "model.gguf"), vocab_only=True, verbose=False)
    except ValueError as error:
        return str(error)
    return [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


if __name__ == "__main__":
    main()
