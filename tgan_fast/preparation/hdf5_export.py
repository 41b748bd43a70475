"""Export of a clip store to HDF5, in the format of TGAN's authors."""

from collections.abc import Callable
from pathlib import Path

from tgan_fast.data.clip_store import ClipStore, json_bytes
from tgan_fast.data.hdf5_files import import_h5py
from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically

_AT_ONCE = 1024


def export_hdf5(store: ClipStore, path: Path, progress: Callable[[int], object] = lambda frames: None) -> Path:
    """Write the frames as the uncompressed data set `image`, uint8 (F, C, H, W), and a table of videos beside it.

    The table, which pandas can read, is a list of JSON objects with `category`, `group`, `scene`, `start`, `end` (the
    frame after the last) and `video`.

    Args:
        store: Clip store.
        path: HDF5 file; its table has the same name with the ending .json.
        progress: Function that is called with the number of frames after each write.

    Returns:
        Path of the table.

    Raises:
        InputError: h5py is missing, or the files cannot be written; older ones are left as they were.
    """
    h5py = import_h5py()
    table, temporary = path.with_suffix(".json"), path.with_name(f".{path.name}.partial")
    if table == path:
        raise InputError(f"{path} is the name of the table: choose one that ends in .h5")
    try:
        with h5py.File(temporary, "w") as file:
            count, *size, channels = store.frames.shape
            images = file.create_dataset("image", (count, channels, *size), "u1")
            for start in range(0, count, _AT_ONCE):
                part = store.frames[start : start + _AT_ONCE]
                images[start : start + len(part)] = part.transpose(0, 3, 1, 2)
                progress(len(part))
        temporary.replace(path)
        write_atomically(table, json_bytes(list(map(_row, store.entries)), indent=1))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return table


def _row(entry):
    return {
        "category": entry.label,
        "group": entry.group,
        "scene": entry.scene,
        "start": entry.start,
        "end": entry.start + entry.length,
        "video": entry.video,
    }
