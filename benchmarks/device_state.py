"""The device while something is timed: clocks, power and temperature of a GPU, or who else uses the CPUs.

A timing of a GPU that throttled, or of CPUs that others used, says little: a `Watch` flags it.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.results import rounded

INTERVAL = 0.1  # seconds between two looks at a GPU
LOWEST_CLOCK = 0.9  # of the highest; below it timings are flagged
MOST_OTHERS, MOST_STEAL = 0.1, 0.05  # of the time of all CPUs; above them timings are flagged
SHORTEST = 0.5  # seconds; the CPUs' time is counted in steps of 0.01 s, too coarse for less

# NVML's reasons for a lower clock, by their bits; first those that slow down what runs.
SLOWING = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
IDLE = 0x1
REASONS = {IDLE: "idle", 0x2: "application clocks", **SLOWING, 0x100: "display clocks"}

_STAT = Path("/proc/stat")


class Reading(NamedTuple):
    """One look at a GPU."""

    sm_clock_mhz: int
    memory_clock_mhz: int
    power_w: float
    temperature_c: int
    reasons: int  # for a lower clock: bits of `REASONS`
    memory_used_bytes: int  # by all processes and the driver


class CpuTimes(NamedTuple):
    """Seconds, all but the first of all CPUs of the machine together."""

    wall: float = 0
    total: float = 0
    busy: float = 0
    steal: float = 0  # in which the hypervisor let others run
    own: float = 0  # busy with this process's threads, and with child processes that it has waited for


class Watch:
    """Watches a device while it is entered: `with watch: ...`, any number of times, but not within itself.

    On a GPU, a thread looks every `INTERVAL`, besides a look at the beginning and one at the end. An error in looking
    ends it until the next `take`, and becomes a flag. The CPUs' times are read at the beginning and at the end; there
    child processes count as others, unless they were started and waited for within.

    Args:
        device: "cpu" or "cuda".
        read: looks at the GPU; `gpu_reader()` by default. Without one the GPU is not watched.

    Attributes:
        readings: of the GPU since the last `take`.
    """

    def __init__(self, device: str, read: Callable[[], Reading] | None = None):
        self.readings: list[Reading] = []
        self._on_cpu, self._read, self._limits = device == "cpu", read, None
        if not self._on_cpu and read is None:
            self._read, self._limits = gpu_reader(), gpu_limits()
        self._entered = False
        self._thread, self._stop, self._error = None, threading.Event(), None
        self._highest_sm_clock = 0
        self._begin, self._spent = None, CpuTimes()

    def __enter__(self):
        self._refuse_if_entered()
        self._entered = True
        if self._on_cpu:
            self._begin = cpu_times()
        elif self._read is not None and self._error is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._look, name="device watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._entered = False
        if self._begin is not None:
            steps = zip(self._spent, self._begin, cpu_times(), strict=True)
            self._spent = CpuTimes(*(spent + end - begin for spent, begin, end in steps))
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def take(self) -> dict:
        """What was seen since the last time: `summary`, None where nothing was, and the sentences `flags`.

        Raises:
            RuntimeError: within `with`.
        """
        self._refuse_if_entered()
        if self._on_cpu:
            spent, self._spent = self._spent, CpuTimes()
            shares = cpu_shares_of(spent)
            return {"summary": shares, "flags": cpu_flags_of(shares)}
        readings, self.readings = self.readings, []
        error, self._error = self._error, None
        self._highest_sm_clock = max([self._highest_sm_clock, *_busy_sm_clocks(readings)])
        flags = flags_of(readings, self._highest_sm_clock)
        if error is not None:
            flags.append(f"the GPU was not watched to the end: {type(error).__name__}: {error}")
        return {"summary": summary_of(readings, self._limits), "flags": flags}

    def _refuse_if_entered(self):
        if self._entered:
            raise RuntimeError("this Watch is entered already: leave its with block first")

    def _look(self):
        try:
            stopped = False
            while not stopped:
                self.readings.append(self._read())
                stopped = self._stop.wait(INTERVAL)
            self.readings.append(self._read())
        except Exception as error:  # whatever it is, what is timed goes on
            self._error = error


def gpu_reader() -> Callable[[], Reading] | None:
    """A function that looks at PyTorch's current GPU; None without a GPU or nvidia-ml-py, or if NVML refuses."""
    return _ask_nvml(_reader)


def gpu_limits() -> dict | None:
    """Of PyTorch's current GPU: `sm_clock_limit_mhz` and `power_limit_w`; None as for `gpu_reader`."""
    return _ask_nvml(_limits)


