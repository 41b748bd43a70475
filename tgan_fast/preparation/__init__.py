"""From a source to a clip store: videos are decoded by several processes and stored in order."""

from tgan_fast.preparation.estimate import estimated_frames
from tgan_fast.preparation.pipeline import REPORT, Result, prepare

__all__ = ["REPORT", "Result", "estimated_frames", "prepare"]
