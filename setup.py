"""Records the git commit in the installed package; everything else is in pyproject.toml."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCommit(build_py):
    """Write `commit.txt` into a built package, so that an installed copy still knows where it came from."""

    def run(self):
        super().run()
        commit = None if self.editable_mode else _commit()
        if commit:
            Path(self.build_lib, "tgan_fast", "commit.txt").write_text(commit + "\n", encoding="utf-8")


def _commit():
    here = Path(__file__).resolve().parent
    if not (here / ".git").exists():
        return None
    describe = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


setup(cmdclass={"build_py": BuildWithCommit})
