"""Cuts calibration rows out of a text, so that every tool compared reads the same ones.

    python rows.py MODEL TEXT OUT.safetensors --rows 128 --length 512

OUT holds `input_ids` I64 [rows, length]: the first rows x length tokens of the whole text's token
stream, consecutive, without special tokens. MODEL (a folder or a .gguf file) gives the tokenizer.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "xtask" / "real"))

import checkpoint
import perplexity
import torch
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--newlines", choices=["lf", "keep"], default="lf")
    options = parser.parse_args()

    tokens = checkpoint.encode(
        options.model, checkpoint.read_text(options.text, options.newlines)
    )
    rows = perplexity.cut(tokens, options.length, options.rows)
    if len(rows) < options.rows:
        sys.exit(f"{options.text} holds {len(rows)} rows of {options.length} only")
    save_file({"input_ids": torch.stack(rows)}, options.out)


if __name__ == "__main__":
    main()
