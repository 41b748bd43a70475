"""Two revisions of the package are measured by the same benchmarks, and what one of them does slower is seen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare import differences

ROOT = Path(__file__).resolve().parent.parent
KEY = ("sums", "add", "own")
SLOW = "\n_step = RMSprop.step\nRMSprop.step = lambda self: (__import__('time').sleep(0.2), _step(self))[1]\n"


@pytest.mark.slow
def test_what_another_revision_does_slower_is_seen(tmp_path):
    def git(*arguments):
        command = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def compare(revision):
        command = [sys.executable, "-m", "benchmarks.bench_optimizer", "--device", "cpu", "--smoke"]
        command += ["--compare", revision, "--only", "rmsprop, float32"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    for name in ("tgan_fast", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    optimizers = tmp_path / "tgan_fast" / "training" / "optimizers.py"
    fast = optimizers.read_text()
    optimizers.write_text(fast + SLOW)
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "slow")
    optimizers.write_text(fast)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = compare("HEAD")
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if "rmsprop, float32" in line]
    assert {line.split()[-1] for line in lines} == {"faster"}
    assert git("worktree", "list").count("\n") == 1
    result = compare("no-such")
    assert result.returncode == 1
    assert result.stderr.strip().endswith("has no revision no-such: name a commit, a branch or a tag")


@pytest.mark.parametrize(
    ("here", "there", "end"),
    [
        ([1.0, 1.0], [1.5, 1.5], "1.500   0.0 %  faster"),
        ([1.5, 1.5], [1.0, 1.0], "0.667   0.0 %  slower"),
        ([1.0, 1.0], [1.01, 1.01], "1.010   0.0 %  the same"),
        ([1.0, 1.6], [1.5, 1.5], "1.154  60.0 %  the same"),
    ],
)
def test_a_difference_within_the_noise_is_none(here, there, end):
    (line,) = differences([{KEY: each, "here alone": 1.0} for each in here], [{KEY: each} for each in there])
    assert line.startswith("sums, add, own ")
    assert line.endswith(end)
