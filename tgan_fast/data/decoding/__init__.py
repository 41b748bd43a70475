"""From a source to stored frames: video files, sequences of images, and arrays, all fitted by one rule.

The order of things is that of the imports: which frames (`select`), how they become as large as is asked for (`fit`),
and batches of them; how files are opened, and what shows that one is incomplete.
"""

from tgan_fast.data.decoding.arrays import fit_frames
from tgan_fast.data.decoding.form import Form
from tgan_fast.data.decoding.images import read_images
from tgan_fast.data.decoding.video import count_frames, read_video

__all__ = ["Form", "count_frames", "fit_frames", "read_images", "read_video"]
