"""Table of systems: the narrow preset of each trained for the same time with several seeds, and scored.

    python -m benchmarks.score_presets

On CPUs, runs of one thread each work side by side. The classifier of moving digits that comes with the package scores
them. Such short runs of narrow models tell which systems learn quickly, not which are best in the end.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.figure
import tyro

from benchmarks import result_files
from benchmarks.result_files import rounded
from benchmarks.timed_training import PROTOCOL, SCORES, TimedRun, side_by_side, train_for
from tgan_fast.devices import resolve_device
from tgan_fast.training import PRESETS
from tgan_fast.video_files import write_videos

SECTION = "systems"
# preset → title and source
SYSTEMS = {
    "paper": "TGAN: WGAN, singular value clipping (arXiv:1611.06624), iteration of the PyTorch notebook",
    "authors": "the same, iteration of the authors' code",
    "weight-clip": "TGAN: WGAN, weight clipping ±0.01 (arXiv:1611.06624)",
    "vanilla": "TGAN: vanilla GAN, noise on the discriminator's input (arXiv:1611.06624)",
    "lsgan": "least squares (arXiv:1611.04076)",
    "gradient-penalty": "WGAN, gradient penalty over the whole video (arXiv:1704.00028)",
    "spectral-norm": "WGAN, spectral normalization (arXiv:1802.05957)",
    "conditional": "conditional TGAN (arXiv:1611.06624)",
    "gru-summary": "TGAN as in later summaries: GRU, one latent per frame, 2D discriminator",
    "quick": "default on a CPU: conditional, hinge loss, 2D discriminator",
}
# The systems that the paper compares, and their names in the figure.
CONSTRAINTS = {"paper": "singular value clipping", "weight-clip": "weight clipping", "vanilla": "vanilla GAN"}
# Number of clips in a picture.
_SHOWN = 4


def tiny(name: str) -> str:
    """Return a system's preset for a CPU."""
    return {"paper": "tiny", "quick": "quick"}.get(name, f"tiny-{name}")


def picture_of(stem: str, name: str) -> str:
    """Return the name of a system's picture beside a device's file of results, which has this stem."""
    return f"{stem}-system-{name}.png"


def median_run(runs: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the run whose final Fréchet distance is the (lower) median."""
    distances = [run["curve"][-1]["frechet_distance"] for run in runs]
    return distances.index(statistics.median_low(distances))


def draw(picture: Path, systems: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Draw the scores of `CONSTRAINTS` over time: a thin line for each run, a thick one for the median of all."""
    figure = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(title)
    for axes, (key, label) in zip(figure.subplots(1, 2), SCORES.items(), strict=True):
        for color, (name, legend) in zip(("#0072b2", "#d55e00", "#009e73"), CONSTRAINTS.items(), strict=True):
            curves = [run["curve"] for run in systems[name]["runs"]]
            seconds = [statistics.median(point["seconds"] for point in points) for points in zip(*curves, strict=True)]
            for curve in curves:
                axes.plot(seconds, [point[key] for point in curve], color=color, alpha=0.35, linewidth=1)
            medians = [statistics.median(point[key] for point in points) for points in zip(*curves, strict=True)]
            axes.plot(seconds, medians, color=color, linewidth=2.5, label=legend)
        axes.axhline(systems["paper"]["real"][key], color="0.5", linestyle="--", label="real clips")
        axes.set(xlabel="seconds of training", ylabel=label, xlim=(0, None))
        axes.grid(alpha=0.3)
    axes.set_yscale("log")
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=120)


class _Job(NamedTuple):
    """A run to do: system, seed, settings and time."""

    name: str
    seed: int
    settings: dict[str, Any]
    seconds: float
    points: int


def _train(job: _Job) -> TimedRun:
    return train_for(job.settings, job.seconds, job.points)


def main(
    only: tuple[Literal[tuple(SYSTEMS)], ...] = (), seconds: float = 64.0, seeds: int = 3, points: int = 4
) -> None:
    """Train and score every system, and write the section `systems` of the file of results and the pictures.

    Args:
        only: Systems to measure, such as paper and vanilla; the others keep their entries in the file.
        seconds: Seconds of training of each run.
        seeds: Number of seeds; they are 1, 2, …
        points: Number of scores of each run, at equal intervals.
    """
    device = resolve_device("auto").type
    jobs = [
        _Job(name, seed, PRESETS[tiny(name)] | {"seed": seed, "device": device}, seconds, points)
        for seed in range(1, seeds + 1)
        for name in only or SYSTEMS
    ]
    path = result_files.file_of(device)
    found: dict[str, dict[int, TimedRun]] = {name: {} for name in only or SYSTEMS}
    for job, run in side_by_side(_train, jobs, device):
        found[job.name][job.seed] = run
        print(f"{job.name}, seed {job.seed}: {run.curve[-1]}", flush=True)
    systems = result_files.sections_of(path)[SECTION]["systems"] if only else {}
    for name, by_seed in found.items():
        runs = [{"seed": seed, "curve": by_seed[seed].curve} for seed in sorted(by_seed)]
        median = by_seed[runs[median_run(runs)]["seed"]]
        systems[name] = {"preset": tiny(name), "real": median.real, "runs": runs}
        write_videos(path.with_name(picture_of(path.stem, name)), median.clips[:_SHOWN])
    payload = {"seconds": rounded(seconds), "samples": PROTOCOL.samples, "systems": systems}
    result_files.write_section(SECTION, payload, device)
    title = f"moving digits, narrow models, {seeds} seeds, {result_files.device_name(device)}"
    draw(path.with_name(f"{path.stem}-constraints.png"), systems, title)


if __name__ == "__main__":
    tyro.cli(main)
