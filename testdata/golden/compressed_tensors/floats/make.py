"""Makes the golden folder of FP8, FP4 and one-byte layers, with compressed-tensors (0.19).

    python make.py        # needs compressed-tensors, safetensors and torch; writes beside this file

`config.json` and `model.safetensors` are a folder of one layer for each scheme, quantized and packed by
compressed-tensors with scales by range. `weights.safetensors` holds what it was made from (`{layer}`),
`decoded.safetensors` what it makes of each again (`{layer}.decoded`).
"""

import json
import pathlib

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
FP8 = {"num_bits": 8, "type": "float"}
INT8 = {"num_bits": 8, "type": "int"}
MX = {"strategy": "group", "group_size": 32, "scale_dtype": torch.uint8, "zp_dtype": torch.uint8}
E4M3 = torch.float8_e4m3fn

# Format, arguments, rows, columns, type.
CASES = [
    *[("naive-quantized", FP8 | {"strategy": "channel"}, 7, 33, dtype) for dtype in DTYPES],
    ("float-quantized", FP8 | {"strategy": "tensor"}, 5, 40, "f32"),
    ("float-quantized", FP8 | {"strategy": "block", "block_structure": [4, 16]}, 10, 40, "f32"),
    ("float-quantized", FP8 | {"strategy": "block", "block_structure": [4, 16]}, 8, 32, "bf16"),
    ("naive-quantized", FP8 | {"strategy": "group", "group_size": 16}, 6, 48, "f32"),
    ("int-quantized", INT8 | {"strategy": "channel"}, 6, 35, "f16"),
    ("int-quantized", INT8 | {"strategy": "channel", "symmetric": False}, 6, 35, "f32"),
    ("int-quantized", INT8 | {"strategy": "group", "group_size": 16}, 6, 48, "bf16"),
    ("int-quantized", INT8 | {"strategy": "group", "group_size": 16, "symmetric": False}, 4, 32, "f32"),
    ("int-quantized", {"num_bits": 4, "type": "int", "strategy": "tensor"}, 4, 32, "f32"),
    ("mxfp8-quantized", FP8 | MX, 7, 96, "f32"),
    ("mxfp8-quantized", FP8 | MX, 7, 96, "bf16"),
    ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float"} | MX, 7, 96, "f32"),
    ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float"} | MX, 7, 96, "bf16"),
    *[
        (
            "nvfp4-pack-quantized",
            {
                "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
                "scale_dtype": E4M3, "zp_dtype": E4M3,
            },
            7, 80, dtype,
        )
        for dtype in ("f32", "bf16")
    ],
]


def runs(weight: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """The elements of each group in the last dimension."""
    if args.strategy == "tensor":
        return weight.reshape(1, -1)
    if args.strategy == "channel":
        return weight.unsqueeze(1)
    if args.strategy == "block":
        rows, cols = args.block_structure
        down, right = -weight.shape[0] % rows, -weight.shape[1] % cols
        padded = torch.nn.functional.pad(weight, (0, right, 0, down))
        return padded.unflatten(0, (-1, rows)).unflatten(2, (-1, cols)).transpose(1, 2).flatten(2)
    return weight.unflatten(-1, (-1, args.group_size))


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    torch.manual_seed(20261123)
    groups, packed, decoded, weights = {}, {}, {}, {}
    for index, (form, given, rows, cols, dtype) in enumerate(CASES):
        args = QuantizationArgs(**{"symmetric": True} | given)
        name = f"layers.{index}.{form.split('-')[0]}_{args.strategy}_{dtype}"
        scheme = QuantizationScheme(targets=[name], weights=args, format=form)
        # Rows of very different sizes, some weights of zero, and a group of nothing else.
        weight = torch.randn(rows, cols) * 0.05 * torch.logspace(-2, 1, rows).unsqueeze(1)
        weight[torch.rand(rows, cols) < 0.05] = 0.0
        weight = weight.to(DTYPES[dtype])
        found = runs(weight, args)
        low, high = found.amin(-1), found.amax(-1)
        state = {"weight": weight}
        if form.startswith("nvfp4"):
            state["weight_global_scale"] = generate_gparam(weight.amin().float(), weight.amax().float())
        scale, zero = calculate_qparams(low, high, args, global_scale=state.get("weight_global_scale"))
        if args.strategy == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        state |= {"weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}
        if args.symmetric:
            state["weight_zero_point"] = torch.zeros_like(state["weight_zero_point"])
        compressor = BaseCompressor.get_value_from_registry(form)
        tensors = compressor.compress(dict(state), scheme)
        packed |= {f"{name}.{part}": tensor.contiguous() for part, tensor in tensors.items()}
        back = compressor.decompress(dict(tensors), scheme)
        decoded[f"{name}.decoded"] = back["weight"].float().contiguous()
        weights[name] = weight.contiguous()
        groups[f"group_{index}"] = scheme.model_dump(mode="json", exclude_none=True)
    quantization = {
        "quant_method": "compressed-tensors", "format": "mixed-precision",
        "quantization_status": "compressed", "config_groups": groups, "ignore": ["lm_head"],
    }
    config = {"model_type": "golden", "quantization_config": quantization}
    (here / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for file, tensors in (("model", packed), ("decoded", decoded), ("weights", weights)):
        save_file(tensors, here / f"{file}.safetensors", metadata={"format": "pt"})
