"""Work beside the training loop: a file is written while the GPU goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_MOST_PENDING = 2


class Background:
    """One thread that does jobs in order; what a job raises, a later call raises.

    Args:
        active: without it every job is done at once, by the caller.
    """

    def __init__(self, active: bool):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background") if active else None
        self._pending = deque()

    def submit(self, job: Callable, *arguments) -> None:
        """Do `job(*arguments)`; waits while two others are not done, since each may hold much memory."""
        if self._pool is None:
            job(*arguments)
            return
        while len(self._pending) >= _MOST_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(job, *arguments))

    def check(self) -> None:
        """Raise what a job has raised, without waiting."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Wait for all jobs; raises what one has raised."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread. Jobs that have not begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class Snapshot:
    """A copy of a state as it is now, made on its device without waiting, to be brought to the CPU by another thread.

    Args:
        state: nested dicts and lists of tensors and plain values.
    """

    def __init__(self, state: Any):
        self._state = _each(torch.Tensor.clone, state)
        self._made = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._made = torch.cuda.current_stream().record_event()

    def on_cpu(self) -> Any:
        """The state with its tensors on the CPU."""
        if self._made is None:
            return _each(torch.Tensor.cpu, self._state)
        # Not on the stream of the training, which such a copy would hold up.
        with torch.cuda.stream(torch.cuda.Stream(self._made.device)):
            torch.cuda.current_stream().wait_event(self._made)
            return _each(torch.Tensor.cpu, self._state)


def _each(function, value):
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _each(function, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_each(function, item) for item in value]
    return value
