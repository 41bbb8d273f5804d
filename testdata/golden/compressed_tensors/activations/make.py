"""Makes the golden folders of layers whose inputs are rounded, with compressed-tensors (0.19).

    python make.py     # needs compressed-tensors, safetensors, torch, transformers; writes beside this

`rounded.safetensors` holds inputs (`inputs`, F32 [8, 96]) and what compressed-tensors makes of them
under each rule of CASES (by name). Each folder of FOLDERS is the tiny model `llama-untied` with its
layers quantized by range and packed by compressed-tensors, inputs rounded likewise, and in
`golden.safetensors` the `logits` that transformers computes of it in float32 for `input_ids`.
"""

import json
import pathlib

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parents[2] / "models" / "llama-untied"
INT = {"type": "int", "symmetric": True}
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
TOKEN = {"strategy": "token", "dynamic": True}
FIXED = {"strategy": "tensor", "dynamic": False}
CHANNEL = {"strategy": "channel"}

CASES = {
    "int8": INT | TOKEN | {"num_bits": 8},
    "int4": INT | TOKEN | {"num_bits": 4},
    "fp8": FLOAT | TOKEN,
    "fp8_of_16": FLOAT | {"strategy": "group", "group_size": 16, "dynamic": True},
    "int8_fixed": INT | FIXED | {"num_bits": 8},
    "fp8_fixed": FLOAT | FIXED,
}

FOLDERS = {
    "W8A8": ("int-quantized", INT | CHANNEL | {"num_bits": 8}, CASES["int8"]),
    "W4A8": ("int-quantized", INT | {"num_bits": 4, "strategy": "group", "group_size": 8}, CASES["int8"]),
    "FP8_DYNAMIC": ("float-quantized", FLOAT | CHANNEL, CASES["fp8"]),
    "FP8": ("float-quantized", FLOAT | {"strategy": "tensor"}, CASES["fp8_fixed"]),
}


def rounded(inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs under each rule; a fixed scale is that of three quarters of the largest."""
    made = {"inputs": inputs}
    for name, given in CASES.items():
        args = QuantizationArgs(**given)
        # Three dimensions, as a layer has them: batch, tokens, channels.
        value = inputs.unsqueeze(0)
        if args.dynamic:
            scale, zero = compute_dynamic_scales_and_zp(value, args, torch.nn.Identity())
        else:
            largest = 0.75 * inputs.abs().max()
            scale, zero = calculate_qparams(-largest, largest, args)
            made[f"{name}.scale"] = scale.reshape(1)
        made[name] = fake_quantize(value, scale, zero, args)[0].contiguous()
    return made


def runs(weight: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    if args.strategy == "tensor":
        return weight.reshape(1, -1)
    if args.strategy == "channel":
        return weight.unsqueeze(1)
    return weight.unflatten(-1, (-1, args.group_size))


def folder(name: str, form: str, weights: dict, inputs: dict) -> None:
    here = HERE / name
    here.mkdir(exist_ok=True)
    config = json.loads((MODEL / "config.json").read_text())
    scheme = QuantizationScheme(
        targets=["Linear"], format=form,
        weights=QuantizationArgs(**weights), input_activations=QuantizationArgs(**inputs),
    )
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": scheme.model_dump(mode="json")}, "ignore": ["lm_head"],
    }
    (here / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {}
    for tensor, value in load_file(MODEL / "model.safetensors").items():
        if not tensor.endswith("_proj.weight"):
            tensors[tensor] = value.contiguous()
            continue
        value = value.float()
        of = runs(value, scheme.weights)
        scale, zero = calculate_qparams(of.amin(-1), of.amax(-1), scheme.weights)
        scale = scale.reshape(1) if scheme.weights.strategy == "tensor" else scale
        state = {"weight": value, "weight_scale": scale, "weight_zero_point": zero}
        module = tensor.removesuffix(".weight")
        packed = BaseCompressor.get_value_from_registry(form).compress(state, scheme)
        tensors |= {f"{module}.{part}": value.contiguous() for part, value in packed.items()}
        if not scheme.input_activations.dynamic:
            # Of the size of what comes out of a norm; larger inputs are clamped.
            tensors[f"{module}.input_scale"] = torch.tensor([1.5 / 448])
    save_file(tensors, here / "model.safetensors", metadata={"format": "pt"})
    ids = load_file(MODEL / "golden.safetensors")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(
        here, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.quantization_scheme.input_activations is not None
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        layer.quantization_scheme = layer.quantization_scheme.model_copy(
            update={"input_activations": None}
        )
        # One layer alone whose inputs stay floats is seen by far.
        assert (model(input_ids=ids).logits - logits).abs().max() > 1e-3
    save_file({"input_ids": ids, "logits": logits}, here / "golden.safetensors")


if __name__ == "__main__":
    torch.manual_seed(20261124)
    # Rows of very different sizes, zeros, a row of nothing else, and ties between two integers.
    inputs = torch.randn(8, 96) * torch.logspace(-4, 3, 8).unsqueeze(1)
    inputs[torch.rand(8, 96) < 0.05] = 0.0
    inputs[3] = 0.0
    inputs[4, 0] = -127.5
    inputs[4, 1:96] = torch.arange(95) * 0.5
    save_file(rounded(inputs), HERE / "rounded.safetensors")
    for name, (form, weights, given) in FOLDERS.items():
        folder(name, form, weights, given)
