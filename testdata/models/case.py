"""What a case of `make.py` is."""
from dataclasses import dataclass, field

import torch


@dataclass
class Case:
    """One folder: the configuration, what is odd about it, and how it is stored."""

    name: str
    about: str
    config: dict
    seq: int
    # Options to put back, each alone: the output must move when a reader overlooks one of them.
    overlooked: list = field(default_factory=list)
    # Changes that turn the new spelling of the configuration into the old one (None drops a key).
    old: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    shard: str | None = None
    hidden: bool = False
    kind: str = "causal"
    # Ends of names of tensors that the output cannot depend on.
    unseen: tuple = ()
    # Stored under the names that the model has in memory, not those that its family began with.
    as_held: bool = False


def old_rope(theta: float, scaling: dict | None = None) -> dict:
    """The keys that held the rotary embedding before `rope_parameters` did."""
    return {"rope_parameters": None, "rope_theta": theta, "rope_scaling": scaling}
