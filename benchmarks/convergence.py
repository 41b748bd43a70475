"""Long runs: what contenders learn of moving digits in the same wall-clock time.

    python -m benchmarks.convergence --device cuda --seconds 3600
    python -m benchmarks.convergence --what svc

Contenders begin with the same weights, draw the same latents, read the same batches, and take turns from point to
point, so that a machine whose speed drifts slows down all of them. The clock of each runs only while it trains, the
first iterations included, in which kernels are compiled and CUDA graphs recorded.

The metric is the Fréchet distance between generated and real clips in the first principal components of real clips. It
sees where the ink is and how it moves, not whether a digit can be read. Its floor is the distance of other real clips.
Runs with other seeds differ: one is a single sample.
"""

import io
import itertools
import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import matplotlib.figure
import torch
import tyro
from sklearn.decomposition import PCA
from torch import nn

from benchmarks import results
from benchmarks.contenders import cudnn_for
from benchmarks.results import rounded
from benchmarks.suite import refuse_without_extension, say_what_is_stale
from tgan_fast import VideoGenerator, reference
from tgan_fast.data import MovingDigits, open_feed
from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically
from tgan_fast.metrics.frechet import Moments, frechet_distance
from tgan_fast.models.sampling import Sampler, draw_latents
from tgan_fast.precision import compute_dtype, resolve_precision
from tgan_fast.training import PRESETS, TrainingConfig
from tgan_fast.training.build import build_step
from tgan_fast.training.devices import resolve_device

What = Literal["fast-vs-reference", "svc"]
TITLES = {
    "fast-vs-reference": "tgan_fast and the eager reference",
    "svc": "tgan_fast with singular value clipping and without",
}
FAST, REFERENCE = "tgan_fast", "reference"
PRESET = {"cpu": "tiny", "cuda": "paper"}
SETTINGS = ("width", "channels", "digits", "batch_size", "learning_rate", "clip_interval", "seed")  # that are recorded
POINTS = {"cpu": 20, "cuda": 40}  # of each curve, after the first
SMOKE_SECONDS = 0.01
REAL_CLIPS, GENERATED_CLIPS, COMPONENTS = 1024, {"cpu": 256, "cuda": 1024}, 32


class Judge:
    """The Fréchet distance of a generator's clips, always of the same latents and in float32, from real clips.

    Attributes:
        floor: Distance of as many other real clips.
        explained: Share of the variance of real clips in the principal components.
    """

    def __init__(self, config: TrainingConfig, real_clips: int, generated_clips: int):
        self._config = config
        real, other = (
            MovingDigits(count, digits=config.digits, channels=config.channels, seed=config.seed + offset)
            for offset, count in ((1, real_clips), (2, generated_clips))
        )
        real, other = (
            torch.stack([torch.from_numpy(clips[i][0]) for i in range(len(clips))]) for clips in (real, other)
        )
        self._components = PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit(_pixels(real))
        self.explained = float(self._components.explained_variance_ratio_.sum())
        moments = Moments()
        moments.add(self._seen(real))
        self._real = moments.gaussian()
        self.floor = frechet_distance(self._seen(other), self._real)
        self._latents = draw_latents(generated_clips, config.latent_dim, config.seed + 1)

    def __call__(self, generator: nn.Module) -> float:
        """Return the distance of what a generator, which is only read, makes in evaluation mode."""
        network = VideoGenerator(self._config.width, self._config.latent_dim, self._config.channels)
        network.load_state_dict(generator.state_dict())
        clips = Sampler(network.to(self._config.device), precision="fp32", cuda_graph="off")(self._latents)
        return frechet_distance(self._seen(clips), self._real)

    def _seen(self, clips):
        return torch.from_numpy(self._components.transform(_pixels(clips)))


def _pixels(clips):
    """Levels → pixels from -1 to 1 as NumPy's [N, pixels]."""
    return (clips.flatten(1).float() / 127.5 - 1).numpy()


