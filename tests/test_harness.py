"""Contenders are timed in turns and as often as they should be; what they take is their own business."""

import time

import pytest
import torch

from benchmarks import ceilings, harness
from benchmarks.ceilings import Work


def test_contenders_take_turns_on_every_input():
    seen = []
    contenders = {name: lambda inputs, name=name: seen.append((name, inputs)) for name in "ab"}
    timings = harness.measure(contenders, [1, 2], "cpu", rounds=5)
    assert timings.keys() == {"a", "b", harness.again("a")}
    # Once before they are timed, with the first.
    assert [seen.count(("b", inputs)) for inputs in (1, 2)] == [6, 5]
    for timing in timings.values():
        assert 0 <= timing.p10 <= timing.median <= timing.p90
        assert len(timing.rounds) == 5


def test_the_order_of_turns_changes():
    seen = []
    contenders = {name: lambda _, name=name: seen.append(name) for name in "abcd"}
    harness.measure(contenders, [0], "cpu", rounds=8)
    rounds = [tuple(seen[first : first + 5]) for first in range(5, len(seen), 5)]
    assert len(rounds) == 8
    assert all(sorted(order) == list("aabcd") for order in rounds)
    assert len(set(rounds)) > 1


def test_slow_contenders_take_part_in_fewer_rounds_that_are_spread_evenly(monkeypatch):
    monkeypatch.setitem(harness.SECONDS, "cpu", 2.0)
    seen = []

    def slow(_):
        seen.append("slow")
        time.sleep(0.7)

    timings = harness.measure({"fast": lambda _: seen.append("fast"), "slow": slow}, [0], "cpu")
    assert len(timings["fast"].rounds) == harness.MOST_ROUNDS["cpu"]
    assert len(timings["slow"].rounds) == harness.FEWEST_ROUNDS
    timed = [name for name in seen[6:] if name == "slow" or name == "fast"]
    places = [index for index, name in enumerate(timed) if name == "slow"]
    assert places[0] < len(timed) / 3
    assert places[-1] > len(timed) / 2


def test_what_a_contender_takes_is_measured():
    timings = harness.measure({"sleep": lambda seconds: time.sleep(seconds)}, [0.01, 0.03], "cpu", rounds=3)
    assert min(timings["sleep"].rounds) >= 0.02


def test_input_sets_are_prepared_before_every_turn():
    events = []
    contenders = {name: lambda inputs: events.append("call") for name in "ab"}
    harness.measure(contenders, [1, 2], "cpu", rounds=2, prepare=lambda inputs: events.append("prepare"))
    before, timed = 3 * ["prepare", "prepare", "call"], 6 * ["prepare", "prepare", "call", "call"]
    assert events == before + timed


def test_what_is_warm_is_only_called_to_be_timed():
    calls = []
    harness.measure({"a": calls.append}, [1, 2], "cpu", rounds=3, warm=True)
    assert calls == 2 * 3 * [1, 2]


def test_inputs_together_exceed_the_cache_twice():
    assert harness.input_set_count(1 << 30, "cpu") == 2
    assert harness.input_set_count(1 << 20, "cpu") * (1 << 20) >= 2 * (32 << 20)
    assert harness.input_set_count(1, "cpu") == 256


@pytest.mark.gpu
def test_on_a_gpu_contenders_are_replayed_unless_they_cannot_be():
    x = torch.rand(1 << 20, device="cuda")
    contenders = {"add": lambda x: x + 1, "waits": lambda x: x.sum().item(), "plain": lambda x: x + 2}
    uncaptured = {"waits": "it waits", "plain": "as it is"}
    timings = harness.measure(contenders, [x, x + 1], "cuda", uncaptured=uncaptured)
    assert timings["add"].method == timings[harness.again("add")].method == "replays of a CUDA graph"
    assert timings["waits"].method == f"{harness.WITHOUT_GRAPH}: it waits"
    assert all(0 < timing.p10 <= timing.median <= timing.p90 for timing in timings.values())


def test_a_floor_is_the_longer_of_operations_and_bytes(monkeypatch):
    monkeypatch.setattr(ceilings, "copy_bandwidth", lambda device: 10.0)
    monkeypatch.setattr(ceilings, "matrix_product_rate", lambda device, precision: 100.0)
    found = ceilings.Ceilings("cpu")
    assert found.floor(Work(0, 20), "fp32") == 2
    assert found.record() == {"copy": 10.0}
    assert found.floor(Work(400, 20), "bf16") == 4
    assert found.floor(Work(100, 20), "bf16") == 2
    assert found.record() == {"copy": 10.0, "bf16": 100.0}
    found.measure(["bf16", "fp32"])
    assert found.record() == {"copy": 10.0, "bf16": 100.0, "fp32": 100.0}


def test_ceilings_count_both_directions_of_a_copy_and_both_operations_of_a_product(monkeypatch):
    second = harness.Timing.of([1.0, 1.0], "made up")
    monkeypatch.setattr(harness, "measure", lambda contenders, *_: dict.fromkeys(contenders, second))
    monkeypatch.setitem(ceilings._COPY_BYTES, "cpu", 4096)
    monkeypatch.setitem(ceilings._MATRIX_SIDE, "cpu", 8)
    assert ceilings.copy_bandwidth("cpu") == 2 * 4096
    assert ceilings.matrix_product_rate("cpu", "fp32") == 2 * 8**3
