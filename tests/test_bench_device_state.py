"""What is timed on a device that is slowed down, or that others use, is flagged."""

import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import device_state
from benchmarks.device_state import CpuWatch, GpuWatch

BUSY = "import time\nwhile time.process_time() < 1: pass"


def test_a_throttled_gpu_is_flagged_and_an_error_stops_nothing(monkeypatch):
    """On a machine with a GPU that is cool at first, then slowed down, and then lost."""
    clocks, reasons = iter([1980, 1980, 1300]), iter([0x1, 0x0, 0x4 | 0x20])
    nvml = SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: "gpu",
        nvmlDeviceGetClockInfo=lambda gpu, kind: next(clocks),
        nvmlDeviceGetPowerUsage=lambda gpu: 650_500,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 61,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: next(reasons),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="0"))
    watch = GpuWatch()
    for _ in range(4):  # each ends before the first interval does, and so looks once
        with watch:
            pass
    summary, (lost, *slowed) = watch.take()
    assert summary == {
        "looks": 3,
        "sm_clock_mhz": {"min": 1300, "median": 1980, "max": 1980},
        "highest_power_w": 650.5,
        "highest_temperature_c": 61,
        "throttle_reasons": {"software power cap": 0.3333, "software thermal slowdown": 0.3333},
    }
    assert lost.startswith("the GPU was not watched to the end: StopIteration")
    assert slowed == [f"throttled ({name}) in 33 % of the looks" for name in summary["throttle_reasons"]]
    assert watch.take() == (None, [])


def test_reasons_are_those_of_nvml():
    nvml = pytest.importorskip("pynvml")
    names = ("SwPowerCap", "HwSlowdown", "SyncBoost", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert [getattr(nvml, f"nvmlClocksEventReason{name}") for name in names] == list(device_state.SLOWING)


@pytest.mark.gpu
def test_a_real_gpu_is_watched():
    watch = GpuWatch()
    with watch:
        torch.ones(1 << 20, device="cuda").sum().item()
    summary, flags = watch.take()
    assert not any("not watched" in flag for flag in flags)
    assert summary["sm_clock_mhz"]["min"] > 0


@pytest.mark.skipif(not device_state._STAT.exists(), reason="there is no /proc/stat")
def test_other_processes_are_told_from_what_this_one_waited_for():
    watch = CpuWatch()
    with watch:
        subprocess.run([sys.executable, "-c", BUSY], check=True)
    waited_for, _ = watch.take()
    with subprocess.Popen([sys.executable, "-c", BUSY]), watch:
        time.sleep(1)
    others, _ = watch.take()
    assert others["others"] > waited_for["others"]


@pytest.mark.parametrize(
    ("spent", "shares", "flags"),
    [
        ([1, 2, 1.2, 0.08, 1.1], {"others": 0.05, "steal": 0.04}, []),
        ([1, 2, 1.8, 0, 1.1], {"others": 0.35, "steal": 0}, ["other processes took 35 % of the CPUs"]),
        ([1, 2, 1.2, 0.16, 1.3], {"others": 0, "steal": 0.08}, ["the hypervisor took 8 % of the CPUs (steal)"]),
        ([0.4, 0.8, 0.8, 0, 0], None, []),
        ([1, 0, 0, 0, 1], None, []),
    ],
    ids=["calm", "others", "steal", "too short", "no /proc/stat"],
)
def test_cpus_that_others_used_are_flagged(spent, shares, flags):
    watch = CpuWatch()
    watch._spent = np.array(spent, dtype=float)
    assert watch.take() == (pytest.approx(shares), flags)
