"""Prepare videos for training: `python -m tgan_fast prepare --help`."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tgan_fast.cli import INTERRUPTED
from tgan_fast.cli.options import check_range, parse
from tgan_fast.errors import InputError, counted, printable
from tgan_fast.extras import require_package
from tgan_fast.stop_signals import stop_signals

PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Upper bound of every numeric option: larger values overflow.
_LARGEST = 1_000_000

# If a larger share of the videos cannot be read, something is wrong with all of them.
_MOST_FAILED = 0.05


@dataclass
class PrepareCommand:
    """Turn videos into a clip store for `python -m tgan_fast.train --data STORE`.

    Rerun an interrupted command to resume it. Videos of another source are added to the store.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Folder of videos (such as UCF-101), image folders or arrays; ZIP or TAR of videos or image folders; or a video,
    a list of videos, .npy, .npz or .h5."""
    store: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
    """Folder of the clip store."""
    size: int = 64
    """Height of frames in pixels, and width unless --columns is given; frames are scaled to cover it, then cropped."""
    columns: int | None = None
    """Width of frames in pixels; by default --size. With 85, as the authors have it, training uses the middle 64."""
    fps: float | None = None
    """Frames per second to which videos are resampled; by default, videos are not resampled."""
    stride: int = 1
    """Keep every n-th frame."""
    frames: int = 1
    """Skip videos that give fewer frames than this, after --fps and --stride; training needs 16 (or its --frames), but
    can loop shorter videos."""
    split: Path | None = None
    """File that lists the videos to use, such as UCF-101's trainlist01.txt; by default all."""
    axes: str | None = None
    """Order of an array's axes, such as NTHW (TNHW for Moving MNIST), if its shape is ambiguous:
    N videos, T frames, H rows, W columns, C channels."""
    workers: int = PROCESSORS
    """Number of processes that decode videos."""
    strict: bool = False
    """Stop at the first video that cannot be read instead of skipping it."""


def main(arguments: Sequence[str]) -> None:
    command = parse(PrepareCommand, arguments, prog="python -m tgan_fast prepare")
    _check(command)
    require_package("av", "prepare needs PyAV")
    from tgan_fast.preparation import prepare
    from tgan_fast.preparation.decoding import FrameFormat
    from tgan_fast.preparation.sources import only_of_split, recognize

    collection = recognize(command.source, command.axes)
    if command.split is not None:
        collection = only_of_split(collection, command.split)
    if command.fps is not None and not all(video.has_times for video in collection.videos):
        raise InputError("images and arrays have no frame times, which --fps needs: use --stride instead")
    channels = _channels(collection, command.store)
    frame_format = FrameFormat(command.size, command.columns or command.size, channels, command.stride, command.fps)
    print(printable(f"{collection.description}; classes: {len(collection.classes):,}"))
    for notice in collection.notices:
        print(printable(notice))
    _check_space(collection, command.store, frame_format, command.workers)
    with stop_signals() as stop, progress_bar(collection, command.store) as bar:
        result = prepare(
            collection,
            command.store,
            frame_format,
            workers=command.workers,
            fewest=command.frames,
            strict=command.strict,
            stop=stop,
            progress=lambda result, nbytes: _show(bar, result, nbytes),
        )
    _print_result(command, collection, result)


def _check(command):
    for name in ("size", "columns", "stride", "frames", "workers"):
        check_range(command, name, 1, _LARGEST)
    if command.fps is not None and not 0 < command.fps <= _LARGEST:
        raise InputError(f"--fps is {command.fps}, but must be more than 0 and at most {_LARGEST:,}")


def _channels(collection, folder):
    from tgan_fast.data.clip_store import ClipStore, read_index

    if not ClipStore.is_at(folder):
        return collection.channels
    channels = read_index(folder).header.channels
    if channels < collection.channels:
        raise InputError(f"{folder} has gray frames, but the source may have colors: choose another folder")
    return channels


def _check_space(collection, folder: Path, frame_format, workers: int) -> None:
    from tgan_fast.data.clip_store import ClipStore, read_index
    from tgan_fast.preparation import estimated_frames

    known = {entry.video for entry in read_index(folder).entries} if ClipStore.is_at(folder) else set()
    new = [video for video in collection.videos if video.name not in known]
    frame = frame_format.height * frame_format.width * frame_format.channels
    estimate = estimated_frames(new, frame_format)
    # Each process decodes into a file of its own, which is then copied to the end of the store.
    needed, meanwhile = estimate.frames * frame, min(estimate.frames, workers * estimate.longest) * frame
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    store = printable(str(folder))
    print(f"needs about {_bytes(needed)} in {store}, {_bytes(meanwhile)} more while it runs; {_bytes(free)} are free")
    if needed + meanwhile > free:
        raise InputError(
            f"{folder} needs about {_bytes(needed + meanwhile)}, but only {_bytes(free)} are free: make room, or "
            "choose another disk, a smaller --size or a larger --stride"
        )


def progress_bar(collection, folder):
    from tqdm import tqdm

    return tqdm(
        desc=printable(str(folder)),
        total=sum(video.nbytes for video in collection.videos),
        unit="B",
        unit_scale=True,
        dynamic_ncols=True,
        file=sys.stderr,
    )


def _show(bar, result, nbytes):
    bar.set_postfix(videos=result.done, frames=result.frames, skipped=len(result.skipped), refresh=False)
    bar.update(nbytes)


def _print_result(command, collection, result):
    from tgan_fast.preparation import REPORT

    known = f", {result.known:,} stored before" if result.known else ""
    print(f"{counted(result.stored, 'video')} of {counted(result.frames, 'frame')} stored{known}")
    report = printable(str(command.store / REPORT))
    if result.skipped:
        short = len(result.skipped) - result.failed
        print(f"{result.failed:,} could not be read, {short:,} too short: {report} says which")
    if collection.left_out:
        print(f"{counted(len(collection.left_out), 'other file')} left out: {report} says which, and why")
    if not result.finished:
        print("interrupted; rerun to resume")
        raise SystemExit(INTERRUPTED)
    if result.failed > _MOST_FAILED * result.done:
        raise InputError(
            f"{result.failed:,} of {result.done:,} videos could not be read, more than {_MOST_FAILED:.0%}: "
            f"{command.store / REPORT} says why; the others are stored"
        )
    print(f"train with: python -m tgan_fast.train --data {shlex.quote(str(command.store))}")


def _bytes(count):
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
