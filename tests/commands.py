"""The command lines, as processes."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def start(module: str, arguments: Iterable[object], folder: Path | None = None) -> subprocess.Popen:
    """`python -m module arguments…` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Its exit code, and what it wrote to stdout and stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
