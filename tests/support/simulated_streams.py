"""CUDA streams and events on a CPU: work launched on a stream runs later, in order, on the stream's own thread.

Copies are slow and made in two halves, so that a missing wait for a copy shows.
"""

import queue
import random
import threading
import time
from contextlib import contextmanager

import numpy as np

from tgan_fast.data.prefetch import Filling

_current = threading.local()


class Stream:
    """Stand-in for the used part of `torch.cuda.Stream`."""

    def __init__(self, device=None):
        self._work = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def launch(self, work):
        self._work.put(work)

    def wait_event(self, event):
        self.launch(event.last.wait)

    def synchronize(self):
        self._work.join()

    def _run(self):
        while True:
            self._work.get()()
            self._work.task_done()


class Event:
    """Stand-in for `torch.cuda.Event`: a wait lasts until the last recorded work is done, if there is any."""

    def __init__(self, blocking=False):
        self.last = threading.Event()
        self.last.set()

    def record(self, stream):
        self.last = threading.Event()
        stream.launch(self.last.set)

    def synchronize(self):
        self.last.wait()


class DeviceMemory:
    """A tensor that only streams write."""

    def __init__(self, array):
        self.array = array

    def copy_(self, host, non_blocking):
        assert non_blocking
        _current.stream.launch(lambda: write_slowly(self.array, host.array, 1e-3))


class PinnedMemory:
    """A tensor of the host."""

    def __init__(self, array):
        self.array = array

    def numpy(self):
        return self.array


class SimulatedFilling(Filling):
    """`Filling` whose memory is simulated too."""

    def empty(self, *, pin_memory=False, device=None):
        memory = PinnedMemory if pin_memory else DeviceMemory
        return tuple(memory(np.zeros(spec.shape)) for spec in self.specs)


def write_slowly(target, source, seconds):
    """Write an array in two halves, with a random pause of at most `seconds` between them."""
    half = len(target) // 2
    np.copyto(target[:half], source[:half])
    time.sleep(random.uniform(0, seconds))
    np.copyto(target[half:], source[half:])


@contextmanager
def on_stream(stream):
    """Stand in for `torch.cuda.stream`."""
    _current.stream = stream
    yield


def simulate(monkeypatch, cuda):
    """Let `torch.cuda` have simulated streams; returns the one that is current."""
    main = Stream()
    for name, value in (("Stream", Stream), ("Event", Event), ("stream", on_stream)):
        monkeypatch.setattr(cuda, name, value)
    monkeypatch.setattr(cuda, "current_stream", lambda device=None: main)
    return main
