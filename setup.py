"""Records the git commit in the installed package; everything else is in pyproject.toml."""

from pathlib import Path
from runpy import run_path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithCommit(build_py):
    """Writes `commit.txt` into a built package, so that an installed copy still knows where it came from."""

    def run(self):
        super().run()
        commit = None if self.editable_mode else run_path(str(HERE / "tgan_fast" / "commit.py"))["commit_of"](HERE)
        if commit:
            Path(self.build_lib, "tgan_fast", "commit.txt").write_text(commit + "\n", encoding="utf-8")


setup(cmdclass={"build_py": BuildWithCommit})
