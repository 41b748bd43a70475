"""Provenance of a run: the versions of the package, PyTorch and Python, the commit, and the machine.

Imports only the standard library at the top, so that setup.py can run it.
"""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).resolve().parent


try:
    __version__ = metadata.version("tgan_fast")
except metadata.PackageNotFoundError:
    # A source tree that was never installed.
    __version__ = "unknown"


def commit_of(tree: Path) -> str | None:
    """Return the full commit hash, with `-dirty` where tracked files were changed; None outside git."""
    if not (tree / ".git").exists():
        return None
    describe = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance(device: "torch.device") -> dict[str, str | int | None]:
    """Return the versions of everything that can change a run's numbers; `commit` is None where it is unknown."""
    import torch

    installed = _PACKAGE / "commit.txt"
    return {
        "tgan_fast": __version__,
        "commit": installed.read_text().strip() if installed.exists() else commit_of(_PACKAGE.parent),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
