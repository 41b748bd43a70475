"""The benchmark of start-up times the processes that it says; the figures are their own business."""

import sys

import pytest

from benchmarks import bench_startup as bench
from benchmarks import results, suite
from benchmarks.bench_startup import Program
from benchmarks.results import NOT_MEASURED
from benchmarks.suite import Label, Run, Suite

SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in (bench.COMMANDS, bench.FIRST)]
NOTES_ITS_CACHE = """
import os, sys
from pathlib import Path

cache = Path(os.environ["TRITON_CACHE_DIR"])
with Path({log!r}).open("a") as log:
    print(*sys.argv[1:], len(list(cache.iterdir())), file=log)
(cache / "kernel").touch()
print("imported", "set up", "iteration 1: 1 2 3 4", "iteration 10: 1 2 3 4", sep="\\n")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where results go."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return tmp_path


def labels_of(rows):
    return [Label(row["contender"], row["part"]) for row in rows]


def test_lines_have_the_time_when_they_came():
    program = "import time\nprint('first', flush=True)\ntime.sleep(0.5)\nprint('second')"
    first, second, end = bench.start("a program", ("-c", program))
    assert (first.text, second.text, end.text) == ("first", "second", "")
    assert 0 < first.seconds < second.seconds - 0.1
    assert 0.5 <= second.seconds <= end.seconds


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('half'); raise ValueError('broken')", "ValueError: broken"),
        ("import sys; sys.exit('error: no GPU')", "error: no GPU"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
)
def test_a_process_that_fails_is_not_timed(program, reason):
    with pytest.raises(SystemExit, match=f"error: a program fails: {reason}: nothing is timed"):
        bench.seconds_of("a program", Program(("-c", program), "half"))


def test_a_process_that_does_something_else_is_not_timed():
    with pytest.raises(SystemExit, match="error: a program does not print --preset: nothing is timed"):
        bench.seconds_of("a program", Program(("-c", "print('--help')"), "--preset"))


@pytest.mark.parametrize(
    "lines",
    [
        ["imported", "set up", "iteration 1: 1 2 3 4", "iteration 10: 1 nan 3 4"],
        ["imported", "set up", "iteration 1: inf 2 3 4", "iteration 10: 1 2 3 4"],
        ["imported", "set up", "iteration 1:", "iteration 10: 1 2 3 4"],
        ["imported", "set up", "iteration 1: 1 2 3 4"],
        [],
    ],
)
def test_what_does_not_train_is_not_timed(lines, monkeypatch):
    monkeypatch.setattr(bench, "TRAINING", f"print({chr(10).join(lines)!r})")
    with pytest.raises(SystemExit, match=r"tgan_fast does not train, but prints .*: nothing is timed"):
        bench.seconds_of_training("tgan_fast", "tiny", "cpu")


@pytest.mark.parametrize("case", [bench.IMPORT, *SLOW])
def test_what_runs_is_what_was_announced(case):
    run = Run("cpu", smoke=True)
    record = Suite(run).record(bench.SECTION, case)
    rows = record["timings"]
    assert labels_of(rows) == bench.SECTION.labels(run, case)
    assert all(row["seconds"] > 0 for row in rows)
    assert record["rivals"] == (["torch alone"] if case == bench.IMPORT else [])
    if case == bench.FIRST:
        assert record["preset"] == "tiny"
        assert [row["part"] for row in rows] == ["imported", "set up", "iteration 1", "iteration 10"]
        seconds = [row["seconds"] for row in rows]
        assert seconds == sorted(seconds)


def test_processes_take_turns_and_each_round_is_kept(monkeypatch, tmp_path):
    log = tmp_path / "log"
    programs = {
        name: Program(("-c", f"with open({str(log)!r}, 'a') as log: log.write('{name} ')\nprint({name!r})"), name)
        for name in ("one", "other")
    }
    monkeypatch.setitem(bench.PROGRAMS, bench.IMPORT, programs)
    rows = Suite(Run("cpu")).record(bench.SECTION, bench.IMPORT)["timings"]
    assert log.read_text().split() == bench.ROUNDS["cpu"][bench.IMPORT] * ["one", "other"]
    for row in rows:
        assert len(row["rounds"]) == bench.ROUNDS["cpu"][bench.IMPORT]
        assert 0 < row["p10"] <= row["seconds"] <= row["p90"]


def test_on_a_gpu_kernels_are_compiled_by_the_first_process_alone(monkeypatch, tmp_path):
    log = tmp_path / "log"
    monkeypatch.setattr(bench, "TRAINING", NOTES_ITS_CACHE.format(log=str(log)))
    run = Run("cuda")
    timings = bench.measure(run, bench.FIRST)["timings"]
    assert log.read_text().splitlines() == ["paper cuda 10 0", "paper cuda 10 1"]
    assert labels_of(timings) == bench.SECTION.labels(run, bench.FIRST)
    assert [row["contender"] for row in timings[:2]] == [bench.COMPILING, bench.COMPILED]


def test_rivals_can_be_left_out():
    run = Run("cpu", smoke=True, own_only=True)
    record = Suite(run).record(bench.SECTION, bench.IMPORT)
    assert labels_of(record["timings"]) == bench.SECTION.labels(run, bench.IMPORT) == [Label("tgan_fast")]
    assert [goal.verdict for goal in bench.SECTION.goals([record], "cpu")] == [NOT_MEASURED]


def test_a_smoke_run_writes_nothing(folder, monkeypatch, capsys):
    monkeypatch.setattr(bench, "CASES", [bench.IMPORT])
    monkeypatch.setattr(sys, "argv", ["bench_startup", "--device", "cpu", "--smoke"])
    suite.main(bench.SECTION)
    assert not list(folder.iterdir())
    assert "torch alone" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "verdict"), [(2.1, "met"), (2.3, "SHORT")])
def test_the_goal_compares_with_pytorch_alone(seconds, verdict):
    rows = [{"contender": "tgan_fast", "p10": seconds}, {"contender": "torch alone", "p10": 2.0}]
    records = [{"case": bench.COMMANDS, "timings": []}, {"case": bench.IMPORT, "timings": rows}]
    (goal,) = bench.SECTION.goals(records, "cpu")
    assert (goal.measured, goal.verdict) == (seconds / 2, verdict)
    assert [goal.verdict for goal in bench.SECTION.goals([], "cuda")] == [NOT_MEASURED]


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_training_starts_and_replays():
    run = Run("cuda", smoke=True)
    rows = Suite(run).record(bench.SECTION, bench.FIRST)["timings"]
    assert labels_of(rows) == bench.SECTION.labels(run, bench.FIRST)
    assert all(row["seconds"] > 0 for row in rows)
