"""Loader of the compiled CUDA extension, which is optional and loaded on first use."""

import contextlib
import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch


class Prepared(NamedTuple):
    """Limit of a GPU, or the reason why the kernels cannot run on it.

    Attributes:
        largest_side: Largest min(rows, columns) of a matrix that the kernels take.
        error: Reason why the kernels cannot run there; empty if they can.
    """

    largest_side: int
    error: str


@functools.cache
def extension() -> ModuleType:
    """Load the module.

    Raises:
        ImportError: It was not built, or was built for another Python.
    """
    return importlib.import_module("tgan_fast._cuda")


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
    if reason := _why_not_loaded():
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


@functools.cache
def _why_not_loaded():
    try:
        extension()
    except ModuleNotFoundError:
        return _not_built(Path(__file__).resolve().parents[1])
    except ImportError as error:
        return f"the CUDA extension does not load, so install tgan_fast again: {error}"
    return None


def _not_built(package):
    """Return why there is no extension beside the Python files in the folder `package`, and what helps."""
    tree = package.parent
    needs = "nvcc on PATH or CUDA_HOME set, and TGAN_FAST_NO_CUDA unset"
    if not (tree / "csrc" / "cuda" / "bindings.cpp").exists():
        return f"the CUDA extension was not built: install tgan_fast again with {needs}"
    return (
        f"Python imports tgan_fast from the source tree {tree}, where the CUDA extension was not built: run "
        f"`pip install --no-build-isolation -e .` there with {needs}, or run from another folder if tgan_fast is "
        "installed elsewhere"
    )
