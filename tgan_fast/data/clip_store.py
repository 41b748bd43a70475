"""Clip stores, opened for reading: an index with one line per video, and one file with the frames of all videos."""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tgan_fast.errors import InputError

FORMAT = "tgan_fast clip store"
VERSION = 1
INDEX_NAME = "index.jsonl"
FRAMES_NAME = "frames.bin"
# Class name of videos without a class, where other videos have one.
UNCLASSIFIED = "unclassified"

_COUNTS = ("height", "width", "channels", "stride", "length")
_CHECK = re.compile(rb'(.*), "check": "([0-9a-f]{8})"\}', re.DOTALL)
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Header:
    """Properties that all videos of a store have in common.

    Attributes:
        height: Rows of every frame.
        width: Columns of every frame.
        channels: Channels of every frame.
        stride: Step between stored frames, in frames of the source.
        fps: Frames per second to which the sources were resampled before the stride was applied; None: not resampled.
        classes: Names of the classes; a class's number is its index here.
    """

    height: int
    width: int
    channels: int
    stride: int
    fps: float | None
    classes: tuple[str, ...]

    @property
    def frame_bytes(self) -> int:
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class Entry:
    """One video of a store.

    Attributes:
        video: Name of the video, usually its path below the source.
        start: Index of its first frame in the store.
        length: Number of its frames.
        label: Name of its class; None where there are no classes.
        group: Group in UCF-101's file names, or None.
        scene: Scene in UCF-101's file names, or None.
        source_bytes: Size of the source file in bytes.
        source_sha256: SHA-256 of the source file.
        sha256: SHA-256 of its frames.
        tool: Names and versions of the programs that prepared the video.
    """

    video: str
    start: int
    length: int
    label: str | None
    group: int | None
    scene: int | None
    source_bytes: int
    source_sha256: str
    sha256: str
    tool: str


@dataclass(frozen=True)
class Index:
    """Content of an index file.

    Attributes:
        header: Header of the store.
        entries: Videos of the store.
        size: Bytes up to the end of the last complete line; a writer that died may have left more.
    """

    header: Header
    entries: tuple[Entry, ...]
    size: int

    @property
    def frames(self) -> int:
        return sum(entry.length for entry in self.entries)


class ClipStore:
    """Prepared videos in a folder, as they are when it is opened; another process may append videos afterwards.

    Attributes:
        header: Properties that all videos have in common.
        entries: Videos.
        frames: Frames uint8 [F, H, W, C], memory-mapped.

    Raises:
        InputError: There is no store, or the store is damaged, has a newer version or holds no video.
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
        """Return whether `path` is the folder of a store."""
        return (path / INDEX_NAME).is_file()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all videos and their order, in hexadecimal."""
        return hashlib.sha256("".join(entry.sha256 for entry in self.entries).encode()).hexdigest()

    def damaged(self, progress: Callable[[int], object] = lambda nbytes: None, *, workers: int = 1) -> Iterator[Entry]:
        """Yield the videos whose frames have changed since they were written.

        Args:
            progress: Function that is called with the number of bytes after each read.
            workers: Number of threads.

        Raises:
            OSError: The disk cannot read the frames.
        """
        with ThreadPoolExecutor(workers) as pool:
            digests = pool.map(lambda entry: self._digest(entry, progress), self.entries)
            yield from (entry for entry, digest in zip(self.entries, digests, strict=True) if digest != entry.sha256)

    def _digest(self, entry, progress):
        # A failed read raises an error, whereas a failed access to mapped memory would kill the process.
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
                    f"{path} has {size:,} bytes, but its index expects {frames * header.frame_bytes:,}: "
                    "restore the file from a copy, or prepare the videos anew"
                )
            return np.memmap(path, np.uint8, "r", shape=(frames, header.height, header.width, header.channels))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None


def json_bytes(values: Any, indent: int | None = None) -> bytes:
    """Return values as JSON in UTF-8; bytes of file names that are not UTF-8 are escaped as surrogates.

    Python's escape of a surrogate, \\udcff, is also JSON's, so loading the text gives the same name.
    """
    return json.dumps(values, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace")


def line_of(content: Header | Entry) -> bytes:
    """Return a header or an entry as a line of the index, with its checksum."""
    values = asdict(content)
    if isinstance(content, Header):
        values = {"format": FORMAT, "version": VERSION, **values}
    text = json_bytes(values)
    return b'%s, "check": "%08x"}\n' % (text[:-1], zlib.crc32(text))


def read_index(folder: Path) -> Index:
    """Read the index of the store in `folder` and check all of its lines.

    Raises:
        InputError: There is no store, or the store is damaged or has a newer version.
    """
    path = folder / INDEX_NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is not a clip store: make one with python -m tgan_fast prepare SOURCE {folder}"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    first, *rest = content.split(b"\n")[:-1] or [b""]
    header = _header(first, path)
    entries = tuple(_parse(Entry, line, path, number) for number, line in enumerate(rest, 2))
    start = 0
    for number, entry in enumerate(entries, 2):
        if entry.start != start:
            raise _damaged(path, number)
        start += entry.length
    return Index(header, entries, content.rfind(b"\n") + 1)


def _header(line, path):
    try:
        values = json.loads(line)
        version = values["version"]
        known = values["format"] == FORMAT and isinstance(version, int)
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise InputError(f"{path} is not, or no longer, the index of a clip store: prepare the videos anew")
    if version > VERSION:
        raise InputError(
            f"{path.parent} is a clip store of version {version}, but this tgan_fast reads version {VERSION}: "
            "install a newer tgan_fast"
        )
    return _parse(Header, line, path, 1)


def _parse(kind, line, path, number):
    match = _CHECK.fullmatch(line)
    if match is None or zlib.crc32(match[1] + b"}") != int(match[2], 16):
        raise _damaged(path, number)
    try:
        values = json.loads(match[1] + b"}")
        if kind is Header:
            del values["format"], values["version"]
            values["classes"] = tuple(values["classes"])
        sound = all(isinstance(values.get(name, 1), int) and values.get(name, 1) > 0 for name in _COUNTS)
        sound = sound and isinstance(values.get("sha256", ""), str)
        content = kind(**values)
        # Names of videos and classes serve as dictionary keys, so they must be hashable.
        hash(content)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise _damaged(path, number)
    return content


def _damaged(path, number):
    return InputError(f"line {number} of {path} is damaged: restore the file from a copy, or prepare the videos anew")
