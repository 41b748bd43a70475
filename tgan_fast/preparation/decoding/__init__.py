"""From a source to stored frames: video files, sequences of images, and arrays, all fitted by one rule.

`select` tells which frames are taken, and `fit` how each becomes as large as is asked for.
`container` opens files, and `truncation` finds what is missing in them.
"""

from tgan_fast.preparation.decoding.fit import Form, fit_frames
from tgan_fast.preparation.decoding.images import read_images
from tgan_fast.preparation.decoding.video import count_frames, read_video

__all__ = ["Form", "count_frames", "fit_frames", "read_images", "read_video"]
