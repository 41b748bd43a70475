"""The device while something is timed: clocks, power and temperature of a GPU, or who else uses the CPUs.

A timing of a GPU that throttled, or of CPUs that others used, says little: a watch flags it.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.results import rounded

INTERVAL = 0.1  # seconds between two looks at a GPU
MOST_OTHERS, MOST_STEAL = 0.1, 0.05  # of the time of all CPUs; above them timings are flagged
SHORTEST = 0.5  # seconds; the CPUs' time is counted in steps of 0.01 s, too coarse for less
# NVML's reasons for a lower clock that slow down what runs, by their bits.
SLOWING = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
_STAT = Path("/proc/stat")


class Reading(NamedTuple):
    """One look at a GPU."""

    sm_clock_mhz: int
    power_w: float
    temperature_c: int
    reasons: int  # for a lower clock: NVML's bits


class GpuWatch:
    """Context manager that looks at PyTorch's current GPU in a thread, every `INTERVAL` and at the end.

    An error in looking never stops what is timed: it becomes a flag.
    """

    def __init__(self):
        self._readings, self._error = [], None

    def __enter__(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _look(self):
        try:
            read, stopped = gpu_reader(), False
            while not stopped:
                stopped = self._stop.wait(INTERVAL)
                self._readings.append(read())
        except Exception as error:
            self._error = error

    def take(self) -> dict:
        """Return what was seen since the last time: `summary`, None where nothing was, and the sentences `flags`."""
        readings, error, self._readings, self._error = self._readings, self._error, [], None
        flags = [] if error is None else [f"the GPU was not watched to the end: {type(error).__name__}: {error}"]
        if not readings:
            return {"summary": None, "flags": flags}
        clocks, power, temperatures, reasons = zip(*readings, strict=True)
        looks = {name: sum(bool(found & bit) for found in reasons) for bit, name in SLOWING.items()}
        slowed = {name: rounded(count / len(readings)) for name, count in looks.items() if count}
        flags += [f"throttled ({name}) in {100 * share:.2g} % of the looks" for name, share in slowed.items()]
        summary = {
            "looks": len(readings),
            "sm_clock_mhz": {"min": min(clocks), "median": statistics.median(clocks), "max": max(clocks)},
            "highest_power_w": rounded(max(power)),
            "highest_temperature_c": max(temperatures),
            "throttle_reasons": slowed,
        }
        return {"summary": summary, "flags": flags}


class CpuWatch:
    """Context manager that reads the CPUs' times at its beginning and end.

    Child processes count as others, unless they were started and waited for within.
    """

    def __init__(self):
        self._spent = np.zeros(5)

    def __enter__(self):
        self._begin = cpu_times()

    def __exit__(self, *_):
        self._spent += cpu_times() - self._begin

    def take(self) -> dict:
        """Return the share of the CPUs' time that others took since the last time as `summary`, and `flags`."""
        (wall, total, busy, steal, own), self._spent = self._spent, np.zeros(5)
        if wall < SHORTEST or total <= 0:
            return {"summary": None, "flags": []}
        shares = {"others": rounded(max(0.0, busy - own) / total), "steal": rounded(steal / total)}
        flags = []
        if shares["others"] > MOST_OTHERS:
            flags.append(f"other processes took {100 * shares['others']:.0f} % of the CPUs")
        if shares["steal"] > MOST_STEAL:
            flags.append(f"the hypervisor took {100 * shares['steal']:.0f} % of the CPUs (steal)")
        return {"summary": shares, "flags": flags}


def gpu_reader() -> Callable[[], Reading]:
    """Return a function that looks at PyTorch's current GPU. It fails without nvidia-ml-py, or if NVML refuses."""
    import pynvml as nvml

    nvml.nvmlInit()
    gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties('cuda').uuid}")
    return lambda: Reading(
        nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
    )


def cpu_times() -> np.ndarray:
    """Return seconds: wall time; all CPUs' time, busy time and steal; this process's time and its children's.

    Without /proc/stat those of the CPUs are 0.
    """
    ticks = [int(field) for field in _STAT.read_text().split(maxsplit=9)[1:9]] if _STAT.exists() else [0] * 8
    _, _, _, idle, waiting, _, _, steal = ticks
    machine = np.array([sum(ticks), sum(ticks) - idle - waiting - steal, steal]) / os.sysconf("SC_CLK_TCK")
    return np.array([time.perf_counter(), *machine, sum(os.times()[:4])])
