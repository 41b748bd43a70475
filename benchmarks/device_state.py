"""State of the device during timing: clocks, power and temperature of a GPU, or other users of the CPUs.

A watch flags a GPU that throttled, and CPUs that others used.
"""

import os
import statistics
import threading
from pathlib import Path

import numpy as np
import torch

from benchmarks.result_files import rounded

INTERVAL = 0.1  # seconds between two readings of a GPU
SHORTEST = 1.0  # seconds of all CPUs together; the system counts in steps of 0.01 s
FIGURES = "sm_clock_mhz", "power_w", "temperature_c"  # of a GPU
# NVML's reasons for a lower clock that slow down kernels, by their bits.
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
    """Context manager that reads the state of PyTorch's current GPU in a thread, every `INTERVAL` and at the end.

    An error in reading becomes a flag and never stops the benchmark.
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
                watts = nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
                celsius = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
                self._readings.append((clock, watts, celsius, nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)))
        except Exception as error:
            self._flags.append(f"the GPU was not watched to the end: {type(error).__name__}: {error}")

    def take(self) -> tuple[dict, list[str]]:
        """Return the readings since the last call, each figure as [min, median, max], and flags."""
        readings, flags, self._readings, self._flags = self._readings, self._flags, [], []
        if not readings:
            return {}, flags
        *columns, reasons = zip(*readings, strict=True)
        ranges = ([min(column), statistics.median(column), max(column)] for column in columns)
        for bit, name in SLOWING.items():
            if slowed := sum(bool(found & bit) for found in reasons):
                flags.append(f"throttled ({name}) in {100 * slowed / len(reasons):.2g} % of the readings")
        return dict(zip(FIGURES, ranges, strict=True)), flags


class CpuWatch:
    """Context manager that reads the CPUs' times at its beginning and end.

    Child processes count as other processes unless they were started and waited for within the context.
    """

    def __init__(self):
        self._spent = np.zeros(4)

    def __enter__(self):
        self._begin = _cpu_times()

    def __exit__(self, *_):
        self._spent += _cpu_times() - self._begin

    def take(self) -> tuple[dict, list[str]]:
        """Return the shares of CPU time that others took since the last call, and flags."""
        (total, busy, steal, own), self._spent = self._spent, np.zeros(4)
        if total < SHORTEST:
            return {}, []
        others, steal = max(0, busy - own) / total, steal / total
        flags = [f"other processes took {100 * others:.0f} % of the CPUs"] if others > 0.1 else []
        flags += [f"the hypervisor took {100 * steal:.0f} % of the CPUs (steal)"] if steal > 0.05 else []
        return {"others": rounded(others), "steal": rounded(steal)}, flags


def _cpu_times():
    """Return seconds: all CPUs' time, busy time and steal, 0 without /proc/stat; this process's and its children's."""
    ticks = [int(field) for field in _STAT.read_text().split(maxsplit=9)[1:9]] if _STAT.exists() else [0] * 8
    _, _, _, idle, waiting, _, _, steal = ticks
    machine = np.array([sum(ticks), sum(ticks) - idle - waiting - steal, steal]) / os.sysconf("SC_CLK_TCK")
    return np.array([*machine, sum(os.times()[:4])])
