"""Makes the golden vectors of the packed integers, with compressed-tensors (0.19).

    python make.py        # needs compressed-tensors and torch; writes pack.bin beside this file

A record is four u32 (bits, rows, columns, packed dimension), the codes as bytes (offset-binary,
row-major, padded to a multiple of four bytes), and the words that `pack_to_int32` gives, row-major
in the packed tensor's shape. Everything is little-endian.
"""

import pathlib

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

SHAPES = [(1, 1), (3, 5), (2, 31), (2, 32), (2, 33), (33, 3), (32, 2), (3, 67), (70, 4)]


def record(rng: np.random.Generator, bits: int, shape: tuple[int, int], dim: int) -> bytes:
    """One packed matrix."""
    codes = rng.integers(0, 2**bits, shape).astype(np.uint8)
    signed = torch.from_numpy(codes.astype(np.int16) - 2 ** (bits - 1)).to(torch.int8)
    words = pack_to_int32(signed, bits, packed_dim=dim).contiguous().numpy()
    padding = b"\0" * (-codes.size % 4)
    header = np.array([bits, *shape, dim], dtype="<u4").tobytes()
    return header + codes.tobytes() + padding + words.astype("<i4").tobytes()


if __name__ == "__main__":
    rng = np.random.default_rng(20261121)
    records = [record(rng, b, s, d) for b in range(1, 9) for s in SHAPES for d in (0, 1)]
    pathlib.Path(__file__).with_name("pack.bin").write_bytes(b"".join(records))