def summary_of(readings: Sequence[Reading], limits: dict | None) -> dict | None:
    """What goes into the file of results, `limits` too; of each reason the share of looks that found it.

    None without readings.
    """
    if not readings:
        return None
    columns = Reading(*zip(*readings, strict=True))
    looks = {name: sum(reasons & bit > 0 for reasons in columns.reasons) for bit, name in REASONS.items()}
    return {
        "looks": len(readings),
        "sm_clock_mhz": _range(columns.sm_clock_mhz),
        "memory_clock_mhz": _range(columns.memory_clock_mhz),
        "power_w": _range(columns.power_w),
        "highest_temperature_c": max(columns.temperature_c),
        "throttle_reasons": {name: rounded(count / len(readings)) for name, count in looks.items() if count},
        "most_memory_used_bytes": max(columns.memory_used_bytes),
        **(limits or {}),
    }


def flags_of(readings: Sequence[Reading], highest_sm_clock: int) -> list[str]:
    """Sentences about a GPU that was slowed down: throttled, or clearly below its highest SM clock while not idle."""
    flags = []
    seen = [name for bit, name in SLOWING.items() if any(reading.reasons & bit for reading in readings)]
    if seen:
        share = sum(any(reading.reasons & bit for bit in SLOWING) for reading in readings) / len(readings)
        flags.append(f"throttled ({', '.join(seen)}) in {_percent(share)} of the looks")
    lowest = min(_busy_sm_clocks(readings), default=highest_sm_clock)
    if lowest < LOWEST_CLOCK * highest_sm_clock:
        share = _percent(lowest / highest_sm_clock)
        flags.append(f"the SM clock fell to {lowest} MHz, {share} of {highest_sm_clock} MHz")
    return flags


def cpu_times() -> CpuTimes | None:
    """At this moment, each since some time in the past; None without /proc/stat."""
    if not _STAT.exists():
        return None
    ticks = [int(field) for field in _STAT.read_text().split(maxsplit=9)[1:9]]
    _, _, _, idle, waiting, _, _, steal = ticks
    seconds = [count / os.sysconf("SC_CLK_TCK") for count in (sum(ticks), sum(ticks) - idle - waiting - steal, steal)]
    return CpuTimes(time.perf_counter(), *seconds, own=sum(os.times()[:4]))


def cpu_shares_of(spent: CpuTimes) -> dict | None:
    """What other processes used and the hypervisor took of the CPUs' time; None if that is too short to tell."""
    if spent.wall < SHORTEST or spent.total <= 0:
        return None
    others = max(0, spent.busy - spent.own)
    return {"others": rounded(others / spent.total), "steal": rounded(spent.steal / spent.total)}


def cpu_flags_of(shares: dict | None) -> list[str]:
    """Sentences about CPUs that others used too much."""
    flags = []
    if shares and shares["others"] > MOST_OTHERS:
        flags.append(f"other processes took {_percent(shares['others'])} of the CPUs")
    if shares and shares["steal"] > MOST_STEAL:
        flags.append(f"the hypervisor took {_percent(shares['steal'])} of the CPUs (steal)")
    return flags


def _ask_nvml(question):
    """What `question` of NVML and its handle of PyTorch's current GPU returns."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml as nvml
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties("cuda").uuid
        return question(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except nvml.NVMLError:
        return None


def _reader(nvml, gpu):
    reasons_of = _reasons_function(nvml, gpu)

    def read():
        return Reading(
            sm_clock_mhz=nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
            power_w=nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
            temperature_c=nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            reasons=reasons_of(gpu),
            memory_used_bytes=nvml.nvmlDeviceGetMemoryInfo(gpu).used,
        )

    read()  # what NVML refuses, it refuses now
    return read


def _limits(nvml, gpu):
    return {
        "sm_clock_limit_mhz": nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "power_limit_w": nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
    }


def _reasons_function(nvml, gpu):
    """Under its older name where nvidia-ml-py or the driver does not know the newer one."""
    try:
        nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)
    except (AttributeError, nvml.NVMLError):
        return nvml.nvmlDeviceGetCurrentClocksThrottleReasons
    return nvml.nvmlDeviceGetCurrentClocksEventReasons


def _busy_sm_clocks(readings):
    """An idle GPU has low clocks, and that is right."""
    return [reading.sm_clock_mhz for reading in readings if not reading.reasons & IDLE]


def _range(numbers):
    three = {"min": min(numbers), "median": statistics.median(numbers), "max": max(numbers)}
    return {name: round(number, 1) for name, number in three.items()}


def _percent(share):
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"
