"""Videos as one array of frames, out of which training cuts its clips at random."""

import warnings
from typing import Literal

import numpy as np
import torch

from tgan_fast.errors import InputError
from tgan_fast.models import FRAMES, IMAGE_SIZE


class VideoFrames:
    """Videos of any length that lie one after another, or anywhere, in one array of frames.

    A clip is 16 consecutive frames of a video from a start at random, the last one included, and 64 by 64 pixels of
    each.

    Args:
        frames: uint8 [F, H, W, C] in host memory: an array, a memory-mapped one, or a tensor. None is copied.
        first: of each video, its first frame: integers [V].
        length: of each video, how many frames it has: integers [V].
        labels: of each video, its class: integers [V].
        crop: where a clip's pixels come from in larger frames: their centre, or a place at random.
        flip: mirror half of the clips, at random, left to right.

    Attributes:
        layers: of the windows; see `read_windows`.

    Raises:
        ValueError: an array of another dtype or shape.
        InputError: no videos; frames smaller than a clip; a video that is shorter than a clip or not within the frames.
    """

    layers = 1

    def __init__(
        self,
        frames: np.ndarray | torch.Tensor,
        first: np.ndarray,
        length: np.ndarray,
        labels: np.ndarray,
        *,
        crop: Literal["centre", "random"] = "centre",
        flip: bool = False,
    ):
        if crop not in ("centre", "random"):
            raise ValueError(f"a crop is 'centre' or 'random', not {crop!r}")
        self.frames = _host_tensor(frames)
        self.first, self.length, self.labels = _vectors(first=first, length=length, labels=labels)
        self.crop, self.flip = crop, flip
        self._check()

    def __len__(self) -> int:
        return len(self.first)

    def windows(self, videos: np.ndarray, choices: np.random.Generator) -> np.ndarray:
        """Windows int64 [n, 1, 16, 4], as `read_windows` takes them, of a clip at random from each of `videos` [n]."""
        height, width = (size - IMAGE_SIZE for size in self.frames.shape[1:3])
        options = np.ones((len(videos), 4), np.int64)
        options[:, 0] += self.length[videos] - FRAMES
        options[:, 3] += self.flip
        if self.crop == "random":
            options[:, 1:3] += height, width
        start, top, left, mirrored = choices.integers(options).T
        if self.crop == "centre":
            top, left = top + height // 2, left + width // 2
        windows = np.empty((len(videos), 1, FRAMES, 4), np.int64)
        windows[..., 0] = (self.first[videos] + start)[:, None, None] + np.arange(FRAMES)
        of_all_frames = np.stack([top, left + mirrored * (IMAGE_SIZE - 1), 1 - 2 * mirrored], -1)
        windows[..., 1:] = of_all_frames[:, None, None]
        return windows

    def cut(self, windows: np.ndarray, out: np.ndarray) -> None:
        """Copy the clips of windows [n, 1, 16, 4] into `out`, uint8 [n, 16, 64, 64, C]."""
        frames = self.frames.numpy()
        for clip, (frame, top, left, step) in zip(out, windows[:, 0, 0].tolist(), strict=True):
            leftmost = min(left, left + step * (IMAGE_SIZE - 1))
            rows = frames[frame : frame + FRAMES, top : top + IMAGE_SIZE]
            pixels = rows[:, :, leftmost : leftmost + IMAGE_SIZE]
            if step > 0:
                clip[...] = pixels
            else:
                # By channel, since NumPy would copy a mirrored row pixel by pixel, five times as slowly.
                for channel in range(clip.shape[-1]):
                    clip[..., channel] = pixels[:, :, ::-1, channel]

    def _check(self):
        frames, height, width, _ = self.frames.shape
        if not len(self):
            raise InputError("the data set has no videos")
        if min(height, width) < IMAGE_SIZE:
            raise InputError(
                f"the frames are {height} pixels high and {width} wide, but a clip needs {IMAGE_SIZE} of each: "
                "prepare the videos anew, larger"
            )
        short = np.flatnonzero(self.length < FRAMES)
        if len(short):
            raise InputError(
                f"video {short[0]} has {self.length[short[0]]} frames, but a clip needs {FRAMES}: leave it out"
            )
        outside = np.flatnonzero((self.first < 0) | (self.first > frames - self.length))
        if len(outside):
            video = outside[0]
            last = self.first[video] + self.length[video] - 1
            raise InputError(
                f"video {video} goes from frame {self.first[video]} to {last}, but there are {frames} frames: "
                "prepare the videos anew"
            )


def _host_tensor(frames):
    if isinstance(frames, np.ndarray):
        with warnings.catch_warnings():
            # That the array cannot be written, as is usual for a memory-mapped one; nobody does.
            warnings.simplefilter("ignore", UserWarning)
            frames = torch.from_numpy(frames)
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.is_cuda:
        raise ValueError(
            f"frames are uint8 [F, H, W, C] in host memory, not {frames.dtype} {list(frames.shape)} on {frames.device}"
        )
    return frames


def _vectors(**named):
    """Each as int64 [V], of the same V."""
    vectors = {name: np.asarray(values) for name, values in named.items()}
    for name, vector in vectors.items():
        if vector.dtype.kind not in "iu" or vector.ndim != 1 or len(vector) != len(vectors["first"]):
            raise ValueError(
                f"{name} holds an integer for each of {len(vectors['first'])} videos, "
                f"not {vector.dtype} {list(vector.shape)}"
            )
    return [vector.astype(np.int64) for vector in vectors.values()]
