"""Long runs: what contenders learn of moving digits in the same wall-clock time.

    python -m benchmarks.convergence --device cuda --seconds 3600
    python -m benchmarks.convergence --what svc

`fast-vs-reference` trains TrainingStep and the eager reference, each in the arithmetic that it takes by default; `svc`
trains TrainingStep with singular value clipping and without. On a CPU that is the preset `tiny`, on a GPU the preset
`paper`, without the average of the generator's weights, which the reference does not have.

All begin with the same weights, draw the same latents, read the same batches through the package's feed, and take turns
of some seconds, so that a machine whose speed drifts slows down all of them. The clock of each runs only while it
trains. It counts what users wait for, the first iterations included, in which kernels are compiled (Triton keeps them
on the disk for the next run) and CUDA graphs recorded. It does not count what only the benchmark does, judging and
drawing; libraries of CUDA are loaded by judging the untrained networks.

The metric is the Fréchet distance between generated and real clips in the first principal components of real clips. It
sees where the ink is and how it moves, not whether a digit can be read. Its floor is the distance of other real clips.
Runs with other seeds differ: one is a single sample.
"""

import io
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib.figure
import torch
import tyro
from torch import nn
from tqdm import tqdm

from benchmarks import results
from benchmarks.contenders import cudnn_for
from benchmarks.results import rounded
from tgan_fast import VideoGenerator, reference
from tgan_fast.data import MovingDigits, open_feed
from tgan_fast.data.feed import Feed
from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically
from tgan_fast.models.sampling import Sampler, draw_latents
from tgan_fast.precision import compute_dtype, resolve_precision
from tgan_fast.training import PRESETS, TrainingConfig
from tgan_fast.training.devices import resolve_device
from tgan_fast.training.loop import build_step

What = Literal["fast-vs-reference", "svc"]

FAST, REFERENCE = "tgan_fast", "reference"
CLIPPED, UNCLIPPED = "clipping", "no clipping"
TITLES = {
    "fast-vs-reference": "tgan_fast and the eager reference",
    "svc": "tgan_fast with singular value clipping and without",
}
PRESET = {"cpu": "tiny", "cuda": "paper"}
SETTINGS = ("width", "channels", "digits", "batch_size", "learning_rate", "clip_interval", "seed")  # that are recorded
COMPONENTS = 32
TURN_SECONDS = 5.0


class Sizes(NamedTuple):
    """How many points the curves have after the first, and by how many clips each is judged."""

    points: int
    real: int
    generated: int


SIZES = {"cpu": Sizes(20, 1024, 256), "cuda": Sizes(40, 1024, 1024)}
SMOKE_SIZES = Sizes(1, 64, 64)
SMOKE_SECONDS = 0.01

_BAR = "training {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s [{elapsed}<{remaining}]"
_COLOURS = "#0072b2", "#d55e00"
_INCHES, _DPI = (9, 7), 120
_LARGEST_LINEAR = 20
# Names, seconds, and up to how many seconds a run is shown in them.
_UNITS = (("seconds", 1, 300), ("minutes", 60, 3 * 3600), ("hours", 3600, float("inf")))


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] in float64."""

    mean: torch.Tensor
    covariance: torch.Tensor

    @classmethod
    def of(cls, samples: torch.Tensor) -> "Gaussian":
        """The one with the moments of samples [N, D]."""
        samples = samples.double()
        return cls(samples.mean(0), samples.T.cov())


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁^½·Σ₂·Σ₁^½)^½), the square of the 2-Wasserstein distance."""
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ second.covariance @ root)
    traces = first.covariance.trace() + second.covariance.trace() - 2 * product.clamp(min=0).sqrt().sum()
    # Rounding may leave less than nothing.
    return max(0.0, ((first.mean - second.mean).square().sum() + traces).item())


