"""Lifetime of objects."""

import gc
import weakref
from collections.abc import Callable


def dies_with_its_last_reference(make: Callable[[], object]) -> bool:
    """Return whether what `make` returns is freed without the garbage collector: it is in no reference cycle."""
    gc.collect()
    gc.disable()
    try:
        return weakref.ref(make())() is None
    finally:
        gc.enable()
