"""Preparation, from a source to a clip store: several processes decode videos, which are stored in order."""

from tgan_fast.preparation.pipeline import REPORT, Result, estimated_frames, prepare

__all__ = ["REPORT", "Result", "estimated_frames", "prepare"]
