"""Training of presets for a fixed time, scored at equal intervals; the clock stops while a generator is scored."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from benchmarks.result_files import rounded
from tgan_fast import allocator
from tgan_fast.metrics.classifier_files import DIGITS_CLASSIFIER, load_classifier
from tgan_fast.metrics.evaluator import Evaluator
from tgan_fast.metrics.features import ClassifierFeatures
from tgan_fast.metrics.protocols import PROTOCOLS
from tgan_fast.metrics.real_statistics import RealClips
from tgan_fast.models.sampling import Sampler, draw_inputs
from tgan_fast.precision import resolve_precision
from tgan_fast.processes import Processes
from tgan_fast.stop_signals import end_with_parent
from tgan_fast.training import TrainingConfig
from tgan_fast.training.build import build_step
from tgan_fast.training.dataset import classes_of, open_data, open_run_feed

# Names of the scores and of their axes in figures.
SCORES = {"inception_score": "inception score", "frechet_distance": "Fréchet distance"}
PROTOCOL = replace(PROTOCOLS["plain"], samples=512, runs=1, real_clips=2048)
# Seed of the latents of scored clips; seed 0 makes the clips in pictures.
_SCORED = 1_000_003
_SHOWN = 16

Curve = list[dict[str, float]]
Argument = TypeVar("Argument")
Found = TypeVar("Found")


class TimedRun(NamedTuple):
    """Result of a training for a fixed time.

    Attributes:
        curve: Points of `seconds`, `iteration`, `inception_score` and `frechet_distance`.
        real: Both scores of real clips.
        clips: Sixteen generated clips, uint8 [16, T, H, W, C].
    """

    curve: Curve
    real: dict[str, float]
    clips: np.ndarray


def train_for(
    settings: dict[str, Any], seconds: float, points: int, should_continue: Callable[[Curve], bool] = lambda curve: True
) -> TimedRun:
    """Train for a number of seconds, and score the generator (its average, if there is one) at equal intervals.

    Args:
        settings: Arguments of `TrainingConfig`. `steps` has no effect: a learning rate that decays ends with the time.
        seconds: Seconds of training.
        points: Number of scores.
        should_continue: Function of the curve so far, called after each score.
    """
    config = TrainingConfig(**settings)
    device, data = torch.device(config.device), open_data(config)
    precision = resolve_precision(config.precision, device)
    classes = classes_of(config, data) if config.conditional else None
    config = config.model_copy(update={"precision": precision, "classes": classes})
    feed = open_run_feed(config, data, device, Processes())
    step = build_step(config, device, read=feed.read)
    evaluator, curve, elapsed = _open_evaluator(data, device), [], 0.0
    with closing(feed.batches()) as batches:
        while len(curve) < points and (not curve or should_continue(curve)):
            began, due = time.perf_counter() - elapsed, seconds * (len(curve) + 1) / points
            while (now := time.perf_counter() - began) < due:
                if step.decay_steps is not None:
                    # The number of steps is an estimate from the current speed.
                    step.decay_steps = max(1, round(step.iteration * seconds / now))
                step(*next(batches))
                # Reading the scalars waits for the GPU, so that only finished iterations count.
                step.scalars.tolist()
            elapsed = time.perf_counter() - began
            generator = step.generator if step.ema is None else step.ema
            scores = evaluator(generator)
            found = {name: rounded(score.mean) for name, score in scores.items()}
            curve.append({"seconds": rounded(elapsed), "iteration": step.iteration, **found})
    clips = Sampler(generator)(draw_inputs(generator, _SHOWN, 0)).numpy()
    return TimedRun(curve, {name: rounded(score.real) for name, score in scores.items()}, clips)


def _open_evaluator(data, device):
    features = ClassifierFeatures(load_classifier(DIGITS_CLASSIFIER), PROTOCOL, device, "fp32")
    metrics = "is", "fid"
    evaluator = Evaluator(metrics, PROTOCOL, classifier=features, real=RealClips(data), device=device, seed=_SCORED)
    evaluator.prepare()
    return evaluator


def side_by_side(
    function: Callable[[Argument], Found], arguments: Iterable[Argument], device: str
) -> Iterator[tuple[Argument, Found]]:
    """Yield every argument and its result, as soon as it is done.

    On CPUs, single-threaded processes run in parallel, one for each CPU; a GPU runs the calls one by one.
    """
    if device == "cuda":
        yield from ((argument, function(argument)) for argument in arguments)
        return
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn"), _prepare_process) as pool:
        pending = {pool.submit(function, argument): argument for argument in arguments}
        for future in as_completed(pending):
            yield pending[future], future.result()


def _prepare_process():
    # A process whose parent was killed would continue, and slow down later timings.
    end_with_parent()
    torch.set_num_threads(1)
    # The training command keeps memory, too.
    allocator.keep_memory()
