"""The git commit of a source tree. Imports nothing that is installed, so that setup.py can run it too."""

import subprocess
from pathlib import Path


def commit_of(tree: Path) -> str | None:
    """The full commit hash, with `-dirty` where tracked files were changed; None outside git."""
    if not (tree / ".git").exists():
        return None
    describe = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
