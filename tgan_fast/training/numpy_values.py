"""NumPy values in checkpoints of others, read without NumPy's constructors.

PyTorch's safe loading refuses NumPy objects. Many checkpoints have a NumPy loss or iteration beside their tensors. The
classes below take the place of NumPy's while such a file is read: numbers become Python's, arrays are dropped.
"""

import re
from typing import Any

import numpy as np
import torch

_NUMBER = re.compile(r"[biuf][1248]")


class _DType:
    def __init__(self, code: str, *flags: Any):
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple):
        self.order = state[1]


class _Array:
    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: tuple):
        pass


def _number(dtype: _DType, content: bytes = b"") -> int | float | bool | None:
    if not (_NUMBER.fullmatch(dtype.code) and len(content) == int(dtype.code[1]) and dtype.order in ("<", ">", "|")):
        return None
    return np.frombuffer(content, dtype.order + dtype.code)[0].item()


_STAND_INS = {
    "dtype": _DType,
    "ndarray": _Array,
    **{f"{core}.multiarray.scalar": _number for core in ("core", "_core")},
    **{f"{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
}


def safe_numpy_values() -> torch.serialization.safe_globals:
    """Return a context in which `torch.load(weights_only=True)` reads NumPy's values as described above."""
    return torch.serialization.safe_globals([(stand_in, f"numpy.{name}") for name, stand_in in _STAND_INS.items()])
