"""Decoding of video files, image sequences and arrays into frames of one size.

`container` opens video files, `truncation` finds missing frames in them, `resample` resamples their frames in time, and
`fit` scales and crops frames to their stored size.
"""

from tgan_fast.preparation.decoding.fit import FrameFormat, fit_frames
from tgan_fast.preparation.decoding.images import read_images
from tgan_fast.preparation.decoding.video import count_frames, read_video

__all__ = ["FrameFormat", "count_frames", "fit_frames", "read_images", "read_video"]
