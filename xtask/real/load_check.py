"""Does `transformers` load a folder as any user would, with nothing missing and nothing left over?

    python load_check.py FOLDER [--text TEXT]

Loads configuration, tokenizer and model by the Auto classes, with no option of our own (but the type
that `verify --target transformers` asks for with NVFP4, MXFP4 and MXFP8), and runs a sentence through them. Prints what was found as JSON; the exit status is 1 unless `ok` is true:
no missing, unexpected or mismatched tensor, no warning logged or raised, finite outputs.
"""
import argparse
import logging
import sys
import warnings

import checkpoint
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

TEXT = "The lapidary cuts a stone along its grain."


class Collected(logging.Handler):
    """Keeps what transformers and compressed-tensors complain about."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {record.getMessage()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--text", default=TEXT)
    options = parser.parse_args()

    log = Collected()
    for name in ("transformers", "compressed_tensors"):
        logging.getLogger(name).addHandler(log)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        found = load(options.folder, options.text)
    # Deprecations are between the packages; a folder cannot cause or cure them.
    found["warnings"] = log.messages + [
        str(w.message) for w in raised
        if not issubclass(w.category, (DeprecationWarning, FutureWarning))
    ]
    found["ok"] = found["finite"] and not any(
        found[key] for key in ("missing", "unexpected", "mismatched", "warnings")
    )
    checkpoint.print_json(found)
    sys.exit(0 if found["ok"] else 1)


@torch.no_grad()
def load(folder: str, text: str) -> dict:
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    auto = AutoModel if checkpoint.is_encoder(config) else AutoModelForCausalLM
    options = {"dtype": torch.bfloat16} if checkpoint.decodes_to_bfloat16(config) else {}
    model, info = auto.from_pretrained(folder, output_loading_info=True, **options)
    inputs = tokenizer(text, return_tensors="pt")
    output = model.eval()(**inputs)[0]
    return {
        "config": type(config).__name__, "tokenizer": type(tokenizer).__name__,
        "model": type(model).__name__, "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": getattr(config, "quantization_config", None) is not None,
        "vocabulary": len(tokenizer), "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id,
        "input_ids": inputs["input_ids"][0].tolist(),
        "chat_template": tokenizer.chat_template is not None,
        "finite": bool(output.isfinite().all()),
        "missing": sorted(info["missing_keys"]), "unexpected": sorted(info["unexpected_keys"]),
        "mismatched": sorted(map(str, info["mismatched_keys"])),
    }


if __name__ == "__main__":
    main()
