"""Makes files as `torch.save` writes them (PyTorch 2.10), and what is in them as safetensors.

    python make.py        # needs numpy, safetensors and torch; writes beside this file

`state.bin`: a state dict with every type, views of one storage, a scalar and an empty tensor.
`module.pth`: the state dict of a module, an ordered dict with attributes.
`transposed.bin`: a tensor whose elements do not lie row by row. `trainer.bin`: more than a state dict.
`legacy.bin`: as PyTorch saved before 1.6. `hostile.bin`: a pickle that would run a program.
"""

import pathlib

import torch
from safetensors.torch import save_file

TYPES = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8,
    "bool": torch.bool,
}


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("true",)


if __name__ == "__main__":
    here = pathlib.Path(__file__).parent
    torch.manual_seed(7)
    state = {f"types.{name}": (torch.randn(3, 5) * 20).to(dtype) for name, dtype in TYPES.items()}
    table = torch.randn(8, 6)
    state |= {
        "table": table, "tied": table, "rows": table[2:5], "row": table[4], "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4), "line": torch.randn(1, 7, 1),
        "parameter": torch.nn.Parameter(torch.randn(4)),
    }
    torch.save(state, here / "state.bin")
    plain = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    torch.manual_seed(8)
    module = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    torch.save(module.state_dict(), here / "module.pth")
    plain |= {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    save_file(plain, here / "values.safetensors")
    torch.save({"w": torch.randn(3, 4).T}, here / "transposed.bin")
    torch.save({"w": torch.randn(3), "epoch": 7}, here / "trainer.bin")
    torch.save({"w": torch.randn(3)}, here / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"w": Hostile()}, here / "hostile.bin")
