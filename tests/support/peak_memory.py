"""The most memory that something takes on a CPU, as the operating system counts it."""

import ctypes
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def growth(run: Callable[[], Any]) -> int | None:
    """Return the bytes by which the process's peak memory grows while `run` runs; None where Linux does not say."""
    if not os.access(_CLEAR, os.W_OK):
        return None
    # `run` would first use freed memory that the C library keeps, which would not be counted.
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    before = _most()
    run()
    return _most() - before


def in_processes(measure: Callable[..., int | None], *arguments: Iterable) -> list[int | None]:
    """Return `list(map(measure, *arguments))`, each call in a new process, which has no memory to reuse."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        return list(pool.map(measure, *arguments))


def _most():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())[1])
