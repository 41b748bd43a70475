"""Atomic writes: a file is complete or absent."""

import errno
from io import BytesIO

import pytest

from tgan_fast.files import append_line, write_atomically


def test_a_file_is_replaced_and_nothing_else_left(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, b"old")
    # Writing to /dev/full fails as on a full disk; the temporary file is a link to it.
    (tmp_path / ".x.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_after_a_full_disk_nothing_holds_on_to_the_content(tmp_path):
    """Python 3.12.1 crashes if it collects the content together with a view of it."""
    (tmp_path / ".x.partial").symlink_to("/dev/full")
    content = BytesIO(b"new")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(tmp_path / "x", content)
    content.write(b"longer than before")  # BufferError where there is a view
    assert caught.value.__cause__ is not None


def test_lines_are_added_and_a_full_disk_is_named(tmp_path):
    append_line(tmp_path / "x", "one")
    append_line(tmp_path / "x", "two")
    assert (tmp_path / "x").read_text() == "one\ntwo\n"
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        append_line(tmp_path / "full", "one")
    assert caught.value.filename == str(tmp_path / "full")
