"""Background thread that writes files while training continues."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

_MOST_PENDING = 2


class Background:
    """Thread that runs jobs in order. If a job fails, the next call raises its error.

    Args:
        active: Whether to start a thread; otherwise `submit` runs each job itself.
    """

    def __init__(self, active: bool):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="background") if active else None
        self._pending: deque[Future] = deque()

    def submit(self, job: Callable, *arguments) -> None:
        """Schedule `job(*arguments)`; wait while two others are pending, since each may hold much memory."""
        if self._pool is None:
            job(*arguments)
            return
        while len(self._pending) >= _MOST_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(job, *arguments))

    def check(self) -> None:
        """Raise the error of a job that failed, without waiting for jobs."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Wait for all jobs, and raise the error of one that failed."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """End the thread, and drop jobs that have not started."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class Snapshot:
    """Copy of a state on its device, made without waiting, which another thread can copy to the CPU.

    Args:
        state: Nested dicts and lists of tensors and other values.
    """

    def __init__(self, state: Any):
        self._state = _map_tensors(torch.Tensor.clone, state)
        self._made = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._made = torch.cuda.current_stream().record_event()

    def on_cpu(self) -> Any:
        """Return the state with its tensors on the CPU."""
        if self._made is None:
            return _map_tensors(torch.Tensor.cpu, self._state)
        # A separate stream, so that the copy does not delay training.
        with torch.cuda.stream(torch.cuda.Stream(self._made.device)):
            torch.cuda.current_stream().wait_event(self._made)
            return _map_tensors(torch.Tensor.cpu, self._state)


def _map_tensors(function, value):
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_tensors(function, item) for item in value]
    return value
