"""The allocator keeps memory if it is glibc's and the environment does not configure it."""

import ctypes
import os
import shutil
import subprocess
import sys

import pytest

# Prints whether memory is kept, and the page faults of ten cycles of allocating, writing and freeing in two threads.
FAULTS = """
import ctypes, resource, threading
from tgan_fast.allocator import keep_memory
process, size = ctypes.CDLL(None), 40 << 20
process.malloc.restype = ctypes.c_void_p
found = [keep_memory()]

def cycle(count):
    for _ in range(count):
        address = ctypes.c_void_p(process.malloc(size))
        process.memset(address, 1, size)
        process.free(address)

def measure():
    cycle(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cycle(10)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

measure()
thread = threading.Thread(target=measure)
thread.start()
thread.join()
print(*found)
"""


def faults(environment):
    """Return what the script prints in a process whose allocator is configured by these variables only."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", FAULTS]
    kept, *counts = subprocess.run(
        command, env=others | environment, check=True, capture_output=True, text=True
    ).stdout.split()
    return kept == "True", [int(count) for count in counts]


@pytest.fixture(autouse=True)
def _glibc():
    if not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")):
        pytest.skip("needs glibc")


def test_freed_memory_is_not_zeroed_anew():
    kept, counts = faults({})
    assert kept
    assert max(counts) < 100


@pytest.mark.parametrize("setting", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_the_users_settings_stay(setting):
    kept, counts = faults(setting)
    assert not kept
    assert min(counts) > 10_000


def test_another_allocator_is_noticed(tmp_path):
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a compiler")
    (tmp_path / "other.c").write_text(
        "void *__libc_malloc(unsigned long); void *malloc(unsigned long n) { return __libc_malloc(n); }"
    )
    command = [compiler, "-shared", "-fPIC", "-o", tmp_path / "other.so", tmp_path / "other.c"]
    subprocess.run(command, check=True)
    kept, _ = faults({"LD_PRELOAD": str(tmp_path / "other.so")})
    assert not kept
