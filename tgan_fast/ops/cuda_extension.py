"""The compiled CUDA part of the package, loaded where it is first needed: the package works without it."""

import functools
import importlib
from types import ModuleType


@functools.cache
def extension() -> ModuleType:
    """The module.

    Raises:
        ImportError: it was not built, or was built for another Python.
    """
    return importlib.import_module("tgan_fast._cuda")


def why_not() -> str | None:
    """Why the extension cannot be used, and what helps; None if it can."""
    try:
        loaded = extension()
    except ModuleNotFoundError:
        return (
            "the CUDA extension was not built: install tgan_fast again with nvcc on PATH or CUDA_HOME set, and "
            "TGAN_FAST_NO_CUDA unset"
        )
    except ImportError as error:
        return f"the CUDA extension does not load, so install tgan_fast again: {error}"
    _, error = loaded.largest_side(0)
    return f"the CUDA extension finds no GPU: {error}" if error else None
