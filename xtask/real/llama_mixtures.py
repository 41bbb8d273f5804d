"""Whether a file that llama.cpp's quantizer made is called by us as it calls it.

    llama_mixtures.py LAPIDARY TOKENIZER SCRATCH

Models of zeros, with TOKENIZER, of widths that blocks of 256 divide everywhere, in one layer or nowhere,
are quantized by llama.cpp to each mixture, and converted by LAPIDARY, which keeps the blocks. Prints as
JSON `{case: [wanted, found]}` of `general.file_type`. Needs llama-cpp-python, gguf.
"""
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import gguf
import llama_cpp
from llama_tokenizers import make_model

MIXTURES = [1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 25, 30]
SHAPES = {
    "divided": dict(hidden=512, inner=1024, layers=16, heads=4, groups=2),
    "as-smollm2": dict(hidden=192, inner=512, layers=30, heads=3, groups=1),
    "shared": dict(hidden=256, inner=512, layers=16, heads=8, groups=2),
}


def main() -> None:
    lapidary, tokenizer, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    found = {}
    for name, sizes in SHAPES.items():
        folder = scratch / f"mixture-{name}"
        make_model(folder, tokenizer, **sizes)
        plain = convert(lapidary, folder, scratch / f"mixture-{name}-plain")
        for number in MIXTURES:
            if (name, number) == ("as-smollm2", 11):
                continue  # The same file as 10: what tells them apart falls back.
            theirs = scratch / f"{name}-{number}.gguf"
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = number
            paths = [str(path).encode() for path in (plain, theirs)]
            assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) == 0
            ours = convert(lapidary, theirs, scratch / f"mixture-{name}-{number}")
            found[f"{name}, {number}"] = [file_type(theirs), file_type(ours)]
    print(json.dumps(found))


def convert(lapidary: str, model: Path, result: Path) -> Path:
    command = [lapidary, "convert", model, "--to", "gguf", "--output", result, "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    return result / "model.gguf"


def file_type(file: Path) -> int:
    return int(gguf.GGUFReader(file).fields["general.file_type"].contents())


if __name__ == "__main__":
    main()
