"""The suite around the benchmarks: every section runs, records and flags, what fails, the command line and pytest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import accuracy, harness, results, suite, table
from benchmarks.ceilings import Work
from benchmarks.report import fastest_rival, parts_of
from benchmarks.results import NOT_MEASURED, Goal
from benchmarks.sections import SECTIONS
from benchmarks.suite import Run, Section, Suite

ROOT = Path(__file__).resolve().parent.parent


def add(x):
    return x + x


def wrong(x):
    return x + x + 1


def broken(x):
    raise RuntimeError("no such kernel\nmore")


class Case:
    def __init__(self, operation):
        self.operation = operation

    def __str__(self):
        return self.operation.__name__


def measure(run, case):
    x = torch.rand(1000)
    contenders = {"own": case.operation, "rival": lambda x: torch.add(x, x), "other": broken}
    errors, left_out = accuracy.check(
        case,
        {name: lambda call=call: call(x) for name, call in contenders.items()},
        lambda y: (y - 2 * x).abs().max().item(),
        lambda name, errors: 2 * errors["rival"],
        rivals=["rival", "other"],
    )
    timings = run.measure({name: contenders[name] for name in errors}, [x, x], rivals=["rival"])
    rows = run.rows(timings, "forward", Work(0, 2 * x.nbytes), more=lambda name: {"error": errors.get(name)})
    return {"timings": rows, "left_out": left_out}


def section(*operations):
    return Section(
        name="sums",
        title="two sums",
        cases=lambda run: list(map(Case, operations)),
        measure=measure,
        details=lambda record: ["a detail"],
        conclude=lambda run, records: {"count": len(records)},
        conclusion=lambda payload: [f"{payload['count']} in all"],
        goals=lambda records, device: [Goal("times as fast", 1, 2, at_most=False), Goal("ms", None, 1, at_most=True)],
    )


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where results go, of a machine that copies a byte a second and computes as much."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    monkeypatch.setattr("benchmarks.ceilings.matrix_product_rate", lambda device, precision: 1.0)
    return tmp_path / "results"


def run_main(monkeypatch, *arguments, sections, **options):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cpu", *arguments])
    suite.main(*sections, **options)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_section_runs_and_can_be_told(section, folder, monkeypatch, capsys):
    out = folder / "out.json"
    run_main(monkeypatch, "--smoke", "--out", str(out), sections=[section])
    payload = json.loads(out.read_text())["sections"][section.name]
    assert [case["case"] for case in payload["cases"]] == list(map(str, section.cases(Run("cpu", smoke=True))))
    printed = capsys.readouterr().out
    for record in payload["cases"]:
        assert record["case"] in printed
        assert record["wall_seconds"] > 0
        for part, (own, *_) in parts_of(record).items():
            assert own["ratio"] == 1, (record["case"], part)
            assert own["contender"] not in {*record["rivals"], *record["left_out"]}
            assert max(table.errors_of(own), default=0) < 1
        for row in record["timings"]:
            assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
    for goal in section.goals([], "cuda") + section.goals([], "cpu"):
        assert goal.verdict == NOT_MEASURED


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_names_of_calls_are_cheap(section):
    run = Run("cpu", smoke=True)
    for case in section.cases(run):
        for name, make in section.calls(run, case).items():
            assert isinstance(name, str)
            assert callable(make)


def test_a_case_is_measured_and_written(folder):
    sums = section(add)
    record = Suite(Run("cpu", smoke=True), folder / "x.json").record(sums, sums.cases(None)[0])
    assert [row["contender"] for row in record["timings"]] == ["own", "rival", "own again"]
    for row in record["timings"]:
        assert row["bytes"] == row["floor_seconds"] == 8000
        assert row["share_of_floor"] == pytest.approx(8000 / row["seconds"], rel=1e-3)
        assert row["ratio"] == pytest.approx(row["seconds"] / record["timings"][0]["seconds"], rel=1e-2)
    assert fastest_rival(record, record["timings"])["contender"] == "rival"
    assert record["left_out"] == {"other": "no such kernel"}
    written = results.sections_of(folder / "x.json")["sums"]
    assert (written["cases"], written["count"], written["ceilings"]) == ([record], 1, {"copy": 1.0})
    assert [goal["verdict"] for goal in written["goals"]] == ["SHORT", NOT_MEASURED]
    assert written["environment"]["device"] == results.device_name("cpu")


def test_what_fails_leaves_the_others_alone(capsys):
    failed = suite.run_sections([section(wrong, broken, add)], Suite(Run("cpu", smoke=True)))
    assert failed == [
        "sums, wrong: wrong: own is off by 1.0e+00, more than 0.0e+00: nothing is timed",
        "sums, broken: no such kernel",
    ]
    printed = capsys.readouterr()
    assert "RuntimeError: no such kernel" in printed.err
    for text in ("FAILED sums, wrong", "forward rival", "left out: no such kernel", "a detail", "1 in all"):
        assert text in printed.out
    assert f"goal ≤ 1 ms: {NOT_MEASURED}" in printed.out


def test_a_result_that_is_no_number_is_too_inexact():
    with pytest.raises(SystemExit, match="own is off by nan"):
        accuracy.check("x", {"own": lambda: float("nan")}, float, lambda name, errors: 1.0)


def test_a_contender_that_differs_from_itself_is_flagged():
    rows = [
        {"part": part, "contender": name, "seconds": seconds}
        for part, first, second in (("forward", 1.0, 1.05), ("backward", 1.0, 1.5))
        for name, seconds in (("own", first), ("rival", 9.0), (harness.again("own"), second))
    ]
    assert suite.spread_flags(rows) == ["backward own measured twice differs by 50 %"]


def test_parts_of_a_run_write_nothing_unless_they_are_told_where(folder, monkeypatch, capsys):
    run_main(monkeypatch, "--only", "sums ad", "--own-only", sections=[section(add, wrong)])
    assert "rival" not in capsys.readouterr().out.replace("arrival", "")
    assert not folder.exists()
    with pytest.raises(SystemExit, match="no case has adam or svd in its name; there are the sections sums"):
        run_main(monkeypatch, "--only", "adam", "svd", sections=[section(add)])


def test_a_whole_run_writes_and_finishes_whatever_fails(monkeypatch):
    finished = []
    with pytest.raises(SystemExit, match=r"some cases failed:\nsums, wrong: "):
        run_main(monkeypatch, sections=[section(add, wrong)], finish=lambda: finished.append(True))
    assert finished
    path = results.file_of("cpu")
    assert [case["case"] for case in results.sections_of(path)["sums"]["cases"]] == ["add"]
    path.write_text(json.dumps({"schema": 1}))
    with pytest.raises(SystemExit, match="has the schema 1, not 2: move it away"):
        results.write("sums", {}, "cpu")


def test_on_a_gpu_nothing_is_timed_without_the_extension(monkeypatch):
    """A slow backend of singular value clipping would be timed under the package's name."""
    monkeypatch.setattr("tgan_fast.ops.cuda_extension.why_not", lambda device: f"not built for {device}")
    with pytest.raises(SystemExit, match="error: these would not be tgan_fast's own figures: not built for cuda"):
        suite.refuse_without_extension("cuda")


