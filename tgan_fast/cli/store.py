"""Check, look at and export clip stores: `python -m tgan_fast store --help`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from tgan_fast.cli.parsing import parse
from tgan_fast.data.loading import ShortVideos, open_videos
from tgan_fast.data.order import BatchOrder
from tgan_fast.data.store import ClipStore
from tgan_fast.data.store.export import export_hdf5
from tgan_fast.data.video_files import encoder_of, write_videos
from tgan_fast.errors import InputError, counted, printable

_READERS = 4
# NumPy's integers hold no more.
_LARGEST = 2**31 - 1


Store = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]


@dataclass
class Verify:
    """Read all of a store, and compare it with the checksums that were made when it was written."""

    store: Store
    """Folder of the clip store."""

    def run(self) -> None:
        store = ClipStore(self.store)
        with _progress(self.store, store.frames.nbytes, "B") as bar:
            damaged = list(store.damaged(bar.update, workers=_READERS))
        for entry in damaged:
            video = printable(entry.video)
            print(f"damaged: {video}, frames {entry.start:,} to {entry.start + entry.length - 1:,}")
        if damaged:
            raise InputError(
                f"{self.store} has {counted(len(damaged), 'damaged video')} among {len(store.entries):,}: "
                "restore it from a copy, or prepare the videos anew"
            )
        print(f"undamaged: {_size(store)}")


@dataclass
class Preview:
    """Show real clips, chosen as training chooses them, in a grid."""

    store: Store
    """Clip store, or a prepared .h5, .npy or .npz file."""
    out: Path
    """.gif or .mp4: a grid of clips; .png: a row of frames for each of --grid clips; .npy: uint8 [N, T, H, W, C]."""
    grid: int = 8
    """Rows and columns of the grid."""
    seed: int = 0
    """Of the choice."""
    crop: Literal["centre", "random"] = "centre"
    """Which pixels of larger frames."""
    flip: bool = False
    """Mirror half of the clips."""
    frame_stride: int = 1
    """From one frame of a clip to the next."""
    short_videos: ShortVideos = "skip"
    """What becomes of videos that are too short for a clip."""
    fps: int = 16
    """Frames a second of a GIF or MP4."""

    def run(self) -> None:
        encoder_of(self.out)
        for name, least in (("grid", 1), ("frame_stride", 1), ("fps", 1), ("seed", 0)):
            if not least <= getattr(self, name) <= _LARGEST:
                option = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"{option} is {getattr(self, name)}, but must be at least {least}, at most {_LARGEST:,}"
                )
        opened = open_videos(
            self.store, stride=self.frame_stride, short=self.short_videos, crop=self.crop, flip=self.flip
        )
        count = self.grid if self.out.suffix.lower() == ".png" else self.grid**2
        clips = _clips(opened.videos, count, self.seed)
        try:
            write_videos(self.out, clips, fps=self.fps)
        except OSError as error:
            raise InputError(f"cannot write {self.out}: {error.strerror or error}") from None
        print(opened.summary)
        print(f"{len(clips)} clips: {self.out}")


@dataclass
class Export:
    """Write a store as HDF5 and JSON, in the form of TGAN's authors, for other tools."""

    store: Store
    """Folder of the clip store."""
    out: Path
    """Such as train.h5; train.json beside it tells where each video begins and ends."""

    def run(self) -> None:
        store = ClipStore(self.store)
        with _progress(self.out, len(store.frames), "frame") as bar:
            table = export_hdf5(store, self.out, bar.update)
        print(f"{_size(store)}: {printable(f'{self.out}, {table}')}")


Command = (
    Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: Sequence[str]) -> None:
    parse(Command, arguments, prog="python -m tgan_fast store").run()


def _progress(path, total, unit):
    return tqdm(desc=printable(str(path)), total=total, unit=unit, unit_scale=True, file=sys.stderr)


def _size(store):
    return f"{counted(len(store.entries), 'video')} of {counted(len(store.frames), 'frame')}"


def _clips(videos, count, seed):
    """Cut clips uint8 [count, T, H, W, C] of the first batch that training with this seed would see, or fewer."""
    count = min(count, len(videos))
    order = BatchOrder(len(videos), count, seed=seed)
    clips = np.empty((count, *videos.clip_shape), np.uint8)
    videos.cut(videos.windows(order.indices(0), order.choices(0)), clips)
    return clips
