"""Comparison of the working tree with another revision: both run the same benchmarks in turns."""

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import result_files

ROOT = Path(__file__).resolve().parent.parent
SMALLEST_DIFFERENCE = 0.02


def main(revision: str, device: str, only: Sequence[str], smoke: bool) -> None:
    """Run the command of this process, without rivals, with the package of both trees, and print the differences.

    Raises:
        SystemExit: There is no such revision, or no benchmark ran in both trees.
    """
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode:
        raise SystemExit(f"error: {ROOT} has no revision {revision}: name a commit, a branch or a tag")
    # The main module of this process runs all sections or one.
    command = ["-m", sys.modules["__main__"].__spec__.name, "--device", device, "--own-only"]
    command += ["--smoke"] * smoke + (["--only", *only] if only else [])
    here, there = [], []
    with tempfile.TemporaryDirectory() as folder:
        other, out = Path(folder, "tree"), Path(folder, "results.json")
        _git("worktree", "add", "--detach", str(other), found.stdout.strip()).check_returncode()
        try:
            shutil.copytree(ROOT / "benchmarks", other / "benchmarks", dirs_exist_ok=True)
            for tree in (ROOT, other) if device == "cuda" else ():
                _run(tree, "setup.py", "--quiet", "build_ext", "--inplace")
            # In this order a machine that gets slower, or faster, in the course of time favors neither.
            for tree, runs in ((ROOT, here), (other, there), (other, there), (ROOT, here)):
                out.unlink(missing_ok=True)
                _run(tree, *command, "--out", str(out))
                cases = [(name, case) for name, each in result_files.sections_of(out).items() for case in each["cases"]]
                rows = [(f"{name}, {case['case']}", row) for name, case in cases for row in case["timings"]]
                runs.append({f"{name}, {result_files.Label.of(row)}": row["seconds"] for name, row in rows})
        finally:
            _git("worktree", "remove", "--force", str(other))
    lines = list(differences(here, there))
    if not lines:
        raise SystemExit(f"error: no benchmark ran both here and at {revision}: the failures are printed above")
    print(f"\n{'':78}{'working tree':>14}{revision[:13]:>14}{'ratio':>8}{'noise':>8}", *lines, sep="\n")


def _git(*arguments):
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)


def _run(tree, *arguments):
    result = subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True)
    if result.returncode:
        print(f"{tree}: {result.stderr.strip()[-2000:]}", flush=True)


def differences(here: list[dict], there: list[dict]) -> Iterator[str]:
    """Yield a line for every timing present in all runs of both trees, given as seconds by name.

    The trees differ in a timing only if each run of one is faster than every run of the other.
    """
    for name in here[0]:
        if all(name in run for run in here + there):
            ours, theirs = ([run[name] for run in runs] for runs in (here, there))
            faster = min(theirs) > (1 + SMALLEST_DIFFERENCE) * max(ours)
            slower = min(ours) > (1 + SMALLEST_DIFFERENCE) * max(theirs)
            means = statistics.mean(ours), statistics.mean(theirs)
            noise = max(max(runs) / min(runs) - 1 for runs in (ours, theirs))
            times = "".join(f"{1e3 * mean:11.4f} ms" for mean in means)
            verdict = "faster" if faster else "slower" if slower else "the same"
            yield f"{name[:77]:78}{times}{means[1] / means[0]:8.3f}{100 * noise:6.1f} %  {verdict}"
