"""Time of a training run with its data, samples and checkpoints, and the share of time in which the device is idle."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from benchmarks.harness import Timing
from tgan_fast.training import TrainingConfig, TrainingStep, train

# Iterations at the start, while graphs are captured and memory is reserved; and the fewest that are counted.
UNCOUNTED_ITERATIONS = {"cpu": 5, "cuda": 200}
FEWEST_ITERATIONS = {"cpu": 20, "cuda": 100}
STRETCHES = 10
METHOD = f"mean of a whole run, p10 and p90 of its {STRETCHES} stretches"


class TrainingRun(NamedTuple):
    """What was measured."""

    timing: Timing  # of an iteration
    iterations: int
    idle: float  # share of the time


def time_training(config: TrainingConfig, iterations: int) -> TrainingRun:
    """Train with a config on its device, for `iterations` iterations after a warm-up."""
    uncounted = UNCOUNTED_ITERATIONS[config.device]
    steps = uncounted + max(FEWEST_ITERATIONS[config.device], iterations)
    mark, seconds_between = _CLOCKS[config.device]
    with tempfile.TemporaryDirectory() as folder, _marks_of_steps(mark) as marks:
        train(config.model_copy(update={"steps": steps}), Path(folder) / "run")
        if config.device == "cuda":
            torch.cuda.synchronize()
    counted = marks[uncounted:]
    start = counted[0][0]
    begins, ends = ([seconds_between(start, mark) for mark in column] for column in zip(*counted, strict=True))
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


def _event():
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


# For each device a function that marks a moment, and one that returns the seconds between two marks.
_CLOCKS = {
    "cpu": (time.perf_counter, lambda begin, end: end - begin),
    "cuda": (_event, lambda begin, end: begin.elapsed_time(end) / 1e3),
}


@contextmanager
def _marks_of_steps(mark: Callable) -> Iterator[list[tuple]]:
    """Collect marks before and after every step that is called inside."""
    marks, call = [], TrainingStep.__call__

    def marked(step, *batch):
        begin = mark()
        scalars = call(step, *batch)
        marks.append((begin, mark()))
        return scalars

    with mock.patch.object(TrainingStep, "__call__", marked):
        yield marks
