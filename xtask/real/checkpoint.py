"""Opens a checkpoint with `transformers`: a .gguf file or a folder, plain or compressed-tensors.

Everything is computed in float32, whatever the file stores. Shared by the scripts of this folder
and of benches/compare.
"""
import functools
import json
import logging
import os
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is first imported

import torch
import transformers
from gguf import GGUFReader
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

transformers.utils.logging.disable_progress_bar()


def load_model(path: str) -> torch.nn.Module:
    """The model in float32, ready to run: a causal language model, or BertModel for the encoders.

    The packed weights of a compressed-tensors folder are decoded while loading.
    """
    folder, keywords = _locate(path)
    config = AutoConfig.from_pretrained(folder, **keywords)
    auto = AutoModel if is_encoder(config) else AutoModelForCausalLM
    if getattr(config, "quantization_config", None):
        keywords["quantization_config"] = _decoded_at_load(config.quantization_config)
    model = auto.from_pretrained(folder, dtype=torch.float32, **keywords).eval()
    narrow = [name for name, p in model.named_parameters() if p.is_floating_point()
              and p.dtype != torch.float32]
    if narrow and decodes_to_bfloat16(config):
        return model.float()
    if narrow:
        raise ValueError(f"{path}: {narrow[0]} and {len(narrow) - 1} more are not float32")
    return model


def decodes_to_bfloat16(config) -> bool:
    """Whether compressed-tensors makes bfloat16 of the layers whatever is asked for, which holds all
    numbers of MXFP4 and MXFP8, and those of NVFP4 nearly."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return False
    settings = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return str(settings.get("format", "")).startswith(("mx", "nvfp4"))


def rounding_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers whose inputs compressed-tensors rounds in every forward pass."""
    def rounds(module) -> bool:
        scheme = getattr(module, "quantization_scheme", None)
        enabled = getattr(module, "quantization_enabled", True)
        return enabled and scheme is not None and scheme.input_activations is not None

    return [module for module in model.modules() if rounds(module)]


def leave_inputs(layers: list[torch.nn.Module]) -> None:
    """Leaves the inputs of these layers floats."""
    for layer in layers:
        # Layers of one group share their scheme.
        layer.quantization_scheme = layer.quantization_scheme.model_copy(
            update={"input_activations": None}
        )


def is_encoder(config) -> bool:
    return config.model_type == "bert"


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer alone: what `tokenizer.json` says, or what a .gguf file's metadata say."""
    folder, keywords = _locate(path)
    if keywords:
        return _tokenizer_of_gguf(path)
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    # Sentence encoders keep the length their training truncated to; a text is wanted whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(path: str, text: str) -> torch.Tensor:
    """Token ids of the whole text without special tokens, I64 [tokens]."""
    ids = load_tokenizer(path).encode(text, add_special_tokens=False).ids
    return torch.tensor(ids, dtype=torch.int64)


def special_tokens(path: str) -> dict:
    """`bos` and `eos` (ids or None), and whether the tokenizer puts `bos` before a text."""
    folder, keywords = _locate(path)
    if keywords:
        return _special_tokens_of_gguf(path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = load_tokenizer(path).encode("a", add_special_tokens=True).ids[0]
    return {"bos": bos, "eos": eos, "adds_bos": bos is not None and first == bos}


def read_text(path: str, newlines: str) -> str:
    """The file's text; `lf` turns CRLF and CR into LF, as Python's text mode does, `keep` does not.

    For a file with CRLF the two differ by one token a line, and by 3 % in perplexity.
    """
    text = Path(path).read_bytes().decode("utf-8")
    if newlines == "lf":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def print_json(value: dict) -> None:
    print(json.dumps(value, indent=1))


def _locate(path: str) -> tuple[str, dict]:
    file = Path(path)
    if file.suffix == ".gguf":
        # transformers asks for the folder and the file's name in it.
        return str(file.parent), {"gguf_file": file.name}
    return str(file), {}


def _decoded_at_load(quantization):
    options = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if options.get("quant_method") != "compressed-tensors":
        raise ValueError(f"this reads compressed-tensors folders only, not {options}")
    return transformers.CompressedTensorsConfig(dequantize=True)


# How a text is cut before the merges, by the name that `tokenizer.ggml.pre` gives it.
PRE_TOKENIZERS = {
    "smollm": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]},
}


def _tokenizer_of_gguf(path: str) -> Tokenizer:
    """transformers converts vocabulary and merges, but not `tokenizer.ggml.pre`: we do."""
    folder, keywords = _locate(path)
    converted = AutoTokenizer.from_pretrained(folder, **keywords).backend_tokenizer
    name = _gguf_value(path, "tokenizer.ggml.pre")
    if name not in PRE_TOKENIZERS:
        raise ValueError(f"{path}: no rule here for the pre-tokenizer {name!r}")
    settings = json.loads(converted.to_str())
    settings["pre_tokenizer"] = PRE_TOKENIZERS[name]
    settings["normalizer"] = None
    return Tokenizer.from_str(json.dumps(settings))


def _special_tokens_of_gguf(path: str) -> dict:
    return {
        "bos": _gguf_value(path, "tokenizer.ggml.bos_token_id"),
        "eos": _gguf_value(path, "tokenizer.ggml.eos_token_id"),
        "adds_bos": bool(_gguf_value(path, "tokenizer.ggml.add_bos_token")),
    }


@functools.cache
def _gguf_fields(path: str) -> dict:
    logging.getLogger("gguf").setLevel(logging.ERROR)
    return GGUFReader(path).fields


def _gguf_value(path: str, key: str):
    field = _gguf_fields(path).get(key)
    return None if field is None else field.contents()
