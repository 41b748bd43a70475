"""Random search for the preset `quick`: settings with which a narrow TGAN learns digits fast on a CPU.

    python -m benchmarks.search_preset --trials 40        # append trials to the log, and draw it
    python -m benchmarks.search_preset --trials 0         # list the best trials, and draw the log

Trials train with seed 0, one thread each, side by side. A trial ends early if its Fréchet distance is above the median
of earlier trials after the same time (the median stopping rule of Golovin et al., Google Vizier, KDD 2017). Other seeds
then judge the preset: `python -m tgan_fast.train --preset quick --seed 1`.
"""

import itertools
import json
import math
import random
import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import tyro

from benchmarks.result_files import FOLDER
from benchmarks.timed_training import SCORES, Curve, TimedRun, side_by_side, train_for
from tgan_fast.files import append_line
from tgan_fast.training import PRESETS

LOG = FOLDER / "search-quick.jsonl"
# Settings of all trials: digits stay legible in small frames, and scores of other videos are not comparable.
_SHARED = "channels", "digits", "digit_size", "digit_speed", "initial_level", "frames", "latent_dim", "workers"
FIXED = {name: PRESETS["tiny"][name] for name in _SHARED}
# setting → values, one of which a trial draws; values listed twice are drawn twice as often
SPACE: dict[str, tuple] = {
    "image_size": (16, 32, 32),
    "width": (0.125, 0.25),
    "batch_size": (8, 16),
    "temporal_generator": ("deconv", "deconv", "gru"),
    "discriminator": ("conv3d", "conv3d", "frames2d"),
    "conditional": (False, True, True),
    "objective": ("wgan", "wgan", "hinge", "vanilla"),
    "critic_steps": (1, 1, 2),
    "clip_interval": (1, 5),
    "lr_decay": ("none", "linear"),
    "ema_decay": (0.98, 0.99, 0.995),
}
ADAM_SPACE: dict[str, tuple] = {"adam_beta1": (0.0, 0.5), "adam_beta2": (0.9, 0.99, 0.999)}
RATES = 3e-4, 1.5e-3
# Ratios of the discriminator's learning rate to the generator's.
RATIOS = 1.0, 2.0, 2.0, 4.0
# Number of earlier trials that the stopping rule needs.
_FEWEST = 4
_LISTED = 10


def draw_settings(seed: int) -> dict[str, Any]:
    """Return the settings of trial `seed`; all others are the defaults of `TrainingConfig`."""
    draw = random.Random(seed)
    settings = FIXED | {name: draw.choice(values) for name, values in SPACE.items()}
    if settings["objective"] == "wgan" and settings["critic_steps"] == 1:
        settings["shared_fakes"] = draw.choice((False, True))
    settings["optimizer"] = draw.choice(("rmsprop", "adam"))
    if settings["optimizer"] == "adam":
        settings |= {name: draw.choice(values) for name, values in ADAM_SPACE.items()}
    low, high = RATES
    rate = low * (high / low) ** draw.random()
    settings["learning_rate"] = float(f"{rate:.2g}")
    settings["discriminator_learning_rate"] = float(f"{rate * draw.choice(RATIOS):.2g}")
    return settings


class Trial(NamedTuple):
    """A trial to do: the log, its number (the seed of its settings), its length and its number of scores."""

    log: Path
    number: int
    seconds: float
    points: int


def run_trial(trial: Trial) -> TimedRun:
    """Train and score a trial, until it falls behind the median of the log."""
    settings = draw_settings(trial.number) | {"seed": 0, "device": "cpu"}
    return train_for(settings, trial.seconds, trial.points, partial(is_not_behind, trial.log))


def is_not_behind(log: Path, curve: Curve) -> bool:
    """Return whether a trial with this curve is not worse than the median of the log after the same time."""
    last = curve[-1]
    points = [point for record in read_log(log) for point in record["curve"]]
    # The last iteration ends a little after the time is up.
    others = [x["frechet_distance"] for x in points if math.isclose(x["seconds"], last["seconds"], rel_tol=0.05)]
    return len(others) < _FEWEST or last["frechet_distance"] <= statistics.median(others)


def read_log(log: Path) -> list[dict[str, Any]]:
    """Return the trials in a log: `trial`, `settings` and `curve` of each."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def draw_log(picture: Path, trials: list[dict[str, Any]]) -> None:
    """Draw the curves of all trials into a PNG file; the best one is thick."""
    figure = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
    best = min(trials, key=_final_distance)
    for axes, (key, label) in zip(figure.subplots(1, 2), SCORES.items(), strict=True):
        for trial in [*trials, best]:
            style = {"color": "#d55e00", "linewidth": 2.5} if trial is best else {"color": "0.6", "linewidth": 0.7}
            points = [(point["seconds"], point[key]) for point in trial["curve"]]
            axes.plot(*zip(*points, strict=True), marker=".", markersize=3, **style)
        axes.set(xlabel="seconds of training, one thread", ylabel=label)
        axes.grid(alpha=0.3)
        axes.set_yscale("log")
    figure.suptitle(f"search for the preset quick: {len(trials)} trials, trial {best['trial']} in orange")
    figure.savefig(picture, dpi=120)


def _final_distance(trial):
    # A trial that ended early is worse than any that did not.
    return -len(trial["curve"]), trial["curve"][-1]["frechet_distance"]


def main(trials: int = 40, seconds: float = 100.0, points: int = 4) -> None:
    """Run further trials, append them to the log, draw it, and list the best.

    Args:
        trials: Number of trials.
        seconds: Seconds of training of each trial.
        points: Number of scores of each trial, at equal intervals.
    """
    done = {record["trial"] for record in read_log(LOG)}
    numbers = itertools.islice((number for number in itertools.count() if number not in done), trials)
    jobs = [Trial(LOG, number, seconds, points) for number in numbers]
    for trial, run in side_by_side(run_trial, jobs, "cpu"):
        record = {"trial": trial.number, "settings": draw_settings(trial.number), "curve": run.curve}
        append_line(LOG, json.dumps(record))
        print(trial.number, run.curve[-1], flush=True)
    log = read_log(LOG)
    if log:
        draw_log(LOG.with_suffix(".png"), log)
    for record in sorted(log, key=_final_distance)[:_LISTED]:
        print(record["trial"], record["curve"][-1], record["settings"])


if __name__ == "__main__":
    tyro.cli(main)
