"""Decodes every compressed layer of a folder by the package that the folder is for.

    python loaders.py FOLDER OUT.safetensors

Writes `{module}.weight` in float32 and prints as JSON which package decoded how many layers:

- gptq: GPTQModel's TorchLinear, converted from the first version where the folder is of that.
- awq: GPTQModel's dequantize_gemm.
- bitsandbytes: QuantState.from_dict and dequantize_4bit, or int8_vectorwise_dequant.
- hqq: HQQLinear.load_state_dict and dequantize.
- bitnet: transformers' own loading of the whole model, and the layers' weights and scales.
- mlx: mlx.core.dequantize.
"""
import contextlib
import json
import pathlib
import re
import sys

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    folder, out = pathlib.Path(sys.argv[1]), sys.argv[2]
    config = json.loads((folder / "config.json").read_text())
    quantization = config["quantization_config"]
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    method = quantization.get("quant_method", "mlx")
    # What the packages have to say is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        loader, decoded = LOADERS[method](folder, quantization, tensors)
    weights = {f"{name}.weight": value.float().contiguous() for name, value in decoded.items()}
    save_file(weights, out)
    print(json.dumps({"loader": loader, "layers": len(weights)}))


def modules(tensors: dict, part: str) -> list[str]:
    return [name.removesuffix(part) for name in tensors if name.endswith(part)]


def gptq(_folder, quantization, tensors):
    import gptqmodel
    from types import SimpleNamespace

    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import dynamic_get
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    decoded = {}
    for name in modules(tensors, ".qweight"):
        setting = lambda key: dynamic_get(quantization.get("dynamic"), name, key, quantization[key])
        state = {key: tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx")}
        layer = TorchLinear(bits=setting("bits"), group_size=setting("group_size"), sym=setting("sym"),
                            desc_act=False, in_features=len(state["g_idx"]),
                            out_features=state["scales"].shape[1], bias=False)
        layer.load_state_dict(state)
        if quantization["checkpoint_format"] == "gptq":
            convert_gptq_v1_to_v2_format_module(layer, setting("bits"), torch.int32)
        layer.post_init()
        decoded[name] = layer.dequantize_weight().T
    return f"gptqmodel {gptqmodel.__version__}", decoded


def awq(_folder, quantization, tensors):
    import gptqmodel
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    decoded = {}
    for name in modules(tensors, ".qweight"):
        packed = [tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales")]
        size = quantization["group_size"]
        size = size if size > 0 else packed[0].shape[0]
        decoded[name] = dequantize_gemm(*packed, quantization["bits"], size).T
    return f"gptqmodel {gptqmodel.__version__}", decoded


def bitsandbytes(_folder, _quantization, tensors):
    import bitsandbytes as package
    from bitsandbytes import functional

    decoded = {}
    for name in tensors:
        if found := re.fullmatch(r"(.*)\.weight\.quant_state\.bitsandbytes__(nf4|fp4)", name):
            module = found[1]
            own = {key.removeprefix(f"{module}.weight."): value for key, value in tensors.items()
                   if key.startswith(f"{module}.weight.")}
            state = functional.QuantState.from_dict(own, device=torch.device("cpu"))
            # Decoded in float32, so that nothing is rounded but what is stored.
            state.dtype = torch.float32
            decoded[module] = functional.dequantize_4bit(tensors[f"{module}.weight"], state)
        elif name.endswith(".SCB"):
            module = name.removesuffix(".SCB")
            decoded[module] = functional.int8_vectorwise_dequant(
                tensors[f"{module}.weight"], tensors[name])
    return f"bitsandbytes {package.__version__}", decoded


def hqq(_folder, _quantization, tensors):
    import hqq as package
    from hqq.core.quantize import HQQLinear

    decoded = {}
    for name in modules(tensors, ".W_q"):
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items()
               if key.startswith(f"{name}.") and not key.endswith(".bias")}
        layer = HQQLinear(None, None, compute_dtype=torch.float32, device="cpu")
        layer.load_state_dict(own)
        layer.meta["compute_dtype"] = torch.float32
        layer.meta["scale"], layer.meta["zero"] = layer.meta["scale"].float(), layer.meta["zero"].float()
        decoded[name] = layer.dequantize()
    return f"hqq {package.__version__}", decoded


def bitnet(folder, _quantization, tensors):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = dict(model.named_modules())
    decoded = {}
    for name in modules(tensors, ".weight_scale"):
        layer = layers[name]
        decoded[name] = layer.weight.detach().float() * layer.weight_scale.float()
    return f"transformers {transformers.__version__}", decoded


def mlx(_folder, quantization, tensors):
    import mlx.core as mx
    from importlib.metadata import version

    array = lambda tensor: mx.array(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
    decoded = {}
    for name in modules(tensors, ".scales"):
        setting = quantization.get(name, quantization)
        packed = [array(tensors[f"{name}.{key}"]) for key in ("weight", "scales", "biases")]
        value = mx.dequantize(*packed, group_size=setting["group_size"], bits=setting["bits"])
        decoded[name] = torch.tensor(value.tolist())
    return f"mlx {version('mlx')}", decoded


LOADERS = {"gptq": gptq, "awq": awq, "bitsandbytes": bitsandbytes, "hqq": hqq, "bitnet": bitnet, "mlx": mlx}


if __name__ == "__main__":
    with torch.no_grad():
        main()
