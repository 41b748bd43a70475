"""The suite around the benchmarks: every section runs, records and flags, what fails, the command line and pytest."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import accuracy, formatting, harness, result_files, suite
from benchmarks.ceilings import Work
from benchmarks.compare import differences
from benchmarks.render import parts_of
from benchmarks.result_files import NOT_MEASURED, Goal
from benchmarks.sections import SECTIONS
from benchmarks.suite import Run, Section

ROOT = Path(__file__).parents[2]
SLOW = "\n_step = RMSprop.step\nRMSprop.step = lambda self: (__import__('time').sleep(0.2), _step(self))[1]\n"


def broken(x):
    raise RuntimeError("no such kernel\nmore")


CALLS = {"wrong": torch.clone, "broken": broken, "add": lambda x: x + x}


def measure(run, case):
    x = torch.rand(1000)
    contenders = {"own": CALLS[case], "rival": lambda x: torch.add(x, x), "other": broken}
    calls = {name: lambda call=call: call(x) for name, call in contenders.items()}
    error_of = lambda y: float((y - 2 * x).abs().max() > 0)  # noqa: E731
    errors, left_out = accuracy.check_contenders(
        case, calls, error_of, lambda name, errors: 0.0, rivals=["rival", "other"]
    )
    timings = run.measure({name: contenders[name] for name in errors}, [x, x], rivals=["rival"])
    return {"timings": run.rows(timings, "forward", Work(0, 2 * x.nbytes)), "left_out": left_out}


SUMS = Section(
    name="sums",
    title="two sums",
    cases=lambda run: list(CALLS),
    measure=measure,
    details=lambda record: ["a detail"],
    conclude=lambda run, records: {"count": len(records)},
    conclusion=lambda payload: [f"{payload['count']} in all"],
    goals=lambda records, device: [Goal("times as fast", 1, 2, at_most=False), Goal("ms", None, 1, at_most=True)],
)


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Return the command line's main, on a machine of 1 byte/s and 1 FLOP/s; results go to tmp_path."""
    monkeypatch.setattr(result_files, "FOLDER", tmp_path / "results")
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    monkeypatch.setattr("benchmarks.ceilings.matrix_product_rate", lambda device, precision: 1.0)

    def run(section, *arguments, **options):
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cpu", *arguments])
        suite.main(section, **options)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_a_case_of_every_section_runs_and_is_printed(section, main, tmp_path, capsys):
    run, out = Run("cpu", smoke=True), tmp_path / "out.json"
    cases = list(map(str, section.cases(run)))
    case = "commands" if "commands" in cases else cases[0]  # the quickest of section startup
    main(section, "--smoke", "--out", str(out), "--only", f"{section.name} {case}")
    (payload,) = result_files.sections_of(out).values()
    (record,) = payload["cases"]
    assert case in capsys.readouterr().out
    for own, *_ in parts_of(record).values():
        assert own["ratio"] == 1
        assert own["contender"] not in {*record["rivals"], *record["left_out"]}
        assert all(map(math.isfinite, formatting.error_values(own)))
    assert all(0 < row["p10"] <= row["seconds"] <= row["p90"] for row in record["timings"])
    assert {goal.verdict for device in ("cpu", "cuda") for goal in section.goals([], device)} <= {NOT_MEASURED}
    assert all(callable(make) for case in section.cases(run) for make in section.calls(run, case).values())


def test_a_whole_run_is_written_and_finished_whatever_fails(main, capsys):
    finished = []
    with pytest.raises(SystemExit) as failed:
        main(SUMS, finish=lambda: finished.append(True))
    assert finished
    assert str(failed.value).splitlines() == [
        "error: some cases failed:",
        "sums, wrong: wrong: own is off by 1.0e+00, more than 0.0e+00: nothing is timed",
        "sums, broken: no such kernel",
    ]
    printed = capsys.readouterr()
    assert "RuntimeError: no such kernel" in printed.err
    for text in ("FAILED sums, wrong", "forward rival", "left out: no such kernel", "a detail", "1 in all", "goal ≤ 1"):
        assert text in printed.out
    written = result_files.sections_of(result_files.file_of("cpu"))["sums"]
    (record,) = written["cases"]
    assert [row["contender"] for row in record["timings"]] == ["own", "rival", "own again"]
    for row in record["timings"]:
        assert row["bytes"] == row["floor_seconds"] == 8000
        assert row["share_of_floor"] == pytest.approx(8000 / row["seconds"], rel=1e-3)
        assert row["ratio"] == pytest.approx(row["seconds"] / record["timings"][0]["seconds"], rel=1e-2)
    assert (record["case"], record["rivals"], record["left_out"]) == ("add", ["rival"], {"other": "no such kernel"})
    assert (written["count"], written["ceilings"]) == (1, {"copy": 1.0, "fp32": 1.0})
    assert [goal["verdict"] for goal in written["goals"]] == ["SHORT", NOT_MEASURED]
    assert written["environment"]["device"] == result_files.device_name("cpu")


