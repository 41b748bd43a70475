"""Sample videos from a trained generator: `python -m tgan_fast sample --help`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tgan_fast.choices import PrecisionOption
from tgan_fast.cli.options import LARGEST_SEED, check_range, parse
from tgan_fast.errors import InputError

# A million videos.
_LARGEST_GRID = 1000
# All frames of a video are made at once.
_MOST_INTERPOLATED = 100


@dataclass
class SampleCommand:
    """Sample videos from a checkpoint, of a run of this package or of the PyTorch notebook."""

    checkpoint: Path
    """Checkpoint file, or a run folder for its newest one."""
    out: Path
    """.gif, .mp4, .webp or .apng: a grid of videos; .png: a row of frames for each video; .npy: uint8 [N, T, H, W, C].
    .webp, .apng and .png are exact, and so are GIFs of grey videos."""
    grid: int = 8
    """Rows and columns of the grid: N × N videos, also in .npy; in .png N videos. A conditional run has a row for each
    of its classes."""
    seed: int = 0
    """Seed of the latents."""
    class_: Annotated[int | None, tyro.conf.arg(name="class")] = None
    """Conditional run: number of the only class."""
    truncation: float | None = None
    """Latents within ± this, for less variety and fewer failures."""
    walk: int | None = None
    """Seed: every row walks from a latent of --seed to one of this."""
    interpolate: int = 1
    """So many times as many frames of the same motion."""
    weights: Literal["auto", "live", "ema"] = "auto"
    """Of a run with ema_decay: the averaged weights or the live ones; auto: averaged where there are any."""
    batch_norm: Literal["running", "batch"] = "running"
    """Normalise with the running statistics, or with those of the batch as in training, in fp32."""
    precision: PrecisionOption = "auto"
    """Of convolutions and matrix products; auto: bf16 on GPUs that have it, fp32 elsewhere."""
    fps: int = 16
    """Frames per second; at most 50 in .gif."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, …"""


def main(arguments: Sequence[str]) -> None:
    command = parse(SampleCommand, arguments, prog="python -m tgan_fast sample")
    _check(command)
    from tgan_fast.cli.work.sample import run

    run(command)


def _check(command: SampleCommand) -> None:
    if not command.out.resolve().parent.is_dir():
        raise InputError(f"cannot write {command.out}: there is no folder {command.out.parent}")
    for name in ("seed", "walk"):
        check_range(command, name, 0, LARGEST_SEED)
    check_range(command, "grid", 1, _LARGEST_GRID)
    check_range(command, "interpolate", 1, _MOST_INTERPOLATED)
    if command.truncation is not None and not 0 < command.truncation < math.inf:
        raise InputError(f"--truncation is {command.truncation}, but must be a number more than 0")
    if command.walk is not None and command.grid < 2:
        raise InputError("--walk needs a beginning and an end: choose --grid 2 or more")
    if command.batch_norm == "batch" and command.grid < 2:
        raise InputError("--batch-norm batch needs at least 2 videos: choose --grid 2 or more")
    if command.batch_norm == "batch" and command.precision not in ("auto", "fp32"):
        raise InputError(f"--batch-norm batch computes in fp32 alone: leave out --precision {command.precision}")
