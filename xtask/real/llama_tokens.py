"""The ids that llama.cpp makes of texts by the tokenizer in a GGUF.

    llama_tokens.py MODEL.gguf TEXTS.json

TEXTS.json is a list of texts. Prints `{"ids": [[...], ...]}`: no token is put around a text, and what is
spelled like a special token is one. Needs llama-cpp-python.
"""
import json
import sys
from pathlib import Path

import llama_cpp


def main() -> None:
    model = llama_cpp.Llama(model_path=sys.argv[1], vocab_only=True, verbose=False)
    texts = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    ids = [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    print(json.dumps({"ids": ids}))


if __name__ == "__main__":
    main()
