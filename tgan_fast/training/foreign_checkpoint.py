"""Readers of checkpoints from other programs: the PyTorch notebook's, and bare state dicts.

PyTorch's safe loading refuses NumPy objects, but many checkpoints have a NumPy loss or iteration beside their tensors.
While such a file is read, the classes at the end replace NumPy's: numbers become Python's, and arrays are dropped.
"""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

# In the order of the notebook's checkpoints.
NETWORKS = "generator", "discriminator"
MOST_ITERATIONS = 10**12
_PREFIXES = "module.", "_orig_mod."


def find_networks(content: Any) -> list[dict[str, torch.Tensor]] | None:
    """Return the state dicts of a generator and, if there is one, a discriminator in a file's content, or None."""
    if isinstance(content, dict):
        content = next((content[key] for key in ("model_state_dict", "state_dict") if key in content), content)
    if isinstance(content, dict) and NETWORKS[0] in content:
        content = [content[name] for name in NETWORKS if name in content]
    networks = list(content) if isinstance(content, (list, tuple)) else [content]
    if not (len(networks) in (1, 2) and all(map(is_state_dict, networks))):
        return None
    networks = [_without_prefix(state) for state in networks]
    return networks if any(name.startswith("temp.") for name in networks[0]) else None


def _without_prefix(state):
    """Return a state dict without the prefixes that DataParallel and torch.compile put before every name."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _without_prefix({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def is_state_dict(state: Any) -> bool:
    """Return whether a value is a dict of tensors by name."""
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    )


def notebook_iteration(content: Mapping[str, Any]) -> int | None:
    """Return the number of iterations in a notebook's checkpoint, or None if it has no valid one."""
    epoch: Any = content.get("epoch")
    try:
        iteration = int(epoch) if isinstance(epoch, float) and epoch.is_integer() else operator.index(epoch)
    except TypeError:
        return None
    return iteration if 0 <= iteration <= MOST_ITERATIONS else None


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


_STAND_INS: dict[str, Callable[..., Any]] = {
    "dtype": _DType,
    "ndarray": _Array,
    **{f"{core}.multiarray.scalar": _number for core in ("core", "_core")},
    **{f"{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
}


def safe_numpy_values() -> torch.serialization.safe_globals:
    """Return a context in which `torch.load(weights_only=True)` reads NumPy's values as the module's docstring says."""
    return torch.serialization.safe_globals([(stand_in, f"numpy.{name}") for name, stand_in in _STAND_INS.items()])
