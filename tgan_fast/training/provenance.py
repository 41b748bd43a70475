"""What a run was made with."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent.parent


def provenance(device: torch.device) -> dict[str, str | None]:
    """Versions of all that can change a run's numbers; `commit` is None where it is not known."""
    return {
        "tgan_fast": metadata.version("tgan_fast"),
        "commit": _commit(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
    }


def _commit():
    """The commit of the source tree that runs, with `-dirty` where it was changed, or the one that was installed."""
    installed = _PACKAGE / "commit.txt"
    if installed.exists():
        return installed.read_text().strip()
    if not (_PACKAGE.parent / ".git").exists():
        return None
    describe = ["git", "-C", str(_PACKAGE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
