"""The CUDA extension: whether it can be used, and how large a matrix each GPU can take."""

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
        error: Reason why the kernels cannot run on the GPU; empty if they can.
    """

    largest_side: int
    error: str


def extension() -> ModuleType:
    """Load the module.

    Raises:
        ImportError: The extension was not built, or was built for another Python.
    """
    return load("CUDA")


@functools.cache
def prepare_gpu(index: int) -> Prepared:
    """Prepare the kernels on the GPU `index`, once per process.

    Raises:
        ImportError: The extension was not built, or was built for another Python.
    """
    with torch.cuda.device(index) if torch.cuda.is_available() else contextlib.nullcontext():
        return Prepared(*extension().prepare(index))


def why_not(device: torch.device) -> str | None:
    """Return why the extension cannot be used on the device, and the remedy; None if it can."""
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
        else "PyTorch finds none, perhaps because the driver is too old"
    )
    return f"the CUDA extension finds no GPU: {prepare_gpu(0).error or hidden}"
