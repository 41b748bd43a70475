"""Decoding of video files, sequences of images, and arrays into frames that are all fitted by one rule.

`container` opens video files, `truncation` finds missing frames in them, `resample` resamples their frames in time, and
`fit` makes frames as large as is asked for.
"""

from tgan_fast.preparation.decoding.fit import Form, fit_frames
from tgan_fast.preparation.decoding.images import read_images
from tgan_fast.preparation.decoding.video import count_frames, read_video

__all__ = ["Form", "count_frames", "fit_frames", "read_images", "read_video"]
