"""Makes golden layers of the folder formats, each by the package that defines its format.

    python make.py gptq|awq|bitsandbytes|hqq|bitnet|mlx     # writes the folder of that name beside this file

gptq 7.7: GPTQModel's TorchLinear, packed and dequantized, and its conversion to the first version.
awq: auto-round 0.15's copy of AutoAWQ's WQLinear_GEMM, and its dequantize_gemm.
bitsandbytes 0.50: quantize_4bit, QuantState.as_dict, int8_vectorwise_quant, and their inverses.
hqq 0.2.8: HQQLinear.state_dict and dequantize. bitnet: transformers.integrations.bitnet.
mlx 0.32: mlx.core.quantize and dequantize (mlx-cpu).

`model.safetensors` with `config.json` is the folder; `decoded.safetensors` has what each layer decodes
to by the package, as `{layer}.decoded`.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent


def save(name: str, quantization: dict, tensors: dict, decoded: dict, more: dict | None = None) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    config = {"model_type": "test", "quantization_config": quantization, **(more or {})}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    keep = lambda group: {key: value.contiguous() for key, value in group.items()}
    save_file(keep(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    save_file(keep({f"{k}.decoded": v for k, v in decoded.items()}), folder / "decoded.safetensors")


def gptq() -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import FORMAT
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    for version, form in (("gptq", FORMAT.GPTQ), ("gptq_v2", FORMAT.GPTQ_V2)):
        tensors, decoded, dynamic = {}, {}, {}
        cases = [(bits, group, symmetric, False) for bits in (2, 3, 4, 8) for group in (32, -1)
                 for symmetric in (True, False)]
        for bits, group, symmetric, act_order in [*cases, (4, 32, True, True), (4, 16, False, True)]:
            width = group if group > 0 else 64
            name = f"layers.{bits}_{width}_{'sym' if symmetric else 'asym'}_{'desc' if act_order else 'plain'}"
            layer = torch.nn.Linear(64, 32, bias=False)
            index = torch.arange(64, dtype=torch.int32) // width
            if act_order:
                index = index[torch.randperm(64)]
            groups = 64 // width
            scale = (torch.rand(32, groups) * 0.02 + 0.001).half()
            # The first version loses a zero of 0.
            zero = torch.randint(1, 2**bits, (32, groups))
            if symmetric:
                zero[:] = 2 ** (bits - 1)
            codes = torch.randint(0, 2**bits, (32, 64))
            gather = index.long()
            layer.weight.data = (codes - zero[:, gather]).float() * scale[:, gather].float()
            packed = TorchLinear(bits=bits, group_size=group, sym=symmetric, desc_act=act_order,
                                 in_features=64, out_features=32, bias=False)
            packed.pack(layer, scale, zero.float(), index)
            packed.post_init()
            decoded[name] = packed.dequantize_weight().T.float()
            want = layer.weight.data
            assert (decoded[name] - want).abs().max() < 1e-3 * want.abs().max(), name
            # In float32 the product is exact; its own is rounded to float16.
            assert torch.equal(decoded[name].half(), want.half()), name
            decoded[name] = want
            if form == FORMAT.GPTQ:
                from types import SimpleNamespace
                settings = SimpleNamespace(bits=bits, pack_dtype=torch.int32, format=None)
                convert_gptq_v2_to_v1_format_module(packed, settings)
            for key in ("qweight", "qzeros", "scales", "g_idx"):
                tensors[f"{name}.{key}"] = getattr(packed, key).clone()
            if (bits, group, symmetric) != (4, 32, True):
                fields = {"bits": bits, "group_size": group, "sym": symmetric}
                dynamic[f"+:^{name}$".replace(".", "\\.")] = fields
        config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": True,
                  "checkpoint_format": version, "dynamic": dynamic}
        save(version, config, tensors, decoded)


def awq() -> None:
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm

    tensors, decoded = {}, {}
    for rows, cols in ((24, 64), (8, 96)):
        name = f"layers.{rows}"
        layer = torch.nn.Linear(cols, rows, bias=False)
        scale = (torch.rand(cols // 32, rows) * 0.02 + 0.001).half()
        zero = torch.randint(0, 16, (cols // 32, rows))
        codes = torch.randint(0, 16, (cols, rows))
        spread = lambda values: values.repeat_interleave(32, 0)
        layer.weight.data = ((codes - spread(zero)).float() * spread(scale).float()).T.contiguous()
        packed = WQLinear_GEMM.from_linear(layer, 4, 32, scales=scale.float(), zeros=zero)
        tensors |= {f"{name}.{key}": getattr(packed, key) for key in ("qweight", "qzeros", "scales")}
        decoded[name] = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, 32).T
        assert torch.equal(decoded[name], layer.weight.data), name
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    save("awq", config, tensors, decoded)


def bitsandbytes() -> None:
    import bitsandbytes.functional as functional
    from bitsandbytes.backends.default import ops

    tensors, decoded = {}, {}
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            for shape, block in (((6, 128), 64), ((5, 96), 64), ((40, 512), 64)):
                name = f"layers.{kind}_{'nested' if nested else 'plain'}_{shape[1]}"
                weight = torch.randn(shape) * 0.05
                packed, state = functional.quantize_4bit(
                    weight, blocksize=block, compress_statistics=nested, quant_type=kind)
                tensors[f"{name}.weight"] = packed
                for key, value in state.as_dict(packed=True).items():
                    tensors[f"{name}.weight.{key}"] = value
                scales = state.absmax
                if nested:
                    scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
                # The portable implementation: that for processors takes other scales where a block
                # runs across the end of a row.
                decoded[name] = ops._dequantize_4bit_compute(
                    packed.flatten(), scales, state.code, block, shape, torch.float32)
    for rows, cols in ((5, 33), (16, 64)):
        name = f"layers.int8_{cols}"
        codes, magnitudes, _ = functional.int8_vectorwise_quant((torch.randn(rows, cols) * 0.05).half())
        tensors |= {f"{name}.weight": codes, f"{name}.SCB": magnitudes,
                    f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}
        decoded[name] = functional.int8_vectorwise_dequant(codes, magnitudes)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    save("bitsandbytes", config, tensors, decoded)


def hqq() -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    tensors, decoded = {}, {}
    for bits, group, axis, shape in ((8, 32, 1, (16, 96)), (4, 32, 1, (16, 96)), (3, 32, 1, (17, 96)),
                                     (2, 16, 1, (16, 96)), (1, 32, 1, (16, 64)), (4, 64, 1, (16, 96)),
                                     (4, 16, 0, (32, 48)), (3, 16, 0, (32, 48)), (6, 32, 1, (8, 64))):
        name = f"layers.{bits}_{group}_axis{axis}_{shape[0]}"
        layer = torch.nn.Linear(shape[1], shape[0], bias=False)
        settings = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
        packed = HQQLinear(layer, settings, compute_dtype=torch.float32, device="cpu")
        state = packed.state_dict()
        tensors |= {f"{name}.{key}": value.data for key, value in state.items() if value is not None}
        decoded[name] = packed.dequantize()
    save("hqq", {"quant_method": "hqq", "quant_config": {}}, tensors, decoded)


def bitnet() -> None:
    from transformers.integrations.bitnet import pack_weights

    for kind in ("autobitlinear", "bitlinear"):
        tensors, decoded = {}, {}
        for rows, cols, dtype in ((8, 5, torch.bfloat16), (16, 33, torch.float16), (4, 64, torch.float32)):
            name = f"layers.{rows}"
            signs = torch.randint(-1, 2, (rows, cols)).float()
            scale = torch.tensor([0.0371 if kind == "autobitlinear" else 27.3]).to(dtype)
            tensors[f"{name}.weight"] = pack_weights(signs.clone())
            tensors[f"{name}.weight_scale"] = scale
            wide = scale.float()
            decoded[name] = signs * wide if kind == "autobitlinear" else signs * (1.0 / wide)
        config = {"quant_method": "bitnet", "linear_class": kind, "quantization_mode": "offline"}
        save(kind, config, tensors, decoded)


def mlx() -> None:
    import mlx.core as mx

    tensors, decoded, layers = {}, {}, {}
    for bits in (2, 3, 4, 5, 6, 8):
        group, rows, cols = {2: 32, 3: 64, 4: 64, 5: 128, 6: 32, 8: 64}[bits], 7, 128
        name = f"layers.{bits}"
        weight = mx.array((torch.randn(rows, cols) * 0.05).numpy()).astype(mx.float16)
        parts = mx.quantize(weight, group_size=group, bits=bits)
        packed, scales, biases = (torch.tensor(np.array(part)) for part in parts)
        tensors |= {f"{name}.weight": packed, f"{name}.scales": scales, f"{name}.biases": biases}
        wide = [parts[0], parts[1].astype(mx.float32), parts[2].astype(mx.float32)]
        value = mx.dequantize(*wide, group_size=group, bits=bits)
        decoded[name] = torch.tensor(np.array(value))
        layers[name] = {"group_size": group, "bits": bits}
    config = {"group_size": 64, "bits": 4, **layers}
    save("mlx", config, tensors, decoded, {"quantization": config})


if __name__ == "__main__":
    torch.manual_seed(20261122)
    for name in sys.argv[1:]:
        {"gptq": gptq, "awq": awq, "bitsandbytes": bitsandbytes, "hqq": hqq, "bitnet": bitnet, "mlx": mlx}[name]()
