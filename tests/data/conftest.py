"""Fixtures of videos to cut clips from."""

import numpy as np
import pytest
from support.stores import store, videos  # noqa: F401  fixtures

from tgan_fast.data import PreparedVideos, VideoFrames


@pytest.fixture
def make_videos():
    """Random frames of videos of the given lengths, with a gap of two frames between any two."""

    def make(lengths=(16, 19, 40, 17, 23), *, height=64, width=85, channels=3, **options):
        lengths = np.array(lengths)
        first = np.cumsum(lengths + 2) - lengths
        size = int(first[-1] + lengths[-1]), height, width, channels
        frames = np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)
        return VideoFrames(PreparedVideos(frames, first, lengths, np.arange(len(lengths))), **options)

    return make
