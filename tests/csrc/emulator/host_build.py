"""Builds of CUDA sources for the CPU, with cuda_on_host.h in place of CUDA."""

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pybind11
import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc" / "cuda"
RUNTIME = ["cuda_on_host.cpp", "race_check.cpp"]

FLAGS = [
    *("-std=c++17", "-g1", "-fPIC", "-I", str(HERE), "-I", str(CSRC)),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    "-Wframe-larger-than=32768",  # a fiber's stack is small
    "-fno-strict-aliasing",  # shared memory holds several types
    "-fno-gnu-unique",  # libraries in one process share no variables
    "-U_FORTIFY_SOURCE",  # its longjmp knows one stack only
]

# The compiler calls race_check.cpp before every access, and inserts a trap for undefined behavior.
WATCHED = [
    "-fsanitize=thread",
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow",
    "-fsanitize-undefined-trap-on-error",
]


def build(sources, directory, *, race_check=False, python=False):
    """Build a shared library for `ctypes.CDLL` from `.cu` and `.cpp` files in `directory`, unless it is there.

    With `python`, the sources may use Python and pybind11, and the library is a module of this Python.

    With `race_check`, every access to memory is watched: a launch fails if two threads access the same address, one of
    them to write, without a barrier between them, if an array index is out of bounds, an integer overflows or a vector
    is not aligned. This is several times slower.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    sources = [Path(source).resolve() for source in sources]
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / f"{sources[0].stem}-{_digest(sources, race_check, python)}.so"
    if not library.exists():
        objects = _compile(compiler, sources, directory, race_check, python)
        complete = [] if python else ["-Wl,--no-undefined"]  # a module takes Python's symbols from the process
        subprocess.run([compiler, "-shared", *complete, "-o", _unfinished(library), *objects], check=True)
        _unfinished(library).replace(library)
    return library


def explain(library, message):
    """Return an error message, followed by the source lines of each `+0x…` in it."""
    lines = [message]
    for place in dict.fromkeys(re.findall(r"\+(0x[0-9a-f]+)", message)):
        address = hex(int(place, 16) - 1)  # in the call, not behind it
        command = ["addr2line", "--inlines", "--functions", "--demangle", "--pretty-print", "--exe", library, address]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines.append(f"+{place}: {found.strip()}")
    return "\n".join(lines)


def guarded_copy(array, alignment=16):
    """Copy a numpy array to aligned memory, right before a page that no one can access.

    An access to that page is an error of the launch.
    """
    page = mmap.PAGESIZE
    size = -(-array.nbytes // alignment) * alignment
    usable = -(-size // page) * page
    memory = mmap.mmap(-1, usable + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + usable), ctypes.c_size_t(page), 0):
        raise OSError("mprotect failed")
    copy = np.frombuffer(memory, array.dtype, array.size, usable - size).reshape(array.shape)
    copy[...] = array
    return copy


def _compile(compiler, sources, directory, race_check, python):
    """Return the object files; compile those that do not exist yet from another library."""
    # Only kernels are watched: Python's headers use atomic operations, which the race check does not know.
    watched = WATCHED if race_check else []
    defined = ["-DTGAN_FAST_RACE_CHECK"] if race_check else []
    included = _python_headers() if python else []
    # The runtime comes first: functions of the standard library in both parts are then taken from the unwatched one.
    jobs = [(HERE / name, ["-O3", *defined]) for name in RUNTIME]
    jobs += [(path, ["-O2", *watched] if path.suffix == ".cu" else ["-O0", *included]) for path in sources]
    objects = [directory / f"{path.stem}-{_digest([path], flags)}.o" for path, flags in jobs]
    processes = [
        (_start([compiler, *FLAGS, *flags, "-x", "c++", "-c", path], output), output)
        for (path, flags), output in zip(jobs, objects, strict=True)
        if not output.exists()
    ]
    messages = [process.communicate()[0] for process, _ in processes]
    if any(process.returncode for process, _ in processes):
        raise RuntimeError("".join(messages))
    for _, output in processes:
        _unfinished(output).replace(output)
    return objects


def _start(command, output):
    return subprocess.Popen(
        [*command, "-o", _unfinished(output)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _unfinished(path):
    """Return the path for a file that is not complete yet, which no other process uses."""
    return path.with_suffix(f".{os.getpid()}")


def _python_headers():
    folders = [sysconfig.get_path("include"), pybind11.get_include()]
    if not Path(folders[0], "Python.h").exists():
        pytest.skip("needs Python's headers")
    return [flag for folder in folders for flag in ("-isystem", folder)]


def _digest(sources, *options):
    digest = hashlib.sha256(repr((FLAGS, options, list(map(str, sources)))).encode())
    for path in [*sorted(HERE.glob("*.[ch]*")), *sorted(CSRC.glob("*.[ch]*")), *sources]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
