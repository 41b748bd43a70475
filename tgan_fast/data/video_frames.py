"""The data set of prepared videos, from which clips are cut at random."""

import warnings
from typing import Literal

import numpy as np
import torch

from tgan_fast.choices import ShortVideos
from tgan_fast.data.prepared_videos import PreparedVideos
from tgan_fast.errors import InputError, printable
from tgan_fast.sizes import FRAMES, IMAGE_SIZE, check_sizes


def clip_span(stride: int = 1, clip_frames: int = FRAMES) -> int:
    """Return the number of video frames that a clip spans: `clip_frames` frames, `stride` apart."""
    return (clip_frames - 1) * stride + 1


class VideoFrames:
    """A data set of clips that are cut from prepared videos.

    A clip has `clip_frames` frames of a video, `stride` apart, cropped to `image_size` × `image_size` pixels.

    Args:
        videos: Videos.
        stride: Step from one frame of a clip to the next.
        weighting: Content of an epoch: "videos": one clip of each video, from a random start; "windows": one clip from
            every start of every video, so that longer videos appear more often.
        last_start: Whether clips may end with a video's last frame; the authors' code leaves that start out unless it
            is the only one.
        short: Treatment of videos with fewer frames than `clip_span(stride, clip_frames)`: "skip" leaves them out,
            "loop" repeats them from their beginning.
        crop: Position of clips in larger frames: "center", or "random" for each clip.
        flip: Whether to mirror half of the clips, chosen at random, left to right.
        clip_frames: Number of frames of a clip, 8 to 64.
        image_size: Side of a clip's frames in pixels: 16, 32, 64 or 128.

    Attributes:
        videos: Videos that clips are cut from.
        frames: Frames of all videos, uint8 tensor [F, H, W, C] in host memory.
        first, length, labels: First frame, number of frames and class of each video, int64 [V].
        starts: Number of possible starts of a clip in each video, int64 [V].
        summary: One line on the videos and on those that are too short.
        layers: Layers of the windows that `read_windows` takes.

    Raises:
        ValueError: Frames have another dtype or shape, or an option is unknown.
        InputError: Frames are smaller than a clip, or no video is long enough.
    """

    layers = 1

    def __init__(
        self,
        videos: PreparedVideos,
        *,
        stride: int = 1,
        weighting: Literal["videos", "windows"] = "videos",
        last_start: bool = True,
        short: ShortVideos = "skip",
        crop: Literal["center", "random"] = "center",
        flip: bool = False,
        clip_frames: int = FRAMES,
        image_size: int = IMAGE_SIZE,
    ):
        check_sizes(clip_frames, image_size)
        if stride < 1:
            raise ValueError(f"a stride must be at least 1, not {stride}")
        for name, value, known in (
            ("weighting", weighting, ("videos", "windows")),
            ("short", short, ("skip", "loop")),
            ("crop", crop, ("center", "random")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {known[0]!r} or {known[1]!r}, not {value!r}")
        self.frames = _host_tensor(videos.frames)
        self.stride, self.weighting, self.loop = stride, weighting, short == "loop"
        self.crop, self.flip = crop, flip
        self.clip_frames, self.image_size = clip_frames, image_size
        self.videos = self._videos_long_enough(videos)
        self.first, self.length, self.labels = self.videos.first, self.videos.length, self.videos.labels
        self.summary = self._summary(videos)
        self.starts = np.maximum(self.length - clip_span(stride, clip_frames) + int(last_start), 1)
        self._windows_up_to = np.cumsum(self.starts)
        self._offsets = stride * np.arange(clip_frames)[:, None]
        self._room = np.array(self.frames.shape[1:3]) - image_size
        if self._room.min() < 0:
            height, width = self.frames.shape[1:3]
            raise InputError(
                f"the frames are {height} pixels high and {width} wide, but a clip needs {image_size} of each: "
                "prepare the videos anew in a larger size"
            )

    def __len__(self) -> int:
        """Return how many clips an epoch has."""
        return len(self.first) if self.weighting == "videos" else int(self._windows_up_to[-1])

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of a clip."""
        return self.clip_frames, self.image_size, self.image_size, self.frames.shape[-1]

    @property
    def fingerprint(self) -> str | None:
        """Text that changes with the videos; None if they are only in memory."""
        return self.videos.fingerprint

    @property
    def classes(self) -> int:
        """Number of classes; 0 if all videos have the same class."""
        alike = self.labels.min() == self.labels.max()
        return 0 if alike else int(self.labels.max()) + 1

    def windows(self, clips: np.ndarray, choices: np.random.Generator) -> np.ndarray:
        """Return windows int64 [n, 1, clip_frames, 4], as `read_windows` takes them, of `clips` [n] of an epoch.

        Crops and flips are chosen at random, and so are starts with the weighting "videos".
        """
        videos = self._videos_of(clips)
        start, top, left, mirrored = choices.integers(self._choice_counts(videos)).T
        if self.weighting == "windows":
            start = clips - self._windows_up_to[videos] + self.starts[videos]
        if self.crop == "center":
            top, left = top + self._room[0] // 2, left + self._room[1] // 2
        windows = np.empty((len(clips), 1, self.clip_frames, 4), np.int64)
        # Each view has the shape [clip_frames, n].
        frames, tops, lefts, steps = windows.T[:, :, 0]
        # The remainder only affects looped videos: in others, offsets are smaller than the length.
        frames[...] = self.first[videos] + start + self._offsets % self.length[videos]
        tops[...] = top
        lefts[...] = left + mirrored * (self.image_size - 1)
        steps[...] = 1 - 2 * mirrored
        return windows

    def labels_of(self, clips: np.ndarray) -> np.ndarray:
        """Return the classes, int64 [n], of `clips` [n] of an epoch."""
        return self.labels[self._videos_of(clips)]

    def cut(self, windows: np.ndarray, out: np.ndarray) -> None:
        """Copy the clips of windows [n, 1, clip_frames, 4], as `windows` returns them, into uint8 [n, *clip_shape]."""
        frames, size = self.frames.numpy(), self.image_size
        in_rows = frames.strides[2:] == out.strides[3:]
        numbers, first_windows = windows[:, 0, :, 0].tolist(), windows[:, 0, 0].tolist()
        for clip, of_clip, (_, top, left, step) in zip(out, numbers, first_windows, strict=True):
            leftmost = min(left, left + step * (size - 1))
            rows, columns = slice(top, top + size), slice(leftmost, leftmost + size)
            pixels = frames[self._frame_index(of_clip), rows, columns]
            if in_rows and step > 0:
                clip[...] = pixels
            else:
                # NumPy would copy all channels at once pixel by pixel, which is several times as slow.
                for channel in range(clip.shape[-1]):
                    clip[..., channel] = pixels[:, :, ::step, channel]

    def _videos_of(self, clips):
        if self.weighting == "videos":
            return clips
        return np.searchsorted(self._windows_up_to, clips, side="right")

    def _choice_counts(self, videos):
        """Return the numbers of possible starts, tops, lefts and directions: int64 [n, 4]."""
        options = np.ones((len(videos), 4), np.int64)
        if self.weighting == "videos":
            options[:, 0] = self.starts[videos]
        if self.crop == "random":
            options[:, 1:3] += self._room
        options[:, 3] += self.flip
        return options

    def _frame_index(self, numbers):
        """Return an index of a clip's frames: a slice unless the video is looped, since NumPy copies for a list."""
        first, end = numbers[0], numbers[-1] + 1
        return slice(first, end, self.stride) if end - first == clip_span(self.stride, self.clip_frames) else numbers

    def _videos_long_enough(self, videos):
        """Return the videos that clips can be cut from."""
        span = clip_span(self.stride, self.clip_frames)
        chosen = videos.length >= (1 if self.loop else span)
        if not chosen.any():
            raise InputError(
                f"none of the {len(chosen):,} videos of {videos.name} has the {span} frames of a clip: "
                "choose short_videos 'loop', a smaller frame_stride, or clips of fewer frames"
            )
        return videos.only(chosen)

    def _summary(self, videos):
        counts = {"videos": len(videos.length), "frames": videos.length.sum(), "classes": len(videos.class_names)}
        short = int((videos.length < clip_span(self.stride, self.clip_frames)).sum())
        if short:
            counts[f"shorter than a clip and {'looped' if self.loop else 'left out'}"] = short
        return f"{printable(videos.name)}: " + "; ".join(f"{name}: {count:,}" for name, count in counts.items())


def _host_tensor(frames):
    if isinstance(frames, np.ndarray):
        with warnings.catch_warnings():
            # PyTorch warns of read-only arrays such as memory-mapped ones, but nothing writes to this one.
            warnings.simplefilter("ignore", UserWarning)
            frames = torch.from_numpy(frames)
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.is_cuda:
        raise ValueError(
            f"frames are uint8 [F, H, W, C] in host memory, not {frames.dtype} {list(frames.shape)} on {frames.device}"
        )
    return frames
