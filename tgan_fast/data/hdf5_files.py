"""Reader of prepared videos in the HDF5 format of TGAN's authors: `image`, uint8 (frames, 3, rows, columns).

Arrays `start` and `end` in the same file hold each video's first frame and the frame after its last. A JSON file
beside it, NAME.json, NAME_conf.json or NAME_conf_pd.json, takes precedence: a table as pandas' `to_json` writes it, by
columns or by records, optionally with `category`, `group`, `scene` and `video`; or a list of pairs. The authors' own
table is a pickle. Loading a pickle runs code, so users who trust it must convert it once:

    python -c "import pandas; pandas.read_pickle('train_conf_pd.pkl').to_json('train.json')"
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tgan_fast.errors import InputError
from tgan_fast.extras import require_package

HDF5_SUFFIXES = frozenset({".h5", ".hdf5", ".hdf"})
IMAGES = "image"


@dataclass(frozen=True)
class Table:
    """Table of the videos of a file: first frame, one past the last frame, and other columns, None where unknown."""

    start: np.ndarray
    end: np.ndarray
    video: list[str | None]
    category: list[str | None]
    group: list[int | None]
    scene: list[int | None]


def open_images(path: Path) -> Any:
    """Open the frames in an HDF5 file: an h5py data set uint8 (F, C, H, W) or (F, H, W, C) with C = 1 or 3.

    Raises:
        InputError: h5py is missing, the file cannot be read, or it has no such frames.
    """
    try:
        images = import_h5py().File(path, "r")[IMAGES]
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: check its name") from None
    except (OSError, KeyError) as error:
        raise InputError(f"{path} cannot be read as HDF5 with a data set '{IMAGES}': {error}") from None
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or not ({shape[1], shape[3]} & {1, 3}) or not shape[0]:
        raise InputError(
            f"'{IMAGES}' of {path} is {images.dtype} {list(shape)}, but frames are uint8 (frames, 3, rows, columns)"
        )
    return images


def read_table(path: Path, images: Any) -> Table:
    """Read the table of where the videos of an HDF5 file begin and end.

    Args:
        path: HDF5 file.
        images: Data set of frames, from `open_images`.

    Raises:
        InputError: There is no table, or it does not fit the frames.
    """
    count = len(images)
    beside = [path.with_name(f"{path.stem}{ending}.json") for ending in ("", "_conf", "_conf_pd")]
    source = next((file for file in beside if file.is_file()), None)
    columns = _columns_of_json(source) if source else _columns_of_file(images.file)
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
        raise InputError(f"every column of {source} must have the same number of values, one for each video")
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
    """Return frames (F, C, H, W) or (F, H, W, C) as (F, H, W, C), without a copy."""
    return images if images.shape[3] in (1, 3) else np.moveaxis(images, 1, 3)


def import_h5py() -> ModuleType:
    """Return h5py, which reads and writes HDF5.

    Raises:
        InputError: h5py is not installed.
    """
    require_package("h5py", "HDF5 files need h5py")
    import h5py

    return h5py


def _columns_of_file(file):
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
            f"there is no table of where the videos of {path} begin: put {expected.name} with start and end beside it, "
            "or add arrays start and end to the file"
        )
    return InputError(
        f"{pickles[-1]} is a pickle, and loading one runs code: if you trust it, convert it with "
        f"python -c \"import pandas; pandas.read_pickle('{pickles[-1]}').to_json('{expected}')\""
    )
