"""The token ids that Python's `tokenizers` gives for a text, to hold ours against, one by one.

    python tokens.py MODEL TEXT OUT.u32 [--newlines keep]

MODEL is a folder with tokenizer.json, or a .gguf file. OUT gets the ids as little-endian u32, no
special tokens; the count, the ids' SHA-256 and the number of distinct ids are printed as JSON.
"""
import argparse
import hashlib

import checkpoint
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--newlines", choices=["lf", "keep"], default="lf")
    options = parser.parse_args()

    text = checkpoint.read_text(options.text, options.newlines)
    ids = checkpoint.encode(options.model, text).numpy().astype("<u4")
    ids.tofile(options.out)
    checkpoint.print_json({
        "tokens": len(ids), "distinct": len(np.unique(ids)), "newlines": options.newlines,
        "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
    })


if __name__ == "__main__":
    main()
