"""Makes the golden vectors of ggml's number formats, with the `gguf` package (0.19).

    python make.py        # needs gguf and numpy; writes <kind>.bin beside this file

A file is the bytes of a few blocks and then their values as little-endian f32. The blocks are
random bytes, with scales that cover small, negative, denormal and zero f16 but no infinity.
`gguf` cannot decode Q8_1 and Q8_K, operands of dot products: their formula, d·q, is below.
"""

import pathlib

import gguf
import numpy as np

# Where a kind has its f16 scales.
F16_AT = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q8_1": [0, 2],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64],
}
SCALES = [0x0001, 0x83FF, 0x0000, 0x8000, 0x7BFF, 0xFBFF]  # denormal, zero, largest
DIRECT = {"Q8_1": (36, 32, 4), "Q8_K": (292, 256, 4)}  # block bytes, values, offset of the codes


def scales(rng: np.random.Generator, blocks: int) -> np.ndarray:
    """Finite f16: those of SCALES and then random ones of weights' size."""
    random = (rng.standard_normal(blocks) * 0.02).astype("<f2").view("<u2")
    random[: len(SCALES)] = SCALES
    return rng.permutation(random)


def golden(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and their values."""
    qtype = gguf.GGMLQuantizationType[kind]
    elements, size = gguf.GGML_QUANT_SIZES[qtype]
    if kind in DIRECT:
        size, elements, codes_at = DIRECT[kind]
    blocks = 10 if elements == 256 else 16 if elements == 32 else 64
    data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    for at in F16_AT.get(kind, []):
        data[:, at : at + 2] = scales(rng, blocks).view(np.uint8).reshape(blocks, 2)
    if kind == "MXFP4":
        data[:6, 0] = [0, 1, 2, 127, 128, 250]
    if kind == "Q8_K":
        data[:, :4] = rng.standard_normal(blocks).astype("<f4").view(np.uint8).reshape(blocks, 4)
    if kind in ("F32", "F16", "BF16"):
        # No infinities: clear the top bit of the exponent.
        data[:, -1] &= 0xBF
    if kind in DIRECT:
        d = data[:, :4].copy().view("<f4") if kind == "Q8_K" else data[:, :2].copy().view("<f2")
        values = d.astype(np.float32) * data[:, codes_at : codes_at + elements].view(np.int8)
    else:
        values = gguf.dequantize(data, qtype)
    return data, values.reshape(-1).astype("<f4")


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    rng = np.random.default_rng(20261121)
    for kind in ["F32", "F16", "BF16", *F16_AT, "Q8_K", "MXFP4"]:
        data, values = golden(kind, rng)
        assert np.isfinite(values).all(), kind
        (here / f"{kind.lower()}.bin").write_bytes(data.tobytes() + values.tobytes())
