"""The working tree against another revision: the same benchmarks of both, in turns."""

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import results

ROOT = Path(__file__).resolve().parent.parent
HERE = "working tree"
# Differences below this are not worth a word, however quiet the machine is.
SMALLEST_DIFFERENCE = 0.02

Key = tuple[str, str, str]  # section, case, contender with its part


class Difference(NamedTuple):
    """What a contender takes here and at the other revision, in seconds, each run of a tree by itself."""

    key: Key
    here: tuple[float, ...]
    there: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times as long the other revision takes."""
        return statistics.mean(self.there) / statistics.mean(self.here)

    @property
    def noise(self) -> float:
        """How far a tree is from itself, in units of its time."""
        return max(max(runs) / min(runs) - 1 for runs in (self.here, self.there))

    @property
    def verdict(self) -> str:
        """Of the working tree: it differs only where each of its runs differs from each of the other's."""
        if min(self.there) > (1 + SMALLEST_DIFFERENCE) * max(self.here):
            return "faster"
        return "slower" if min(self.here) > (1 + SMALLEST_DIFFERENCE) * max(self.there) else "the same"


def main(revision: str, device: str, only: Sequence[str], smoke: bool) -> None:
    """Run the benchmarks of the command line that was called, of both trees, and print what differs.

    Both run the benchmarks of the working tree, each with its own package: what the other revision lacks fails there,
    and is told. Rivals are not timed.

    Raises:
        SystemExit: no such revision, or not a benchmark that ran in both trees.
    """
    commit = resolve(revision)
    with _worktree(commit) as other:
        trees = {HERE: ROOT, revision: other}
        print(f"{HERE} against {revision} ({commit[:10]}) in {other}", flush=True)
        for tree in trees.values() if device == "cuda" else ():
            build(tree)
        times: dict[str, list[dict[Key, float]]] = {name: [] for name in trees}
        # In this order a machine that gets slower, or faster, in the course of time favours nobody.
        for name in (HERE, revision, revision, HERE):
            times[name].append(run_in(trees[name], device, only, smoke))
    found = differences(times[HERE], times[revision])
    if not found:
        raise SystemExit(f"error: no benchmark ran both here and at {revision}: see above what failed")
    print_differences(found, revision)


def resolve(revision: str) -> str:
    """The commit that a revision is.

    Raises:
        SystemExit: it is none.
    """
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"error: {ROOT} has no revision {revision}: name a commit, a branch or a tag")
    return result.stdout.strip()


@contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    """A checkout with the benchmarks of the working tree, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            shutil.rmtree(tree / "benchmarks", ignore_errors=True)
            shutil.copytree(ROOT / "benchmarks", tree / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments):
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


def build(tree: Path) -> None:
    """Build a tree's CUDA extension in its place."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"error: the extension of {tree} does not build:\n{result.stderr[-2000:]}")


def run_in(tree: Path, device: str, only: Sequence[str], smoke: bool) -> dict[Key, float]:
    """Seconds of all that ran."""
    # The module that this process was started with: all sections or one.
    module = sys.modules["__main__"].__spec__.name
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, "-m", module, "--device", device, "--own-only", "--out", str(out)]
        command += ["--smoke"] * smoke + (["--only", *only] if only else [])
        result = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        if result.returncode:
            print(f"{tree}: {result.stderr.strip()[-2000:]}", flush=True)
        return times_of(results.sections_of(out))


def times_of(sections: dict[str, dict]) -> dict[Key, float]:
    """Seconds by section, case and contender."""
    return {
        (name, case["case"], str(results.Label.of(row))): row["seconds"]
        for name, section in sections.items()
        for case in section["cases"]
        for row in case["timings"]
    }


def differences(here: list[dict[Key, float]], there: list[dict[Key, float]]) -> list[Difference]:
    """Of all that ran every time; each list holds the runs of one tree."""
    runs = [*here, *there]
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    return [Difference(key, *(tuple(run[key] for run in tree) for tree in (here, there))) for key in keys]


def print_differences(found: list[Difference], revision: str) -> None:
    """A line each."""
    print(f"\n{'':78}{HERE:>14}{revision[:13]:>14}{'ratio':>8}{'noise':>8}")
    for difference in found:
        times = "".join(f"{1e3 * statistics.mean(runs):11.4f} ms" for runs in (difference.here, difference.there))
        print(
            f"{', '.join(difference.key)[:77]:78}{times}{difference.ratio:8.3f}{100 * difference.noise:6.1f} %"
            f"  {difference.verdict}"
        )
