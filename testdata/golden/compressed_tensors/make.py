"""Makes the golden folder of packed layers, with compressed-tensors (0.19).

    python make.py        # needs compressed-tensors, safetensors and torch; writes beside this file

`config.json` and `model.safetensors` are a folder of one layer for each scheme, quantized and packed
by compressed-tensors. `decoded.safetensors` holds what it makes of each again: `{layer}.decoded`, in
the type of the scales.
"""

import json
import pathlib

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}

# Bits, symmetric, strategy, columns of a group, rows, columns, type.
CASES = [
    *[(bits, True, "group", 32, 5, 96, "f16") for bits in range(2, 9)],
    *[(bits, False, "group", 16, 7, 48, "f16") for bits in range(2, 9)],
    *[(bits, False, "channel", None, 37, 51, "f32") for bits in (3, 4, 5)],
    (4, True, "channel", None, 3, 70, "bf16"),
    (4, False, "group", 64, 9, 128, "bf16"),
    (8, True, "tensor", None, 4, 33, "f32"),
    (3, True, "group", 7, 2, 49, "f32"),
]


def scales(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each row, group or of all, from least to greatest value."""
    if args.strategy == "tensor":
        runs = weight.reshape(1, -1)
    elif args.strategy == "group":
        runs = weight.unflatten(-1, (-1, args.group_size))
    else:
        runs = weight.unsqueeze(1)
    scale, zero = calculate_qparams(runs.amin(-1), runs.amax(-1), args)
    shape = (1,) if args.strategy == "tensor" else scale.shape
    return scale.reshape(shape), zero.reshape(shape).to(torch.int8)


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    torch.manual_seed(20261122)
    groups, packed, decoded = {}, {}, {}
    for index, (bits, symmetric, strategy, group, rows, cols, dtype) in enumerate(CASES):
        kind = "symmetric" if symmetric else "asymmetric"
        name = f"layers.{index}.{strategy}_{bits}_{kind}_{dtype}"
        args = QuantizationArgs(
            num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, group_size=group
        )
        scheme = QuantizationScheme(targets=[name], weights=args, format="pack-quantized")
        weight = (torch.randn(rows, cols) * 0.05).to(DTYPES[dtype])
        scale, zero = scales(weight, args)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        tensors = PackedQuantizationCompressor.compress(state, scheme)
        packed |= {f"{name}.{part}": tensor.contiguous() for part, tensor in tensors.items()}
        back = PackedQuantizationCompressor.decompress(dict(tensors), scheme)
        decoded[f"{name}.decoded"] = back["weight"].contiguous()
        groups[f"group_{index}"] = scheme.model_dump(mode="json")
    quantization = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "config_groups": groups, "ignore": ["lm_head"],
    }
    config = {"model_type": "golden", "quantization_config": quantization}
    (here / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(packed, here / "model.safetensors", metadata={"format": "pt"})
    save_file(decoded, here / "decoded.safetensors", metadata={"format": "pt"})
