"""Loader of the compiled extensions `_cpu` and `_cuda`, which are optional and loaded on first use."""

import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Literal

Kind = Literal["CPU", "CUDA"]
_PACKAGE = Path(__file__).resolve().parents[1]
_NEEDS = {"CPU": "a C++ compiler on PATH or in CXX and Python's headers", "CUDA": "nvcc on PATH or CUDA_HOME set"}


@functools.cache
def load(kind: Kind) -> ModuleType:
    """Load an extension.

    Raises:
        ImportError: The extension was not built, or was built for another Python.
    """
    return importlib.import_module(f"tgan_fast._{kind.lower()}")


@functools.cache
def why_not_loaded(kind: Kind) -> str | None:
    """Return why an extension cannot be loaded, and the remedy; None if it can."""
    try:
        load(kind)
    except ModuleNotFoundError:
        return _not_built(kind)
    except ImportError as error:
        return f"the {kind} extension does not load, so install tgan_fast again: {error}"
    return None


def _not_built(kind):
    tree = _PACKAGE.parent
    needs = f"{_NEEDS[kind]}, and TGAN_FAST_NO_{kind} unset"
    if not (tree / "csrc" / kind.lower() / "bindings.cpp").exists():
        return f"the {kind} extension was not built: install tgan_fast again with {needs}"
    return (
        f"Python imports tgan_fast from the source tree {tree}, where the {kind} extension was not built: run "
        f"`pip install --no-build-isolation -e .` there with {needs}, or run from another folder if tgan_fast is "
        "installed elsewhere"
    )
