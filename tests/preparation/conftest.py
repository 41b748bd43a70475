"""Clip stores."""

import pytest
from support.stores import HEADER, append, video_of

from tgan_fast.preparation.store_writer import StoreWriter


@pytest.fixture
def videos():
    """Frames of three videos, by name."""
    return {f"{name} é.avi": video_of(length, length) for name, length in (("a", 5), ("b", 1), ("c", 17))}


@pytest.fixture
def store(tmp_path, videos):
    """The folder of a store of `videos`."""
    folder = tmp_path / "store"
    writer = StoreWriter(folder, HEADER)
    for name, frames in videos.items():
        append(writer, tmp_path / "spool", name, frames, label="Bowling" if name.startswith("b") else "Archery")
    writer.close()
    return folder
