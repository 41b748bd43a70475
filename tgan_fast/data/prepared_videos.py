"""Prepared videos on disk, opened for training: clip stores, NumPy arrays and HDF5 files."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tgan_fast.data.array_files import ARRAY_SUFFIXES, checked_axes, read_arrays
from tgan_fast.data.clip_store import UNCLASSIFIED, ClipStore
from tgan_fast.data.hdf5_files import HDF5_SUFFIXES, frames_last, open_images, read_table
from tgan_fast.errors import InputError


@dataclass(eq=False)
class PreparedVideos:
    """Videos of any length, each a range of consecutive frames of one array.

    Attributes:
        frames: Frames uint8 [F, H, W, C] in host memory, never copied: an array, memory-mapped or not, or a tensor.
        first: Index of the first frame of each video, integers [V].
        length: Number of frames of each video, integers [V].
        labels: Class of each video, integers [V].
        groups: Group of each video, integers [V]; videos of a class that look alike, such as those of a group of
            UCF-101, have the same number. None: each video is its own group.
        class_names: Names of the classes by number; empty where there are none.
        name: Name of the data set in messages; its path if it is on disk.
        fingerprint: Text that changes with the videos; None if they are only in memory.
        checksum: Digest of all frames if it is known without reading them, else None.

    Raises:
        ValueError: An array has another dtype or shape.
        InputError: There are no videos, or a video is empty or extends beyond the frames.
    """

    frames: np.ndarray | torch.Tensor
    first: np.ndarray
    length: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    name: str = "the data set"
    fingerprint: str | None = None
    checksum: str | None = None

    def __post_init__(self):
        if self.groups is None:
            self.groups = np.arange(len(self.first))
        for name in ("first", "length", "labels", "groups"):
            setattr(self, name, self._checked_vector(name))
        if not len(self.first):
            raise InputError(f"{self.name} has no videos")
        frames = len(self.frames)
        outside = np.flatnonzero((self.first < 0) | (self.length < 1) | (self.first > frames - self.length))
        if len(outside):
            video = outside[0]
            last = self.first[video] + self.length[video] - 1
            raise InputError(
                f"video {video} goes from frame {self.first[video]} to {last}, but there are {frames} frames: "
                "prepare the videos anew"
            )

    def only(self, chosen: np.ndarray) -> "PreparedVideos":
        """Return some of the videos, without a copy of their frames.

        Args:
            chosen: Mask of the videos to keep, bool [V].
        """
        vectors = {name: getattr(self, name)[chosen] for name in ("first", "length", "labels", "groups")}
        return replace(self, **vectors)

    def _checked_vector(self, name):
        vector = np.asarray(getattr(self, name))
        if vector.dtype.kind not in "iu" or vector.ndim != 1 or len(vector) != len(self.first):
            raise ValueError(
                f"{name} holds an integer for each of {len(self.first)} videos, not {vector.dtype} {list(vector.shape)}"
            )
        return vector.astype(np.int64)


def read_videos(path: str | Path, axes: str | None = None) -> PreparedVideos:
    """Open prepared videos; frames are memory-mapped unless the file's format does not allow it.

    Args:
        path: Clip store; the HDF5 file of TGAN's authors, not compressed; or NumPy arrays such as Moving MNIST's.
        axes: Order of the axes of an array, such as "NTHW"; None: inferred from its shape or labels.

    Raises:
        InputError: The file is none of these, or is damaged.
    """
    path, axes = Path(path), checked_axes(axes)
    if not path.exists():
        raise InputError(f"there is no {path}: check the path")
    if ClipStore.is_at(path):
        return _store(path)
    if path.suffix.lower() in HDF5_SUFFIXES:
        return _hdf5(path)
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _arrays(path, axes)
    raise InputError(
        f"{path} is not a clip store: make one with python -m tgan_fast prepare {path} STORE, and give that"
    )


def _store(path):
    store = ClipStore(path)
    numbers = {name: number for number, name in enumerate(store.header.classes)}
    return PreparedVideos(
        store.frames,
        [entry.start for entry in store.entries],
        [entry.length for entry in store.entries],
        [numbers.get(entry.label, 0) for entry in store.entries],
        _number_groups([entry.group for entry in store.entries]),
        store.header.classes,
        str(path),
        store.fingerprint,
        store.fingerprint,
    )


def _hdf5(path):
    images = open_images(path)
    table = read_table(path, images)
    offset = images.id.get_offset()
    if offset is None:
        raise InputError(
            f"the frames of {path} are compressed or in chunks: make a clip store with "
            f"python -m tgan_fast prepare {path} STORE, and give that"
        )
    frames = frames_last(np.memmap(path, np.uint8, "r", offset, images.shape))
    labels, classes = _number_classes(table.category)
    return PreparedVideos(
        frames,
        table.start,
        table.end - table.start,
        labels,
        _number_groups(table.group),
        classes,
        str(path),
        _digest(path.stat().st_size, images.shape, table.start.tobytes(), table.end.tobytes()),
    )


def _arrays(path, axes):
    arrays, names = read_arrays(path, axes)
    frames = [_join_frames(array.videos) for array in arrays]
    if len({part.shape[1:] for part in frames}) > 1:
        raise InputError(
            f"the clips of {path} have different sizes: make a clip store with "
            f"python -m tgan_fast prepare {path} STORE, and give that"
        )
    length = np.array([len(video) for array in arrays for video in array.videos])
    labels, classes = _number_classes(names)
    return PreparedVideos(
        frames[0] if len(frames) == 1 else np.concatenate(frames),
        np.cumsum(length) - length,
        length,
        labels,
        None,
        classes,
        str(path),
        _digest(path.stat().st_size, length.tobytes(), frames[0].shape),
    )


def _join_frames(videos):
    """Return the frames [F, H, W, C] of an array's videos, without a copy if they are contiguous."""
    frames = videos.reshape(-1, *videos.shape[2:]) if isinstance(videos, np.ndarray) else videos[0]
    return frames if frames.ndim == 4 else frames[..., None]


def _number_classes(names):
    """Return the class numbers of videos, int64 [V], and the names of the classes."""
    if not any(names):
        return np.zeros(len(names), np.int64), ()
    classes, numbers = np.unique([UNCLASSIFIED if name is None else str(name) for name in names], return_inverse=True)
    return numbers, tuple(classes.tolist())


def _number_groups(names):
    """Return group numbers int64 [V], distinct within a class; a video without a group is its own group."""
    numbers = {}
    keys = [(place, None) if name is None else (None, str(name)) for place, name in enumerate(names)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()
