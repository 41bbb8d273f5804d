"""Makes the golden vectors of ggml's number formats, with the `gguf` package (0.19).

    python make.py        # needs gguf and numpy; writes <kind>.bin beside this file

A file is the bytes of a few blocks and then their values as little-endian f32. The blocks are
random bytes, with scales that cover small, negative, denormal and zero f16 but no infinity.
Kinds with codebooks go through all points of these. The same run writes the codebooks themselves as
`crates/kernels/src/ggml/codebooks.bin`, 16 bits a point, from the package's tables.
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
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ1_S": [0],
}
# In the order of codebooks.bin.
CODEBOOKS = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"]
SCALES = [0x0001, 0x83FF, 0x0000, 0x8000, 0x7BFF, 0xFBFF]  # denormal, zero, largest
DIRECT = {"Q8_1": (36, 32, 4), "Q8_K": (292, 256, 4)}  # block bytes, values, offset of the codes


def scales(rng: np.random.Generator, blocks: int) -> np.ndarray:
    """Finite f16: those of SCALES and then random ones of weights' size."""
    random = (rng.standard_normal(blocks) * 0.02).astype("<f2").view("<u2")
    random[: len(SCALES)] = SCALES
    return rng.permutation(random)


def codebook(kind: str) -> np.ndarray:
    """The points of a codebook, each in 16 bits: the number of each value's level, lowest first."""
    table = getattr(gguf.quants, kind)
    table.init_grid()
    points = table.grid.reshape(table.grid_shape)
    levels = np.searchsorted(np.array(table.grid_map, dtype=np.float32), points).astype(np.uint64)
    width = 16 // points.shape[1]
    shifts = np.arange(points.shape[1], dtype=np.uint64) * np.uint64(width)
    return (levels << shifts).sum(axis=1).astype("<u2")


def all_points(kind: str, data: np.ndarray, rng: np.random.Generator) -> None:
    """Sets the indices of blocks such that every point of the codebook occurs."""
    points = gguf.quants.IQ1_S.grid_shape[0] if kind == "IQ1_M" else len(codebook(kind))
    each = 64 if kind.startswith("IQ3") else 32
    indices = np.concatenate([rng.permutation(points) for _ in range(-(-data.shape[0] * each // points))])
    indices = indices[: data.shape[0] * each].reshape(-1, each)
    assert len(np.unique(indices)) == points
    low, high = indices & 255, indices >> 8
    if kind == "IQ2_XXS":
        data[:, 2:].reshape(-1, 8, 8)[:, :, :4] = low.reshape(-1, 8, 4)
    elif kind == "IQ2_XS":
        codes = data[:, 2:66].copy().view("<u2") & 0xFE00 | indices.astype("<u2")
        data[:, 2:66] = codes.astype("<u2").view(np.uint8)
    elif kind == "IQ1_S":
        data[:, 2:34] = low
        shifted = (high.reshape(-1, 8, 4) << np.array([0, 3, 6, 9])).sum(axis=2)
        upper = data[:, 34:].copy().view("<u2") & 0xF000 | shifted.astype("<u2")
        data[:, 34:] = upper.astype("<u2").view(np.uint8)
    elif kind == "IQ1_M":
        data[:, :32] = low
        upper = (high.reshape(-1, 16, 2) << np.array([0, 4])).sum(axis=2)
        data[:, 32:48] = data[:, 32:48] & 0x88 | upper.astype(np.uint8)
    else:
        data[:, 2 : 2 + each] = low
        width = {"IQ2_S": 2, "IQ3_S": 1}.get(kind)
        if width:
            at = 66
            of_byte = high.reshape(data.shape[0], 8, -1)
            shifts = np.arange(of_byte.shape[2]) * width
            data[:, at : at + 8] = (of_byte << shifts).sum(axis=2)


def golden(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blocks and their values."""
    qtype = gguf.GGMLQuantizationType[kind]
    elements, size = gguf.GGML_QUANT_SIZES[qtype]
    if kind in DIRECT:
        size, elements, codes_at = DIRECT[kind]
    blocks = 10 if elements == 256 else 16 if elements == 32 else 64
    blocks = {"IQ1_S": 64, "IQ1_M": 64, "IQ2_S": 32, "IQ2_XS": 16}.get(kind, blocks)
    data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    if kind in CODEBOOKS or kind == "IQ1_M":
        all_points(kind, data, rng)
    if kind == "IQ1_M":
        # The scale is in the upper nibbles of four words; no infinities.
        data[:, 55] &= 0xBF
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
    books = np.concatenate([codebook(kind) for kind in CODEBOOKS])
    kernels = here.parents[2] / "crates/kernels/src/ggml"
    (kernels / "codebooks.bin").write_bytes(books.tobytes())
    old = [kind for kind in F16_AT if not kind.startswith(("IQ1", "IQ2", "IQ3"))]
    new = [kind for kind in F16_AT if kind not in old]
    for kind in ["F32", "F16", "BF16", *old, "Q8_K", "MXFP4", *new, "IQ1_M"]:
        data, values = golden(kind, rng)
        assert np.isfinite(values).all(), kind
        (here / f"{kind.lower()}.bin").write_bytes(data.tobytes() + values.tobytes())
