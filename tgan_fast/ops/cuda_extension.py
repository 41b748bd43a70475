"""The CUDA extension: whether it can be used, and what it takes on each GPU."""

import contextlib
import functools
from types import ModuleType
from typing import NamedTuple

import torch

from tgan_fast.ops.extensions import load, why_not_loaded


class Prepared(NamedTuple):
    """Limit of a GPU, or the reason why the kernels cannot run on it.

    Attributes:
        largest_side: Largest min(rows, columns) of a matrix that the kernels take.
        error: Reason why the kernels cannot run there; empty if they can.
    """

    largest_side: int
    error: str


def extension() -> ModuleType:
    """Load the module.

    Raises:
        ImportError: It was not built, or was built for another Python.
    """
    return load("CUDA")


@functools.cache
def prepare_gpu(index: int) -> Prepared:
    """Prepare the kernels on the GPU `index`, once in a process.

    Raises:
        ImportError: As `extension`.
    """
    with torch.cuda.device(index) if torch.cuda.is_available() else contextlib.nullcontext():
        return Prepared(*extension().prepare(index))


def why_not(device: torch.device) -> str | None:
    """Return why the extension cannot be used on the device, and what helps; None if it can."""
    if reason := why_not_loaded("CUDA"):
        return reason
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        error = prepare_gpu(index).error
        return f"the CUDA extension cannot run on {device}: {error}" if error else None
    if torch.cuda.is_available():
        return f"the CUDA extension runs on a GPU, not on {device}"
    hidden = (
        "PyTorch was built without CUDA"
        if torch.version.cuda is None
        else "PyTorch finds none, as with too old a driver"
    )
    return f"the CUDA extension finds no GPU: {prepare_gpu(0).error or hidden}"
