"""From a source to a clip store: videos are decoded by several processes and stored in order."""

from tgan_fast.preparation.pipeline import REPORT, Result, estimated_frames, prepare

__all__ = ["REPORT", "Result", "estimated_frames", "prepare"]
