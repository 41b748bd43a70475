"""The device while something is timed. A watch flags a GPU that throttled, and CPUs that others used."""

import os
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import rounded

INTERVAL = 0.1  # seconds between two looks at a GPU
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
        self._readings, self._flags = [], []

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
                self._readings.append((clock, nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)))
        except Exception as error:
            self._flags.append(f"the GPU was not watched to the end: {type(error).__name__}: {error}")

    def take(self) -> tuple[dict | None, list[str]]:
        """Return a summary of what was seen since the last time, None where nothing was, and flags."""
        readings, flags, self._readings, self._flags = self._readings, self._flags, [], []
        if not readings:
            return None, flags
        clocks, reasons = zip(*readings, strict=True)
        shares = {name: statistics.mean(bool(found & bit) for found in reasons) for bit, name in SLOWING.items()}
        slowed = {name: rounded(share) for name, share in shares.items() if share}
        flags += [f"throttled ({name}) in {100 * share:.2g} % of the looks" for name, share in slowed.items()]
        clock = {"min": min(clocks), "median": statistics.median(clocks), "max": max(clocks)}
        return {"looks": len(readings), "sm_clock_mhz": clock, "throttle_reasons": slowed}, flags


class CpuWatch:
    """Context manager that reads the CPUs' times at its beginning and end.

    Child processes count as others, unless they were started and waited for within.
    """

    def __init__(self):
        self._spent = np.zeros(5)

    def __enter__(self):
        self._begin = _cpu_times()

    def __exit__(self, *_):
        self._spent += _cpu_times() - self._begin

    def take(self) -> tuple[dict | None, list[str]]:
        """Return the shares of others in the CPUs' time since the last time, None if it was too short, and flags."""
        (wall, total, busy, steal, own), self._spent = self._spent, np.zeros(5)
        if wall < SHORTEST or total <= 0:
            return None, []
        others, steal = max(0.0, busy - own) / total, steal / total
        flags = [f"other processes took {100 * others:.0f} % of the CPUs"] if others > 0.1 else []
        flags += [f"the hypervisor took {100 * steal:.0f} % of the CPUs (steal)"] if steal > 0.05 else []
        return {"others": rounded(others), "steal": rounded(steal)}, flags


def _cpu_times():
    """Return seconds: wall time; all CPUs' time, busy time and steal; this process's time and its children's.

    Without /proc/stat those of the CPUs are 0.
    """
    ticks = [int(field) for field in _STAT.read_text().split(maxsplit=9)[1:9]] if _STAT.exists() else [0] * 8
    _, _, _, idle, waiting, _, _, steal = ticks
    machine = np.array([sum(ticks), sum(ticks) - idle - waiting - steal, steal]) / os.sysconf("SC_CLK_TCK")
    return np.array([time.perf_counter(), *machine, sum(os.times()[:4])])
