"""Clip stores with little in them."""

import hashlib
import os

import numpy as np

from tgan_fast.data.store_index import Entry, Header

HEADER = Header(height=6, width=8, channels=3, stride=1, fps=None, classes=("Archery", "Bowling"))


def video_of(length, seed):
    """Frames uint8 [length, 6, 8, 3]."""
    return np.random.default_rng(seed).integers(256, size=(length, 6, 8, 3), dtype=np.uint8)


def entry_of(name, frames, **changes):
    """Of a video that is yet to be stored."""
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
