"""The device while something is timed: clocks, power and temperature of a GPU, or who else uses the CPUs.

A timing of a GPU that throttled, or of CPUs that others used, says little: a watch flags it.
"""

import os
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import rounded

INTERVAL = 0.1  # seconds between two looks at a GPU
# Shares of the time of all CPUs above which timings are flagged, and the sentences.
LIMITS = {
    "others": (0.1, "other processes took {:.0f} % of the CPUs"),
    "steal": (0.05, "the hypervisor took {:.0f} % of the CPUs (steal)"),
}
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
            import pynvml as nvml

            nvml.nvmlInit()
            gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties('cuda').uuid}")
            stopped = False
            while not stopped:
                stopped = self._stop.wait(INTERVAL)
                clock = nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)
                watts = nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
                celsius = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
                self._readings.append((clock, watts, celsius, nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)))
        except Exception as error:
            self._error = error

    def take(self) -> tuple[dict | None, list[str]]:
        """Return a summary of what was seen since the last time, None where nothing was, and flags."""
        readings, error, self._readings, self._error = self._readings, self._error, [], None
        flags = [] if error is None else [f"the GPU was not watched to the end: {type(error).__name__}: {error}"]
        if not readings:
            return None, flags
        clocks, watts, celsius, reasons = zip(*readings, strict=True)
        shares = {name: statistics.mean(bool(found & bit) for found in reasons) for bit, name in SLOWING.items()}
        slowed = {name: rounded(share) for name, share in shares.items() if share}
        flags += [f"throttled ({name}) in {100 * share:.2g} % of the looks" for name, share in slowed.items()]
        clock = {"min": min(clocks), "median": statistics.median(clocks), "max": max(clocks)}
        highest = {"highest_power_w": rounded(max(watts)), "highest_temperature_c": max(celsius)}
        return {"looks": len(readings), "sm_clock_mhz": clock, **highest, "throttle_reasons": slowed}, flags


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

    def take(self) -> tuple[dict | None, list[str]]:
        """Return the shares of others in the CPUs' time since the last time, None if it was too short, and flags."""
        (wall, total, busy, steal, own), self._spent = self._spent, np.zeros(5)
        if wall < SHORTEST or total <= 0:
            return None, []
        shares = {"others": rounded(max(0.0, busy - own) / total), "steal": rounded(steal / total)}
        return shares, [text.format(100 * shares[name]) for name, (most, text) in LIMITS.items() if shares[name] > most]


def cpu_times() -> np.ndarray:
    """Return seconds: wall time; all CPUs' time, busy time and steal; this process's time and its children's.

    Without /proc/stat those of the CPUs are 0.
    """
    ticks = [int(field) for field in _STAT.read_text().split(maxsplit=9)[1:9]] if _STAT.exists() else [0] * 8
    _, _, _, idle, waiting, _, _, steal = ticks
    machine = np.array([sum(ticks), sum(ticks) - idle - waiting - steal, steal]) / os.sysconf("SC_CLK_TCK")
    return np.array([time.perf_counter(), *machine, sum(os.times()[:4])])
