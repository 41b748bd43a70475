"""Preparation of videos, from a source to a clip store: several processes decode, and one writes in order."""

from tgan_fast.preparation.pipeline import REPORT, Result, estimated_frames, prepare

__all__ = ["REPORT", "Result", "estimated_frames", "prepare"]
