"""Resampling of a video to a frame rate, by the times of its frames."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar("Frame")

# Matroska and Flash round times to a millisecond, which must not change a video that already has the wanted rate.
ROUNDING = 1e-3

# A step in seconds from one frame's time to the next that is outside these bounds means that another clock begins.
FARTHEST_BACK, FARTHEST_AHEAD = -1, 60

# Number of frames within which times may be out of order, as in AVI files with packed B-frames.
MIXED_UP = 4


def resampled(frames: Iterable[tuple[Frame, float | None, float]], fps: float) -> Iterator[Frame]:
    """Yield `fps` frames per second: for each tick k / fps after the first frame's time, the frame shown at that time.

    A frame is shown from its time, or up to a millisecond earlier, until the next frame's time; the last frame is shown
    for its duration, at most a minute. A frame may be yielded several times, or never. A video of D seconds gives
    D · fps frames, rounded up, and at least one.

    Args:
        frames: Frames in display order, each with its time and its duration in seconds. Times out of order among
            neighbors are sorted. A frame without a time (None) begins when the previous frame ends. So does a frame
            whose time is more than a second before or a minute after the previous frame's, as in joined recordings;
            the times of later frames are shifted with it.
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
    """Yield all frames with their times, sorted among neighbors."""
    waiting, times = deque(), []
    for frame, time, duration in frames:
        waiting.append((frame, duration))
        heapq.heappush(times, time)
        if len(waiting) > MIXED_UP:
            frame, duration = waiting.popleft()
            yield frame, heapq.heappop(times), duration
    for frame, duration in waiting:
        yield frame, heapq.heappop(times), duration
