"""How a frame becomes as large as is asked for: scaled until it just covers that, then cut out of the middle."""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

# Each new pixel is the mean over its area, or where it is smaller than an old one, in between those around it. Besides,
# SWS_ACCURATE_RND and SWS_BITEXACT, which PyAV names from version 18 on: the same levels on every processor.
_INTERPOLATION = Interpolation.AREA | 0x40000 | 0x80000

# AVCOL_SPC_RESERVED, which FFmpeg refuses to convert.
_RESERVED = 3

# In planes, since FFmpeg scales to interleaved colours three times as slowly.
_FORMATS = {1: "gray", 3: "gbrp"}
# The place of each plane's channel among red, green and blue.
_PLANES = {1: (0,), 3: (1, 2, 0)}


def covering_size(
    height: int, width: int, form_height: int, form_width: int, pixel_aspect: Fraction = Fraction(1)
) -> tuple[int, int]:
    """Rows and columns to which a frame is scaled so that it just covers a form.

    One of them is the form's, and the other is rounded to the nearest pixel.

    Args:
        height, width: of the frame.
        form_height, form_width: what it is to cover.
        pixel_aspect: width of a pixel of the frame by its height.
    """
    across, down = width * pixel_aspect.numerator, height * pixel_aspect.denominator
    if form_height * across >= form_width * down:
        return form_height, _nearest(form_height * across, down)
    return _nearest(form_width * down, across), form_width


class Fitter:
    """Fits the frames of a video, one after another, into the place that each is given.

    A frame is scaled so that it just covers the place, by means over areas where it shrinks, and its centre is cut
    out. Levels go from 0 to 255, whatever the range of the source. Grey is its luma, or where it has red, green and
    blue, that of BT.601.

    Args:
        pixel_aspect: width of a pixel of the frames by its height.
    """

    def __init__(self, pixel_aspect: Fraction = Fraction(1)):
        self._pixel_aspect = pixel_aspect
        self._reformatter = VideoReformatter()

    def fit(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Write a decoded frame into `out`, uint8 [H, W, C], turned as its rotation tells, in quarters."""
        turns = round(frame.rotation / 90)
        if turns:
            out = np.rot90(out, -turns)
        height, width, channels = out.shape
        size = covering_size(frame.height, frame.width, height, width, self._pixel_aspect)
        if frame.format.name == _FORMATS[channels] and frame.planes[0].line_size < 0:
            # PyAV before version 18 cannot copy lines that go upwards.
            frame = frame.reformat(format="rgb24", threads=1)
        # Of grey the luma is taken as it is, and FFmpeg would make it that of another matrix.
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
            # Starting threads takes longer than such a frame.
            threads=1,
        )
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        for plane, channel in zip(scaled.planes, _PLANES[channels], strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            out[..., channel] = rows[top : top + height, left : left + width]

    def fit_array(self, frame: np.ndarray, out: np.ndarray) -> None:
        """Write a frame uint8 [H', W'], [H', W', 1] or [H', W', 3] into `out`, uint8 [H, W, C].

        One that is as large as that already is copied as it is.
        """
        frame = frame if frame.ndim == 3 else frame[..., None]
        if frame.shape[:2] == out.shape[:2] and frame.shape[2] in (1, out.shape[2]):
            out[...] = frame
        elif frame.shape[2] == 1:
            self.fit(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[..., 0]), "gray"), out)
        else:
            self.fit(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24"), out)


def _nearest(numerator, denominator):
    return (2 * numerator + denominator) // (2 * denominator)
