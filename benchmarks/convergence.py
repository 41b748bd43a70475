"""Long runs: quality that TrainingStep and the eager reference reach on moving digits in the same wall-clock time.

    python -m benchmarks.convergence --seconds 3600

Both begin with the same weights, draw the same latents, read the same batches, and take turns from point to
point; the clock of each runs only while it trains, the first iterations included. Their metric is the Fréchet distance
between generated and real clips in the first principal components of real clips: it measures where ink is and how it
moves, not whether a digit is legible. Other seeds give other curves, so a run is a single sample.
"""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import matplotlib.figure
import torch
import tyro
from sklearn.decomposition import PCA
from torch import nn

from benchmarks import result_files
from benchmarks.contenders import Notebook, Start
from benchmarks.result_files import rounded
from benchmarks.suite import choose_device, refuse_without_extension, say_what_is_stale
from tgan_fast import VideoGenerator, allocator, reference
from tgan_fast.data import MovingDigits, open_feed
from tgan_fast.metrics.frechet import Moments, frechet_distance
from tgan_fast.models.sampling import Sampler, draw_latents
from tgan_fast.precision import compute_dtype, resolve_precision
from tgan_fast.training import TrainingConfig
from tgan_fast.training.build import build_step

SECTION = "convergence fast-vs-reference"
# The paper's settings, narrower on a CPU. The reference has 16 frames of 64×64 pixels, RMSprop, and no average of the
# generator's weights.
SETTINGS: dict[str, dict[str, Any]] = {
    "cpu": {
        "width": 0.125,
        "channels": 1,
        "digits": 1,
        "batch_size": 8,
        "learning_rate": 7e-4,
        "clip_interval": 1,
        "workers": 1,
    },
    "cuda": {},
}
POINTS = {"cpu": 20, "cuda": 40}  # of each curve, after the first
REAL_CLIPS, GENERATED_CLIPS, COMPONENTS = 1024, {"cpu": 256, "cuda": 1024}, 32


class DigitDistance:
    """Fréchet distance of a generator's clips from real clips; `floor` is the distance of other real clips."""

    def __init__(self, config: TrainingConfig, real_clips: int, generated_clips: int):
        def digits(count, seed):
            clips = MovingDigits(count, digits=config.digits, channels=config.channels, seed=seed)
            return torch.stack([torch.from_numpy(clips[i][0]) for i in range(count)])

        self._config, real, moments = config, digits(real_clips, config.seed + 1), Moments()
        self._components = PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit(_pixels(real))
        moments.add(self._projected(real))
        self._real = moments.gaussian()
        self.floor = frechet_distance(self._projected(digits(generated_clips, config.seed + 2)), self._real)
        self._latents = draw_latents(generated_clips, config.latent_dim, config.seed + 1)

    def __call__(self, generator: nn.Module) -> float:
        """Return the distance of clips that a generator makes from the same latents each time, in float32."""
        network = VideoGenerator(self._config.width, self._config.latent_dim, self._config.channels)
        network.load_state_dict(generator.state_dict())
        clips = Sampler(network.to(self._config.device), precision="fp32", cuda_graph="off")(self._latents)
        return frechet_distance(self._projected(clips), self._real)

    def _projected(self, clips):
        return torch.from_numpy(self._components.transform(_pixels(clips)))


def _pixels(clips):
    """Return the pixels of clips in [-1, 1] as a NumPy array [N, pixels]."""
    return (clips.flatten(1).float() / 127.5 - 1).numpy()


class Contender:
    """Generator in training with its clock and the points of its curve; `iterate` returns the losses of D and G."""

    def __init__(self, name: str, generator: nn.Module, iterate: Callable[[], tuple[torch.Tensor, torch.Tensor]]):
        self.name, self._generator, self._iterate = name, generator, iterate
        self._seconds, self._iterations, self.points = 0.0, 0, []

    def train(self, until: float, distance: Callable[[nn.Module], float]) -> None:
        """Train until the clock reads `until` seconds, at least one iteration after the first point, and add a point.

        Losses of a point are means since the point before; the first point has none.
        """
        began, losses, means = time.perf_counter() - self._seconds, [], [None, None]
        while time.perf_counter() - began < until or (self.points and not losses):
            losses.append(torch.stack(self._iterate()))
        if losses:
            # Reading the losses waits for the device.
            means = [rounded(loss) for loss in torch.stack(losses).mean(0).tolist()]
            self._seconds, self._iterations = time.perf_counter() - began, self._iterations + len(losses)
            if not all(map(math.isfinite, means)):
                raise SystemExit(f"error: {self.name}: a loss is no longer finite by iteration {self._iterations}")
        point = {"seconds": rounded(self._seconds), "iteration": self._iterations}
        point |= {
            "loss_discriminator": means[0],
            "loss_generator": means[1],
            "metric": rounded(distance(self._generator)),
        }
        self.points.append(point)


