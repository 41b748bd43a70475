"""The suite around the benchmarks: records, flags, what fails, the command line and pytest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import harness, results, suite, table
from benchmarks.ceilings import Work
from benchmarks.device_state import Reading, Watch
from benchmarks.results import Goal
from benchmarks.suite import Label, Run, Section, Suite

ROOT = Path(__file__).resolve().parent.parent
STEADY = Reading(1980, 2619, 500.0, 60, 0, 1 << 30)
# NVML's bit of the software power cap.
THROTTLED = STEADY._replace(sm_clock_mhz=1300, reasons=0x4)


def add(x):
    return x + x


def wrong(x):
    return x + x + 1


def measure(run, case):
    x = torch.rand(1000)
    if not torch.equal(case(x), 2 * x):
        raise SystemExit(f"error: {case}: own computes something else: nothing is timed")
    timings = run.measure({"own": case, "rival": lambda x: torch.add(x, x)}, [x, x], rivals=["rival"])
    rows = run.rows(timings, "forward", Work(0, 2 * x.nbytes))
    return {"timings": rows, "left_out": {"other": "not installed"}}


class Case:
    def __init__(self, name, operation):
        self.name, self.operation = name, operation

    def __str__(self):
        return self.name

    def __call__(self, x):
        return self.operation(x)


def goals_for(records, device):
    ratio = next((row["ratio"] for record in records for row in record["timings"] if row["contender"] == "rival"), None)
    return [Goal("times as fast", ratio, 0, at_most=False), Goal("ms", None, 1, at_most=True)]


def section(*operations):
    cases = [Case(operation.__name__, operation) for operation in operations]
    return Section(
        name="sums",
        title="two sums",
        cases=lambda run: cases,
        labels=lambda run, case: [Label(name, "forward") for name in ("own", "rival", "own again")],
        measure=measure,
        details=lambda record: ["a detail"],
        conclude=lambda run, records: {"count": len(records)},
        conclusion=lambda payload: [f"{payload['count']} in all"],
        goals=goals_for,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where results go, of a machine that copies a byte a second."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.ceilings.copy_bandwidth", lambda device: 1.0)
    return tmp_path


def test_a_record_holds_what_was_measured_and_what_the_ceilings_allow(folder):
    sums = section(add)
    record = Suite(Run("cpu")).record(sums, sums.cases(None)[0])
    assert record["case"] == "add"
    assert [row["contender"] for row in record["timings"]] == ["own", "rival", "own again"]
    for row in record["timings"]:
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]
        assert row["bytes"] == row["floor_seconds"] == 8000
        assert row["share_of_floor"] == pytest.approx(8000 / row["seconds"], rel=1e-3)
        assert row["ratio"] == pytest.approx(row["seconds"] / record["timings"][0]["seconds"], rel=1e-2)
    assert record["wall_seconds"] > 0


def test_a_case_is_measured_once(folder):
    calls = []

    def counted(x):
        calls.append(x)
        return add(x)

    sums = section(counted)
    mine = Suite(Run("cpu"))
    first = mine.record(sums, sums.cases(None)[0])
    count = len(calls)
    assert mine.record(sums, sums.cases(None)[0]) is first
    assert len(calls) == count


def test_the_file_is_written_after_every_case(folder):
    sums = section(add, wrong)
    mine = Suite(Run("cpu"), results.file_of("cpu"))
    assert not list(folder.iterdir())
    mine.record(sums, sums.cases(None)[0])
    written = results.sections_of(results.file_of("cpu"))["sums"]
    assert written["ceilings"] == {"copy": 1.0}
    assert written["count"] == 1
    assert written["environment"]["device"] == results.device_name("cpu")
    assert [goal["verdict"] for goal in written["goals"]] == ["met", results.NOT_MEASURED]
    (case,) = written["cases"]
    assert case["left_out"] == {"other": "not installed"}
    assert all("rounds" not in row for row in case["timings"])


def test_sections_come_together_in_one_file(folder):
    results.write("first", {"value": 1}, "cpu")
    path = results.write("second", {"value": [1, 2]}, "cpu")
    results.write("first", {"value": 3}, "cpu")
    found = results.sections_of(path)
    assert {name: section["value"] for name, section in found.items()} == {"first": 3, "second": [1, 2]}
    path.write_text(json.dumps({"schema": 1, "sections": {}}))
    with pytest.raises(SystemExit, match="has the schema 1, not 2: move it away"):
        results.write("first", {}, "cpu")


def test_what_computes_something_else_fails_alone(folder, capsys):
    sums = section(wrong, add)
    failed = suite.run_sections([sums], Suite(Run("cpu")))
    assert failed == ["sums, wrong: wrong: own computes something else: nothing is timed"]
    printed = capsys.readouterr().out
    assert "FAILED sums, wrong" in printed
    assert "forward rival" in printed
    assert "other" in printed
    assert "left out: not installed" in printed
    assert "a detail" in printed
    assert "1 in all" in printed
    assert f"goal ≤ 1 ms: {results.NOT_MEASURED}" in printed


def test_an_error_in_a_benchmark_fails_alone_too(folder, capsys):
    def broken(x):
        raise RuntimeError("no such kernel\nmore")

    failed = suite.run_sections([section(broken, add)], Suite(Run("cpu")))
    assert failed == ["sums, broken: no such kernel"]
    assert "RuntimeError: no such kernel" in capsys.readouterr().err


def test_a_throttled_run_is_flagged(folder, monkeypatch, capsys):
    monkeypatch.setattr(suite, "Watch", lambda device: Watch("cuda", read=lambda: THROTTLED))
    sums = section(add)
    throttled = Suite(Run("cpu"), results.file_of("cpu"))
    suite.run_sections([sums], throttled)
    (case,) = results.sections_of(results.file_of("cpu"))["sums"]["cases"]
    assert any("software power cap" in flag for flag in case["flags"])
    assert "FLAG throttled" in capsys.readouterr().out
    monkeypatch.setattr(suite, "Watch", lambda device: Watch("cuda", read=lambda: STEADY))
    steady = Suite(Run("cpu")).record(sums, sums.cases(None)[0])
    assert not any("throttled" in flag for flag in steady["flags"])


def test_a_contender_that_differs_from_itself_is_flagged():
    rows = [
        {"part": part, "contender": name, "seconds": seconds}
        for part, first, second in (("forward", 1.0, 1.05), ("backward", 1.0, 1.5))
        for name, seconds in (("own", first), ("rival", 9.0), (harness.again("own"), second))
    ]
    assert suite.spread_flags(rows) == ["backward own measured twice differs by 50 %"]
    assert suite.spread_flags(rows[:3]) == []


def test_rivals_can_be_left_out_of_the_timing(folder):
    sums = section(add)
    record = Suite(Run("cpu", own_only=True)).record(sums, sums.cases(None)[0])
    assert [row["contender"] for row in record["timings"]] == ["own", "own again"]


def test_a_smoke_run_takes_two_rounds(folder):
    sums = section(add)
    record = Suite(Run("cpu", smoke=True)).record(sums, sums.cases(None)[0])
    assert {len(row["rounds"]) for row in record["timings"]} == {suite.SMOKE_ROUNDS}


def test_cases_are_chosen_by_what_is_in_their_names(folder):
    sums, run = section(add, wrong), Run("cpu")

    def names(*only):
        return [str(case) for _, cases in suite.chosen([sums], run, only) for case in cases]

    assert names() == names("sums") == ["add", "wrong"]
    assert names("sums wr") == ["wrong"]
    assert names("other") == []


@pytest.mark.parametrize("arguments", [["--smoke"], ["--only", "add"], ["--own-only"]], ids=" ".join)
def test_parts_of_a_run_write_nothing_unless_they_are_told_where(arguments, folder, monkeypatch, tmp_path):
    finished = []
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cpu", *arguments])
    suite.main(section(add), finish=lambda: finished.append(True))
    assert not list(folder.iterdir())
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--out", str(out)])
    suite.main(section(add), finish=lambda: finished.append(True))
    assert "sums" in results.sections_of(out)
    assert not finished


def test_on_a_gpu_nothing_is_timed_without_the_extension(folder, monkeypatch):
    """A slow backend of singular value clipping would be timed under the package's name."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("tgan_fast.ops.cuda_extension.why_not", lambda device: f"not built for {device}")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cuda"])
    with pytest.raises(SystemExit, match="error: these would not be tgan_fast's own figures: not built for cuda"):
        suite.main(section(add))


