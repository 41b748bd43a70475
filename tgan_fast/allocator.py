"""Setting of the C library's allocator: whether it keeps the memory that a process frees.

A training iteration on a CPU frees and allocates the same tensors again and again. By default glibc returns large ones
to the system, which then zeroes every page at its next use. Commands that compute on a CPU keep this memory. On a GPU
they do not, because PyTorch itself keeps the memory of tensors and of pinned copies.
"""

import ctypes
import os
import sys

# Parameters of mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_memory() -> bool:
    """Let the process keep the memory that it frees from now on, and return whether it does.

    Nothing changes if the environment configures malloc, or if the process uses another allocator than glibc's.
    Threads other than the main one keep blocks of at most 64 MB.
    """
    glibc = _glibc()
    if glibc is None or _is_configured():
        return False
    # Put every chunk on the heap, and never shrink the heap. (A high MMAP_THRESHOLD would have the same effect, but
    # glibc before 2.35 refuses more than 32 MB.)
    return glibc.mallopt(_MMAP_MAX, 0) == glibc.mallopt(_TRIM_THRESHOLD, -1) == 1


def _glibc() -> ctypes.CDLL | None:
    """Return glibc if its malloc is the one that this process calls."""
    if sys.platform != "linux":
        return None
    try:
        glibc, process = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
    except OSError:
        return None
    # A preloaded allocator, or one linked into Python, hides glibc's.
    ours, used = (ctypes.cast(library.malloc, ctypes.c_void_p).value for library in (glibc, process))
    return glibc if ours == used else None


def _is_configured() -> bool:
    """Return whether the environment configures malloc, or another allocator, such as jemalloc by MALLOC_CONF."""
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(x.startswith("MALLOC_") for x in os.environ)
