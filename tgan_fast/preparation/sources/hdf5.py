"""HDF5 files in the format of TGAN's authors as a source of videos."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tgan_fast.data.hdf5_files import frames_last, open_images, read_table
from tgan_fast.errors import UnreadableVideoError, counted
from tgan_fast.preparation.decoding import FrameFormat, fit_frames
from tgan_fast.preparation.sources.collection import Collection, SourceVideo, collect
from tgan_fast.preparation.sources.media import text_of

_AT_ONCE = 256

# The last file stays open, since its videos are read one by one.
_kept_open = functools.lru_cache(maxsize=1)(open_images)


@dataclass(frozen=True)
class HDF5Video(SourceVideo):
    """Consecutive frames of an HDF5 file."""

    path: Path
    start: int
    length: int

    def read(self, frame_format: FrameFormat, threads: int = 1) -> Iterator[np.ndarray]:
        return fit_frames(np.concatenate(list(self._frame_chunks())), frame_format)

    def count(self, frame_format: FrameFormat) -> int:
        return -(-self.length // frame_format.stride)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for part in self._frame_chunks():
            digest.update(np.ascontiguousarray(part))
        return digest.hexdigest()

    def _frame_chunks(self):
        images = _kept_open(self.path)
        end = self.start + self.length
        try:
            for start in range(self.start, end, _AT_ONCE):
                yield frames_last(images[start : min(start + _AT_ONCE, end)])
        except OSError as error:
            raise UnreadableVideoError(f"its frames cannot be read: {error}") from None


def read_hdf5(path: Path) -> Collection:
    """Return the videos of an HDF5 file.

    Raises:
        InputError: h5py is missing; the file cannot be read or has no such frames; or there is no table of videos.
    """
    images = open_images(path)
    table = read_table(path, images)
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


def _names(path, table):
    """Return the names in the table, or UCF-101's; numbers if these are missing or not unique."""
    rows = zip(table.video, table.category, table.group, table.scene, strict=True)
    names = [video or _ucf_name(category, group, scene) for video, category, group, scene in rows]
    if None in names or len(set(names)) < len(names):
        return [f"{text_of(path.name)}/{number:05d}" for number in range(len(names))]
    return names


def _ucf_name(category, group, scene):
    known = category is not None and isinstance(group, int) and isinstance(scene, int)
    return f"{category}/v_{category}_g{group:02d}_c{scene:02d}" if known else None
