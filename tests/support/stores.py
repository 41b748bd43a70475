"""Clip stores with little in them."""

import hashlib
import os

import numpy as np
import pytest

from tgan_fast.data.clip_store import Entry, Header
from tgan_fast.preparation.store_writer import StoreWriter

HEADER = Header(height=6, width=8, channels=3, stride=1, fps=None, classes=("Archery", "Bowling"))


def video_of(length, seed):
    """Frames uint8 [length, 6, 8, 3]."""
    return np.random.default_rng(seed).integers(256, size=(length, 6, 8, 3), dtype=np.uint8)


def entry_of(name, frames, **changes):
    """Return the entry of a video that is not stored yet."""
    values = {
        "video": name,
        "start": -1,
        "length": len(frames),
        "label": "Archery",
        "group": 1,
        "scene": 2,
        "source_bytes": 100,
        "source_sha256": "00",
        "sha256": hashlib.sha256(frames).hexdigest(),
        "tool": "none",
    }
    return Entry(**(values | changes))


def append(writer, spool, name, frames, **changes):
    """Store a video, whose frames go through the file `spool`."""
    spool.write_bytes(frames)
    descriptor = os.open(spool, os.O_RDONLY)
    try:
        writer.append(entry_of(name, frames, **changes), descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture
def videos():
    """Frames of three videos, by name."""
    return {f"{name} é.avi": video_of(length, length) for name, length in (("a", 5), ("b", 1), ("c", 17))}


@pytest.fixture
def store(tmp_path, videos):
    """Write a store of `videos` and return its folder."""
    folder = tmp_path / "store"
    writer = StoreWriter(folder, HEADER)
    for name, frames in videos.items():
        append(writer, tmp_path / "spool", name, frames, label="Bowling" if name.startswith("b") else "Archery")
    writer.close()
    return folder
