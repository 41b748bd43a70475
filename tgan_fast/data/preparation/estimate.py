"""How large a store will be, before anything is decoded."""

from collections.abc import Sequence
from typing import NamedTuple

from tgan_fast.data.decoding import Form
from tgan_fast.data.sources import SourceVideo
from tgan_fast.errors import UnreadableVideoError

# Of more videos than these, so many are looked at, and stand for the rest.
_LOOKED_AT = 256


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
    counts = [_count(video, form) for video in sample]
    nbytes = sum(video.nbytes for video in sample)
    frames = sum(counts) / nbytes * sum(video.nbytes for video in videos) if nbytes else sum(counts)
    return Estimate(round(frames), max(counts, default=0))


def _count(video, form):
    try:
        return video.count(form)
    except UnreadableVideoError:
        return 0
