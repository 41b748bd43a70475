"""Fitting of frames to their stored size: scale them to just cover it, crop the center, collect batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

# AREA averages over each new pixel's area, or interpolates where frames are enlarged. The other flags, SWS_ACCURATE_RND
# and SWS_BITEXACT, which PyAV names from version 18 on, give the same levels on every processor.
_INTERPOLATION = Interpolation.AREA | 0x40000 | 0x80000

# AVCOL_SPC_RESERVED, which FFmpeg refuses to convert.
_RESERVED = 3

# Planar formats, since FFmpeg takes three times as long to scale to interleaved colors.
_FORMATS = {1: "gray", 3: "gbrp"}
# Index of each plane's channel among red, green and blue.
_PLANES = {1: (0,), 3: (1, 2, 0)}

_BATCH = 64

Frame = TypeVar("Frame")


@dataclass(frozen=True)
class FrameFormat:
    """Size and channels of stored frames, and the choice of frames to store.

    Attributes:
        height: Rows of a frame.
        width: Columns of a frame.
        channels: Number of channels: 3 for red, green and blue, or 1 for gray.
        stride: Step between stored frames: every stride-th frame is kept, beginning with the first.
        fps: Frames per second to which a video is resampled, by its frames' times, before `stride` applies; None: no
            resampling.

    Raises:
        ValueError: A value is out of range.
    """

    height: int
    width: int
    channels: int
    stride: int = 1
    fps: float | None = None

    def __post_init__(self):
        if min(self.height, self.width) < 1:
            raise ValueError(f"frames have at least one pixel, not {self.height} rows of {self.width}")
        if self.channels not in (1, 3):
            raise ValueError(f"frames have 1 or 3 channels, not {self.channels}")
        if self.stride < 1:
            raise ValueError(f"a stride must be at least 1, not {self.stride}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"frames per second must be more than 0, not {self.fps}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a frame."""
        return self.height, self.width, self.channels

    def refuse_fps(self) -> None:
        """Raise a ValueError if `fps` is set; for sources whose frames have no times."""
        if self.fps is not None:
            raise ValueError(f"frames without times cannot be resampled to {self.fps:g} per second: choose a stride")


def covering_size(
    height: int, width: int, target_height: int, target_width: int, pixel_aspect: Fraction = Fraction(1)
) -> tuple[int, int]:
    """Return the rows and columns to which a frame is scaled so that it just covers the target.

    One of them equals the target's, and the other is rounded to the nearest pixel.

    Args:
        height: Rows of the frame.
        width: Columns of the frame.
        target_height: Rows to cover.
        target_width: Columns to cover.
        pixel_aspect: Width of a pixel of the frame divided by its height.
    """
    across, down = width * pixel_aspect.numerator, height * pixel_aspect.denominator
    if target_height * across >= target_width * down:
        return target_height, _nearest(target_height * across, down)
    return _nearest(target_width * down, across), target_width


class Fitter:
    """Fitter that writes the frames of one video into arrays of the stored size.

    A frame is scaled so that it just covers the array, by averages over areas where it shrinks, and its center is
    kept. Levels go from 0 to 255, whatever the range of the source. Gray is the luma of the source; for RGB frames it
    is the luma of BT.601.

    Args:
        pixel_aspect: Width of a pixel of the frames divided by its height.
    """

    def __init__(self, pixel_aspect: Fraction = Fraction(1)):
        self._pixel_aspect = pixel_aspect
        self._reformatter = VideoReformatter()

    def fit(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Write a frame into `out`, uint8 [H, W, C], rotated as its metadata says, to the nearest quarter turn."""
        turns = round(frame.rotation / 90)
        if turns:
            out = np.rot90(out, -turns)
        height, width, channels = out.shape
        size = covering_size(frame.height, frame.width, height, width, self._pixel_aspect)
        if frame.format.name == _FORMATS[channels] and frame.planes[0].line_size < 0:
            # PyAV before version 18 cannot copy frames whose lines are stored bottom-up.
            frame = frame.reformat(format="rgb24", threads=1)
        # For gray output, equal matrices make FFmpeg keep the source's luma instead of converting it to another matrix.
        matrix = Colorspace.ITU601 if channels == 1 or frame.colorspace == _RESERVED else None
        scaled = self._reformatter.reformat(
            frame,
            width=size[1],
            height=size[0],
            format=_FORMATS[channels],
            src_colorspace=matrix,
            dst_colorspace=matrix,
            dst_color_range=ColorRange.JPEG,
            interpolation=_INTERPOLATION,
            # Starting threads takes longer than scaling a frame.
            threads=1,
        )
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        for plane, channel in zip(scaled.planes, _PLANES[channels], strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            out[..., channel] = rows[top : top + height, left : left + width]

    def fit_array(self, frame: np.ndarray, out: np.ndarray) -> None:
        """Write a frame uint8 [H', W'], [H', W', 1] or [H', W', 3] into `out`, uint8 [H, W, C].

        A frame that already has this size is copied unchanged.
        """
        frame = frame if frame.ndim == 3 else frame[..., None]
        if frame.shape[:2] == out.shape[:2] and frame.shape[2] in (1, out.shape[2]):
            out[...] = frame
        elif frame.shape[2] == 1:
            self.fit(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[..., 0]), "gray"), out)
        else:
            self.fit(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24"), out)


def in_batches(
    frames: Iterable[Frame], fit: Callable[[Frame, np.ndarray], None], frame_format: FrameFormat
) -> Iterator[np.ndarray]:
    """Yield frames as uint8 [n, H, W, C], n at most 64; each batch has its own memory.

    Args:
        frames: Frames, as `fit` takes them.
        fit: Function that writes a frame into an array uint8 [H, W, C].
        frame_format: Format of the stored frames.
    """
    batch, filled = None, 0
    for frame in frames:
        if batch is None:
            batch = np.empty((_BATCH, *frame_format.shape), np.uint8)
        fit(frame, batch[filled])
        filled += 1
        if filled == _BATCH:
            yield batch
            batch, filled = None, 0
    if filled:
        yield batch[:filled]


def fit_frames(frames: np.ndarray, frame_format: FrameFormat) -> Iterator[np.ndarray]:
    """Yield the frames of an array as they are stored: batches uint8 [n, H, W, C], n at most 64.

    Args:
        frames: Frames uint8 [T, H', W'], [T, H', W', 1] or [T, H', W', 3].
        frame_format: Format of the stored frames.

    Raises:
        ValueError: The array has another dtype or shape, or the format sets `fps`, since arrays have no times.
    """
    frame_format.refuse_fps()
    if frames.dtype != np.uint8 or not (frames.ndim == 3 or (frames.ndim == 4 and frames.shape[3] in (1, 3))):
        raise ValueError(f"frames are uint8 [T, H, W] or [T, H, W, C], C of 1 or 3, not {frames.dtype} {frames.shape}")
    return in_batches(frames[:: frame_format.stride], Fitter().fit_array, frame_format)


def _nearest(numerator, denominator):
    return (2 * numerator + denominator) // (2 * denominator)