class PrincipalComponents:
    """The directions in which clips vary most.

    Args:
        clips: uint8 [N, …], N > `count`.
        count: of components.

    Attributes:
        explained: their share of the clips' variance.
    """

    def __init__(self, clips: torch.Tensor, count: int):
        pixels = _pixels(clips)
        self._mean = pixels.mean(0)
        pixels -= self._mean
        # There are far fewer clips than pixels, and the products of clips have the same eigenvalues.
        values, vectors = torch.linalg.eigh((pixels @ pixels.T).double())
        largest = values[-count:]
        self.explained = (largest.sum() / values.sum()).item()
        self._basis = pixels.T @ (vectors[:, -count:] / largest.sqrt()).float()

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips uint8 [N, …] → their coordinates [N, count]."""
        return (_pixels(clips) - self._mean) @ self._basis


def _pixels(clips):
    """Levels → [N, pixels] from -1 to 1, as the networks see them."""
    return clips.flatten(1).float() / 127.5 - 1


class Judge:
    """The distance of a generator's clips from real ones.

    It computes in float32 with a generator of its own, in evaluation mode and always of the same latents; the one that
    is judged is only read.

    Attributes:
        floor: the distance of as many other real clips.
        explained: what the principal components have of the variance of real clips.
    """

    def __init__(self, config: TrainingConfig, device: torch.device, sizes: Sizes):
        real, other = (
            real_clips(config, count, config.seed + offset).to(device)
            for offset, count in ((1, sizes.real), (2, sizes.generated))
        )
        self._components = PrincipalComponents(real, COMPONENTS)
        self._real = Gaussian.of(self._components(real))
        self.explained, self.floor = self._components.explained, self._distance([other])
        with torch.random.fork_rng(devices=[]):
            self._generator = VideoGenerator(config.width, config.latent_dim, config.channels).to(device)
        self._sampler = Sampler(self._generator, precision="fp32")
        self._latents = draw_latents(sizes.generated, config.latent_dim, config.seed + 1)

    def __call__(self, generator: nn.Module) -> float:
        """The distance of what it generates."""
        self._generator.load_state_dict(generator.state_dict())
        self._sampler.refresh()
        return self._distance(self._sampler.on_device(self._latents))

    def _distance(self, batches: Iterable[torch.Tensor]):
        return frechet_distance(self._real, Gaussian.of(torch.cat([self._components(batch) for batch in batches])))


def real_clips(config: TrainingConfig, count: int, seed: int) -> torch.Tensor:
    """Moving digits uint8 [count, 16, 64, 64, C]."""
    dataset = MovingDigits(count, digits=config.digits, channels=config.channels, seed=seed)
    return torch.stack([torch.from_numpy(dataset[index][0]) for index in range(count)])


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
            losses.append(self._iterate(next(self._batches)))
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


def payload_of(what, preset, config, judge, seconds, sizes, contenders) -> dict:
    """What goes into the file of results."""
    return {
        "title": TITLES[what],
        "preset": preset,
        "settings": {name: getattr(config, name) for name in SETTINGS},
        "seconds": seconds,
        "components": COMPONENTS,
        "explained_variance": rounded(judge.explained),
        "clips": {"real": sizes.real, "generated": sizes.generated},
        "floor": rounded(judge.floor),
        "sooner": time_to_quality(*(c.points for c in contenders)) if what == "fast-vs-reference" else None,
        "contenders": [{"contender": contender.name, "points": contender.points} for contender in contenders],
    }


def section_of(what: What) -> str:
    """Its name in the file of results."""
    return f"convergence {what}"


def draw(path: Path, what: What) -> Path:
    """Draw what a file of results holds into a picture beside it, and return that."""
    picture = path.with_name(f"{path.stem}-convergence-{what}.png")
    write_atomically(picture, png_of(results.sections_of(path)[section_of(what)]))
    return picture


def png_of(section: dict) -> bytes:
    """A picture of a section of a file of results: the critic's estimate and the metric over wall-clock time."""
    unit, length, _ = next(row for row in _UNITS if section["seconds"] <= row[2])
    figure = matplotlib.figure.Figure(figsize=_INCHES, layout="constrained")
    figure.suptitle(_title(section), x=0.01, ha="left", fontsize=10)
    upper, lower = figure.subplots(2, sharex=True)
    # The first point has no losses.
    _plot(upper, section, lambda point: (point["seconds"] / length, -point["loss_discriminator"]), first=1)
    _plot(lower, section, lambda point: (point["seconds"] / length, point["metric"]))
    upper.set_title("Critic's estimate: mean D(real) − mean D(generated)", loc="left", fontsize=10)
    # Without clipping it grows and grows.
    if max(map(abs, upper.dataLim.intervaly)) > _LARGEST_LINEAR:
        upper.set_yscale("symlog", linthresh=1)
        upper.yaxis.set_major_formatter("{x:g}")
    lower.set_title(_metric_title(section), loc="left", fontsize=10)
    lower.set_xlabel(f"{unit} of training, wall clock")
    lower.set_xlim(left=0)
    lower.set_ylim(bottom=0)
    lower.axhline(section["floor"], color="0.5", linestyle="--", linewidth=1)
    lower.annotate("other real clips", (0, section["floor"]), (4, 3), textcoords="offset points", color="0.4")
    reached = section["sooner"]
    if reached and reached["ratio"]:
        ends = reached["seconds"] / length, reached["reference_seconds"] / length
        lower.plot(ends, 2 * [reached["metric"]], color="0.4", linestyle=":", linewidth=1.5)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


