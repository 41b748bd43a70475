"""Shorter waits of PyTorch's threads on a CPU while other programs use it.

Between two parallel regions the threads of GNU OpenMP, on which PyTorch's Linux builds run, wait in a loop for
milliseconds before they sleep. Nothing is faster on idle CPUs. Beside another program, however, a waiting thread keeps
a CPU from the very thread that it waits for: two trainings on two cores took three to ten times as long as one.

GNU OpenMP waits only briefly while it has more threads than CPUs (see GOMP_SPINCOUNT in its manual). Idle threads
bring that about while other programs are busy, and end afterwards. The training's own number of threads stays as it is,
so that no result changes by a bit.
"""

import os
import threading
from pathlib import Path
from typing import NamedTuple

import torch

_STAT = Path("/proc/stat")
_INTERVAL = 1.0  # seconds between two looks
_MOST_OTHERS = 0.5  # CPUs that other programs may use without consequences
_MOST_TEAMS = 8  # with fewer threads than a ninth of the CPUs there is hardly a contention
_PARALLEL = 1 << 17  # elements that PyTorch adds up with all threads


class CpuTime(NamedTuple):
    """Seconds in which the CPUs of this process were busy since the machine started, and this process's own."""

    busy: float
    own: float

    @classmethod
    def now(cls) -> "CpuTime":
        """Return the times at this moment."""
        return cls(busy_seconds(_STAT.read_text(), os.sched_getaffinity(0)), sum(os.times()[:2]))


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


class BriefWaits:
    """A context in which PyTorch's threads wait briefly whenever other programs use the process's CPUs.

    It does nothing for a GPU, without /proc/stat and with a single thread.

    Args:
        device: Device that computes.
    """

    def __init__(self, device: torch.device):
        self._is_needed = device.type == "cpu" and torch.get_num_threads() > 1 and os.access(_STAT, os.R_OK)
        self._end = threading.Event()
        self._watch = threading.Thread(target=self._look, name="brief waits", daemon=True)
        self._release, self._idle = None, []

    def __enter__(self):
        if self._is_needed:
            self._watch.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        if self._watch.is_alive():
            self._watch.join()
        self.set(False)

    @property
    def active(self) -> bool:
        """Whether threads wait briefly now."""
        return bool(self._idle)

    def set(self, active: bool) -> None:
        """Let threads wait briefly from now on, or as long as is fastest on idle CPUs."""
        if active == self.active:
            return
        if not active:
            self._release.set()
            for thread in self._idle:
                thread.join()
            self._idle = []
            return
        self._release = threading.Event()
        self._idle = [
            threading.Thread(target=_idle, args=(self._release,), name="brief waits, idle", daemon=True)
            for _ in range(teams_to_exceed(len(os.sched_getaffinity(0)), torch.get_num_threads()))
        ]
        for thread in self._idle:
            thread.start()

    def _look(self):
        before = CpuTime.now()
        while not self._end.wait(_INTERVAL):
            now = CpuTime.now()
            others = now.busy - before.busy - (now.own - before.own)
            self.set(others > _MOST_OTHERS * _INTERVAL)
            before = now


def teams_to_exceed(cpus: int, threads: int) -> int:
    """Return how many more teams of `threads` threads make one team's threads more than `cpus`; 0 if too many would be.

    Only a team's first thread is not counted again: it is an idle Python thread of this package.
    """
    teams = max(0, cpus - threads) // (threads - 1) + 1
    return teams if teams <= _MOST_TEAMS else 0


def _idle(release):
    """Start a team of OpenMP threads, which lasts as long as this thread."""
    torch.zeros(_PARALLEL).add_(1)
    release.wait()
