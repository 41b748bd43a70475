"""The commands, as processes."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def start(
    *arguments: object, folder: Path | None = None, environment: Mapping[str, str | None] = {}
) -> subprocess.Popen:
    """Start `python -m tgan_fast arguments…` in a folder; None removes a variable from the environment."""
    variables = {**os.environ, **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "tgan_fast", *map(str, arguments)],
        cwd=folder,
        env={name: value for name, value in variables.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Return the exit code of a process, and what it wrote to stdout and stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
