"""What llama.cpp computes for tiny models of every architecture that GGUF is written for, against the
outputs of transformers that are stored beside them.

    llama_architectures.py LAPIDARY MODELS SCRATCH NAME[:GRID]...

MODELS is `testdata/models`. Each model gets a tokenizer of as many tokens as its table has rows, is
converted by LAPIDARY, or rounded to blocks of GRID, and reads the stored tokens. Prints as JSON
`{name: difference}`: the largest difference of a logit over the spread of all, or what stood in the
way. Needs llama-cpp-python, numpy.
"""
import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import llama_cpp
import numpy as np


def main() -> None:
    lapidary, models, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    found = {}
    for wanted in sys.argv[4:]:
        name, _, grid = wanted.partition(":")
        folder = scratch / f"architecture-{name}-{grid}"
        with_tokenizer(models / name, folder)
        result = scratch / f"architecture-{name}-{grid}-gguf"
        command = [lapidary, "convert", folder, "--to", "gguf"]
        if grid:
            recipe = scratch / f"{grid}.yaml"
            recipe.write_text(f"steps: [{{method: rtn, targets: ['re:.*'], grid: {grid}}}]\nformat: gguf\n")
            command = [lapidary, "compress", folder, "--recipe", recipe]
        ran = subprocess.run([*command, "--output", result, "--quiet"], capture_output=True, text=True)
        found[wanted] = ran.stderr.strip() if ran.returncode else compare(models / name, result)
    print(json.dumps(found))


def with_tokenizer(source: Path, folder: Path) -> None:
    folder.mkdir()
    for file in source.glob("*"):
        if "golden" not in file.name and "old" not in file.name:
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    if source.name.endswith("longrope-short"):
        # No context of llama.cpp is as short as the first one of this model: the same in a longer one.
        scaling, first = config["rope_parameters"], config["original_max_position_embeddings"]
        times = config["max_position_embeddings"] / first
        scaling["attention_factor"] = math.sqrt(1 + math.log(times) / math.log(first))
        config["original_max_position_embeddings"] = 1024
        config["max_position_embeddings"] = 4096
        (folder / "config.json").write_text(json.dumps(config))
    rows = config["vocab_size"]
    tokens = [f"<|{i}|>" if i < 3 else chr(0x21 + i) for i in range(rows)]
    special = [{"id": i, "content": tokens[i], "special": True} for i in range(3)]
    (folder / "tokenizer.json").write_text(json.dumps({
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": []},
        "added_tokens": special,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }))
    named = {"bos_token": tokens[1], "eos_token": tokens[2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def compare(folder: Path, result: Path):
    golden = read_safetensors(folder / "golden.safetensors")
    worst, wanted = 0.0, golden["logits"]
    try:
        # Caches in single precision, so that nothing is rounded but sums.
        model = llama_cpp.Llama(model_path=str(result / "model.gguf"), n_ctx=64, n_batch=64,
                                logits_all=True, verbose=False, type_k=0, type_v=0)
    except ValueError as error:
        return str(error)
    for tokens, logits in zip(golden["input_ids"], wanted):
        model.reset()
        model.eval(tokens.tolist())
        have = np.array(model.scores[: len(tokens)])
        worst = max(worst, float(np.abs(have - logits).max()))
    return worst / float(wanted.std())


def read_safetensors(file: Path) -> dict:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    types = {"F32": np.float32, "I64": np.int64}
    header = json.loads(data[8 : 8 + length])
    return {
        name: np.frombuffer(data[8 + length :][slice(*info["data_offsets"])], types[info["dtype"]])
        .reshape(info["shape"])
        for name, info in header.items() if name != "__metadata__"
    }


if __name__ == "__main__":
    main()
