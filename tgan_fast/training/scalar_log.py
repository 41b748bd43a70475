"""The scalars of every iteration, brought to the host without making the GPU wait."""

import math
import time
from typing import NamedTuple

import torch

from tgan_fast.errors import NonFiniteError, counted


class Interval(NamedTuple):
    """Some iterations in a row."""

    first: int
    rows: list[list[float]]  # an iteration each
    seconds: float  # from the end of the interval before
    broken: bool  # the constraint met a weight that is not finite
    largest_weight: float  # absolute value, at the end

    @property
    def last(self) -> int:
        return self.first + len(self.rows)

    def check(self, names: tuple[str, ...]) -> None:
        """Raise a NonFiniteError that names the first value that is not finite, and its iteration."""
        for offset, row in enumerate(self.rows):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise NonFiniteError(f"{name} is {value} in iteration {self.first + offset + 1}")
        if self.broken:
            raise NonFiniteError(
                f"a weight of the discriminator is no longer finite after {counted(self.last, 'iteration')}"
            )

    def means(self) -> list[float]:
        """Of every scalar."""
        return torch.tensor(self.rows, dtype=torch.float64).mean(0).tolist()


class ScalarLog:
    """Collects scalars on the device. An interval of them is copied while the next one is computed."""

    def __init__(self):
        self._rows, self._copying = [], None
        self._ended = time.perf_counter()

    def append(self, scalars: torch.Tensor) -> None:
        """The scalars [S] of one iteration, which stay as they are."""
        self._rows.append(scalars)

    def end_interval(self, iteration: int, non_finite: torch.Tensor, largest_weight: torch.Tensor) -> None:
        """Start to copy what was appended; `iteration` of them are done in all. Call `take(wait=True)` before."""
        if not self._rows:
            return
        state = [value.to(self._rows[0].dtype).expand_as(self._rows[0]) for value in (non_finite, largest_weight)]
        values = torch.stack([*self._rows, *state])
        event = None
        if values.is_cuda:
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.current_stream().record_event()
        self._copying = iteration - len(self._rows), values, event
        self._rows = []

    def leave_out(self, seconds: float) -> None:
        """Of time that passed since an interval was taken, and in which there was no training."""
        self._ended += seconds

    def take(self, *, wait: bool = False) -> Interval | None:
        """The interval that ended last, once it has arrived; None before, and after it was taken."""
        if self._copying is None:
            return None
        first, values, event = self._copying
        if event is not None:
            if wait:
                event.synchronize()
            elif not event.query():
                return None
        self._copying = None
        began, self._ended = self._ended, time.perf_counter()
        *rows, flag, largest = values.tolist()
        return Interval(first, rows, self._ended - began, flag[0] != 0, largest[0])
