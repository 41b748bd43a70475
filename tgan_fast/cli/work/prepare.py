"""Decode videos into a clip store."""

import shlex
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from tgan_fast.cli.prepare import PrepareCommand
from tgan_fast.data.clip_store import ClipStore, read_index
from tgan_fast.errors import InputError, counted, printable
from tgan_fast.preparation import REPORT, Result, estimated_frames, prepare
from tgan_fast.preparation.decoding import Form
from tgan_fast.preparation.sources import Collection, only_of_split, recognize
from tgan_fast.stop_signals import stop_signals

# Of all videos: more that cannot be read are no longer accidents.
_MOST_FAILED = 0.05
# Of an interrupted command.
_INTERRUPTED = 130


def run(command: PrepareCommand) -> None:
    collection = recognize(command.source, command.axes)
    if command.split is not None:
        collection = only_of_split(collection, command.split)
    if command.fps is not None and not all(video.has_times for video in collection.videos):
        raise InputError("images and arrays do not tell their frames' times, which --fps needs: use --stride instead")
    channels = _channels(collection, command.store)
    form = Form(command.size, command.columns or command.size, channels, command.stride, command.fps)
    print(printable(f"{collection.description}; classes: {len(collection.classes):,}"))
    for notice in collection.notices:
        print(printable(notice))
    _check_space(collection, command.store, form, command.workers)
    with stop_signals() as stop, _progress(collection, command.store) as bar:
        result = prepare(
            collection,
            command.store,
            form,
            workers=command.workers,
            fewest=command.frames,
            strict=command.strict,
            stop=stop,
            progress=lambda result, nbytes: _show(bar, result, nbytes),
        )
    _conclude(command, collection, result)


def _channels(collection, folder):
    if not ClipStore.is_at(folder):
        return collection.channels
    channels = read_index(folder).header.channels
    if channels < collection.channels:
        raise InputError(f"{folder} has grey frames, and the source may have colours: choose another folder")
    return channels


def _check_space(collection: Collection, folder: Path, form: Form, workers: int) -> None:
    known = {entry.video for entry in read_index(folder).entries} if ClipStore.is_at(folder) else set()
    new = [video for video in collection.videos if video.name not in known]
    frame = form.height * form.width * form.channels
    estimate = estimated_frames(new, form)
    # What a process has decoded is copied behind what is there.
    needed, meanwhile = estimate.frames * frame, min(estimate.frames, workers * estimate.longest) * frame
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    store = printable(str(folder))
    print(f"needs about {_bytes(needed)} in {store}, {_bytes(meanwhile)} more meanwhile; {_bytes(free)} are free")
    if needed + meanwhile > free:
        raise InputError(
            f"{folder} needs about {_bytes(needed + meanwhile)}, but only {_bytes(free)} are free: make room, or "
            "choose another disk, a smaller --size or a larger --stride"
        )


def _progress(collection, folder):
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


def _conclude(command, collection: Collection, result: Result):
    known = f", {result.known:,} stored before" if result.known else ""
    print(f"{counted(result.stored, 'video')} of {counted(result.frames, 'frame')} stored{known}")
    report = printable(str(command.store / REPORT))
    if result.skipped:
        short = len(result.skipped) - result.failed
        print(f"{result.failed:,} could not be read, {short:,} too short: {report} says which")
    if collection.left_out:
        print(f"{counted(len(collection.left_out), 'other file')} left out: {report} says which, and why")
    if not result.finished:
        print("interrupted; the same command goes on")
        raise SystemExit(_INTERRUPTED)
    if result.failed > _MOST_FAILED * result.done:
        raise InputError(
            f"{result.failed:,} of {result.done:,} videos could not be read, more than {_MOST_FAILED:.0%}: "
            f"{command.store / REPORT} says why; the others are stored"
        )
    print(f"train with: python -m tgan_fast.train --data {shlex.quote(str(command.store))}")


def _bytes(count):
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
