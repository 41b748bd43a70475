"""What is timed on a device that is slowed down, or that others use, is flagged."""

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import device_state
from benchmarks.device_state import IDLE, CpuTimes, Reading, Watch

COOL = Reading(
    sm_clock_mhz=1980, memory_clock_mhz=2619, power_w=400.5, temperature_c=50, reasons=0, memory_used_bytes=1 << 30
)
IDLE_AND_SLOW = COOL._replace(sm_clock_mhz=345, reasons=IDLE)
POWER_CAP, HARDWARE_SLOWDOWN, APPLICATION_CLOCKS, DISPLAY_CLOCKS = 0x4, 0x8, 0x2, 0x100
# NVML's names for ours.
NVML_NAMES = {
    "GpuIdle": "idle",
    "ApplicationsClocksSetting": "application clocks",
    "SwPowerCap": "software power cap",
    "HwSlowdown": "hardware slowdown",
    "SyncBoost": "sync boost",
    "SwThermalSlowdown": "software thermal slowdown",
    "HwThermalSlowdown": "hardware thermal slowdown",
    "HwPowerBrakeSlowdown": "hardware power brake",
    "DisplayClockSetting": "display clocks",
}
# When told to, it uses a CPU for a second, says how long that was, and stays.
BUSY = """
import sys, time
input()
begin = time.process_time()
while time.process_time() < begin + 1: pass
print(time.process_time() - begin, flush=True)
sys.stdin.read()
"""
needs_proc_stat = pytest.mark.skipif(device_state.cpu_times() is None, reason="there is no /proc/stat")


class Looks:
    """They find the given readings in turn, then the last one again and again; a reading may be an error."""

    def __init__(self, *readings):
        self.all_seen = threading.Event()
        self.find(*readings)

    def find(self, *readings):
        self.all_seen.clear()
        self.left = list(readings)

    def __call__(self):
        if len(self.left) == 1:
            self.all_seen.set()
        reading = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        if isinstance(reading, Exception):
            raise reading
        return reading


def watch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "device watch"]


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(device_state, "INTERVAL", 0.001)


@pytest.mark.parametrize("prefix", ["nvmlClocksEventReason", "nvmlClocksThrottleReason"])
def test_reasons_are_those_of_nvml(prefix):
    nvml = pytest.importorskip("pynvml")
    assert {getattr(nvml, prefix + theirs): ours for theirs, ours in NVML_NAMES.items()} == device_state.REASONS


def test_all_reasons_of_nvml_have_a_name():
    assert pytest.importorskip("pynvml").nvmlClocksEventReasonAll == sum(device_state.REASONS)


def test_a_cool_and_steady_gpu_is_summed_up_without_flags():
    looks = Looks(IDLE_AND_SLOW, COOL, COOL._replace(power_w=410.5, temperature_c=55))
    watch = Watch("cuda", looks)
    with watch:
        assert looks.all_seen.wait(60)
    readings = list(watch.readings)
    taken = watch.take()
    assert taken["flags"] == []
    summary = taken["summary"]
    assert summary["looks"] == len(readings) >= 4
    assert summary["sm_clock_mhz"] == {"min": 345, "median": 1980, "max": 1980}
    assert summary["memory_clock_mhz"] == {"min": 2619, "median": 2619, "max": 2619}
    assert summary["power_w"] == {"min": 400.5, "median": 410.5 if len(readings) > 4 else 405.5, "max": 410.5}
    assert summary["highest_temperature_c"] == 55
    assert summary["most_memory_used_bytes"] == 1 << 30
    assert summary["throttle_reasons"] == {"idle": pytest.approx(1 / len(readings), rel=1e-3)}


def test_limits_are_part_of_the_summary():
    limits = {"sm_clock_limit_mhz": 1980, "power_limit_w": 700.0}
    assert limits.items() <= device_state.summary_of([COOL], limits).items()
    assert device_state.summary_of([], limits) is None


@pytest.mark.parametrize(("bit", "name"), device_state.SLOWING.items())
def test_throttling_is_flagged(bit, name):
    readings = [COOL, COOL, COOL, COOL._replace(reasons=bit), COOL._replace(reasons=bit | APPLICATION_CLOCKS)]
    assert device_state.flags_of(readings, 1980) == [f"throttled ({name}) in 40 % of the looks"]


def test_looks_with_two_reasons_count_once():
    slowed = COOL._replace(reasons=POWER_CAP | HARDWARE_SLOWDOWN)
    flags = device_state.flags_of([slowed, COOL._replace(reasons=POWER_CAP)], 1980)
    assert flags == ["throttled (software power cap, hardware slowdown) in 100 % of the looks"]


