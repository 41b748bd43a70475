"""What a run was made with."""

import platform
from pathlib import Path

import torch

from tgan_fast.commit import commit_of
from tgan_fast.version import package_version

_PACKAGE = Path(__file__).resolve().parent.parent


def provenance(device: torch.device) -> dict[str, str | int | None]:
    """Versions of all that can change a run's numbers; `commit` is None where it is not known."""
    installed = _PACKAGE / "commit.txt"
    return {
        "tgan_fast": package_version(),
        "commit": installed.read_text().strip() if installed.exists() else commit_of(_PACKAGE.parent),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
