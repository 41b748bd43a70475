"""Time of a training run with its data, samples and checkpoints, and the share of time in which the device is idle."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch

from benchmarks.harness import Timing
from tgan_fast.training import TrainingConfig, TrainingStep, train

# Iterations at the start, while graphs are captured and memory is reserved.
UNCOUNTED_ITERATIONS = {"cpu": 5, "cuda": 200}
STRETCHES = 10
METHOD = f"mean of a whole run, p10 and p90 of its {STRETCHES} stretches"


def time_training(config: TrainingConfig, iterations: int) -> tuple[Timing, float]:
    """Train for so many iterations after a warm-up; return the timing of one, and the share of time that is idle."""
    on_gpu, uncounted = config.device == "cuda", UNCOUNTED_ITERATIONS[config.device]
    marks, call = [], TrainingStep.__call__

    def mark():
        if not on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def marked(step, *batch):
        begin = mark()
        scalars = call(step, *batch)
        marks.append((begin, mark()))
        return scalars

    config = config.model_copy(update={"steps": uncounted + iterations})
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(TrainingStep, "__call__", marked):
        train(config, Path(folder) / "run")
    if on_gpu:
        torch.cuda.synchronize()
    marks, start = marks[uncounted:], marks[uncounted][0]
    begins, ends = (
        [start.elapsed_time(mark) / 1e3 if on_gpu else mark - start for mark in column]
        for column in zip(*marks, strict=True)
    )
    busy = busy_seconds([end - begin for begin, end in zip(begins, ends, strict=True)], config.clip_interval)
    return timing_of(begins, ends[-1]), 1 - busy / ends[-1]


def timing_of(begins: Sequence[float], end: float) -> Timing:
    """Return the mean time of an iteration, so that it has its part of samples and checkpoints.

    Args:
        begins: Times at which iterations began, in seconds since the first one did.
        end: Time at which the last one ended.
    """
    bounds = [len(begins) * index // STRETCHES for index in range(STRETCHES + 1)]
    times = [*begins, end]
    stretches = [(times[last] - times[first]) / (last - first) for first, last in itertools.pairwise(bounds)]
    return Timing.of(stretches, METHOD)._replace(median=end / len(begins))


def busy_seconds(steps: Sequence[float], clip_interval: int) -> float:
    """Return what all steps would take if none waited for the host: each as long as the fastest quarter of its kind.

    Args:
        steps: Seconds of consecutive iterations from a multiple of `clip_interval` on.
    """
    clipped = steps[::clip_interval]
    others = [seconds for index, seconds in enumerate(steps) if index % clip_interval]
    return sum(len(kind) * statistics.quantiles(kind, n=4)[0] for kind in (clipped, others))
