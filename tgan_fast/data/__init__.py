"""Clips in, videos out: data sets, their loader, and files to look at."""

from tgan_fast.data.loader import ClipDataset, ClipLoader, to_clips, to_videos
from tgan_fast.data.moving_digits import MovingDigits

__all__ = ["ClipDataset", "ClipLoader", "MovingDigits", "to_clips", "to_videos"]
