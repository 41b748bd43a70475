"""Atomic writes and locks. Errors always name the file."""

import fcntl
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path


def write_atomically(path: Path, content: bytes | BytesIO) -> None:
    """Write a file so that at any moment, a crash or a full disk included, `path` is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    view = content.getbuffer() if isinstance(content, BytesIO) else memoryview(content)
    try:
        # The view is released before an error can keep it, because Python 3.12.1 and 3.13.0 crash when they collect a
        # view together with its BytesIO.
        with view, _with_file_name(path), temporary.open("wb") as file:
            file.write(view)
            file.flush()
            os.fsync(file.fileno())
        with _with_file_name(path):
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; a crash can leave the last line unfinished."""
    with _with_file_name(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed or the process ends, and return whether it was free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks: continue without one.
        pass
    return True


def is_whole_zip(content: bytes) -> bool:
    """Return whether bytes are a ZIP archive whose members all have the checksums that were written with them."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return archive.testzip() is None
    except MemoryError:
        raise
    except Exception:  # damage makes zipfile raise errors of many types
        return False


@contextmanager
def _with_file_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
