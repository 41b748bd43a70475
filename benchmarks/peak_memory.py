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
    """Bytes by which the most memory of this process grows while `run` runs, above what is in use before.

    None where the operating system cannot begin its record of the most memory anew.
    """
    if not os.access(_CLEAR, os.W_OK):
        return None
    _give_back()
    _CLEAR.write_text("5")
    before = _most()
    run()
    return _most() - before


def in_processes(measure: Callable[..., int | None], *arguments: Iterable) -> list[int | None]:
    """As `list(map(measure, *arguments))`, each call in a new process, which has no memory to reuse."""
    context = multiprocessing.get_context("spawn")
    arguments = list(zip(*arguments, strict=True))
    pools = [ProcessPoolExecutor(1, context) for _ in arguments]
    try:
        futures = [pool.submit(measure, *each) for pool, each in zip(pools, arguments, strict=True)]
        return [future.result() for future in futures]
    finally:
        for pool in pools:
            pool.shutdown()


def _give_back():
    """To the operating system what the C library keeps of freed memory: `run` would take that first, unnoticed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _most():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())[1])
