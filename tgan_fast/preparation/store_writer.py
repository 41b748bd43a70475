"""Clip stores, opened for writing: append-only, one writer at a time."""

import os
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tgan_fast.data.clip_store import FRAMES_NAME, INDEX_NAME, Entry, Header, line_of, read_index
from tgan_fast.errors import InputError
from tgan_fast.files import lock, write_atomically

# Time between two commits.
_COMMIT_SECONDS = 5.0
_COPIED_AT_ONCE = 1 << 24


class StoreWriter:
    """A writer that appends videos to the store in a folder, and creates the store if there is none.

    Appended videos become part of the store every few seconds, and on `close`. Data that an earlier writer left without
    committing it is removed first.

    Args:
        folder: Folder of the store.
        header: Header of the new videos. An existing store keeps its class numbers; new classes follow them.

    Attributes:
        header: Header of the store.
        entries: Entries of the store by the video's name.

    Raises:
        InputError: The folder holds other files or a store of another frame format, cannot be written, or is being
            written by another process.
    """

    def __init__(self, folder: Path, header: Header):
        self.folder, self.header, self.entries = folder, header, {}
        self._pending, self._committed = [], time.monotonic()
        try:
            self._open()
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}") from None

    def append(self, entry: Entry, source: int) -> None:
        """Append a video; the store sets its `start`.

        Args:
            entry: Entry of the video.
            source: File descriptor from which its frames are read.

        Raises:
            OSError: Writing failed, for instance on a full disk. Videos appended before are safe after `close`.
        """
        start = self._frames.tell()
        with _undo_on_error(self._frames):
            _copy(source, self._frames, entry.length * self.header.frame_bytes)
        entry = replace(entry, start=start // self.header.frame_bytes)
        self._pending.append(entry)
        self.entries[entry.video] = entry
        if time.monotonic() - self._committed > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make the appended videos part of the store."""
        if self._pending:
            os.fsync(self._frames.fileno())
            with _undo_on_error(self._index):
                _write(self._index, b"".join(map(line_of, self._pending)))
                os.fsync(self._index.fileno())
            self._pending.clear()
        self._committed = time.monotonic()

    def close(self) -> None:
        """Commit, and release the lock for other writers."""
        try:
            self.commit()
        finally:
            self._index.close()
            self._frames.close()

    def _open(self):
        self._refuse_another_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._frames = (self.folder / FRAMES_NAME).open("ab", buffering=0)
        try:
            if not lock(self._frames.fileno()):
                raise InputError(f"another process is writing to {self.folder}: wait for it, or end it")
            path, end = self.folder / INDEX_NAME, 0
            if path.exists():
                end = self._resume_index(path)
            else:
                write_atomically(path, line_of(self.header))
            self._frames.truncate(end)
            self._frames.seek(end)
            self._index = path.open("ab", buffering=0)
            self._index.seek(0, os.SEEK_END)
        except BaseException:
            self._frames.close()
            raise

    def _refuse_another_folder(self):
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file: choose a folder for the clip store")
        own = {INDEX_NAME, FRAMES_NAME, f".{INDEX_NAME}.partial"}
        if self.folder.is_dir() and not (self.folder / INDEX_NAME).exists():
            other = sorted(path.name for path in self.folder.iterdir() if path.name not in own)
            if other:
                raise InputError(f"{self.folder} holds other files, such as {other[0]}: choose another folder")

    def _resume_index(self, path):
        """Update an existing index, and return the bytes of frames that it lists."""
        index = read_index(self.folder)
        mine, there = (replace(header, classes=()) for header in (self.header, index.header))
        if mine != there:
            raise InputError(f"{self.folder} has {_describe(there)}, not {_describe(mine)}: choose another folder")
        end = index.frames * there.frame_bytes
        if (self.folder / FRAMES_NAME).stat().st_size < end:
            raise InputError(f"{self.folder / FRAMES_NAME} is shorter than its index says: prepare the videos anew")
        known = index.header.classes
        new = tuple(name for name in self.header.classes if name not in known)
        self.header = replace(self.header, classes=known + new)
        self.entries = {entry.video: entry for entry in index.entries}
        lines = path.read_bytes()[: index.size]
        if new or index.size < path.stat().st_size:
            write_atomically(path, line_of(self.header) + lines[lines.index(b"\n") + 1 :])
        return end


def _describe(header):
    rate = "" if header.fps is None else f", {header.fps:g} per second"
    stride = "" if header.stride == 1 else f", stride {header.stride}"
    return f"frames of {header.height}×{header.width}×{header.channels}{rate}{stride}"


@contextmanager
def _undo_on_error(file):
    """Truncate a file to its former end if an error interrupts a write."""
    end = file.tell()
    try:
        yield
    except BaseException:
        file.truncate(end)
        file.seek(end)
        raise


def _copy(source, target, count):
    while count:
        part = os.read(source, min(count, _COPIED_AT_ONCE))
        if not part:
            raise ValueError("there are fewer frames than the entry says")
        _write(target, part)
        count -= len(part)


def _write(file, content):
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
