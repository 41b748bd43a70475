"""Contenders are timed in turns and as often as they should be; what they take is their own business."""

import time

import pytest
import torch

from benchmarks import ceilings, harness
from benchmarks.ceilings import Work


def test_contenders_take_turns_in_a_changing_order_on_prepared_inputs():
    events = []
    contenders = {name: lambda inputs, name=name: events.append((name, inputs)) for name in "abc"}
    prepare = lambda inputs: events.append(("prepare", inputs))  # noqa: E731
    timings = harness.measure(contenders, [1, 2], "cpu", rounds=8, prepare=prepare)
    assert timings.keys() == {"a", "b", "c", harness.again("a")}
    assert all(len(timing.rounds) == 8 and timing.p10 <= timing.median <= timing.p90 for timing in timings.values())
    turns = events[4 * 3 :]  # behind a first call of each
    turns = [turns[first : first + 4] for first in range(0, len(turns), 4)]
    assert all(turn[:2] == [("prepare", 1), ("prepare", 2)] for turn in turns)
    assert all(turn[2:] == [(turn[2][0], 1), (turn[2][0], 2)] for turn in turns)
    rounds = ["".join(turn[2][0] for turn in turns[first : first + 4]) for first in range(0, 32, 4)]
    assert all(sorted(order) == list("aabc") for order in rounds)
    assert len(set(rounds)) > 1


def test_slow_contenders_take_part_in_fewer_rounds_that_are_spread_evenly(monkeypatch):
    monkeypatch.setitem(harness.SECONDS, "cpu", 0.5)
    seen = []
    contenders = {"fast": lambda _: seen.append("fast"), "slow": lambda _: (seen.append("slow"), time.sleep(0.2))}
    timings = harness.measure(contenders, [0], "cpu")
    assert len(timings["fast"].rounds) == harness.MOST_ROUNDS["cpu"]
    assert len(timings["slow"].rounds) == harness.FEWEST_ROUNDS
    assert min(timings["slow"].rounds) >= 0.2
    places = [index for index, name in enumerate(seen[6:]) if name == "slow"]
    assert places[0] < len(seen[6:]) / 3
    assert places[-1] > len(seen[6:]) / 2


def test_what_is_warm_is_only_called_to_be_timed():
    calls = []
    harness.measure({"a": calls.append}, [1, 2], "cpu", rounds=3, warm=True)
    assert calls == 2 * 3 * [1, 2]


def test_inputs_together_exceed_the_cache_twice():
    assert [harness.input_set_count(nbytes, "cpu") for nbytes in (1 << 30, 1 << 20, 1)] == [2, 64, 256]


@pytest.mark.gpu
def test_on_a_gpu_contenders_are_replayed_unless_they_cannot_be():
    x = torch.rand(1 << 20, device="cuda")
    contenders = {"add": lambda x: x + 1, "waits": lambda x: x.sum().item()}
    timings = harness.measure(contenders, [x, x + 1], "cuda", uncaptured={"waits": "it waits"})
    assert timings["add"].method == timings[harness.again("add")].method == "replays of a CUDA graph"
    assert timings["waits"].method == f"{harness.WITHOUT_GRAPH}: it waits"
    assert all(0 < timing.p10 <= timing.median <= timing.p90 for timing in timings.values())


def test_a_floor_is_the_longer_of_operations_and_bytes(monkeypatch):
    monkeypatch.setattr(harness, "measure", lambda *_: {"call": harness.Timing.of([2.0, 1.0], "made up")})
    monkeypatch.setitem(ceilings._COPY_BYTES, "cpu", 4096)
    monkeypatch.setitem(ceilings._MATRIX_SIDE, "cpu", 8)
    found = ceilings.Ceilings("cpu")
    assert found.floor(Work(0, 3 * 4096), "fp32") == 1.5  # a copy reads and writes
    assert found.record() == {"copy": 8192.0}
    assert found.floor(Work(3 * 2 * 8**3, 4096), "bf16") == 3
    assert found.floor(Work(8**3, 8192), "bf16") == 1
    assert found.record() == {"copy": 8192.0, "bf16": 1024.0}
