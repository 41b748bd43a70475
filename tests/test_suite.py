"""The suite around the benchmarks: every section runs, records and flags, what fails, the command line and pytest."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import accuracy, harness, results, suite, table
from benchmarks.ceilings import Work
from benchmarks.report import parts_of
from benchmarks.results import NOT_MEASURED, Goal
from benchmarks.sections import SECTIONS
from benchmarks.suite import Run, Section, Suite

ROOT = Path(__file__).resolve().parent.parent


class Case(SimpleNamespace):
    def __str__(self):
        return self.name


def broken(x):
    raise RuntimeError("no such kernel\nmore")


ADD, WRONG, BROKEN = (
    Case(name=name, call=call) for name, call in (("add", lambda x: x + x), ("wrong", torch.clone), ("broken", broken))
)


def measure(run, case):
    x = torch.rand(1000)
    contenders = {"own": case.call, "rival": lambda x: torch.add(x, x), "other": broken}
    calls = {name: lambda call=call: call(x) for name, call in contenders.items()}
    allowed = lambda name, errors: 2 * errors["rival"]  # noqa: E731
    error_of = lambda y: float((y - 2 * x).abs().max() > 0)  # noqa: E731
    errors, left_out = accuracy.check(case, calls, error_of, allowed, rivals=["rival", "other"])
    timings = run.measure({name: contenders[name] for name in errors}, [x, x], rivals=["rival"])
    return {"timings": run.rows(timings, "forward", Work(0, 2 * x.nbytes)), "left_out": left_out}


def sums(*cases):
    return Section(
        name="sums",
        title="two sums",
        cases=lambda run: cases,
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


def run_main(monkeypatch, section, *arguments, **options):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cpu", *arguments])
    suite.main(section, **options)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_every_section_runs_and_is_printed(section, folder, monkeypatch, capsys):
    out = folder / "out.json"
    run_main(monkeypatch, section, "--smoke", "--out", str(out))
    (payload,) = results.sections_of(out).values()
    run, printed = Run("cpu", smoke=True), capsys.readouterr().out
    assert [record["case"] for record in payload["cases"]] == list(map(str, section.cases(run)))
    for record in payload["cases"]:
        assert record["case"] in printed
        for own, *_ in parts_of(record).values():
            assert own["ratio"] == 1
            assert own["contender"] not in {*record["rivals"], *record["left_out"]}
            assert max(table.errors_of(own), default=0) < 1
        assert all(0 < row["p10"] <= row["seconds"] <= row["p90"] for row in record["timings"])
    assert {goal.verdict for device in ("cpu", "cuda") for goal in section.goals([], device)} <= {NOT_MEASURED}
    assert all(callable(make) for case in section.cases(run) for make in section.calls(run, case).values())


def test_a_case_is_measured_and_written(folder):
    record = Suite(Run("cpu", smoke=True), folder / "x.json").record(sums(ADD), ADD)
    assert [row["contender"] for row in record["timings"]] == ["own", "rival", "own again"]
    for row in record["timings"]:
        assert row["bytes"] == row["floor_seconds"] == 8000
        assert row["share_of_floor"] == pytest.approx(8000 / row["seconds"], rel=1e-3)
        assert row["ratio"] == pytest.approx(row["seconds"] / record["timings"][0]["seconds"], rel=1e-2)
    assert (record["rivals"], record["left_out"]) == (["rival"], {"other": "no such kernel"})
    written = results.sections_of(folder / "x.json")["sums"]
    assert (written["cases"], written["count"], written["ceilings"]) == ([record], 1, {"copy": 1.0})
    assert [goal["verdict"] for goal in written["goals"]] == ["SHORT", NOT_MEASURED]
    assert written["environment"]["device"] == results.device_name("cpu")


def test_a_whole_run_writes_and_finishes_whatever_fails(monkeypatch, capsys):
    finished = []
    with pytest.raises(SystemExit) as failed:
        run_main(monkeypatch, sums(WRONG, BROKEN, ADD), finish=lambda: finished.append(True))
    assert str(failed.value).splitlines() == [
        "error: some cases failed:",
        "sums, wrong: wrong: own is off by 1.0e+00, more than 0.0e+00: nothing is timed",
        "sums, broken: no such kernel",
    ]
    printed = capsys.readouterr()
    assert "RuntimeError: no such kernel" in printed.err
    for text in ("FAILED sums, wrong", "forward rival", "left out: no such kernel", "a detail", "1 in all", "goal ≤ 1"):
        assert text in printed.out
    assert finished
    path = results.file_of("cpu")
    assert [case["case"] for case in results.sections_of(path)["sums"]["cases"]] == ["add"]
    path.write_text(json.dumps({"schema": 1}))
    with pytest.raises(SystemExit, match="has the schema 1, not 2: move it away"):
        results.write("sums", {}, "cpu")


def test_a_part_of_a_run_writes_nothing(folder, monkeypatch, capsys):
    run_main(monkeypatch, sums(ADD, WRONG), "--only", "sums ad", "--own-only")
    assert "rival" not in capsys.readouterr().out
    assert not folder.exists()
    with pytest.raises(SystemExit, match="no case has adam or svd in its name; there are the sections sums"):
        run_main(monkeypatch, sums(ADD), "--only", "adam", "svd")


def test_a_result_that_is_no_number_is_too_inexact():
    with pytest.raises(SystemExit, match="own is off by nan"):
        accuracy.check("x", {"own": lambda: float("nan")}, float, lambda name, errors: 1.0)


def test_a_contender_that_differs_from_itself_is_flagged():
    names = ("own", harness.again("own"))
    times = [("forward", 1.0), ("forward", 1.05), ("backward", 1.0), ("backward", 1.5)]
    rows = [{"part": part, "contender": names[i % 2], "seconds": each} for i, (part, each) in enumerate(times)]
    assert suite.spread_flags(rows) == ["backward own measured twice differs by 50 %"]


def test_on_a_gpu_nothing_is_timed_without_the_extension(monkeypatch):
    """A slow backend of singular value clipping would be timed under the package's name."""
    monkeypatch.setattr("tgan_fast.ops.cuda_extension.why_not", lambda device: f"not built for {device}")
    with pytest.raises(SystemExit, match="error: these would not be tgan_fast's own figures: not built for cuda"):
        suite.refuse_without_extension("cuda")


@pytest.mark.slow
def test_pytest_benchmark_measures_and_compares(tmp_path):
    def run(*arguments, device="cpu"):
        command = [sys.executable, "-m", "pytest", "benchmarks", "--smoke", "--device", device, *map(str, arguments)]
        command += ["--only", "optimizer rmsprop, float32", "--benchmark-storage", str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    if not torch.cuda.is_available():
        assert run(device="cuda").stderr == "ERROR: PyTorch sees no GPU here: choose --device cpu\n\n"
    assert run("--benchmark-save", "first").returncode == 0
    (path,) = tmp_path.rglob("0001_first.json")
    saved = json.loads(path.read_text())
    for timing in saved["benchmarks"]:
        assert timing["group"] == "optimizer, rmsprop, float32"
        assert timing["extra_info"]["device"] == results.device_name("cpu")
        timing["stats"]["min"] = 1e-9
    path.write_text(json.dumps(saved))
    slower = run("--benchmark-compare=0001", "--benchmark-compare-fail=min:50%")
    assert "has regressed" in slower.stdout + slower.stderr
