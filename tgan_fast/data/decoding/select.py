"""Which frames of a video are taken, by the times at which they are shown."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar("Frame")

# Containers round times, Matroska and Flash to a millisecond. Without this, 30 of 30 frames a second would be others.
ROUNDING = 1e-3

# Steps, in seconds, from one frame's time to the next one's that are no pauses: another clock begins.
FARTHEST_BACK, FARTHEST_AHEAD = -1, 60


def resampled(frames: Iterable[tuple[Frame, float | None, float]], fps: float) -> Iterator[Frame]:
    """Yield `fps` frames a second: at every tick k / fps from the first frame's time on, the one that is shown then.

    A frame is shown from its own time, or up to a millisecond before, until the next one's, and the last for its
    duration, or a minute at most. It may be yielded several times, or never. Of a video of D seconds there are D · fps,
    rounded up, and at least one.

    Args:
        frames: of each, in order: the frame, its time, and its duration, in seconds. One without a time (None) begins
            when the one before it ends. So does one whose time is more than a second before or a minute after that
            one's, as where recordings are joined, and the times of those that follow count from there.
        fps: frames a second.
    """
    held, end, ticks = None, 0.0, 0
    for frame, time, duration in _from_zero(frames):
        due = math.ceil((time - ROUNDING) * fps)
        yield from itertools.repeat(held, due - ticks)
        held, end, ticks = frame, time + min(duration, FARTHEST_AHEAD), max(ticks, due)
    if held is not None:
        due = max(1, math.ceil((end - ROUNDING) * fps))
        yield from itertools.repeat(held, due - ticks)


def _from_zero(frames):
    """The same, with times that count from the first frame's, all of one clock."""
    start, last, end = None, 0.0, 0.0
    for frame, time, duration in frames:
        if time is None:
            time = end
        else:
            start = time if start is None else start
            time -= start
            if not FARTHEST_BACK <= time - last <= FARTHEST_AHEAD:
                start, time = start + time - end, end
        yield frame, time, duration
        last, end = time, time + min(duration, FARTHEST_AHEAD)
