"""Check, look at and export clip stores: `python -m tgan_fast store --help`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tgan_fast.choices import ShortVideos
from tgan_fast.cli.parsing import parse
from tgan_fast.stop_signals import killed_by_ctrl_c

Store = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]


@dataclass
class Verify:
    """Read all of a store, and compare it with the checksums that were made when it was written."""

    store: Store
    """Folder of the clip store."""


@dataclass
class Preview:
    """Show real clips, chosen as training chooses them, in a grid."""

    store: Store
    """Clip store, or a prepared .h5, .npy or .npz file."""
    out: Path
    """.gif, .mp4, .webp or .apng: a grid of clips; .png: a row of frames for each clip; .npy: uint8 [N, T, H, W, C].
    .webp, .apng and .png are exact, and so are GIFs of grey clips."""
    grid: int = 8
    """Rows and columns of the grid: N × N clips, also in .npy; in .png N clips."""
    seed: int = 0
    """Seed of the choice."""
    crop: Literal["center", "random"] = "center"
    """Which pixels of larger frames."""
    flip: bool = False
    """Mirror half of the clips."""
    frame_stride: int = 1
    """From one frame of a clip to the next."""
    short_videos: ShortVideos = "skip"
    """What becomes of videos that are too short for a clip."""
    fps: int = 16
    """Frames per second; at most 50 in .gif."""


@dataclass
class Export:
    """Write a store as HDF5 and JSON, in the form of TGAN's authors, for other tools."""

    store: Store
    """Folder of the clip store."""
    out: Path
    """Such as train.h5; train.json beside it tells where each video begins and ends."""


Command = (
    Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: Sequence[str]) -> None:
    command = parse(Command, arguments, prog="python -m tgan_fast store")
    with killed_by_ctrl_c():
        from tgan_fast.cli.work.store import run
    run(command)
