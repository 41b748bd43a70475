"""Small data sets: training on 100 clips of moving digits, with augmentation and from networks of another run.

    python -m benchmarks.small_data

A run trains on 100 clips of its seed for 2,500 iterations, 200 passes over them. Clips that no run trains on are the
real ones of its Fréchet distance. Runs that fine-tune begin with the networks of one run of as many iterations on
100,000 clips of two digits. On CPUs, runs of one thread each work side by side.
"""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import matplotlib.figure
import torch
import tyro

from benchmarks import result_files
from benchmarks.result_files import rounded
from benchmarks.timed_training import PROTOCOL, side_by_side
from tgan_fast.data import MovingDigits
from tgan_fast.devices import resolve_device
from tgan_fast.metrics.classifier_files import DIGITS_CLASSIFIER, load_classifier
from tgan_fast.metrics.evaluator import Evaluator
from tgan_fast.metrics.features import ClassifierFeatures
from tgan_fast.metrics.real_statistics import RealClips
from tgan_fast.training import PRESETS, TrainingConfig, train
from tgan_fast.training.checkpoint import CheckpointFolder, iteration_of, load_generator

SECTION = "small data"
CLIPS, STEPS, POINTS, SEEDS = 100, 2500, 10, 3
_SAMPLES, _ALL_CLIPS, _SCORED = 1024, 100_000, 1_000_003
# Options of the command line that the table shows, and the settings that they are.
AUGMENTED: dict[str, dict[str, Any]] = {
    "": {},
    "--augment color": {"augment": "color"},
    "--augment translation": {"augment": "translation"},
    "--augment cutout": {"augment": "cutout"},
    "--augment color,translation,cutout": {"augment": "color,translation,cutout"},
}
FINE_TUNED: dict[str, dict[str, Any]] = {
    "--init-from RUN": {},
    "--init-from RUN --freeze-discriminator 2": {"freeze_discriminator": 2},
    "--init-from RUN --augment color": {"augment": "color"},
}
CONTENDERS = AUGMENTED | FINE_TUNED
FIGURES = {"augmentation": tuple(AUGMENTED), "fine-tuning": ("", *FINE_TUNED)}
_COLORS = ("0.4", "#0072b2", "#d55e00", "#009e73", "#cc79a7")

Curve = list[dict[str, float]]


class Scored(NamedTuple):
    """Fréchet distances of a run: of its generator at each point, and of other real clips."""

    curve: Curve
    real: float


class _Job(NamedTuple):
    """Run to do: its name, its settings, the number of its clips, and the folder for its files."""

    name: str
    settings: dict[str, Any]
    clips: int
    folder: Path


def picture_of(stem: str, figure: str) -> str:
    """Return the name of a figure beside a device's file of results, which has this stem."""
    return f"{stem}-small-data-{figure}.png"


def _train_and_score(job: _Job) -> Scored:
    config = TrainingConfig(**job.settings)
    train(config, job.folder, dataset=_digits(config, job.clips, config.seed))
    device = torch.device(config.device)
    protocol = replace(PROTOCOL, samples=_SAMPLES)
    evaluator = Evaluator(
        ["fid"],
        protocol,
        classifier=ClassifierFeatures(load_classifier(DIGITS_CLASSIFIER), protocol, device, "fp32"),
        real=RealClips(_digits(config, _ALL_CLIPS, _SCORED)),
        device=device,
        seed=_SCORED,
    )
    evaluator.prepare()
    curve = []
    for path in CheckpointFolder(job.folder / "checkpoints", keep=POINTS).paths():
        score = evaluator(load_generator(path).to(device))["frechet_distance"]
        curve.append({"iteration": iteration_of(path), "frechet_distance": rounded(score.mean)})
    return Scored(curve, rounded(score.real))


def _digits(config, size, seed):
    names = "digits", "digit_size", "digit_speed", "channels", "image_size"
    return MovingDigits(size, seed=seed, clip_frames=config.frames, **{name: getattr(config, name) for name in names})


