"""Clips in NumPy's files: .npy, .npz, and Moving MNIST's mnist_test_seq.npy."""

import functools
import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tgan_fast.data.decoding import Form, fit_frames
from tgan_fast.data.sources.collection import SourceVideo
from tgan_fast.errors import InputError, UnreadableVideoError

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
# Of uint8 (20, 10000, 64, 64): frames, videos, rows, columns.
MOVING_MNIST = "mnist_test_seq"

_LABELS = "labels"


@dataclass(frozen=True)
class ArrayVideo(SourceVideo):
    """A video in an array of a file.

    Attributes:
        key: of the array in an .npz file; None in an .npy file.
        number: which of the array's videos it is.
    """

    path: Path
    key: str | None
    number: int
    channels: int

    def read(self, form: Form, threads: int = 1) -> Iterator[np.ndarray]:
        return fit_frames(self._frames(), form)

    def count(self, form: Form) -> int:
        return -(-len(self._frames()) // form.stride)

    def digest(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._frames())).hexdigest()

    def _frames(self):
        try:
            return in_videos(_load(self.path, self.key), self.path)[self.number]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UnreadableVideoError(f"it cannot be read: {error}") from None


def array_videos(path: Path, *, name: str | None = None, label: str | None = None) -> list[ArrayVideo]:
    """The videos in an .npy or .npz file.

    Args:
        path: of the file. Beside its arrays of clips an .npz file may have one of `labels`, a class number a clip.
        name: of the file, with which the videos' names begin.
        label: of all, unless the file has labels of its own.

    Raises:
        InputError: it cannot be read, or holds no clips.
    """
    name = name or path.name
    videos = []
    for key, array in open_arrays(path).items():
        clips = in_videos(array, path)
        prefix = name if key is None else f"{name}/{key}"
        for number, clip in enumerate(clips):
            channels = clip.shape[3] if clip.ndim == 4 else 1
            place = prefix if len(clips) == 1 else f"{prefix}/{number:05d}"
            videos.append(ArrayVideo(place, clip.nbytes, label, None, None, path, key, number, channels))
    return [replace(video, label=own or label) for video, own in zip(videos, labels_of(path, len(videos)), strict=True)]


def open_arrays(path: Path) -> dict[str | None, np.ndarray]:
    """The arrays of an .npz file by name, its `labels` left out, or that of an .npy file, memory-mapped, under None.

    Raises:
        InputError: it cannot be read.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {None: loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files if key != _LABELS}
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read the array in {path}: {' '.join(str(error).split())}") from None


def labels_of(path: Path, count: int) -> list[str | None]:
    """The classes that a file tells of its `count` clips; None where it tells none.

    Raises:
        InputError: its labels are no integers, one for each clip.
    """
    if path.suffix.lower() != ".npz":
        return [None] * count
    with np.load(path, allow_pickle=False) as loaded:
        if _LABELS not in loaded.files:
            return [None] * count
        labels = loaded[_LABELS]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path} has {_LABELS} {labels.dtype} {list(labels.shape)}, but there are {count:,} clips: "
            "each needs an integer"
        )
    # So that the names' order is that of the numbers.
    digits = len(str(labels.max()))
    return [f"{label:0{digits}d}" for label in labels.tolist()]


def channels_of(videos: Sequence[SourceVideo]) -> int:
    """1 where all videos that can be read are grey, else 3."""
    return max((video.channels for video in videos if isinstance(video, ArrayVideo)), default=3)


def in_videos(array: np.ndarray, path: Path) -> Sequence[np.ndarray]:
    """The videos of an array, each [T, H, W] or [T, H, W, C], without a copy.

    Args:
        array: uint8 [T, H, W], [T, H, W, C], [N, T, H, W], [N, T, H, W, C], [N, T, C, H, W] or [N, C, T, H, W], C of 1
            or 3; Moving MNIST, told by its file's name, is [T, N, H, W].
        path: of its file.

    Raises:
        InputError: another dtype or shape.
    """
    shape = array.shape
    if array.dtype == np.uint8 and array.size:
        if array.ndim == 3 or (array.ndim == 4 and shape[3] in (1, 3)):
            return [array]
        if array.ndim == 4:
            return array.swapaxes(0, 1) if path.name.startswith(MOVING_MNIST) else array
        if array.ndim == 5:
            for axis in (4, 2, 1):
                if shape[axis] in (1, 3):
                    return np.moveaxis(array, axis, 4)
    raise InputError(
        f"{path} holds {array.dtype} {list(shape)}, but clips are uint8 [N, T, H, W, C] or [N, T, H, W], C being 1 or 3"
    )


@functools.lru_cache(maxsize=1)
def _load(path: Path, key: str | None) -> Any:
    """Kept, since a file has many videos, one asked for after another."""
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if key is None:
        return loaded
    with loaded:
        return loaded[key]
