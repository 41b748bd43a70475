"""Prepare videos for training: `python -m tgan_fast prepare --help`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tgan_fast.cli.options import check_range, parse
from tgan_fast.errors import InputError

_PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Upper bound of every numeric option: larger values overflow.
_LARGEST = 1_000_000


@dataclass
class PrepareCommand:
    """Turn videos into a clip store, out of which `python -m tgan_fast.train --data STORE` trains.

    The same command again goes on where it was interrupted; another source is added to those that the store has.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Folder of videos (such as UCF-101's), of image folders or of arrays; list of videos; video; .npy, .npz or .h5."""
    store: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """Folder of the clip store."""
    size: int = 64
    """Pixels of a frame's shorter side, and of the other one unless --columns is given; what stands out is cut off."""
    columns: int | None = None
    """Pixels of a row; --columns 85 gives the authors' frames, whose middle 64 columns training takes."""
    fps: float | None = None
    """Resample every video to so many frames a second; without it all frames count."""
    stride: int = 1
    """Keep every so many-th frame."""
    frames: int = 1
    """Fewest frames of a video to be stored; training needs 16, or its --frames, and can also loop shorter ones."""
    split: Path | None = None
    """List of those videos that are wanted, such as UCF-101's trainlist01.txt."""
    axes: str | None = None
    """Order of the axes of arrays, where shapes do not tell it: N videos, T frames, H rows, W columns, C channels, such
    as NTHW, or TNHW for a part of Moving MNIST."""
    workers: int = _PROCESSORS
    """Processes that decode."""
    strict: bool = False
    """Stop at the first video that cannot be read, instead of going on without it."""


def main(arguments: Sequence[str]) -> None:
    command = parse(PrepareCommand, arguments, prog="python -m tgan_fast prepare")
    _check(command)
    from tgan_fast.cli.work.prepare import run

    run(command)


def _check(command):
    for name in ("size", "columns", "stride", "frames", "workers"):
        check_range(command, name, 1, _LARGEST)
    if command.fps is not None and not 0 < command.fps <= _LARGEST:
        raise InputError(f"--fps is {command.fps}, but must be more than 0 and at most {_LARGEST:,}")
