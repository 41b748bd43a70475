"""Files that commands write."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tgan_fast.errors import InputError


def check_folder(out: Path) -> None:
    """Raise an InputError unless the folder that a file will be written to exists."""
    if not out.resolve().parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raise an InputError if the block cannot write a file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None
