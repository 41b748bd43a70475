"""Prepared videos in HDF5: `image`, uint8 (frames, 3, rows, columns), as TGAN's authors and their followers have it.

Where each video begins and ends (one frame behind its last) is told by arrays `start` and `end` in the same file, or by
a JSON file beside it, NAME.json or NAME_conf.json: a table as pandas' `to_json` writes it, by columns or by records,
perhaps with `category`, `group`, `scene` and `video`; or a list of pairs. The authors' own table is a pickle. Loading
one runs code, so that has to be done by whoever trusts it, once:

    python -c "import pandas; pandas.read_pickle('train_conf_pd.pkl').to_json('train.json')"
"""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tgan_fast.data.optional import import_h5py
from tgan_fast.errors import InputError, UnreadableVideoError, counted
from tgan_fast.preparation.decoding import Form, fit_frames
from tgan_fast.preparation.sources.collection import Collection, SourceVideo, collect
from tgan_fast.preparation.sources.files import text_of

HDF5_SUFFIXES = frozenset({".h5", ".hdf5", ".hdf"})
IMAGES = "image"

_AT_ONCE = 256


@dataclass(frozen=True)
class HDF5Video(SourceVideo):
    """Consecutive frames of an HDF5 file."""

    path: Path
    start: int
    length: int

    def read(self, form: Form, threads: int = 1) -> Iterator[np.ndarray]:
        return fit_frames(np.concatenate(list(self._parts())), form)

    def count(self, form: Form) -> int:
        return -(-self.length // form.stride)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for part in self._parts():
            digest.update(np.ascontiguousarray(part))
        return digest.hexdigest()

    def _parts(self):
        images = _kept_open(self.path)
        end = self.start + self.length
        try:
            for start in range(self.start, end, _AT_ONCE):
                yield frames_last(images[start : min(start + _AT_ONCE, end)])
        except OSError as error:
            raise UnreadableVideoError(f"its frames cannot be read: {error}") from None


@dataclass(frozen=True)
class Table:
    """Of each video, where it begins and ends, and what is known of it."""

    start: np.ndarray
    end: np.ndarray
    video: list[str | None]
    category: list[str | None]
    group: list[int | None]
    scene: list[int | None]


def read_hdf5(path: Path) -> Collection:
    """The videos of an HDF5 file.

    Raises:
        InputError: h5py is missing; the file cannot be read, has no such frames, or nothing tells where videos begin.
    """
    images, table = open_images(path), read_table(path)
    nbytes = images.nbytes // len(images)
    videos = [
        HDF5Video(name, length * nbytes, label, group, scene, path, start, length)
        for name, start, length, label, group, scene in zip(
            _names(path, table),
            table.start.tolist(),
            (table.end - table.start).tolist(),
            table.category,
            table.group,
            table.scene,
            strict=True,
        )
    ]
    return collect(f"HDF5: {counted(len(videos), 'video')} of prepared frames", videos)


def open_images(path: Path) -> Any:
    """The data set of frames in an HDF5 file: uint8 (F, C, H, W) or (F, H, W, C), C of 1 or 3, in h5py's form.

    Raises:
        InputError: as `read_hdf5`.
    """
    try:
        images = _open(path)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, KeyError) as error:
        raise InputError(f"{path} cannot be read as HDF5 with a data set '{IMAGES}': {error}") from None
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or not ({shape[1], shape[3]} & {1, 3}) or not shape[0]:
        raise InputError(
            f"'{IMAGES}' of {path} is {images.dtype} {list(shape)}, but frames are uint8 (frames, 3, rows, columns)"
        )
    return images


def read_table(path: Path) -> Table:
    """Where the videos of an HDF5 file begin and end.

    Raises:
        InputError: nothing tells it, or what tells it does not fit the frames.
    """
    count = len(open_images(path))
    beside = [path.with_name(f"{path.stem}{ending}.json") for ending in ("", "_conf", "_conf_pd")]
    source = next((file for file in beside if file.is_file()), None)
    columns = _columns_of_json(source) if source else _columns_of_file(path)
    if columns is None:
        raise _no_table(path, beside[0])
    source = source or path
    try:
        start, end = (np.array(columns[name], np.int64) for name in ("start", "end"))
    except (KeyError, ValueError, TypeError, OverflowError):
        raise InputError(f"{source} must have an integer start and end for every video") from None
    other = {name: columns.get(name) or [None] * len(start) for name in ("video", "category", "group", "scene")}
    lengths = [len(column) for column in (end, *other.values())]
    if start.ndim != 1 or lengths != [len(start)] * len(lengths):
        raise InputError(f"{source} must have as many values in every column, one for each video")
    wrong = np.flatnonzero((start < 0) | (end <= start) | (end > count))
    if len(wrong):
        video = wrong[0]
        raise InputError(
            f"video {video} of {source} goes from frame {start[video]} to {end[video]}, but {path} has {count:,} frames"
        )
    for name in ("video", "category"):
        other[name] = [None if value is None else str(value) for value in other[name]]
    return Table(start, end, **other)


def frames_last(images: np.ndarray) -> np.ndarray:
    """Frames (F, C, H, W) or (F, H, W, C) as (F, H, W, C), without a copy."""
    return images if images.shape[3] in (1, 3) else np.moveaxis(images, 1, 3)


def _open(path):
    return import_h5py().File(path, "r")[IMAGES]


# Kept, since a file has many videos, one asked for after another.
_kept_open = functools.lru_cache(maxsize=1)(_open)


def _columns_of_file(path):
    file = _open(path).file
    for start, end in (("start", "end"), ("starts", "ends")):
        if start in file and end in file:
            return {"start": file[start][:], "end": file[end][:]}
    return None


def _columns_of_json(path) -> dict[str, list]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list) and content and isinstance(content[0], list):
            start, end = zip(*content, strict=True)
            return {"start": list(start), "end": list(end)}
        if isinstance(content, list):
            return {name: [row[name] for row in content] for name in content[0]}
        return {name: list(values.values() if isinstance(values, dict) else values) for name, values in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise InputError(
            f"{path} must be a table of start and end, as pandas' to_json writes it, or a list of such pairs"
        ) from None


def _no_table(path, expected):
    pickles = sorted(path.parent.glob(f"{path.stem}*.pkl"))
    if not pickles:
        return InputError(
            f"nothing tells where the videos of {path} begin: put a table of start and end beside it, {expected.name}, "
            "or arrays start and end into it"
        )
    return InputError(
        f"{pickles[-1]} is a pickle, and loading one runs code: if you trust it, convert it with "
        f"python -c \"import pandas; pandas.read_pickle('{pickles[-1]}').to_json('{expected}')\""
    )


def _names(path, table):
    """Those that the table has, or UCF-101's; numbers where these do not tell videos apart."""
    rows = zip(table.video, table.category, table.group, table.scene, strict=True)
    names = [video or _ucf_name(category, group, scene) for video, category, group, scene in rows]
    if None in names or len(set(names)) < len(names):
        return [f"{text_of(path.name)}/{number:05d}" for number in range(len(names))]
    return names


def _ucf_name(category, group, scene):
    known = category is not None and isinstance(group, int) and isinstance(scene, int)
    return f"{category}/v_{category}_g{group:02d}_c{scene:02d}" if known else None
