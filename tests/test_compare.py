"""Two revisions of the package are measured by the same benchmarks, and what one of them does slower is seen."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.compare import Difference, differences

ROOT = Path(__file__).resolve().parent.parent
KEY, OTHER = ("sums", "add", "own"), ("sums", "add", "own again")
SLOW = "\n_step = RMSprop.step\nRMSprop.step = lambda self: (__import__('time').sleep(0.2), _step(self))[1]\n"


def git(tree, *arguments):
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    command = ["git", "-C", str(tree), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """This package in a repository of its own: `slow` sleeps in every step of RMSprop, the working tree does not."""
    tree = tmp_path / "repository"
    tree.mkdir()
    for name in ("tgan_fast", "benchmarks"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "setup.py", tree)
    git(tree, "init", "--quiet")
    optimizers = tree / "tgan_fast" / "training" / "optimizers.py"
    fast = optimizers.read_text()
    optimizers.write_text(fast + SLOW)
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "slow")
    git(tree, "tag", "slow")
    optimizers.write_text(fast)
    return tree


def run(tree, *arguments):
    command = [sys.executable, "-m", "benchmarks.bench_optimizer", "--device", "cpu", "--smoke", *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True)


@pytest.mark.slow
def test_what_another_revision_does_slower_is_seen(repository):
    result = run(repository, "--compare", "slow", "--only", "rmsprop, float32")
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if "rmsprop, float32" in line]
    assert {line.split()[-1] for line in lines} == {"faster"}
    assert not any("adam" in line or "torch" in line for line in result.stdout.splitlines())
    assert git(repository, "worktree", "list").count("\n") == 0
    assert git(repository, "status", "--short", "benchmarks") == ""


def test_an_unknown_revision_is_refused(repository):
    result = run(repository, "--compare", "no-such")
    assert result.returncode == 1
    assert result.stderr.strip().endswith("has no revision no-such: name a commit, a branch or a tag")


@pytest.mark.parametrize(
    ("here", "there", "verdict"),
    [
        ([1.0, 1.0], [1.5, 1.5], "faster"),
        ([1.5, 1.5], [1.0, 1.0], "slower"),
        ([1.0, 1.0], [1.01, 1.01], "the same"),
        ([1.0, 1.6], [1.5, 1.5], "the same"),
    ],
    ids=["slower there", "slower here", "nearly equal", "noisy"],
)
def test_a_difference_within_the_noise_is_none(here, there, verdict):
    (difference,) = differences([{KEY: seconds} for seconds in here], [{KEY: seconds} for seconds in there])
    assert difference.verdict == verdict


def test_only_what_ran_in_all_runs_is_compared():
    found = differences([{KEY: 1.0, OTHER: 1.0}, {KEY: 3.0, OTHER: 1.0}], [{KEY: 4.0}, {KEY: 4.0, OTHER: 1.0}])
    assert found == [Difference(KEY, (1.0, 3.0), (4.0, 4.0))]


def test_the_ratio_and_the_noise_of_a_difference():
    difference = Difference(KEY, (1.0, 3.0), (4.0, 4.0))
    assert (difference.ratio, difference.noise) == (2.0, 2.0)


def test_times_are_told_apart_by_section_case_and_part():
    rows = [{"part": part, "contender": "own", "seconds": seconds} for part, seconds in ((None, 1.0), ("forward", 2.0))]
    sections = {"sums": {"cases": [{"case": "add", "timings": rows}]}}
    assert compare.times_of(sections) == {("sums", "add", "own"): 1.0, ("sums", "add", "forward own"): 2.0}
