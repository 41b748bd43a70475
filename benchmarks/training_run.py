"""What a training run takes with its data, samples and checkpoints, and how long its GPU does not train."""

import itertools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from benchmarks.harness import Timing
from tgan_fast.training import TrainingConfig, TrainingStep, train

# At the beginning, while graphs are recorded and memory is reserved.
UNCOUNTED_ITERATIONS = 200
FEWEST_ITERATIONS = 100
STRETCHES = 10
METHOD = f"mean of a whole run by events, p10 and p90 of its {STRETCHES} stretches"


class TrainingRun(NamedTuple):
    """What was measured."""

    timing: Timing  # of an iteration
    iterations: int
    gpu_idle: float  # share of the time


def time_training(config: TrainingConfig, iterations: int) -> TrainingRun:
    """Train on a GPU with a config, but for so many iterations, and some before them."""
    steps = UNCOUNTED_ITERATIONS + max(FEWEST_ITERATIONS, iterations)
    with tempfile.TemporaryDirectory() as folder, _events_of_steps() as events:
        train(config.model_copy(update={"steps": steps}), Path(folder) / "run")
        torch.cuda.synchronize()
    counted = events[UNCOUNTED_ITERATIONS:]
    start = counted[0][0]
    begins, ends = ([start.elapsed_time(event) / 1e3 for event in column] for column in zip(*counted, strict=True))
    busy = busy_seconds([end - begin for begin, end in zip(begins, ends, strict=True)], config.clip_interval)
    return TrainingRun(timing_of(begins, ends[-1]), len(counted), 1 - busy / ends[-1])


def timing_of(begins: Sequence[float], end: float) -> Timing:
    """Of an iteration: the mean, so that it has its part of samples and checkpoints.

    Args:
        begins: when each iteration began, in seconds since the first one did.
        end: when the last one ended.
    """
    bounds = [len(begins) * index // STRETCHES for index in range(STRETCHES + 1)]
    times = [*begins, end]
    stretches = [(times[last] - times[first]) / (last - first) for first, last in itertools.pairwise(bounds)]
    return Timing.of(stretches, METHOD)._replace(median=end / len(begins))


def busy_seconds(steps: Sequence[float], clip_interval: int) -> float:
    """What all steps would take if none of them waited for the host: each as long as the fastest quarter of its kind.

    Args:
        steps: seconds, of consecutive iterations from a multiple of `clip_interval` on.
    """
    kinds = [steps[first::clip_interval] for first in range(clip_interval)]
    clipped, others = kinds[0], [seconds for kind in kinds[1:] for seconds in kind]
    return sum(len(kind) * statistics.quantiles(kind, n=4)[0] for kind in (clipped, others))


@contextmanager
def _events_of_steps() -> Iterator[list[tuple[torch.cuda.Event, torch.cuda.Event]]]:
    """Collects events before and after every step that is called within."""
    events, call = [], TrainingStep.__call__

    def timed(step, batch):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        scalars = call(step, batch)
        end.record()
        events.append((begin, end))
        return scalars

    with mock.patch.object(TrainingStep, "__call__", timed):
        yield events
