"""NumPy arrays as a source of videos."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tgan_fast.data.array_files import load_videos, read_arrays
from tgan_fast.errors import UnreadableVideoError, first_line
from tgan_fast.preparation.decoding import FrameFormat, fit_frames
from tgan_fast.preparation.sources.collection import SourceVideo
from tgan_fast.preparation.sources.media import text_of


@dataclass(frozen=True)
class ArrayVideo(SourceVideo):
    """A video in an array file.

    Attributes:
        path: File.
        key: Name of the array in an .npz file; None in an .npy file.
        axes: Order of the array's axes, such as "NTHW".
        number: Index of the video in the array.
        channels: Number of channels, 1 or 3.
    """

    path: Path
    key: str | None
    axes: str
    number: int
    channels: int

    def read(self, frame_format: FrameFormat, threads: int = 1) -> Iterator[np.ndarray]:
        return fit_frames(self._frames(), frame_format)

    def count(self, frame_format: FrameFormat) -> int:
        return -(-len(self._frames()) // frame_format.stride)

    def digest(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._frames())).hexdigest()

    def _frames(self):
        try:
            return load_videos(self.path, self.key, self.axes)[self.number]
        # The file may have been replaced since it was recognized.
        except Exception as error:
            raise UnreadableVideoError(f"it cannot be read: {first_line(error)}") from None


def array_videos(
    path: Path, *, name: str | None = None, label: str | None = None, axes: str | None = None
) -> list[ArrayVideo]:
    """Return the videos in an .npy or .npz file.

    Args:
        path: File.
        name: Beginning of the videos' names; the file's name by default.
        label: Class of all videos, unless the file has labels of its own.
        axes: Order of the axes, as in `read_arrays`.

    Raises:
        InputError: `read_arrays` cannot read the file.
    """
    name = name or text_of(path.name)
    arrays, labels = read_arrays(path, axes)
    videos = []
    for array in arrays:
        prefix = name if array.key is None else f"{name}/{array.key}"
        for number, clip in enumerate(array.videos):
            channels = clip.shape[3] if clip.ndim == 4 else 1
            place = prefix if len(array.videos) == 1 else f"{prefix}/{number:05d}"
            videos.append(
                ArrayVideo(place, clip.nbytes, label, None, None, path, array.key, array.axes, number, channels)
            )
    return [replace(video, label=own or label) for video, own in zip(videos, labels, strict=True)]


def channels_of(videos: Sequence[SourceVideo]) -> int:
    """Return 1 if all readable videos are gray, else 3."""
    return max((video.channels for video in videos if isinstance(video, ArrayVideo)), default=3)