def make_fast(name: str, config: TrainingConfig) -> Contender:
    """Return TrainingStep as a contender, in its default precision."""
    device = torch.device(config.device)
    dtype = compute_dtype(resolve_precision(config.precision, device), torch.float32)
    read, batches = _open_feed(config, dtype)
    step = build_step(config, device, read=read)

    def iterate():
        step(next(batches).clips)
        return tuple(step.scalars[:2])

    return Contender(name, step.generator, iterate)


def make_reference(config: TrainingConfig) -> Contender:
    """Return the reference as a contender, with the weights of TrainingStep, in PyTorch's default arithmetic."""
    step = build_step(config, torch.device("cpu"))
    generator = reference.Generator(config.width, config.latent_dim, config.channels)
    discriminator = reference.Discriminator(config.width, config.channels)
    generator.load_state_dict(step.generator.state_dict())
    discriminator.load_state_dict(step.discriminator.state_dict())
    notebook = Notebook(Start(generator, discriminator, config.width, config.device))
    networks = notebook.generator, notebook.discriminator
    notebook.optimizers = reference.make_optimizers(*networks, config.learning_rate)
    notebook.iteration, notebook.clip_interval = -1, config.clip_interval
    read, batches = _open_feed(config, torch.float32)

    def iterate():
        notebook.iteration += 1
        return notebook(read(next(batches).clips))

    return Contender("reference", notebook.generator, iterate)


def _open_feed(config, dtype):
    digits = MovingDigits(digits=config.digits, channels=config.channels, seed=config.seed)
    settings = {name: getattr(config, name) for name in ("batch_size", "channels", "device", "seed", "workers")}
    feed = open_feed(digits, dtype=dtype, **settings)
    return feed.read, feed.batches()


def time_to_quality(fast: list[dict], slow: list[dict]) -> dict:
    """Return the slow contender's final metric, and the seconds after which each contender reached it, or None.

    Points are noisy, so each is replaced by the median of itself and the two points before it.
    """

    def metric_at(points, index):
        return statistics.median(point["metric"] for point in points[max(0, index - 2) : index + 1])

    def first(points):
        # The first point comes before any training.
        reached = (points[i]["seconds"] for i in range(1, len(points)) if metric_at(points, i) <= metric)
        return next(reached, None)

    metric = metric_at(slow, len(slow) - 1)
    return {"metric": metric, "seconds": first(fast), "reference_seconds": first(slow)}


def draw(picture: Path, curves: dict[str, list[dict]], floor: float, title: str) -> None:
    """Draw the curves into a PNG file."""
    figure = matplotlib.figure.Figure(figsize=(9, 7), layout="constrained")
    figure.suptitle(title)
    upper, lower = figure.subplots(2, sharex=True)
    for name, (first, *points) in curves.items():
        seconds = [point["seconds"] for point in points]
        upper.plot(seconds, [-point["loss_discriminator"] for point in points], label=name)
        lower.plot([first["seconds"], *seconds], [first["metric"], *(point["metric"] for point in points)], label=name)
    lower.axhline(floor, color="0.5", linestyle="--", label="other real clips")
    upper.set(ylabel="D(real) − D(generated)")
    lower.set(ylabel=f"Fréchet distance, {COMPONENTS} principal components", ylim=(0, None))
    lower.set(xlabel="seconds of training, wall clock", xlim=(0, None))
    lower.legend(frameon=False)
    figure.savefig(picture, dpi=120)


def main(seconds: float = 60.0, device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
    """Train both for the same time, print their progress, and write curves and a picture to benchmarks/results.

    Args:
        seconds: Seconds of training of each contender.
        device: Device; a CPU trains a narrow model, a GPU the paper's.
    """
    if seconds <= 0:
        raise SystemExit(f"error: --seconds is {seconds:g}: choose more than 0")
    device = choose_device(device)
    refuse_without_extension(device)
    if device == "cpu":
        # The training command keeps memory, too, and the reference gains more from it.
        allocator.keep_memory()
    config = TrainingConfig(**SETTINGS[device], device=device)
    distance = DigitDistance(config, REAL_CLIPS, GENERATED_CLIPS[device])
    contenders = [make_fast("tgan_fast", config), make_reference(config)]
    for number in range(POINTS[device] + 1):
        for contender in contenders:
            contender.train(seconds * number / POINTS[device], distance)
            print(contender.name, contender.points[-1], flush=True)
        curves = {contender.name: contender.points for contender in contenders}
        section = {
            "seconds": seconds,
            "floor": rounded(distance.floor),
            "sooner": time_to_quality(*curves.values()),
            "contenders": [{"contender": name, "points": points} for name, points in curves.items()],
        }
        path = result_files.write_section(SECTION, section, device)
    picture = path.with_name(f"{path.stem}-convergence-fast-vs-reference.png")
    title = (
        f"tgan_fast and the reference: moving digits, batch {config.batch_size}, on {result_files.device_name(device)}"
    )
    draw(picture, curves, distance.floor, title)
    print(f"written to {path} and {picture}")
    say_what_is_stale()


if __name__ == "__main__":
    tyro.cli(main)
