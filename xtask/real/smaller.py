"""Are models that were cut smaller the same in `transformers` as the whole ones with what is gone left out?

    python smaller.py NAME=WHOLE:CUT ...

Loads each cut folder by the Auto classes with nothing missing and nothing left over. Of the whole model,
in torch, the layers that `structure.json` says are gone are taken out, and the columns of the layers that
read what is gone are zero. Prints for each name the largest difference of an output over the spread of
all, or what went wrong.
"""
import json
import sys
from pathlib import Path

import checkpoint
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


def main() -> None:
    found = {}
    for argument in sys.argv[1:]:
        name, folders = argument.split("=", 1)
        try:
            found[name] = compare(*folders.split(":"))
        except Exception as error:  # noqa: BLE001: what went wrong is the result
            found[name] = f"{type(error).__name__}: {error}"
    checkpoint.print_json(found)


@torch.no_grad()
def compare(whole: str, cut: str) -> float:
    whole_model, cut_model = load(whole), load(cut)
    for record in json.loads((Path(cut) / "structure.json").read_text()):
        leave_out(whole_model, record["cut"])
    size = whole_model.config.vocab_size
    ids = (torch.arange(24) * 7 + 3).remainder(size).reshape(2, 12)
    wanted, have = (model(ids, use_cache=False)[0] if not is_encoder(model.config)
                    else model(ids)[0] for model in (whole_model, cut_model))
    spread = (wanted.max() - wanted.min()).item()
    return ((wanted - have).abs().max() / spread).item()


def load(folder: str):
    config = AutoConfig.from_pretrained(folder)
    auto = AutoModel if is_encoder(config) else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        wrong = [str(one) for one in info[key] if "rotary" not in str(one)]
        # An encoder's own head is no part of what is compared.
        wrong = [one for one in wrong if not (is_encoder(config) and "pooler" in one)]
        if wrong:
            raise ValueError(f"{folder}: {key}: {wrong[:3]}")
    return model.eval()


def is_encoder(config) -> bool:
    return not config.architectures[0].endswith(("ForCausalLM", "LMHeadModel"))


def layers(model):
    """The list of the model's layers, and what their names begin with."""
    lists = [(name, module) for name, module in model.named_modules()
             if isinstance(module, torch.nn.ModuleList) and "." not in name.removeprefix("model.")
             or name in ("encoder.layer", "transformer.h", "transformer.layer", "gpt_neox.layers",
                         "model.decoder.layers")]
    return max(lists, key=lambda found: len(found[1]))


def leave_out(model, cut: dict) -> None:
    if "blocks" in cut:
        name, every = layers(model)
        parent = model.get_submodule(name.rpartition(".")[0]) if "." in name else model
        kept = torch.nn.ModuleList(every[index] for index in cut["blocks"])
        setattr(parent, name.rpartition(".")[2], kept)
        for key in ("layer_types", "no_rope_layers"):
            values = getattr(model.config, key, None)
            if values is not None:
                setattr(model.config, key, [values[index] for index in cut["blocks"]])
        model.config.num_hidden_layers = len(kept)
    for units in cut.get("units", []):
        if units["kind"] == "key-heads":
            continue  # Their query heads are gone too.
        reader = next(module for name, module in model.named_modules()
                      if name == units["reader"] or name.endswith("." + units["reader"])
                      or units["reader"].endswith("." + name) and name)
        columns = reader.weight if isinstance(reader, Conv1D) else reader.weight.T
        width = 1
        if units["kind"] == "query-heads":
            config = model.config
            width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        gone = set(range(columns.shape[0] // width)) - set(units["kept"])
        for unit in gone:
            columns[unit * width:(unit + 1) * width] = 0


if __name__ == "__main__":
    main()
