"""Contenders are timed in turns, the right number of times, on a watched device; ceilings give floors."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks import ceilings, device_state, harness
from benchmarks.ceilings import Work
from benchmarks.device_state import CpuWatch, GpuWatch


def test_contenders_take_turns_in_a_changing_order_on_prepared_inputs():
    events = []
    contenders = {name: lambda inputs, name=name: events.append((name, inputs)) for name in "abc"}
    prepare = lambda inputs: events.append(("prepare", inputs))  # noqa: E731
    timings = harness.measure(contenders, [1, 2], "cpu", rounds=8, prepare=prepare)
    assert timings.keys() == {"a", "b", "c", harness.again("a")}
    assert all(len(timing.rounds) == 8 and timing.p10 <= timing.median <= timing.p90 for timing in timings.values())
    turns = [events[first : first + 4] for first in range(0, len(events), 4)]
    assert all(turn == [("prepare", 1), ("prepare", 2), (turn[2][0], 1), (turn[2][0], 2)] for turn in turns)
    rounds = ["".join(turn[2][0] for turn in turns[first : first + 4]) for first in range(0, 36, 4)]
    assert all(sorted(order) == list("aabc") for order in rounds)  # the first of them is not timed
    assert len(set(rounds)) > 2


def test_slow_contenders_run_in_fewer_rounds_at_equal_distances(monkeypatch):
    monkeypatch.setitem(harness.SECONDS, "cpu", 0.5)
    seen = []
    contenders = {"fast": lambda _: seen.append("fast"), "slow": lambda _: (seen.append("slow"), time.sleep(0.2))}
    timings = harness.measure(contenders, [0], "cpu", warm=True)
    assert len(timings["fast"].rounds) == harness.MOST_ROUNDS["cpu"]
    assert len(timings["slow"].rounds) == harness.FEWEST_ROUNDS
    assert min(timings["slow"].rounds) >= 0.2
    places = [index / len(seen) for index, name in enumerate(seen) if name == "slow"]
    assert places[1] < 0.4 < 0.6 < places[-1]  # the first one was not timed


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
    assert [found.floor(Work(*work), "bf16") for work in ((3 * 2 * 8**3, 4096), (8**3, 8192))] == [3, 1]


def test_a_throttled_gpu_is_flagged_and_one_that_cannot_be_watched(monkeypatch):
    watch = GpuWatch()
    watch._readings = [(1980, 300.5, 40, 0x1), (1410, 650.0, 61, 0x0), (1755, 700.0, 64, 0x4 | 0x20)]
    names = ("software power cap", "software thermal slowdown")
    state, flags = watch.take()
    assert state == {"sm_clock_mhz": [1410, 1755, 1980], "power_w": [300.5, 650, 700], "temperature_c": [40, 61, 64]}
    assert flags == [f"throttled ({name}) in 33 % of the readings" for name in names]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with watch:
        pass
    assert watch.take()[1][0].startswith("the GPU was not watched to the end: ModuleNotFoundError")


def test_reasons_are_those_of_nvml():
    nvml = pytest.importorskip("pynvml")
    names = ("SwPowerCap", "HwSlowdown", "SyncBoost", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert [getattr(nvml, f"nvmlClocksEventReason{name}") for name in names] == list(device_state.SLOWING)


@pytest.mark.gpu
def test_a_real_gpu_is_watched():
    watch = GpuWatch()
    with watch:
        torch.ones(1 << 20, device="cuda").sum().item()
    state, flags = watch.take()
    assert list(state) == list(device_state.FIGURES)
    assert not any("not watched" in flag for flag in flags)


@pytest.mark.skipif(not device_state._STAT.exists(), reason="there is no /proc/stat")
def test_other_processes_are_distinguished_from_children():
    spin = [sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"]
    waited_for, others = CpuWatch(), CpuWatch()
    with waited_for:
        subprocess.run(spin, check=True)
    with subprocess.Popen(spin), others:
        time.sleep(1)
    foreign = [(busy - own) / total for total, busy, _, own in (waited_for._spent, others._spent)]
    assert foreign[0] < foreign[1]


def test_cpus_that_others_used_are_flagged():
    watch, found = CpuWatch(), []
    for spent in ([2, 1.2, 0.08, 1.1], [0.8, 0.8, 0, 0], [2, 1.8, 0, 1.1], [2, 1.2, 0.16, 1.3]):
        watch._spent = np.array(spent)
        state, flags = watch.take()
        found += flags
    assert state == {"others": 0, "steal": 0.08}
    assert found == ["other processes took 35 % of the CPUs", "the hypervisor took 8 % of the CPUs (steal)"]
