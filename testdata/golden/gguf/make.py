"""Writes container.gguf, the file that the writer of GGUF is held to, byte for byte.

Needs the Python package gguf (0.19.0) and numpy: python make.py
"""

from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent

writer = gguf.GGUFWriter(HERE / "container.gguf", "llama")
writer.add_uint8("a.u8", 7)
writer.add_int8("a.i8", -7)
writer.add_uint16("a.u16", 300)
writer.add_int16("a.i16", -300)
writer.add_uint32("a.u32", 70_000)
writer.add_int32("a.i32", -70_000)
writer.add_float32("a.f32", 0.1)
writer.add_bool("a.bool", True)
writer.add_string("a.string", "grüße ▁\n")
writer.add_uint64("a.u64", 2**40)
writer.add_int64("a.i64", -(2**40))
writer.add_float64("a.f64", 0.1)
writer.add_array("a.strings", ["a", "", "ü"])
writer.add_array("a.integers", [1, -2, 3])
writer.add_array("a.floats", [0.5, -0.25])
writer.add_array("a.bools", [True, False])

norm = np.arange(5, dtype=np.float32)
half = np.arange(6, dtype=np.float16).reshape(3, 2)
blocks = gguf.quants.quantize(
    np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64), gguf.GGMLQuantizationType.Q4_0
)
writer.add_tensor("norm.weight", norm)
writer.add_tensor("half.weight", half)
writer.add_tensor("blocks.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
