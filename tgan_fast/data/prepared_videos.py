"""Prepared videos on a disk, opened for training: clip stores, and the files of others."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tgan_fast.choices import ShortVideos
from tgan_fast.data.array_files import ARRAY_SUFFIXES, checked_axes, read_arrays
from tgan_fast.data.clip_store import UNCLASSIFIED, ClipStore
from tgan_fast.data.hdf5_files import HDF5_SUFFIXES, frames_last, open_images, read_table
from tgan_fast.data.video_frames import VideoFrames, clip_span
from tgan_fast.errors import InputError, printable
from tgan_fast.sizes import FRAMES, IMAGE_SIZE


@dataclass(frozen=True)
class Prepared:
    """Videos as they lie on a disk.

    Attributes:
        frames: uint8 [F, H, W, C], memory-mapped where that is possible.
        first, length, labels: of each video, its first frame, how many it has, and the number of its class: int64 [V].
        groups: of each video, a number that it shares with those of its class and group; see `OpenedVideos`: int64 [V].
        classes: their names.
        fingerprint: changes with the videos.
        checksum: of all frames, where it is known without reading them.
    """

    frames: np.ndarray
    first: np.ndarray
    length: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str
    checksum: str | None = None


@dataclass(frozen=True)
class OpenedVideos:
    """Videos to train on.

    Attributes:
        videos: without those that are too short, unless they are looped.
        groups: of each of them, a number that it shares with the others of its class that look alike, such as the clips
            of one group of UCF-101; a number of its own where nothing is known of that: int64 [V].
        summary: one line on what they are.
        classes: names of the numbers in `videos.labels`.
        fingerprint: changes with the videos.
        checksum: of all frames, where it is known without reading them.
    """

    videos: VideoFrames
    groups: np.ndarray
    summary: str
    classes: tuple[str, ...]
    fingerprint: str
    checksum: str | None


def open_videos(
    path: Path,
    *,
    stride: int = 1,
    short: ShortVideos = "skip",
    clip_frames: int = FRAMES,
    image_size: int = IMAGE_SIZE,
    axes: str | None = None,
    **options,
) -> OpenedVideos:
    """Open prepared videos for training.

    Args:
        path: a clip store; the HDF5 file of TGAN's authors, not compressed; or NumPy arrays such as Moving MNIST's.
        stride: from one frame of a clip to the next.
        short: what becomes of videos that are too short for a clip: "skip" or "loop".
        clip_frames: of a clip.
        image_size: of a clip, in pixels.
        axes: order of the axes of an array, such as "NTHW", where its shape does not tell it.
        options: the other ones of `VideoFrames`.

    Raises:
        InputError: it is none of these, it is damaged, its frames are too small, or all videos are too short.
    """
    prepared = read_prepared(path, axes)
    span = clip_span(stride, clip_frames)
    enough = prepared.length >= span
    taken = enough if short == "skip" else np.ones_like(enough)
    if not taken.any():
        raise InputError(
            f"none of the {len(enough):,} videos of {path} has the {span} frames of a clip: "
            "choose short_videos 'loop', a smaller frame_stride, or clips of fewer frames"
        )
    videos = VideoFrames(
        prepared.frames,
        prepared.first[taken],
        prepared.length[taken],
        prepared.labels[taken],
        stride=stride,
        loop=short == "loop",
        clip_frames=clip_frames,
        image_size=image_size,
        **options,
    )
    summary = _summary(path, prepared, enough, short)
    return OpenedVideos(
        videos, prepared.groups[taken], summary, prepared.classes, prepared.fingerprint, prepared.checksum
    )


def channels_of(path: Path, axes: str | None = None) -> int:
    """Return the channels of prepared videos, 1 or 3; raises as `open_videos`."""
    return read_prepared(path, axes).frames.shape[3]


def read_prepared(path: Path, axes: str | None = None) -> Prepared:
    """Return what lies in a clip store, an HDF5 file or a file of arrays; raises as `open_videos`."""
    axes = checked_axes(axes)
    if not path.exists():
        raise InputError(f"there is no {path}")
    if ClipStore.is_at(path):
        store = ClipStore(path)
        return Prepared(
            store.frames,
            store.first,
            store.length,
            store.labels,
            _groups([entry.group for entry in store.entries]),
            store.header.classes,
            store.fingerprint,
            store.fingerprint,
        )
    if path.suffix.lower() in HDF5_SUFFIXES:
        return _hdf5(path)
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _arrays(path, axes)
    raise InputError(
        f"{path} is no clip store: make one of it with python -m tgan_fast prepare {path} STORE, and give that"
    )


def _hdf5(path):
    images = open_images(path)
    table = read_table(path, images)
    offset = images.id.get_offset()
    if offset is None:
        raise InputError(
            f"the frames of {path} are compressed or in chunks: make a clip store of it with "
            f"python -m tgan_fast prepare {path} STORE, and give that"
        )
    frames = frames_last(np.memmap(path, np.uint8, "r", offset, images.shape))
    labels, classes = _numbered(table.category)
    return Prepared(
        frames,
        table.start,
        table.end - table.start,
        labels,
        _groups(table.group),
        classes,
        _digest(path.stat().st_size, images.shape, table.start.tobytes(), table.end.tobytes()),
    )


def _arrays(path, axes):
    arrays, names = read_arrays(path, axes)
    frames = [_joined(array.videos) for array in arrays]
    if len({part.shape[1:] for part in frames}) > 1:
        raise InputError(
            f"the clips of {path} have different sizes: make a clip store of it with "
            f"python -m tgan_fast prepare {path} STORE, and give that"
        )
    length = np.array([len(video) for array in arrays for video in array.videos])
    labels, classes = _numbered(names)
    return Prepared(
        frames[0] if len(frames) == 1 else np.concatenate(frames),
        np.cumsum(length) - length,
        length,
        labels,
        np.arange(len(length)),
        classes,
        _digest(path.stat().st_size, length.tobytes(), frames[0].shape),
    )


def _joined(videos):
    """The frames [F, H, W, C] of an array's videos, as they lie in memory where these lie one after another."""
    frames = videos.reshape(-1, *videos.shape[2:]) if isinstance(videos, np.ndarray) else videos[0]
    return frames if frames.ndim == 4 else frames[..., None]


def _numbered(names):
    """Numbers of classes int64 [V], and the classes' names."""
    if not any(names):
        return np.zeros(len(names), np.int64), ()
    classes, numbers = np.unique([UNCLASSIFIED if name is None else str(name) for name in names], return_inverse=True)
    return numbers, tuple(classes.tolist())


def _groups(names):
    """Numbers int64 [V] that tell groups apart, within a class; what has no group is one of its own."""
    numbers = {}
    keys = [(place, None) if name is None else (None, str(name)) for place, name in enumerate(names)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _summary(path, prepared, enough, short):
    counts = {"videos": len(enough), "frames": prepared.length.sum(), "classes": len(prepared.classes)}
    too_short = int((~enough).sum())
    if too_short:
        counts[f"shorter than a clip and {'left out' if short == 'skip' else 'looped'}"] = too_short
    return f"{printable(str(path))}: " + "; ".join(f"{name}: {count:,}" for name, count in counts.items())