@pytest.mark.slow
def test_rivals_are_timed_as_people_run_them_and_with_memory_kept(main, tmp_path, keep_memory):
    keep_memory.return_value = True
    (section,) = (each for each in SECTIONS if each.name == "optimizer")
    main(section, "--smoke", "--out", str(tmp_path / "out.json"), "--only", "rmsprop, float32")
    (record,) = result_files.sections_of(tmp_path / "out.json")["optimizer"]["cases"]
    rivals = ["torch for-loop", "torch for-loop, memory kept", "torch foreach", "torch foreach, memory kept"]
    assert [row["contender"] for row in record["timings"]] == ["tgan_fast", *rivals, "tgan_fast again"]
    assert record["rivals"] == rivals
    own = record["timings"][0]["seconds"]
    assert [row["ratio"] for row in record["timings"]] == [
        pytest.approx(row["seconds"] / own, rel=1e-2) for row in record["timings"]
    ]


def test_a_part_of_a_run_writes_nothing(main, capsys):
    main(SUMS, "--only", "sums ad", "--own-only")
    assert "rival" not in capsys.readouterr().out
    assert not result_files.FOLDER.exists()
    with pytest.raises(SystemExit, match="no case has adam or svd in its name; there are the sections sums"):
        main(SUMS, "--only", "adam", "svd")


def test_a_result_that_is_no_number_is_too_inexact():
    with pytest.raises(SystemExit, match="own is off by nan"):
        accuracy.check_contenders("x", {"own": lambda: float("nan")}, float, lambda name, errors: 1.0)


def test_a_contender_that_differs_from_itself_is_flagged():
    rows = [{"part": "forward", "contender": "own", "seconds": 1.0}, {"part": None, "contender": "own", "seconds": 1.0}]
    rows += [row | {"contender": harness.again("own"), "seconds": s} for row, s in zip(rows, (1.5, 1.05), strict=True)]
    assert suite.spread_flags(rows) == ["forward own measured twice differs by 50 %"]


def test_on_a_gpu_nothing_is_timed_without_the_extension(monkeypatch):
    """A slow backend of singular value clipping would be timed under the package's name."""
    monkeypatch.setattr("tgan_fast.ops.cuda_extension.why_not", lambda device: f"not built for {device}")
    with pytest.raises(SystemExit, match="error: these would not be tgan_fast's own figures: not built for cuda"):
        suite.refuse_without_extension("cuda")


@pytest.mark.slow
def test_pytest_benchmark_measures_and_compares(tmp_path):
    command = [sys.executable, "-m", "pytest", "benchmarks", "--smoke", "--device", "cpu"]
    command += ["--only", "optimizer rmsprop, float32", "--benchmark-storage", str(tmp_path)]
    # pytest-benchmark measures nothing beside other processes of pytest-xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run([*command, "--benchmark-save", "first"], cwd=ROOT, env=environment, check=True)
    (path,) = tmp_path.rglob("0001_first.json")
    saved = json.loads(path.read_text())
    assert saved["machine_info"]["device"] == result_files.device_name("cpu")
    for timing in saved["benchmarks"]:
        assert timing["group"] == "optimizer, rmsprop, float32"
        timing["stats"]["min"] = 1e-9
    path.write_text(json.dumps(saved))
    command += ["--benchmark-compare=0001", "--benchmark-compare-fail=min:50%"]
    slower = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "has regressed" in slower.stdout + slower.stderr


@pytest.mark.slow
def test_what_another_revision_does_slower_is_seen(tmp_path):
    def git(*arguments):
        command = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

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
    command = [sys.executable, "-m", "benchmarks.bench_optimizer", "--device", "cpu", "--smoke"]
    command += ["--compare", "HEAD", "--only", "rmsprop, float32"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert {line.split()[-1] for line in result.stdout.splitlines() if "rmsprop, float32" in line} == {"faster"}
    assert git("worktree", "list").count("\n") == 1


@pytest.mark.parametrize(
    ("here", "there", "verdict"),
    [([1, 1], [1.5, 1.5], "faster"), ([1.5, 1.5], [1, 1], "slower"), ([1, 1.6], [1.5, 1.5], "the same")],
)
def test_a_difference_within_the_noise_is_none(here, there, verdict):
    (line,) = differences([{"a": each, "only here": 1} for each in here], [{"a": each} for each in there])
    assert line.endswith(f" %  {verdict}")