def medians_of(runs: list[dict]) -> Curve:
    """Return the median of the runs' curves, point by point."""
    return [
        {
            "iteration": points[0]["iteration"],
            "frechet_distance": statistics.median(point["frechet_distance"] for point in points),
        }
        for points in zip(*(run["curve"] for run in runs), strict=True)
    ]


def first_reaching(curve: Curve, distance: float) -> int | None:
    """Return the first iteration at which a curve is not above a distance, or None."""
    return next((point["iteration"] for point in curve if point["frechet_distance"] <= distance), None)


def draw(picture: Path, runs: Mapping[str, list[dict]], real: float, title: str) -> None:
    """Draw distances over iterations: a thin line for each run, a thick one for the median of a contender."""
    figure = matplotlib.figure.Figure(figsize=(9, 4.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    for color, (name, of_name) in zip(_COLORS, runs.items(), strict=False):
        for curve, style in [*((run["curve"], {"alpha": 0.35}) for run in of_name), (medians_of(of_name), {})]:
            iterations, distances = zip(
                *((point["iteration"], point["frechet_distance"]) for point in curve), strict=True
            )
            label = {} if style else {"label": name or "no option", "linewidth": 2.5}
            axes.plot(iterations, distances, color=color, **style, **label)
    axes.axhline(real, color="0.5", linestyle="--", label="real clips")
    axes.set(xlabel="iterations", ylabel="Fréchet distance", xlim=(0, None), yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=120)


def main(
    only: tuple[Literal[tuple(FIGURES)], ...] = (), steps: int = STEPS, points: int = POINTS, seeds: int = SEEDS
) -> None:
    """Train and score all runs, and write the section `small data` of the file of results and its figures.

    Args:
        only: Figures to measure the runs of, augmentation or fine-tuning; other runs keep their entries in the file.
        steps: Number of iterations of every run.
        points: Number of scores of each run, at equal intervals.
        seeds: Number of seeds; they are 1, 2, …
    """
    device = resolve_device("auto").type
    path = result_files.file_of(device)
    settings = PRESETS["tiny"] | {
        "device": device,
        "steps": steps,
        "checkpoint_interval": steps // points,
        "keep_checkpoints": points,
        "sample_interval": steps,
        "evaluate_every": 0,
    }
    measured = {name for figure in only or FIGURES for name in FIGURES[figure]}
    contenders = dict(result_files.sections_of(path).get(SECTION, {}).get("contenders", {})) if only else {}
    with TemporaryDirectory() as folder:
        source = Path(folder, "two digits")
        jobs = [
            _Job(
                name,
                settings | options | {"seed": seed} | ({"init_from": str(source)} if name in FINE_TUNED else {}),
                CLIPS,
                Path(folder, f"{name} {seed}"),
            )
            for seed in range(1, seeds + 1)
            for name, options in CONTENDERS.items()
            if name in measured
        ]
        if measured & FINE_TUNED.keys():
            first = _Job("two digits", settings | {"digits": 2, "seed": seeds + 1}, _ALL_CLIPS, source)
            for _, scored in side_by_side(_train_and_score, [first], device):
                print(f"two digits: {scored.curve[-1]}", flush=True)
        found: dict[str, dict[int, Scored]] = {name: {} for name in CONTENDERS if name in measured}
        for job, scored in side_by_side(_train_and_score, jobs, device):
            found[job.name][job.settings["seed"]] = scored
            print(f"{job.name or 'no option'}, seed {job.settings['seed']}: {scored.curve[-1]}", flush=True)
    for name, by_seed in found.items():
        contenders[name] = [{"seed": seed, "curve": by_seed[seed].curve} for seed in sorted(by_seed)]
        real = by_seed[1].real
    payload = {"clips": CLIPS, "steps": steps, "samples": _SAMPLES, "real": real, "contenders": contenders}
    result_files.write_section(SECTION, payload, device)
    for figure, names in FIGURES.items():
        if all(name in contenders for name in names):
            title = f"{CLIPS} clips of moving digits, {seeds} seeds, {result_files.device_name(device)}"
            shown = {name: contenders[name] for name in names}
            draw(path.with_name(picture_of(path.stem, figure)), shown, real, title)


if __name__ == "__main__":
    tyro.cli(main)
