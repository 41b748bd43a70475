"""Frames in batches, so that a video of any length takes little memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from tgan_fast.preparation.decoding.form import Form

MOST = 64

Frame = TypeVar("Frame")


def in_batches(frames: Iterable[Frame], fit: Callable[[Frame, np.ndarray], None], form: Form) -> Iterator[np.ndarray]:
    """Yield frames as uint8 [n, H, W, C], n at most 64; each batch is memory of its own.

    Args:
        frames: in whatever form `fit` takes them.
        fit: called with a frame and with the place, uint8 [H, W, C], into which it goes.
        form: tells the shape.
    """
    batch, filled = None, 0
    for frame in frames:
        if batch is None:
            batch = np.empty((MOST, *form.shape), np.uint8)
        fit(frame, batch[filled])
        filled += 1
        if filled == MOST:
            yield batch
            batch, filled = None, 0
    if filled:
        yield batch[:filled]
