"""Contenders that train in turns, each with a clock and a curve of its own."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Literal

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.contenders import cudnn_for
from benchmarks.results import rounded
from tgan_fast import reference
from tgan_fast.data import MovingDigits, open_feed
from tgan_fast.data.feed import Feed
from tgan_fast.precision import compute_dtype, resolve_precision
from tgan_fast.training import TrainingConfig
from tgan_fast.training.build import build_step

What = Literal["fast-vs-reference", "svc"]
FAST, REFERENCE = "tgan_fast", "reference"
CLIPPED, UNCLIPPED = "clipping", "no clipping"
TURN_SECONDS = 5.0
_BAR = "training {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s [{elapsed}<{remaining}]"


class Contender:
    """Something that trains, its batches and its clock.

    Args:
        name: for people.
        generator: what it trains.
        iterate: one iteration on a batch of the feed; returns the discriminator's and the generator's loss, [2].
        clock: seconds.

    Attributes:
        seconds: of training.
        iterations: done.
        points: of its curves. Losses are means since the point before; the first point has none.
    """

    def __init__(
        self,
        name: str,
        generator: nn.Module,
        iterate: Callable[[torch.Tensor], torch.Tensor],
        feed: Feed,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.name, self.generator, self._iterate, self._clock = name, generator, iterate, clock
        self._batches = feed.batches()
        self.seconds, self.iterations, self.points = 0.0, 0, []
        self._losses = []

    def train(self, until: float) -> None:
        """Iterate until there are so many seconds of training, at least once.

        Raises:
            SystemExit: a loss is not finite.
        """
        began, losses = self._clock() - self.seconds, []
        while not losses or self._clock() - began < until:
            losses.append(self._iterate(next(self._batches).clips))
        # Reading them waits for all that the device has been given.
        rows = torch.stack(losses).tolist()
        self.seconds = self._clock() - began
        self.iterations += len(rows)
        self._losses += rows
        if not all(math.isfinite(loss) for row in rows for loss in row):
            raise SystemExit(f"error: {self.name}: a loss is no longer finite after {self.iterations} iterations")

    def add_point(self, judge: Callable[[nn.Module], float]) -> None:
        """Record where it stands, unless it has not moved."""
        if self.points and not self._losses:
            return
        means = [rounded(sum(column) / len(column)) for column in zip(*self._losses, strict=True)] or [None, None]
        self.points.append(
            {
                "seconds": rounded(self.seconds),
                "iteration": self.iterations,
                "loss_discriminator": means[0],
                "loss_generator": means[1],
                "metric": rounded(judge(self.generator)),
            }
        )
        self._losses = []

    def close(self) -> None:
        """End the threads that make batches."""
        self._batches.close()


def make_fast(name: str, config: TrainingConfig, device: torch.device, **options) -> Contender:
    """TrainingStep; `options` are the contender's."""
    feed = _open_feed(config, device, compute_dtype(resolve_precision(config.precision, device), torch.float32))
    step = build_step(config, device, read=feed.read)

    def iterate(batch):
        step(batch)
        return step.scalars[:2]

    return Contender(name, step.generator, iterate, feed, **options)


def make_reference(name: str, config: TrainingConfig, device: torch.device, **options) -> Contender:
    """The reference in PyTorch's default arithmetic: TF32 in convolutions on a GPU; `options` are the contender's."""
    start = build_step(config, torch.device("cpu"))
    generator = reference.Generator(config.width, config.latent_dim, config.channels)
    discriminator = reference.Discriminator(config.width, config.channels)
    for network, same in ((generator, start.generator), (discriminator, start.discriminator)):
        network.load_state_dict(same.state_dict())
        network.to(device)
    optimizers = reference.make_optimizers(generator, discriminator, config.learning_rate)
    feed = _open_feed(config, device, torch.float32)
    random, count = torch.Generator(device).manual_seed(config.seed), itertools.count()

    def iterate(batch):
        latents = [torch.empty(len(batch), config.latent_dim, device=device) for _ in range(2)]
        for z in latents:
            z.uniform_(-1, 1, generator=random)
        with cudnn_for("tf32", chooses_algorithms=False):
            losses = reference.training_iteration(
                generator, discriminator, *optimizers, feed.read(batch), *latents, next(count), config.clip_interval
            )
        return torch.stack(losses)

    return Contender(name, generator, iterate, feed, **options)


def _open_feed(config, device, dtype):
    return open_feed(
        MovingDigits(digits=config.digits, channels=config.channels, seed=config.seed),
        batch_size=config.batch_size,
        channels=config.channels,
        device=device,
        dtype=dtype,
        seed=config.seed,
        workers=config.workers,
    )


def make_contenders(what: What, config: TrainingConfig, device: torch.device, **options) -> list[Contender]:
    """Both; `options` are theirs."""
    if what == "fast-vs-reference":
        return [make_fast(FAST, config, device, **options), make_reference(REFERENCE, config, device, **options)]
    # The kernels are the same: without this the first contender would compile them for both.
    with closing(make_fast(FAST, config, device)) as another:
        another.train(until=0.0)
    never = config.model_copy(update={"clip_interval": 0})
    return [make_fast(CLIPPED, config, device, **options), make_fast(UNCLIPPED, never, device, **options)]


def take_turns(
    contenders: Sequence[Contender], seconds: float, points: int, judge: Callable[[nn.Module], float]
) -> Iterator[None]:
    """Train each for at least so many seconds.

    Yields after every round, at whose end each has one more point. The first points come before all training.
    """
    with tqdm(total=len(contenders) * seconds, bar_format=_BAR) as bar:
        for number in range(points + 1):
            due = seconds * (number / points)
            while waiting := [c for c in contenders if c.seconds < due]:
                for contender in waiting:
                    contender.train(min(due, contender.seconds + TURN_SECONDS))
                    bar.n = sum(min(seconds, c.seconds) for c in contenders)
                    bar.refresh()
            for contender in contenders:
                contender.add_point(judge)
            yield


def time_to_quality(fast: list[dict], slow: list[dict]) -> dict:
    """How soon tgan_fast and the reference came to the metric that the reference has at its end.

    Single points are noisy: each counts as the median of itself and the two before it.

    Args:
        fast, slow: their points.

    Returns:
        `metric`; `seconds` and `reference_seconds` of training until it was first reached, None where it is not;
        `ratio`, how many times as long the reference needs.
    """
    steady = [[*_steady(points)] for points in (fast, slow)]
    metric = steady[1][-1][1]
    # The first point comes before all training.
    seconds = [next((at for at, value in column[1:] if value <= metric), None) for column in steady]
    ratio = rounded(seconds[1] / seconds[0]) if all(seconds) else None
    return {"metric": metric, "seconds": seconds[0], "reference_seconds": seconds[1], "ratio": ratio}


def _steady(points):
    """Seconds and metric of each."""
    for index, point in enumerate(points):
        metrics = [near["metric"] for near in points[max(0, index - 2) : index + 1]]
        yield point["seconds"], rounded(statistics.median(metrics))