class Contender:
    """A generator in training, with its clock and its curve.

    Args:
        iterate: Function that does an iteration; returns the losses [2], the discriminator's first.

    Attributes:
        seconds: Seconds of training.
        points: Points of its curve. Losses are means since the point before; the first point has none.
    """

    def __init__(self, name: str, generator: nn.Module, iterate: Callable[[], torch.Tensor]):
        self.name, self._generator, self._iterate = name, generator, iterate
        self.seconds, self.points = 0.0, []

    def train(self, until: float, judge: Callable[[nn.Module], float]) -> None:
        """Iterate until there are so many seconds of training, at least once after the first point, and add a point.

        Raises:
            SystemExit: A loss is not finite.
        """
        began, losses = time.perf_counter() - self.seconds, []
        while time.perf_counter() - began < until or (self.points and not losses):
            losses.append(self._iterate())
        # Reading them waits for all that the device has been given.
        columns = torch.stack(losses).T.tolist() if losses else []
        self.seconds = time.perf_counter() - began if losses else self.seconds
        iteration = len(losses) + (self.points[-1]["iteration"] if self.points else 0)
        means = [rounded(statistics.fmean(column)) for column in columns] or [None, None]
        if losses and not all(map(math.isfinite, means)):
            raise SystemExit(f"error: {self.name}: a loss is no longer finite within {iteration} iterations")
        when, metric = {"seconds": rounded(self.seconds), "iteration": iteration}, rounded(judge(self._generator))
        self.points.append({**when, "loss_discriminator": means[0], "loss_generator": means[1], "metric": metric})


def make_fast(name: str, config: TrainingConfig, stack: ExitStack) -> Contender:
    """Return TrainingStep as a contender, in the precision that it takes by default, until the stack is closed."""
    device = torch.device(config.device)
    feed = _open_feed(config, compute_dtype(resolve_precision(config.precision, device), torch.float32))
    step, batches = build_step(config, device, read=feed.read), stack.enter_context(closing(feed.batches()))

    def iterate():
        step(next(batches).clips)
        return step.scalars[:2]

    return Contender(name, step.generator, iterate)


def make_reference(config: TrainingConfig, stack: ExitStack) -> Contender:
    """Return the reference as a contender, in PyTorch's default arithmetic: TF32 in convolutions on a GPU."""
    start = build_step(config, torch.device("cpu"))
    networks = (
        reference.Generator(config.width, config.latent_dim, config.channels),
        reference.Discriminator(config.width, config.channels),
    )
    for network, same in zip(networks, (start.generator, start.discriminator), strict=True):
        network.load_state_dict(same.state_dict())
        network.to(config.device)
    optimizers = reference.make_optimizers(*networks, config.learning_rate)
    feed, count = _open_feed(config, torch.float32), itertools.count()
    batches = stack.enter_context(closing(feed.batches()))
    random = torch.Generator(config.device).manual_seed(config.seed)

    def iterate():
        real = feed.read(next(batches).clips)
        latents = [torch.empty(len(real), config.latent_dim, device=config.device) for _ in range(2)]
        latents = [z.uniform_(-1, 1, generator=random) for z in latents]
        with cudnn_for("tf32", chooses_algorithms=False):
            inputs = real, *latents, next(count), config.clip_interval
            return torch.stack(reference.training_iteration(*networks, *optimizers, *inputs))

    return Contender(REFERENCE, networks[0], iterate)


def _open_feed(config, dtype):
    digits = MovingDigits(digits=config.digits, channels=config.channels, seed=config.seed)
    settings = {name: getattr(config, name) for name in ("batch_size", "channels", "device", "seed", "workers")}
    return open_feed(digits, dtype=dtype, **settings)


def make_contenders(what: What, config: TrainingConfig, stack: ExitStack) -> list[Contender]:
    """Return both contenders."""
    if what == "fast-vs-reference":
        return [make_fast(FAST, config, stack), make_reference(config, stack)]
    # The kernels are the same: without this the first contender would compile them for both.
    make_fast(FAST, config, stack).train(SMOKE_SECONDS, lambda generator: 0.0)
    never = config.model_copy(update={"clip_interval": 0})
    return [make_fast("clipping", config, stack), make_fast("no clipping", never, stack)]


def time_to_quality(fast: list[dict], slow: list[dict]) -> dict:
    """Tell how soon tgan_fast and the reference came to the metric that the reference has at its end.

    Single points are noisy: each counts as the median of itself and the two before it.

    Returns:
        `metric`; `seconds` and `reference_seconds` of training until it was first reached, None where it is not;
        `ratio`, how many times as long the reference needs.
    """

    def metrics(points):
        column = [point["metric"] for point in points]
        return [rounded(statistics.median(column[max(0, index - 2) : index + 1])) for index in range(len(column))]

    def first(points, metric):
        # The first point comes before all training.
        reached = zip(points[1:], metrics(points)[1:], strict=True)
        return next((point["seconds"] for point, value in reached if value <= metric), None)

    metric = metrics(slow)[-1]
    ours, theirs = first(fast, metric), first(slow, metric)
    ratio = rounded(theirs / ours) if ours and theirs else None
    return {"metric": metric, "seconds": ours, "reference_seconds": theirs, "ratio": ratio}