def test_a_whole_run_writes_and_finishes_whatever_fails(folder, monkeypatch):
    finished = []
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cpu"])
    with pytest.raises(SystemExit, match=r"some cases failed:\nsums, wrong: "):
        suite.main(section(add, wrong), finish=lambda: finished.append(results.sections_of(results.file_of("cpu"))))
    assert [case["case"] for case in finished[0]["sums"]["cases"]] == ["add"]


def test_a_choice_of_nothing_is_refused(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--device", "cpu", "--only", "adam", "svd"])
    with pytest.raises(SystemExit, match="no case has adam or svd in its name; there are the sections sums"):
        suite.main(section(add))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(SystemExit, match="sees no GPU here: choose --device cpu"):
        suite.resolve_device("cuda")
    assert suite.resolve_device("auto") == "cpu"
    result = pytest_benchmarks("--device", "cuda")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert result.stderr == "ERROR: PyTorch sees no GPU here: choose --device cpu\n\n"


def test_goals_tell_what_is_met_what_is_missed_and_what_is_not_measured(monkeypatch):
    goals = [Goal("ms", value, 2.0, at_most=True) for value in (1.0, 3.0, None)]
    assert [goal.verdict for goal in goals] == ["met", "SHORT", results.NOT_MEASURED]
    assert Goal("times", 1.0, 2.0, at_most=False).verdict == "SHORT"
    payload = {"goals": [goal.record() for goal in goals]}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = list(table.goals_of(payload))
    assert ["\x1b[31m" in line for line in shown] == [False, True, False]


def pytest_benchmarks(*arguments, **options):
    command = [sys.executable, "-m", "pytest", "benchmarks", "--device", "cpu", "--smoke", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_pytest_benchmark_gets_every_timing_and_compares_them(tmp_path):
    only = ["--only", "optimizer rmsprop, float32", "--benchmark-storage", tmp_path / "runs"]
    saved = pytest_benchmarks(*only, "--benchmark-save", "first", "--benchmark-json", tmp_path / "run.json")
    assert saved.returncode == 0, saved.stdout[-3000:]
    timings = json.loads((tmp_path / "run.json").read_text())["benchmarks"]
    names = {timing["extra_info"]["contender"] for timing in timings}
    assert names == {"tgan_fast", "tgan_fast, gathered", "torch for-loop", "torch foreach", "tgan_fast again"}
    for timing in timings:
        assert timing["group"] == "optimizer, rmsprop, float32"
        assert timing["stats"]["median"] == pytest.approx(timing["extra_info"]["seconds"], rel=1e-3)
        assert timing["stats"]["rounds"] == suite.SMOKE_ROUNDS
    compared = pytest_benchmarks(*only, "--benchmark-compare=0001")
    assert compared.returncode == 0, compared.stdout[-3000:]
    assert "0001_first" in compared.stdout
    (earlier,) = (tmp_path / "runs").rglob("0001_first.json")
    run = json.loads(earlier.read_text())
    for timing in run["benchmarks"]:
        timing["stats"]["min"] = 1e-9
    earlier.write_text(json.dumps(run))
    slower = pytest_benchmarks(*only, "--benchmark-compare=0001", "--benchmark-compare-fail=min:50%")
    assert slower.returncode != 0
    assert "has regressed" in slower.stdout + slower.stderr


def test_the_clock_given_to_pytest_benchmark_tells_what_was_measured():
    from benchmarks.test_benchmarks import Replay

    clock = Replay([0.5, 0.25])
    before, after = clock(), clock()
    assert after - before == 0.5
    before, after = clock(), clock()
    assert after - before == 0.25