def pytest_benchmarks(*arguments):
    command = [sys.executable, "-m", "pytest", "benchmarks", "--smoke", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_pytest_benchmark_measures_and_compares(tmp_path):
    chosen = ["--device", "cpu", "--only", "optimizer rmsprop, float32", "--benchmark-storage", tmp_path]
    saved = pytest_benchmarks(*chosen, "--benchmark-save", "first")
    assert saved.returncode == 0, saved.stdout[-3000:]
    (path,) = tmp_path.rglob("0001_first.json")
    run = json.loads(path.read_text())
    for timing in run["benchmarks"]:
        assert timing["group"] == "optimizer, rmsprop, float32"
        assert timing["extra_info"]["device"] == results.device_name("cpu")
        timing["stats"]["min"] = 1e-9
    assert len(run["benchmarks"]) >= 3
    path.write_text(json.dumps(run))
    slower = pytest_benchmarks(*chosen, "--benchmark-compare=0001", "--benchmark-compare-fail=min:50%")
    assert slower.returncode != 0
    assert "has regressed" in slower.stdout + slower.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    assert suite.resolve_device("auto") == "cpu"
    result = pytest_benchmarks("--device", "cuda")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert result.stderr == "ERROR: PyTorch sees no GPU here: choose --device cpu\n\n"