def _title(section):
    environment, settings = section["environment"], section["settings"]
    threads = f" (threads: {environment['threads']})" if environment["threads"] else ""
    return (
        f"{section['title']}, trained on moving digits: preset {section['preset']} (width {settings['width']:g}, "
        f"batch {settings['batch_size']}), seed {settings['seed']}\n"
        f"{environment['device']}{threads}, PyTorch {environment['torch']}"
    )


def _metric_title(section):
    reached, variance = section["sooner"], f"{100 * section['explained_variance']:.0f} % of their variance"
    title = f"Fréchet distance, {section['components']} principal components of real clips ({variance})"
    return title if reached is None else f"{title}\n{quality_text(reached)}"


def _plot(axes, section, coordinates, first=0):
    """A curve for each contender, from its point `first` on, with its name at the end."""
    curves = [[coordinates(point) for point in record["points"][first:]] for record in section["contenders"]]
    highest = max(curve[-1][1] for curve in curves)
    for record, curve, colour in zip(section["contenders"], curves, _COLOURS, strict=True):
        axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1.5)
        side = "bottom" if curve[-1][1] == highest else "top"
        axes.annotate(record["contender"], curve[-1], (5, 0), textcoords="offset points", color=colour, va=side)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def quality_text(reached: dict) -> str:
    """`time_to_quality` in words."""
    if reached["seconds"] is None:
        return f"{FAST} does not reach {reached['metric']:g}, what the {REFERENCE} has at its end"
    return (
        f"{FAST} reaches {reached['metric']:g} after {reached['seconds']:g} s, the {REFERENCE} after "
        f"{reached['reference_seconds']:g} s, {reached['ratio']:.3g} times as long (medians of three points)"
    )


def print_end(payload: dict) -> None:
    """The table."""
    print(f"\n{'':26}{'iterations':>12}{'it/s':>9}{'loss D':>10}{'metric':>10}")
    for record in payload["contenders"]:
        last = record["points"][-1]
        print(
            f"  {record['contender']:24}{last['iteration']:12,}{last['iteration'] / last['seconds']:9.2f}"
            f"{last['loss_discriminator']:10.4g}{last['metric']:10.4g}"
        )
    print(f"  {'other real clips':24}{payload['floor']:41.4g}")
    if payload["sooner"]:
        print(quality_text(payload["sooner"]))


def main(
    what: What = "fast-vs-reference",
    seconds: float = 60.0,
    device: Literal["cpu", "cuda"] = "cpu",
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Train contenders for the same time, print where they are, and write curves and a picture to benchmarks/results.

    Args:
        what: to compare.
        seconds: of training of each contender.
        device: where to run.
        seed: of weights, latents and digits.
        smoke: only show that everything runs, in some iterations, and write nothing.
    """
    if smoke:
        seconds = SMOKE_SECONDS
    if seconds <= 0:
        raise SystemExit(f"error: --seconds is {seconds:g}: choose more than 0")
    preset, sizes = ("tiny", SMOKE_SIZES) if smoke else (PRESET[device], SIZES[device])
    try:
        place = resolve_device(device)
        config = TrainingConfig(**PRESETS[preset] | {"ema_decay": None, "seed": seed, "device": device})
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{results.device_name(device)}, torch {torch.__version__}: {what}, {seconds:g} s each")
    judge, path = Judge(config, place, sizes), None
    with ExitStack() as stack:
        contenders = make_contenders(what, config, place)
        for contender in contenders:
            stack.enter_context(closing(contender))
        for _ in take_turns(contenders, seconds, sizes.points, judge):
            payload = payload_of(what, preset, config, judge, seconds, sizes, contenders)
            if not smoke:
                path = results.write(section_of(what), payload, device)
    print_end(payload)
    if path is not None:
        print(f"written to {path} and {draw(path, what)}")


if __name__ == "__main__":
    tyro.cli(main)