def test_a_rare_reason_is_not_rounded_to_nothing():
    (flag,) = device_state.flags_of([COOL._replace(reasons=POWER_CAP), *500 * [COOL]], 1980)
    assert flag == "throttled (software power cap) in less than 1 % of the looks"


@pytest.mark.parametrize("reasons", [IDLE, APPLICATION_CLOCKS, DISPLAY_CLOCKS])
def test_reasons_that_do_not_slow_down_are_not_flagged(reasons):
    assert device_state.flags_of([COOL, COOL._replace(reasons=reasons)], 1980) == []


def test_a_lower_clock_is_flagged_unless_the_gpu_is_idle():
    slow = COOL._replace(sm_clock_mhz=1200)
    assert device_state.flags_of([COOL, slow, COOL], 1980) == ["the SM clock fell to 1200 MHz, 61 % of 1980 MHz"]
    assert device_state.flags_of([COOL, COOL._replace(sm_clock_mhz=1783)], 1980) == []
    assert device_state.flags_of([COOL, IDLE_AND_SLOW], 1980) == []
    assert device_state.flags_of([IDLE_AND_SLOW], 1980) == []


def test_a_clock_is_compared_with_all_that_was_seen_before():
    looks = Looks(COOL)
    watch = Watch("cuda", looks)
    with watch:
        pass
    assert watch.take()["flags"] == []
    looks.find(COOL._replace(sm_clock_mhz=1200))
    with watch:
        pass
    assert watch.take()["flags"] == ["the SM clock fell to 1200 MHz, 61 % of 1980 MHz"]
    with watch:
        pass
    assert watch.take()["flags"] != []


def test_a_gpu_is_looked_at_again_and_again_while_it_is_watched():
    looks = Looks(COOL)
    watch = Watch("cuda", looks)
    for _ in range(2):
        before = len(watch.readings)
        looks.find(*10 * [COOL])
        with watch:
            assert len(watch_threads()) == 1
            assert looks.all_seen.wait(60)
        assert watch_threads() == []
        assert len(watch.readings) >= before + 11
    assert watch.take()["summary"]["looks"] >= 22
    assert watch.take() == {"summary": None, "flags": []}


def test_a_gpu_is_looked_at_twice_however_short_it_is_watched(monkeypatch):
    monkeypatch.setattr(device_state, "INTERVAL", 3600)
    watch = Watch("cuda", Looks(COOL))
    with watch:
        pass
    assert len(watch.readings) == 2


def test_what_is_timed_may_fail():
    watch = Watch("cuda", Looks(COOL))
    with pytest.raises(ValueError, match="wrong"), watch:
        raise ValueError("wrong")
    assert watch_threads() == []
    with watch:
        pass
    assert watch.take()["summary"]["looks"] >= 4


def test_an_error_ends_the_looking_until_the_next_take():
    looks = Looks(COOL, COOL, RuntimeError("GPU is lost"))
    watch = Watch("cuda", looks)
    with watch:
        assert looks.all_seen.wait(60)
    looks.find(COOL)
    with watch:
        assert watch_threads() == []
    taken = watch.take()
    assert taken["flags"] == ["the GPU was not watched to the end: RuntimeError: GPU is lost"]
    assert taken["summary"]["looks"] == 2
    with watch:
        pass
    assert watch.take()["flags"] == []


@pytest.mark.parametrize("watch", [Watch("cpu"), Watch("cuda", Looks(COOL))], ids=["cpu", "gpu"])
def test_a_watch_is_neither_entered_nor_taken_within_itself(watch):
    with watch:
        with pytest.raises(RuntimeError, match="entered already"):
            watch.__enter__()
        with pytest.raises(RuntimeError, match="entered already"):
            watch.take()
    with watch:
        pass
    watch.take()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_none_is_watched():
    assert device_state.gpu_reader() is device_state.gpu_limits() is None
    watch = Watch("cuda")
    with watch:
        assert watch_threads() == []
    assert watch.take() == {"summary": None, "flags": []}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver_nvml_refuses(monkeypatch):
    pytest.importorskip("pynvml")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_state.gpu_reader() is device_state.gpu_limits() is None


