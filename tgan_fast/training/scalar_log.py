"""The scalars of every iteration, copied to the host without making the GPU wait."""

import math
import time
from typing import NamedTuple

import torch

from tgan_fast.errors import NonFiniteError, counted


class Interval(NamedTuple):
    """Scalars of consecutive iterations.

    Attributes:
        first: Number of iterations before them.
        rows: Scalars of each iteration.
        seconds: Time since the end of the previous interval, in seconds.
        broken: Whether the constraint met a weight that is not finite.
        largest_weight: Largest absolute weight of the discriminator at the end.
    """

    first: int
    rows: list[list[float]]
    seconds: float
    broken: bool
    largest_weight: float

    @property
    def last(self) -> int:
        """Number of iterations at the end."""
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
        """Return the mean of each scalar."""
        return torch.tensor(self.rows, dtype=torch.float64).mean(0).tolist()


class ScalarLog:
    """Log of scalars on the device; one interval is copied to the host while the next one is computed."""

    def __init__(self):
        self._rows, self._copying = [], None
        self._ended = time.perf_counter()

    def append(self, scalars: torch.Tensor) -> None:
        """Append the scalars [S] of one iteration; the tensor must not change later."""
        self._rows.append(scalars)

    def end_interval(self, iteration: int, non_finite: torch.Tensor, largest_weight: torch.Tensor) -> None:
        """Start to copy the appended scalars to the host. Call `take(wait=True)` before.

        Args:
            iteration: Number of iterations done.
            non_finite: Whether the constraint met a weight that is not finite; a tensor of one element.
            largest_weight: Largest absolute weight; a tensor of one element.
        """
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
        """Subtract seconds without training from the time of the current interval."""
        self._ended += seconds

    def take(self, *, wait: bool = False) -> Interval | None:
        """Return the interval that ended last and drop it; None if there is none or it has not arrived on the host yet.

        Args:
            wait: Whether to wait until it has arrived.
        """
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
