"""Resampling of a video's frames by the times at which they are shown."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar("Frame")

# Containers round times, Matroska and Flash to a millisecond. Without this, 30 of 30 frames a second would be others.
ROUNDING = 1e-3

# Steps, in seconds, from one frame's time to the next one's that are no pauses: another clock begins.
FARTHEST_BACK, FARTHEST_AHEAD = -1, 60

# Frames among which times may be mixed up, as in AVI files with packed B-frames.
MIXED_UP = 4


def resampled(frames: Iterable[tuple[Frame, float | None, float]], fps: float) -> Iterator[Frame]:
    """Yield `fps` frames a second: at every tick k / fps from the first frame's time on, the one that is shown then.

    A frame is shown from its own time, or up to a millisecond before, until the next one's, and the last for its
    duration, or a minute at most. It may be yielded several times, or never. Of a video of D seconds there are D · fps,
    rounded up, and at least one.

    Args:
        frames: Frames in the order in which they are shown, each with its time and its duration in seconds. Where times
            are not in that order, neighbors have each other's. A frame without a time (None) begins when the one
            before it ends. So does one whose time is more than a second before or a minute after that one's, as where
            recordings are joined, and the times of those that follow count from there.
        fps: Frames per second.
    """
    held, start, end, ticks = None, None, 0.0, 0
    for frame, time, duration in _sort_times(_repair_clock(frames)):
        start = time if start is None else start
        due = math.ceil((time - start - ROUNDING) * fps)
        yield from itertools.repeat(held, due - ticks)
        held, end, ticks = frame, time - start + duration, max(ticks, due)
    if held is not None:
        due = max(1, math.ceil((end - ROUNDING) * fps))
        yield from itertools.repeat(held, due - ticks)


def _repair_clock(frames):
    """Yield all frames with times on one clock; no frame is shown for more than a minute."""
    shift, last, end = 0.0, None, 0.0
    for frame, time, duration in frames:
        if time is None:
            time = end
        else:
            time += shift
            if last is not None and not FARTHEST_BACK <= time - last <= FARTHEST_AHEAD:
                shift, time = shift + end - time, end
        duration = min(duration, FARTHEST_AHEAD)
        yield frame, time, duration
        last, end = time, time + duration


def _sort_times(frames):
    """Yield all frames, with the times of neighbors in order."""
    waiting, times = deque(), []
    for frame, time, duration in frames:
        waiting.append((frame, duration))
        heapq.heappush(times, time)
        if len(waiting) > MIXED_UP:
            frame, duration = waiting.popleft()
            yield frame, heapq.heappop(times), duration
    for frame, duration in waiting:
        yield frame, heapq.heappop(times), duration