def quality_text(reached: dict) -> str:
    """Return `time_to_quality` in words."""
    if reached["seconds"] is None:
        return f"{FAST} does not reach {reached['metric']:g}, what the {REFERENCE} has at its end"
    return (
        f"{FAST} reaches {reached['metric']:g} after {reached['seconds']:g} s, the {REFERENCE} after "
        f"{reached['reference_seconds']:g} s, {reached['ratio']:.3g} times as long (medians of three points)"
    )


def draw(path: Path, what: What) -> Path:
    """Draw the curves in a file of results into a picture beside it; return that."""
    section = results.sections_of(path)[f"convergence {what}"]
    figure = matplotlib.figure.Figure(figsize=(9, 7), layout="constrained")
    figure.suptitle(
        f"{section['title']}: preset {section['preset']} on moving digits, batch {section['settings']['batch_size']}, "
        f"seed {section['settings']['seed']}, on {section['environment']['device']}"
    )
    upper, lower = figure.subplots(2, sharex=True)
    for contender in section["contenders"]:
        first, *others = contender["points"]
        seconds = [point["seconds"] for point in others]
        upper.plot(seconds, [-point["loss_discriminator"] for point in others], label=contender["contender"])
        lower.plot([first["seconds"], *seconds], [point["metric"] for point in contender["points"]])
    upper.set_title("Critic's estimate: mean D(real) − mean D(generated)", loc="left", fontsize=10)
    upper.legend(frameon=False)
    if what == "svc":
        upper.set_yscale("symlog")  # without clipping it grows and grows
    variance = f"{100 * section['explained_variance']:.0f} % of their variance"
    quality = f"\n{quality_text(section['sooner'])}" if section["sooner"] else ""
    title = f"Fréchet distance, {section['components']} principal components of real clips ({variance}){quality}"
    lower.set_title(title, loc="left", fontsize=10)
    lower.axhline(section["floor"], color="0.5", linestyle="--", label="other real clips")
    lower.legend(frameon=False)
    lower.set(xlabel="seconds of training, wall clock", xlim=(0, None), ylim=(0, None))
    content, picture = io.BytesIO(), path.with_name(f"{path.stem}-convergence-{what}.png")
    figure.savefig(content, format="png", dpi=120)
    write_atomically(picture, content.getvalue())
    return picture


def main(
    what: What = "fast-vs-reference",
    seconds: float = 60.0,
    device: Literal["cpu", "cuda"] = "cpu",
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Train contenders for the same time, print where they are, and write curves and a picture to benchmarks/results.

    Args:
        what: TrainingStep and the eager reference, or TrainingStep with singular value clipping and without.
        seconds: Seconds of training of each contender.
        device: Device; a CPU trains the preset `tiny`, a GPU the preset `paper`.
        seed: Seed of weights, latents and digits.
        smoke: Only show that everything runs, in some iterations, and write nothing.
    """
    seconds = SMOKE_SECONDS if smoke else seconds
    if seconds <= 0:
        raise SystemExit(f"error: --seconds is {seconds:g}: choose more than 0")
    preset = "tiny" if smoke else PRESET[device]
    points, real, generated = (1, 64, 64) if smoke else (POINTS[device], REAL_CLIPS, GENERATED_CLIPS[device])
    try:
        resolve_device(device)
        # Without the average of the generator's weights, which the reference does not have.
        config = TrainingConfig(**PRESETS[preset] | {"ema_decay": None, "seed": seed, "device": device})
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    refuse_without_extension(device)
    judge, path = Judge(config, real, generated), None
    with ExitStack() as stack:
        contenders = make_contenders(what, config, stack)
        for number in range(points + 1):
            for contender in contenders:
                contender.train(seconds * number / points, judge)
                print(contender.name, contender.points[-1], flush=True)
            curves = [contender.points for contender in contenders]
            payload = {
                "title": TITLES[what],
                "preset": preset,
                "settings": {name: getattr(config, name) for name in SETTINGS},
                "seconds": seconds,
                "components": COMPONENTS,
                "explained_variance": rounded(judge.explained),
                "clips": {"real": real, "generated": generated},
                "floor": rounded(judge.floor),
                "sooner": time_to_quality(*curves) if what == "fast-vs-reference" else None,
                "contenders": [{"contender": each.name, "points": each.points} for each in contenders],
            }
            if not smoke:
                path = results.write(f"convergence {what}", payload, device)
    if payload["sooner"]:
        print(quality_text(payload["sooner"]))
    if path is not None:
        print(f"written to {path} and {draw(path, what)}")
        say_what_is_stale()


if __name__ == "__main__":
    tyro.cli(main)
