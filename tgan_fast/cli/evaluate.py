"""Score a trained generator: `python -m tgan_fast evaluate --help`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tgan_fast.choices import PrecisionOption
from tgan_fast.cli.options import LARGEST_SEED, MOST_SAMPLES, check_range, parse
from tgan_fast.errors import InputError, nearest
from tgan_fast.metrics.score_kinds import Metric

_MOST_RUNS = 1000


@dataclass
class EvaluateCommand:
    """Compute the inception score, the Fréchet distance (FID) and the Fréchet video distance of a checkpoint.

    The first two need a classifier: C3D's weights (conv3d_deepnetA_ucf.npz or c3d_ucf101.pt, with mean2.npz), or what
    python -m tgan_fast train-classifier makes. Scores under different protocols cannot be compared.
    """

    checkpoint: Path
    """Checkpoint file, or a run folder for its newest one; the PyTorch notebook's too."""
    data: Path | None = None
    """Real videos to compare with: what train --data takes; by default what the checkpoint was trained on."""
    metrics: str = "is,fid"
    """Which of is, fid and fvd."""
    protocol: Literal["auto", "tgan", "tgan2", "plain"] = "auto"
    """tgan and tgan2 as the papers' codes, for C3D; plain for classifiers of this package; auto: what fits."""
    classifier: Path | None = None
    """For is and fid."""
    mean: Path | None = None
    """mean2.npz, for C3D's weights of others."""
    i3d: Path | None = None
    """i3d_torchscript.pt, for fvd."""
    layer: Literal["auto", "pool5", "fc6", "fc7"] = "auto"
    """Of C3D, the features for fid; auto: the protocol's, fc7."""
    samples: int | None = None
    """Generated videos a run; by default the protocol's."""
    runs: int | None = None
    """Runs that the mean and the standard deviation are of; by default the protocol's."""
    real_clips: int | None = None
    """For fid and fvd; by default the protocol's."""
    force: bool = False
    """Compute Fréchet distances to too few real clips as well."""
    seed: int = 0
    """Of the latents."""
    weights: Literal["auto", "live", "ema"] = "auto"
    """Of a run with ema_decay: the averaged weights or the live ones; auto: averaged where there are any."""
    precision: PrecisionOption = "auto"
    """Of sampling and of the classifier; auto: tf32 on GPUs that have it, else fp32."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …"""
    out: Path | None = None
    """JSON file of the scores; without it they are added to scores.jsonl in the checkpoint's run folder, if any."""


def main(arguments: Sequence[str]) -> None:
    command = parse(EvaluateCommand, arguments, prog="python -m tgan_fast evaluate")
    metrics = _metrics(command)
    _check(command, metrics)
    from tgan_fast.cli.work.evaluate import run

    run(command, metrics)


def _metrics(command) -> tuple[Metric, ...]:
    names = [name.strip().lower() for name in command.metrics.split(",") if name.strip()]
    for name in names:
        if name not in get_args(Metric):
            raise InputError(f"there is no metric {name!r}{nearest(name, get_args(Metric))}: choose of is,fid,fvd")
    if not names:
        raise InputError("--metrics names none: choose of is,fid,fvd")
    return tuple(dict.fromkeys(names))


def _check(command: EvaluateCommand, metrics) -> None:
    check_range(command, "samples", 2, MOST_SAMPLES)
    check_range(command, "runs", 1, _MOST_RUNS)
    check_range(command, "real_clips", 2, MOST_SAMPLES)
    check_range(command, "seed", 0, LARGEST_SEED)
    if metrics != ("fvd",) and command.classifier is None:
        raise InputError(
            "is and fid need --classifier: conv3d_deepnetA_ucf.npz with --mean mean2.npz, or what "
            "python -m tgan_fast train-classifier makes"
        )
    if "fvd" in metrics and command.i3d is None:
        raise InputError("fvd needs --i3d i3d_torchscript.pt")
    if command.out is not None and not command.out.resolve().parent.is_dir():
        raise InputError(f"cannot write {command.out}: there is no folder {command.out.parent}")
