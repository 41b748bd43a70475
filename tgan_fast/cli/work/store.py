"""Read clip stores: verify, preview and export them."""

import sys

import numpy as np
from tqdm import tqdm

from tgan_fast.cli.ranges import LARGEST_SEED, check_range
from tgan_fast.cli.store import Command, Export, Preview, Verify
from tgan_fast.data import VideoFrames, read_videos
from tgan_fast.data.clip_store import ClipStore
from tgan_fast.data.order import BatchOrder
from tgan_fast.errors import InputError, counted, printable, telling_of_memory
from tgan_fast.preparation.hdf5_export import export_hdf5
from tgan_fast.video_files import arrangement, check_format, check_videos, write_videos

_READERS = 4


def run(command: Command) -> None:
    {Verify: _verify, Preview: _preview, Export: _export}[type(command)](command)


def _verify(command: Verify) -> None:
    store = ClipStore(command.store)
    with _progress(command.store, store.frames.nbytes, "B") as bar:
        damaged = list(store.damaged(bar.update, workers=_READERS))
    for entry in damaged:
        video = printable(entry.video)
        print(f"damaged: {video}, frames {entry.start:,} to {entry.start + entry.length - 1:,}")
    if damaged:
        raise InputError(
            f"{command.store} has {counted(len(damaged), 'damaged video')} among {len(store.entries):,}: "
            "restore it from a copy, or prepare the videos anew"
        )
    print(f"undamaged: {_size(store)}")


def _preview(command: Preview) -> None:
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
    try:
        with telling_of_memory(f"{count:,} clips do not fit into the memory: choose a smaller --grid"):
            write_videos(command.out, _clips(dataset, count, command.seed), fps=command.fps)
    except OSError as error:
        raise InputError(f"cannot write {command.out}: {error.strerror or error}") from None
    print(dataset.summary)
    print(f"{arrangement(command.out, count)}: {printable(str(command.out))}")


def _export(command: Export) -> None:
    store = ClipStore(command.store)
    with _progress(command.out, len(store.frames), "frame") as bar:
        table = export_hdf5(store, command.out, bar.update)
    print(f"{_size(store)}: {printable(f'{command.out}, {table}')}")


def _progress(path, total, unit):
    return tqdm(desc=printable(str(path)), total=total, unit=unit, unit_scale=True, file=sys.stderr)


def _size(store):
    return f"{counted(len(store.entries), 'video')} of {counted(len(store.frames), 'frame')}"


def _clips(videos, count, seed):
    """Return clips uint8 [count, T, H, W, C] of the first batch that training with this seed would see."""
    order = BatchOrder(len(videos), count, seed=seed)
    clips = np.empty((count, *videos.clip_shape), np.uint8)
    videos.cut(videos.windows(order.indices(0), order.choices(0)), clips)
    return clips
