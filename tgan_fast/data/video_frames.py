"""Videos as one array of frames, out of which training cuts its clips at random."""

import warnings
from typing import Literal

import numpy as np
import torch

from tgan_fast.errors import InputError
from tgan_fast.sizes import FRAMES, IMAGE_SIZE, check_sizes


def clip_span(stride: int = 1, clip_frames: int = FRAMES) -> int:
    """How many frames a video must have for a clip of `clip_frames` that are `stride` apart."""
    return (clip_frames - 1) * stride + 1


class VideoFrames:
    """Videos of any length that lie one after another, or anywhere, in one array of frames.

    A clip is `clip_frames` frames of a video, `stride` apart from any start, and `image_size` pixels square of each.

    Args:
        frames: uint8 [F, H, W, C] in host memory: an array, a memory-mapped one, or a tensor. None is copied.
        first: of each video, its first frame: integers [V].
        length: of each video, how many frames it has: integers [V].
        labels: of each video, its class: integers [V].
        stride: from one frame of a clip to the next.
        weighting: what an epoch has, once each: "videos", from a start at random, or their "windows", one from every
            start of every video, so that longer videos come up more often.
        last_start: False leaves out the last start of videos that have more than one, as the authors' code does.
        loop: repeat videos that are shorter than `clip_span(stride, clip_frames)` from their beginning.
        crop: where a clip's pixels come from in larger frames: their centre, or a place at random.
        flip: mirror half of the clips, at random, left to right.
        clip_frames: 8 to 64.
        image_size: 16, 32, 64 or 128 pixels.

    Attributes:
        starts: of each video, how many a clip may have: int64 [V].
        layers: of the windows; see `read_windows`.

    Raises:
        ValueError: an array of another dtype or shape, or an option that there is not.
        InputError: no videos; frames smaller than a clip; a video that is too short or not within the frames.
    """

    layers = 1

    def __init__(
        self,
        frames: np.ndarray | torch.Tensor,
        first: np.ndarray,
        length: np.ndarray,
        labels: np.ndarray,
        *,
        stride: int = 1,
        weighting: Literal["videos", "windows"] = "videos",
        last_start: bool = True,
        loop: bool = False,
        crop: Literal["centre", "random"] = "centre",
        flip: bool = False,
        clip_frames: int = FRAMES,
        image_size: int = IMAGE_SIZE,
    ):
        check_sizes(clip_frames, image_size)
        if stride < 1:
            raise ValueError(f"a stride is at least 1, not {stride}")
        if weighting not in ("videos", "windows"):
            raise ValueError(f"a weighting is 'videos' or 'windows', not {weighting!r}")
        if crop not in ("centre", "random"):
            raise ValueError(f"a crop is 'centre' or 'random', not {crop!r}")
        self.frames = _host_tensor(frames)
        self.first, self.length, self.labels = _vectors(first=first, length=length, labels=labels)
        self.stride, self.weighting, self.loop = stride, weighting, loop
        self.crop, self.flip = crop, flip
        self.clip_frames, self.image_size = clip_frames, image_size
        self._check()
        self.starts = np.maximum(self.length - clip_span(stride, clip_frames) + int(last_start), 1)
        self._windows_up_to = np.cumsum(self.starts)
        self._offsets = stride * np.arange(clip_frames)[:, None]
        self._room = np.array(self.frames.shape[1:3]) - image_size

    def __len__(self) -> int:
        """How many clips an epoch has."""
        return len(self.first) if self.weighting == "videos" else int(self._windows_up_to[-1])

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Of a clip: frames, height, width, channels."""
        return self.clip_frames, self.image_size, self.image_size, self.frames.shape[-1]

    @property
    def classes(self) -> int:
        """How many classes there are, numbered from 0; none where all videos are of the same one."""
        alike = self.labels.min() == self.labels.max()
        return 0 if alike else int(self.labels.max()) + 1

    def windows(self, clips: np.ndarray, choices: np.random.Generator) -> np.ndarray:
        """Windows int64 [n, 1, clip_frames, 4], as `read_windows` takes them, of `clips` [n] of an epoch.

        Starts, where an epoch does not have all of them, crops and flips are chosen at random.
        """
        videos = self._videos_of(clips)
        start, top, left, mirrored = choices.integers(self._options(videos)).T
        if self.weighting == "windows":
            start = clips - self._windows_up_to[videos] + self.starts[videos]
        if self.crop == "centre":
            top, left = top + self._room[0] // 2, left + self._room[1] // 2
        windows = np.empty((len(clips), 1, self.clip_frames, 4), np.int64)
        # Each [clip_frames, n].
        frames, tops, lefts, steps = windows.T[:, :, 0]
        # The remainder matters to repeated videos only: the offsets in others are smaller than their lengths.
        frames[...] = self.first[videos] + start + self._offsets % self.length[videos]
        tops[...] = top
        lefts[...] = left + mirrored * (self.image_size - 1)
        steps[...] = 1 - 2 * mirrored
        return windows

    def labels_of(self, clips: np.ndarray) -> np.ndarray:
        """The classes, int64 [n], of `clips` [n] of an epoch."""
        return self.labels[self._videos_of(clips)]

    def cut(self, windows: np.ndarray, out: np.ndarray) -> None:
        """Copy the clips of windows [n, 1, clip_frames, 4], as `windows` returns them, into uint8 [n, *clip_shape]."""
        frames, size = self.frames.numpy(), self.image_size
        in_rows = frames.strides[2:] == out.strides[3:]
        numbers, first_windows = windows[:, 0, :, 0].tolist(), windows[:, 0, 0].tolist()
        for clip, of_clip, (_, top, left, step) in zip(out, numbers, first_windows, strict=True):
            leftmost = min(left, left + step * (size - 1))
            rows, columns = slice(top, top + size), slice(leftmost, leftmost + size)
            pixels = frames[self._index(of_clip), rows, columns]
            if in_rows and step > 0:
                clip[...] = pixels
            else:
                # By channel, since NumPy would copy these rows pixel by pixel, several times as slowly.
                for channel in range(clip.shape[-1]):
                    clip[..., channel] = pixels[:, :, ::step, channel]

    def _videos_of(self, clips):
        if self.weighting == "videos":
            return clips
        return np.searchsorted(self._windows_up_to, clips, side="right")

    def _options(self, videos):
        """How many starts, tops, lefts and directions there are to choose from: int64 [n, 4]."""
        options = np.ones((len(videos), 4), np.int64)
        if self.weighting == "videos":
            options[:, 0] = self.starts[videos]
        if self.crop == "random":
            options[:, 1:3] += self._room
        options[:, 3] += self.flip
        return options

    def _index(self, numbers):
        """Of a clip's frames. A slice where the video is not repeated: what a list indexes, NumPy copies once more."""
        first, end = numbers[0], numbers[-1] + 1
        return slice(first, end, self.stride) if end - first == clip_span(self.stride, self.clip_frames) else numbers

    def _check(self):
        frames, height, width, _ = self.frames.shape
        if not len(self.first):
            raise InputError("the data set has no videos")
        if min(height, width) < self.image_size:
            raise InputError(
                f"the frames are {height} pixels high and {width} wide, but a clip needs {self.image_size} of each: "
                "prepare the videos anew, larger"
            )
        needed = 1 if self.loop else clip_span(self.stride, self.clip_frames)
        short = np.flatnonzero(self.length < needed)
        if len(short):
            video, remedy = short[0], "leave it out" if self.loop else "leave it out, or choose loop=True"
            raise InputError(f"video {video} has {self.length[video]} frames, but a clip needs {needed}: {remedy}")
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
