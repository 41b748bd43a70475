"""Readers of clips in NumPy's files: .npy, .npz, and Moving MNIST's mnist_test_seq.npy."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tgan_fast.errors import InputError, first_line

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
# Its array is uint8 (20, 10000, 64, 64): frames, videos, rows, columns.
MOVING_MNIST = "mnist_test_seq"
_FRAMES_OF_MOVING_MNIST = 20

_LABELS = "labels"
# Some messages of NumPy and zipfile quote the file, so they are cut to this many characters.
_LONGEST_REASON = 200
_CHANNELS = (1, 3)
# Videos, frames, rows, columns, channels: the order of axes after `_split_videos`.
_AXES = "NTHWC"


class AmbiguousAxesError(InputError):
    """Error about an array whose shape does not determine which axis is time."""


@dataclass(frozen=True)
class ClipArray:
    """The clips of one array.

    Attributes:
        key: Name of the array in an .npz file; None in an .npy file.
        axes: Order of the array's axes, such as "NTHW".
        videos: Videos uint8, each [T, H, W] or [T, H, W, C]; memory-mapped where the file is an .npy file.
    """

    key: str | None
    axes: str
    videos: Sequence[np.ndarray]


def read_arrays(path: Path, axes: str | None = None) -> tuple[list[ClipArray], list[str | None]]:
    """Read the clips of an .npy or .npz file.

    Arrays are [T, H, W], [T, H, W, C], [N, T, H, W, C], [N, T, C, H, W] or [N, C, T, H, W] with N videos of T frames
    and C = 1 or 3. Moving MNIST, mnist_test_seq.npy, is [T, N, H, W]. Other arrays of four axes may be [T, N, H, W] or
    [N, T, H, W]: `axes` or the number of labels decides. The same applies if T and C could both be 1 or 3.

    Args:
        path: File. An .npz file may also have an array `labels`, with one integer for each clip.
        axes: Order of the axes, letters of "NTHWC", for arrays with that many axes; None: inferred from shapes
            or labels.

    Returns:
        Arrays of clips, and the class name of each clip, None where the file has no labels.

    Raises:
        AmbiguousAxesError: The order of axes is ambiguous.
        InputError: The file cannot be read, holds no clips, or its labels are not one integer for each clip.
    """
    arrays = dict(_open_arrays(path))
    labels = arrays.pop(_LABELS, None)
    if not arrays:
        raise InputError(f"{path} holds no array of clips: give one that does")
    readings = {key: _possible_orders(array, path, key, axes) for key, array in arrays.items()}
    if any(len(some) > 1 for some in readings.values()):
        readings = _choose_order_by_labels(arrays, labels, readings, path)
    clips = [ClipArray(key, readings[key][0], _split_videos(array, readings[key][0])) for key, array in arrays.items()]
    return clips, _class_names(labels, sum(len(array.videos) for array in clips), path)


@functools.lru_cache(maxsize=1)
def load_videos(path: Path, key: str | None, axes: str) -> Sequence[np.ndarray]:
    """Return the videos of one array of a file; the last array is cached, since its videos are read one by one.

    Args:
        path: File.
        key: Name of the array in an .npz file; None in an .npy file.
        axes: Order of the array's axes, such as "NTHW".
    """
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if key is None:
        return _split_videos(loaded, axes)
    with loaded:
        return _split_videos(loaded[key], axes)


def checked_axes(axes: str | None) -> str | None:
    """Return the order of the axes of clips in capital letters, or None if `axes` is None.

    Raises:
        InputError: The text is not an order of the axes of clips.
    """
    if axes is None:
        return None
    axes = axes.upper()
    if len(set(axes)) < len(axes) or not set("THW") <= set(axes) <= set(_AXES):
        raise InputError(
            f"--axes is {axes!r}, but must list the axes of the arrays in order, such as NTHW: T (frames), H (rows), "
            "W (columns) and, where the arrays have them, N (videos) and C (channels)"
        )
    return axes


def _open_arrays(path) -> Mapping[str | None, np.ndarray]:
    """Return the arrays of an .npz file by name, or the memory-mapped array of an .npy file under the name None."""
    with _as_input_error(path):
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.memmap):
            # NumPy accepts a damaged header that announces fewer numbers than the file holds.
            behind = path.stat().st_size - loaded.offset - loaded.nbytes
            if behind > 0 < loaded.size:
                raise ValueError(
                    f"{behind:,} bytes follow the array: the file holds more arrays, or its header is damaged"
                )
            return {None: loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}


@contextmanager
def _as_input_error(path):
    """Turn any error in reading `path` into an InputError."""
    try:
        with warnings.catch_warnings():
            # NumPy warns of overflowing sizes and raises an error soon after.
            warnings.simplefilter("ignore")
            yield
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: check its name") from None
    # Damaged files make NumPy and zipfile raise errors of a dozen types, and MemoryError for absurd sizes.
    except Exception as error:
        # NumPy's own message recommends an unsafe option.
        pickled = "pickle" in str(error) or "Python objects" in str(error)
        reason = "it holds Python objects, or is damaged" if pickled else first_line(error)[:_LONGEST_REASON]
        raise InputError(f"cannot read the array in {path}: {reason}") from None


def _possible_orders(array, path, key, axes) -> tuple[str, ...]:
    """Return the orders that an array's axes can have."""
    shape, name = array.shape, "" if key is None else f"{key}, "
    described = f"{path} holds {name}{array.dtype.name} {list(shape)}"
    if array.dtype != np.uint8:
        raise InputError(f"{described}, but clips are uint8: convert it")
    if not array.size:
        raise InputError(f"{described}, which is empty: it has no clips")
    given = axes is not None and len(axes) == len(shape)
    readings = (axes,) if given else _orders_of_shape(shape, path)
    readings = tuple(order for order in readings if "C" not in order or shape[order.index("C")] in _CHANNELS)
    if not readings:
        if given:
            raise InputError(f"{described}, which --axes {axes} does not fit: C must be 1 or 3")
        raise InputError(f"{described}, but clips are [N, T, H, W, C] or [N, T, H, W], with C = 1 or 3")
    return readings


