"""Data sets, and how their clips reach the training step: file → data set → feed → windows → step."""

from tgan_fast.data.feed import Batch, ClipDataset, Feed, open_feed
from tgan_fast.data.moving_digits import MovingDigits
from tgan_fast.data.prepared_videos import PreparedVideos, read_videos
from tgan_fast.data.video_frames import VideoFrames

__all__ = [
    "Batch",
    "ClipDataset",
    "Feed",
    "MovingDigits",
    "PreparedVideos",
    "VideoFrames",
    "open_feed",
    "read_videos",
]
