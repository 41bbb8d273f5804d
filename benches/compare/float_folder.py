"""Makes a Hugging Face folder in float32 from a .gguf file of the Llama family.

    python float_folder.py MODEL.gguf FOLDER

Python tools compress folders, not .gguf files, and transformers refuses to save a model that it has
read from one: it takes it for a quantized model. So the tensors move to a fresh model built from
the configuration, and the tokenizer is written by `tokenizers` itself, with the special tokens
that the file's metadata name.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "xtask" / "real"))

import checkpoint
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM


def main(source: str, folder: str) -> None:
    save_model(source, folder)
    save_tokenizer(source, Path(folder))


def save_model(source: str, folder: str) -> None:
    loaded = checkpoint.load_model(source)
    file = Path(source)
    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    config.architectures = [type(loaded).__name__]
    special = checkpoint.special_tokens(source)
    config.bos_token_id, config.eos_token_id = special["bos"], special["eos"]
    fresh = AutoModelForCausalLM.from_config(config).float()
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(folder)


def save_tokenizer(source: str, folder: Path) -> None:
    checkpoint.load_tokenizer(source).save(str(folder / "tokenizer.json"))
    fields = GGUFReader(source).fields

    def value(key: str):
        return fields[key].contents() if key in fields else None

    def token(kind: str) -> str | None:
        index = value(f"tokenizer.ggml.{kind}_token_id")
        return None if index is None else value("tokenizer.ggml.tokens")[index]

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": token("bos"),
        "eos_token": token("eos"), "pad_token": token("padding"), "unk_token": token("unknown"),
        "chat_template": value("tokenizer.chat_template"),
    }
    settings = {key: found for key, found in settings.items() if found is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: float_folder.py MODEL.gguf FOLDER")
    main(*sys.argv[1:3])