def test_without_nvidia_ml_py_no_gpu_is_watched(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device_state.gpu_reader() is device_state.gpu_limits() is None


def test_reasons_have_an_older_name():
    class NVMLError(Exception):
        pass

    def unknown(gpu):
        raise NVMLError("Function Not Found")

    older = {"NVMLError": NVMLError, "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: 1}
    newer = {"nvmlDeviceGetCurrentClocksEventReasons": lambda gpu: 2}
    of_the_driver = {"nvmlDeviceGetCurrentClocksEventReasons": unknown}
    for functions, found in ((older, 1), (older | of_the_driver, 1), (older | newer, 2)):
        assert device_state._reasons_function(SimpleNamespace(**functions), "gpu")("gpu") == found


@pytest.mark.gpu
def test_a_real_gpu_is_read():
    pytest.importorskip("pynvml")
    held = torch.ones(1 << 26, device="cuda")
    reading, limits = device_state.gpu_reader()(), device_state.gpu_limits()
    assert 0 < reading.sm_clock_mhz <= limits["sm_clock_limit_mhz"]
    assert reading.memory_clock_mhz > 0
    assert 0 < reading.power_w < 2 * limits["power_limit_w"]
    assert 0 < reading.temperature_c < 120
    assert reading.memory_used_bytes >= held.nbytes
    watch = Watch("cuda")
    with watch:
        torch.cuda.synchronize()
    assert limits.items() <= watch.take()["summary"].items()


@pytest.fixture
def busy_process():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=-1, stdout=-1, text=True) as process:
        yield process


@needs_proc_stat
def test_a_busy_process_is_counted(busy_process):
    watch, before = Watch("cpu"), device_state.cpu_times()
    with watch:
        print(file=busy_process.stdin, flush=True)
        used = float(busy_process.stdout.readline())
    total = device_state.cpu_times().total - before.total
    assert watch.take()["summary"]["others"] * total > used / 2


@needs_proc_stat
def test_a_process_that_was_waited_for_and_threads_are_this_process(busy_process):
    before = device_state.cpu_times()
    used = float(busy_process.communicate("\n")[0])
    after = device_state.cpu_times()
    assert after.own - before.own > 0.9 * used
    thread = threading.Thread(target=use_a_cpu)
    thread.start()
    thread.join()
    assert device_state.cpu_times().own - after.own > 0.9 * 0.3


def use_a_cpu():
    while time.thread_time() < 0.3:
        pass


@needs_proc_stat
def test_times_of_the_cpus_add_up_over_all_that_was_watched():
    watch, begin = Watch("cpu"), time.perf_counter()
    for _ in range(2):
        with watch:
            time.sleep(0.3)
        time.sleep(0.2)
    assert 2 * 0.3 <= watch._spent.wall <= time.perf_counter() - begin - 2 * 0.2
    shares = watch.take()["summary"]
    assert 0 <= shares["others"] <= 1
    assert 0 <= shares["steal"] <= 1
    assert watch.take() == {"summary": None, "flags": []}


ONE_SECOND = CpuTimes(wall=1, total=2, busy=1.2, steal=0, own=1.1)


@pytest.mark.parametrize(
    ("changes", "shares", "flags"),
    [
        ({}, (0.05, 0), []),
        ({"busy": 1.8}, (0.35, 0), ["other processes took 35 % of the CPUs"]),
        ({"steal": 0.16}, (0.05, 0.08), ["the hypervisor took 8 % of the CPUs (steal)"]),
        ({"steal": 0.08}, (0.05, 0.04), []),
        ({"own": 1.3}, (0, 0), []),
    ],
    ids=["calm", "others", "steal", "little steal", "child processes from before"],
)
def test_cpus_that_others_used_are_flagged(changes, shares, flags):
    found = device_state.cpu_shares_of(ONE_SECOND._replace(**changes))
    assert found == pytest.approx(dict(zip(("others", "steal"), shares, strict=True)))
    assert device_state.cpu_flags_of(found) == flags


def test_what_is_too_short_is_not_flagged():
    assert device_state.cpu_shares_of(ONE_SECOND._replace(wall=0.4, busy=2)) is None
    assert device_state.cpu_flags_of(None) == []


def test_without_proc_stat_cpus_are_not_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(device_state, "_STAT", tmp_path / "stat")
    watch = Watch("cpu")
    with watch:
        pass
    assert watch.take() == {"summary": None, "flags": []}


def test_times_are_those_of_proc_stat(tmp_path, monkeypatch):
    monkeypatch.setattr(device_state, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(device_state.os, "sysconf", {"SC_CLK_TCK": 100}.get)
    (tmp_path / "stat").write_text("cpu  100 200 300 4000 500 60 70 80 90 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nintr 1 2\n")
    times = device_state.cpu_times()
    assert times[1:4] == pytest.approx((53.1, 7.3, 0.8))
