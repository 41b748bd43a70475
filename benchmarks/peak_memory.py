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
    """Return the bytes by which the most memory of this process grows while `run` runs.

    None where the operating system cannot begin its record of the most memory anew.
    """
    if not os.access(_CLEAR, os.W_OK):
        return None
    # What the C library keeps of freed memory `run` would take first, unnoticed.
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    before = _most()
    run()
    return _most() - before


def in_processes(measure: Callable[..., int | None], *arguments: Iterable) -> list[int | None]:
    """Return `list(map(measure, *arguments))`, each call in a new process, which has no memory to reuse."""

    def in_process(*each):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measure, *each).result()

    return list(map(in_process, *arguments))


def _most():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())[1])
