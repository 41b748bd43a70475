"""Random search for the preset `tiny`: settings with which a narrow TGAN learns digits quickly on a CPU.

    python -m benchmarks.search_preset --trials 40        # append trials to the log, and draw it
    python -m benchmarks.search_preset --trials 0         # list the best trials, and draw the log

Trials train with seed 0, one thread each, side by side. A trial ends early if its Fréchet distance is above the median
of earlier trials after the same time (the median stopping rule of Golovin et al., Google Vizier, KDD 2017). Other seeds
then judge the preset: `python -m benchmarks.score_presets`.
"""

import json
import random
import statistics
from typing import Any, NamedTuple

import matplotlib.figure
import tyro

from benchmarks.result_files import FOLDER
from benchmarks.timed_training import Curve, TimedRun, side_by_side, train_for
from tgan_fast.files import append_line
from tgan_fast.training import PRESETS

LOG = FOLDER / "search-tiny.jsonl"
# All trials have these digits, since scores of others are not comparable; they can be read in small frames.
DIGITS = {"digits": 1, "channels": 1, "digit_size": 0.75, "digit_speed": 0.025}
# setting → values, of which a trial draws one; values listed twice come up twice as often
SPACE: dict[str, tuple] = {
    "frames": (8, 8, 16),
    "image_size": (16, 32, 32, 32),
    "width": (0.125, 0.25),
    "batch_size": (8, 16),
    "latent_dim": (32, 100),
    "temporal_generator": ("deconv", "deconv", "deconv", "gru"),
    "discriminator": ("conv3d", "conv3d", "conv3d", "frames2d"),
    "conditional": (False, True),
    "objective": ("wgan", "wgan", "hinge", "vanilla"),
    "critic_steps": (1, 1, 2),
    "clip_interval": (1, 5, 5),
    "lr_decay": ("none", "linear"),
    "ema_decay": (0.98, 0.99, 0.995),
}
ADAM_SPACE: dict[str, tuple] = {"adam_beta1": (0.0, 0.5), "adam_beta2": (0.9, 0.99, 0.999)}
RATES = 3e-4, 1.5e-3
# Learning rate of the discriminator over the generator's.
RATIOS = 1.0, 2.0, 2.0, 4.0
# Earlier trials that the stopping rule needs.
_FEWEST = 4
_LISTED = 10


def draw_settings(seed: int) -> dict[str, Any]:
    """Return the settings of trial `seed`: what they change in the preset `tiny`."""
    draw = random.Random(seed)
    settings = DIGITS | {name: draw.choice(values) for name, values in SPACE.items()}
    settings["optimizer"] = draw.choice(("rmsprop", "rmsprop", "adam"))
    if settings["optimizer"] == "adam":
        settings |= {name: draw.choice(values) for name, values in ADAM_SPACE.items()}
    low, high = RATES
    rate = low * (high / low) ** draw.random()
    settings["learning_rate"] = float(f"{rate:.2g}")
    settings["discriminator_learning_rate"] = float(f"{rate * draw.choice(RATIOS):.2g}")
    return settings


class Trial(NamedTuple):
    """A trial to do: its number, which is the seed of its settings, its length and its number of scores."""

    number: int
    seconds: float
    points: int


def run_trial(trial: Trial) -> TimedRun:
    """Train and score a trial, until it falls behind the median of the log."""
    settings = PRESETS["tiny"] | draw_settings(trial.number) | {"seed": 0, "device": "cpu"}
    return train_for(settings, trial.seconds, trial.points, _is_not_behind)


def _is_not_behind(curve: Curve) -> bool:
    point = len(curve) - 1
    others = [record["curve"][point]["frechet_distance"] for record in read_log() if len(record["curve"]) > point]
    return len(others) < _FEWEST or curve[-1]["frechet_distance"] <= statistics.median(others)


def read_log() -> list[dict[str, Any]]:
    """Return the trials in the log: `trial`, `settings` and `curve` of each."""
    return [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []


def draw_log(trials: list[dict[str, Any]]) -> None:
    """Draw the curves of all trials; the best one is thick."""
    figure = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
    best = min(trials, key=_final_distance)
    labels = {"frechet_distance": "Fréchet distance", "inception_score": "inception score"}
    for axes, (key, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for trial in [*trials, best]:
            style = {"color": "#d55e00", "linewidth": 2.5} if trial is best else {"color": "0.6", "linewidth": 0.7}
            points = [(point["seconds"], point[key]) for point in trial["curve"]]
            axes.plot(*zip(*points, strict=True), marker=".", markersize=3, **style)
        axes.set(xlabel="seconds of training, one thread", ylabel=label)
        axes.grid(alpha=0.3)
        axes.set_yscale("log")
    figure.suptitle(f"search for the preset tiny: {len(trials)} trials, trial {best['trial']} in orange")
    figure.savefig(LOG.with_suffix(".png"), dpi=120)


def _final_distance(trial):
    # A trial that ended early is worse than any that did not.
    return -len(trial["curve"]), trial["curve"][-1]["frechet_distance"]


def main(trials: int = 40, seconds: float = 120.0, points: int = 4) -> None:
    """Run further trials, append them to the log, draw it, and list the best.

    Args:
        trials: Number of trials.
        seconds: Seconds of training of each trial.
        points: Number of scores of each trial, at equal intervals.
    """
    begin = len(read_log())
    jobs = [Trial(number, seconds, points) for number in range(begin, begin + trials)]
    for trial, run in side_by_side(run_trial, jobs, "cpu"):
        record = {"trial": trial.number, "settings": draw_settings(trial.number), "curve": run.curve}
        append_line(LOG, json.dumps(record))
        print(trial.number, run.curve[-1], flush=True)
    log = read_log()
    if log:
        draw_log(log)
    for record in sorted(log, key=_final_distance)[:_LISTED]:
        print(record["trial"], record["curve"][-1], record["settings"])


if __name__ == "__main__":
    tyro.cli(main)
