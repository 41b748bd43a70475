"""How large a store will be, before anything is decoded."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from tgan_fast.errors import UnreadableVideoError
from tgan_fast.preparation.decoding import Form
from tgan_fast.preparation.sources import SourceVideo

# Of more videos than these, so many are looked at, and stand for the rest.
_LOOKED_AT = 256
# Times as many frames a byte as half of the videos have at most.
_MOST_UNUSUAL = 100


class Estimate(NamedTuple):
    """About how many frames will be stored: of all videos, and of the longest one."""

    frames: int
    longest: int


def estimated_frames(videos: Sequence[SourceVideo], form: Form) -> Estimate:
    """What the files of `videos` say of themselves."""
    by_size = sorted(videos, key=lambda video: video.nbytes)
    step = max(1, len(by_size) // _LOOKED_AT)
    # From the middle of each group of alike sizes.
    sample = by_size[step // 2 :: step]
    counts = _plausible([_count(video, form) for video in sample], [video.nbytes for video in sample])
    nbytes = sum(video.nbytes for video in sample)
    frames = sum(counts) / nbytes * sum(video.nbytes for video in videos) if nbytes else sum(counts)
    return Estimate(round(frames), max(counts, default=0))


def _plausible(counts, nbytes):
    """Without what damaged headers tell, where others tell what is usual."""
    ratios = [count / max(1, size) for count, size in zip(counts, nbytes, strict=True)]
    usual = statistics.median(ratios) if ratios else 0
    if not usual:
        return counts
    return [
        round(usual * size) if ratio > _MOST_UNUSUAL * usual else count
        for count, size, ratio in zip(counts, nbytes, ratios, strict=True)
    ]


def _count(video, form):
    try:
        return video.count(form)
    except UnreadableVideoError:
        return 0
