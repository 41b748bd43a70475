"""Shorter spinning of PyTorch's CPU threads while other programs need the CPUs.

Between two parallel regions the threads of GNU OpenMP, on which PyTorch's Linux builds run, wait in a loop for
milliseconds before they sleep. On idle CPUs nothing is faster. But if other programs run, a waiting thread occupies a
CPU that the thread it waits for needs: two trainings on two cores took three to ten times as long as one.

GNU OpenMP waits only briefly while it has more threads than CPUs (see GOMP_SPINCOUNT in its manual). This module
therefore starts idle threads while other programs are busy, and ends them afterwards. (Setting GOMP_SPINCOUNT for the
whole run helps as much, but makes a training that runs alone take up to 1.5 times as long.) The training's own number
of threads does not change, so that results stay the same to the last bit.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

_STAT = Path("/proc/stat")
_INTERVAL = 1.0  # seconds between two measurements
_MOST_OTHERS = 0.5  # CPUs that other programs may use, beyond those that the training leaves idle
_MOST_TEAMS = 8  # a training with fewer threads than a ninth of the CPUs rarely has to share them
_PARALLEL = 1 << 17  # number of elements, enough that PyTorch adds with all threads


class CpuTime(NamedTuple):
    """Wall-clock time, busy time summed over this process's CPUs, and CPU time of this process, in seconds."""

    elapsed: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> "CpuTime":
        """Return the times at this moment."""
        times = os.times()
        return cls(times.elapsed, busy_seconds(_STAT.read_text(), os.sched_getaffinity(0)), times.user + times.system)

    def others_since(self, before: "CpuTime") -> float:
        """Return how many CPUs other programs have used on average."""
        elapsed, busy, own = (now - then for now, then in zip(self, before, strict=True))
        return (busy - own) / elapsed


def busy_seconds(stat: str, cpus: set[int]) -> float:
    """Return the seconds in which `cpus` were neither idle nor waiting for a disk.

    Args:
        stat: Content of /proc/stat.
        cpus: Numbers of the CPUs.
    """
    ticks = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _, _, interrupts, soft_interrupts = map(int, fields[:7])
            ticks += user + nice + system + interrupts + soft_interrupts
    return ticks / os.sysconf("SC_CLK_TCK")


class _IdleThreads(NamedTuple):
    """Threads that do nothing until `release` is set."""

    threads: list[threading.Thread]
    release: threading.Event

    def end(self):
        self.release.set()
        while self.threads:
            self.threads.pop().join()


class BriefWaits:
    """Context manager in which PyTorch's threads wait briefly whenever other programs use the process's CPUs.

    It does nothing for a GPU, with a single thread, without /proc/stat, or if no more threads can be started.

    Args:
        device: Device that computes.
    """

    def __init__(self, device: torch.device):
        self._teams = 0
        if device.type == "cpu" and os.access(_STAT, os.R_OK):
            self._cpus, self._threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
            self._teams = teams_to_exceed(self._cpus, self._threads)
        self._end = threading.Event()
        self._watch = threading.Thread(target=self._watch_cpus, name="brief waits", daemon=True)
        self._idle = _IdleThreads([], threading.Event())

    def __enter__(self):
        if self._teams:
            with suppress(RuntimeError):
                self._watch.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        if self._watch.is_alive():
            self._watch.join()
        self._activate(False)

    @property
    def active(self) -> bool:
        """Whether threads wait briefly now."""
        return bool(self._idle.threads)

    def _watch_cpus(self):
        # If the CPUs cannot be watched, training continues with long waits.
        with suppress(OSError, ValueError, ZeroDivisionError):
            before = CpuTime.now()
            while not self._end.wait(_INTERVAL):
                now = CpuTime.now()
                self._activate(now.others_since(before) > max(0, self._cpus - self._threads) + _MOST_OTHERS)
                before = now

    def _activate(self, active):
        if active == self.active:
            return
        if active:
            # GNU OpenMP ends the process if it cannot start a thread; Python raises an error, so Python tries first.
            trial = _start(self._teams * self._threads, lambda: None)
            possible = bool(trial.threads)
            trial.end()
            if possible:
                self._idle = _start(self._teams, lambda: torch.zeros(_PARALLEL).add_(1))
        else:
            self._idle.end()


def teams_to_exceed(cpus: int, threads: int) -> int:
    """Return the number of extra teams that raises the number of OpenMP threads above `cpus`.

    Each team adds `threads` - 1, because OpenMP does not count the thread that starts a team. The result is 0 for a
    single thread, or if more than `_MOST_TEAMS` would be needed.
    """
    teams = max(0, cpus - threads) // (threads - 1) + 1 if threads > 1 else 0
    return teams if teams <= _MOST_TEAMS else 0


def _start(count, work):
    """Start `count` threads that call `work` and then stay idle. If one cannot be started, end the others."""
    idle = _IdleThreads([], threading.Event())
    for _ in range(count):
        thread = threading.Thread(target=_work_and_wait, args=(work, idle.release), name="idle", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            idle.end()
            break
        idle.threads.append(thread)
    return idle


def _work_and_wait(work, release):
    work()
    release.wait()
