"""The benchmarks run; what they measure is their own business."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import harness
from tgan_fast.ops.batch_norm.tiles import table

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, **environment):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_sections_of_results_come_together_in_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    harness.write_results("first", {"value": 1}, "cpu")
    path = harness.write_results("second", {"value": [1, 2]}, "cpu")
    harness.write_results("first", {"value": 3}, "cpu")
    results = json.loads(path.read_text())
    assert {name: section["value"] for name, section in results["sections"].items()} == {"first": 3, "second": [1, 2]}
    assert results["sections"]["first"]["environment"]["device"] == harness.device_name("cpu")
    path.write_text(json.dumps(results | {"schema": 0}))
    with pytest.raises(SystemExit, match="has the schema 0"):
        harness.write_results("first", {}, "cpu")


def test_contenders_take_turns_on_every_input():
    seen = []
    contenders = {name: lambda inputs, name=name: seen.append((name, inputs)) for name in "ab"}
    timings = harness.measure(contenders, [1, 2], "cpu", rounds=5)
    assert timings.keys() == {"a", "b", harness.again("a")}
    assert [seen.count(("b", inputs)) for inputs in (1, 2)] == [6, 5]
    for timing in timings.values():
        assert 0 <= timing.p10 <= timing.median <= timing.p90


def test_slow_contenders_take_part_in_fewer_rounds_that_are_spread_evenly():
    seen = []
    contenders = {name: lambda inputs, name=name: seen.append(name) for name in ("fast", "slow")}
    harness.measure(contenders, [0], "cpu", rounds={"fast": 6, "slow": 2})
    timed = seen[3:]
    assert timed.count("fast") == 2 * 6
    assert timed.count("slow") == 2
    assert "slow" in timed[:3]
    assert "slow" in timed[-7:]


def test_input_sets_are_prepared_before_every_turn():
    events = []
    contenders = {name: lambda inputs: events.append("call") for name in "ab"}
    harness.measure(contenders, [1, 2], "cpu", rounds=2, prepare=lambda inputs: events.append("prepare"))
    warm_up, timed = 3 * ["prepare", "prepare", "call"], 6 * ["prepare", "prepare", "call", "call"]
    assert events == warm_up + timed


@pytest.mark.slow
def test_batch_norm_against_others():
    result = run("benchmarks.bench_batch_norm_act", "--device", "cpu", "--smoke")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "eager channels-last" in result.stdout


@pytest.mark.slow
def test_tuning_of_tiles(tmp_path):
    """Two candidates on tiny tensors, on a GPU or in Triton's interpreter."""
    pytest.importorskip("triton")
    out = tmp_path / "tiles.json"
    result = run("benchmarks.tune_batch_norm_act", "--smoke", "--out", out)
    assert result.returncode == 0, result.stderr[-3000:]
    entries = json.loads(out.read_text())["tiles"]
    assert len(entries) == len(table())
    assert set(entries[0]) == {"kernel", "itemsize", "channels_last", "size", "rows", "columns", "warps", "programs"}


@pytest.mark.slow
def test_tuning_refuses_what_would_spoil_the_table():
    pytest.importorskip("triton")
    result = run("benchmarks.tune_batch_norm_act", "--smoke")
    assert result.returncode == 1
    assert "give an --out other than the table in use" in result.stderr
