"""Files that are either whole or not there, and locks. Errors name the file, also where the system's own do not."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path


def write_atomically(path: Path, content: bytes | BytesIO) -> None:
    """Write a file so that at any moment, a crash or a full disk included, `path` is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    view = content.getbuffer() if isinstance(content, BytesIO) else memoryview(content)
    try:
        # Released before an error can keep it: as garbage, a view and its BytesIO crash Python 3.12.1 and 3.13.0.
        with view, _naming(path), temporary.open("wb") as file:
            file.write(view)
            file.flush()
            os.fsync(file.fileno())
        with _naming(path):
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; a crash can leave the last line unfinished."""
    with _naming(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def lock(path: Path) -> int | None:
    """Lock a folder, or a file that is made where it is missing, until this process ends, however it ends.

    Returns:
        A file descriptor that can be closed earlier; None if another one holds the lock.
    """
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    except OSError:
        # Some network file systems have no locks, and then there is none.
        pass
    return opened


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
