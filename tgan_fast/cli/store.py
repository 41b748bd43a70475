"""Verify, preview and export clip stores: `python -m tgan_fast store --help`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tgan_fast.choices import ShortVideos
from tgan_fast.cli.options import LARGEST_SEED, check_range, parse
from tgan_fast.cli.outputs import writing
from tgan_fast.errors import InputError, counted, printable, refuse_out_of_memory
from tgan_fast.extras import require_package

Store = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]

_READERS = 4


@dataclass
class Verify:
    """Check all frames of a store against the checksums written with them."""

    store: Store
    """Folder of the clip store."""


@dataclass
class Preview:
    """Write real clips, chosen as in training, to a file to look at."""

    store: Store
    """Clip store, or a prepared .h5, .npy or .npz file."""
    out: Path
    """File to write: a grid of clips as .gif, .mp4, .webp or .apng;
    a row of frames for each clip as .png; uint8 [N, T, H, W, C] as .npy. All but .mp4 and colored .gif are exact."""
    grid: int = 8
    """Rows and columns of the grid: N × N clips, also in .npy; N clips in .png."""
    seed: int = 0
    """Seed of the choice of clips."""
    crop: Literal["center", "random"] = "center"
    """Position of the crop in larger frames."""
    flip: bool = False
    """Mirror half of the clips at random."""
    frame_stride: int = 1
    """Keep every n-th frame."""
    short_videos: ShortVideos = "skip"
    """Skip or loop videos that are too short for a clip."""
    fps: int = 16
    """Frames per second; at most 50 in .gif."""


@dataclass
class Export:
    """Write a store as HDF5 and JSON in the format of TGAN's authors, for other tools."""

    store: Store
    """Folder of the clip store."""
    out: Path
    """HDF5 file to write, such as train.h5; train.json beside it lists where each video begins and ends."""


Command = (
    Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: Sequence[str]) -> None:
    command = parse(Command, arguments, prog="python -m tgan_fast store")
    {Verify: _verify, Preview: _preview, Export: _export}[type(command)](command)


def _verify(command: Verify) -> None:
    from tgan_fast.data.clip_store import ClipStore

    store = ClipStore(command.store)
    with _progress(command.store, store.frames.nbytes, "B") as bar:
        damaged = list(store.damaged(bar.update, workers=_READERS))
    for entry in damaged:
        video = printable(entry.video)
        print(f"damaged: {video}, frames {entry.start:,} to {entry.start + entry.length - 1:,}")
    if damaged:
        raise InputError(
            f"{command.store} has {counted(len(damaged), 'damaged video')} among {len(store.entries):,}: "
            "restore it from a copy, or prepare the videos again"
        )
    print(f"undamaged: {_size(store)}")


def _preview(command: Preview) -> None:
    from tgan_fast.data import VideoFrames, read_videos
    from tgan_fast.video_files import arrangement, check_format, check_videos, write_videos

    check_format(command.out, command.fps)
    check_range(command, "grid", 1)
    check_range(command, "seed", 0, LARGEST_SEED)
    check_range(command, "frame_stride", 1)
    dataset = VideoFrames(
        read_videos(command.store),
        stride=command.frame_stride,
        short=command.short_videos,
        crop=command.crop,
        flip=command.flip,
    )
    count = command.grid if command.out.suffix.lower() == ".png" else command.grid**2
    count = min(count, len(dataset))
    check_videos(command.out, (count, *dataset.clip_shape), fps=command.fps)
    too_many = f"{count:,} clips do not fit into the memory: choose a smaller --grid"
    with writing(command.out), refuse_out_of_memory(too_many):
        write_videos(command.out, _clips(dataset, count, command.seed), fps=command.fps)
    print(dataset.summary)
    print(f"{arrangement(command.out, count)}: {printable(str(command.out))}")


def _export(command: Export) -> None:
    require_package("h5py", "HDF5 files need h5py")
    from tgan_fast.data.clip_store import ClipStore
    from tgan_fast.preparation.hdf5_export import export_hdf5

    store = ClipStore(command.store)
    with _progress(command.out, len(store.frames), "frame") as bar:
        table = export_hdf5(store, command.out, bar.update)
    print(f"{_size(store)}: {printable(f'{command.out}, {table}')}")


def _progress(path, total, unit):
    from tqdm import tqdm

    return tqdm(desc=printable(str(path)), total=total, unit=unit, unit_scale=True, file=sys.stderr)


def _size(store):
    return f"{counted(len(store.entries), 'video')} of {counted(len(store.frames), 'frame')}"


def _clips(videos, count, seed):
    """Return clips uint8 [count, T, H, W, C] of the first batch that training with this seed would see."""
    import numpy as np

    from tgan_fast.data.order import BatchOrder

    order = BatchOrder(len(videos), count, seed=seed)
    clips = np.empty((count, *videos.clip_shape), np.uint8)
    videos.cut(videos.windows(order.indices(0), order.choices(0)), clips)
    return clips
