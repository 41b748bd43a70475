"""A clip store, opened for reading."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tgan_fast.data.store_index import NAME, Entry, read_index
from tgan_fast.errors import InputError

FRAMES_NAME = "frames.bin"
# Class of videos without one among others that have one.
UNCLASSIFIED = "unclassified"

_AT_ONCE = 1 << 24


class ClipStore:
    """Prepared videos in a folder, as they are at this moment; another process may append to them meanwhile.

    Attributes:
        header: what all videos have in common.
        entries: the videos.
        frames: uint8 [F, H, W, C], memory-mapped.

    Raises:
        InputError: there is no store, it is damaged or of a newer version, or holds no video.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        index = read_index(folder)
        self.header, self.entries = index.header, index.entries
        if not self.entries:
            raise InputError(f"the clip store {folder} has no videos yet: prepare some")
        self.frames = self._map(index.frames)

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether `path` is the folder of a store."""
        return (path / NAME).is_file()

    @property
    def first(self) -> np.ndarray:
        """Of each video, its first frame: int64 [V]."""
        return np.array([entry.start for entry in self.entries])

    @property
    def length(self) -> np.ndarray:
        """Of each video, how many frames it has: int64 [V]."""
        return np.array([entry.length for entry in self.entries])

    @property
    def labels(self) -> np.ndarray:
        """Of each video, the number of its class, 0 where there are none: int64 [V]."""
        numbers = {name: number for number, name in enumerate(self.header.classes)}
        return np.array([numbers.get(entry.label, 0) for entry in self.entries])

    @property
    def fingerprint(self) -> str:
        """Of all videos and their order: SHA-256, in hexadecimal."""
        return hashlib.sha256("".join(entry.sha256 for entry in self.entries).encode()).hexdigest()

    def damaged(self, progress: Callable[[int], object] = lambda nbytes: None, *, workers: int = 1) -> Iterator[Entry]:
        """Yield the videos whose frames are not those that were written; `progress` is told of bytes as they are read.

        Raises:
            OSError: the disk cannot read them.
        """
        with ThreadPoolExecutor(workers) as pool:
            digests = pool.map(lambda entry: self._digest(entry, progress), self.entries)
            yield from (entry for entry, digest in zip(self.entries, digests, strict=True) if digest != entry.sha256)

    def _digest(self, entry, progress):
        # Read, not mapped: what a disk cannot read is an error then, and not the death of the process.
        digest, left = hashlib.sha256(), entry.length * self.header.frame_bytes
        with (self.folder / FRAMES_NAME).open("rb", buffering=0) as file:
            file.seek(entry.start * self.header.frame_bytes)
            while left and (part := file.read(min(left, _AT_ONCE))):
                digest.update(part)
                progress(len(part))
                left -= len(part)
        return digest.hexdigest()

    def _map(self, frames):
        path, header = self.folder / FRAMES_NAME, self.header
        try:
            size = path.stat().st_size
            if size < frames * header.frame_bytes:
                raise InputError(
                    f"{path} has {size:,} bytes, but its index tells of {frames * header.frame_bytes:,}: "
                    "restore the file from a copy, or prepare the videos anew"
                )
            return np.memmap(path, np.uint8, "r", shape=(frames, header.height, header.width, header.channels))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