def _orders_of_shape(shape, path):
    if not 3 <= len(shape) <= 5:
        return ()
    if len(shape) == 3:
        return ("THW",)
    # No frame is as narrow as 1 or 3 pixels, so the axis is channels.
    last = shape[-1] in _CHANNELS
    if len(shape) == 4 and last:
        return ("THWC",)
    if len(shape) == 4:
        if path.name.startswith(MOVING_MNIST) and shape[0] == _FRAMES_OF_MOVING_MNIST:
            return ("TNHW",)
        # With C = 1, TCHW and CTHW equal TNHW and NTHW of a single video.
        return "NTHW", "TNHW", *(order for order in ("TCHW", "CTHW") if shape[order.index("C")] == 3)
    return ("NTHWC",) if last else ("NTCHW", "NCTHW")


def _choose_order_by_labels(arrays, labels, readings, path):
    """Return the only order of the arrays' axes that makes as many clips as labels."""
    fitting = []
    for order in dict.fromkeys(order for some in readings.values() if len(some) > 1 for order in some):
        chosen = {key: (order,) if order in some else some for key, some in readings.items()}
        clips = sum(len(_split_videos(array, chosen[key][0])) for key, array in arrays.items())
        if labels is not None and all(len(some) == 1 for some in chosen.values()) and labels.shape == (clips,):
            fitting.append(chosen)
    if len(fitting) == 1:
        return fitting[0]
    key, orders = next((key, some) for key, some in readings.items() if len(some) > 1)
    raise AmbiguousAxesError(
        f"{path} holds uint8 {list(arrays[key].shape)}, whose axes may be {' or '.join(orders)} (N videos, T frames): "
        f"pass the right one to prepare or train, such as --axes {orders[0]}"
    )


def _split_videos(array, axes) -> Sequence[np.ndarray]:
    """Return the videos of an array whose axes have the order `axes`, without a copy."""
    array = array.transpose([axes.index(axis) for axis in _AXES if axis in axes])
    return array if "N" in axes else [array]


def _class_names(labels, count, path):
    """Return the name of each clip's class."""
    if labels is None:
        return [None] * count
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path} has {_LABELS} {labels.dtype.name} {list(labels.shape)}, but there are {count:,} clips: "
            "each clip needs one integer"
        )
    # Zero-padded names sort in the order of the numbers.
    digits = len(str(labels.max()))
    return [f"{label:0{digits}d}" for label in labels.tolist()]
