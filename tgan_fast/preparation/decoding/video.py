"""Decoding of video files."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from tgan_fast.errors import UnreadableVideoError
from tgan_fast.preparation.archives import ArchivedFile
from tgan_fast.preparation.decoding.container import opened, promised_seconds
from tgan_fast.preparation.decoding.fit import Fitter, FrameFormat, in_batches
from tgan_fast.preparation.decoding.resample import resampled
from tgan_fast.preparation.decoding.truncation import Extent

# Frame rate assumed for streams without times or a rate.
_USUAL_RATE = 25


def read_video(path: Path | ArchivedFile, frame_format: FrameFormat, *, threads: int = 1) -> Iterator[np.ndarray]:
    """Yield the frames to store of a video file, in display order.

    Args:
        path: File.
        frame_format: Format of the stored frames.
        threads: Number of decoding threads; 0: one for each processor.

    Yields:
        Batches uint8 [n, H, W, C], n at most 64.

    Raises:
        UnreadableVideoError: The file cannot be read, is not a video, is damaged, or is truncated. Damage is only found
            after the batches before it have been yielded.
    """
    with opened(path) as (container, stream):
        stream.codec_context.thread_type, stream.codec_context.thread_count = "AUTO", threads
        fitter = Fitter(stream.sample_aspect_ratio or 1)
        frames = _require_equal_size(_decode_or_refuse(path, container, stream))
        if frame_format.fps:
            frames = resampled(_with_times(frames, stream), frame_format.fps)
        try:
            yield from in_batches(itertools.islice(frames, 0, None, frame_format.stride), fitter.fit, frame_format)
        except av.error.FFmpegError as error:
            raise UnreadableVideoError(f"its frames cannot be converted: {error.strerror}") from None


def count_frames(path: Path | ArchivedFile, frame_format: FrameFormat) -> int:
    """Estimate how many frames `read_video` will yield, from the header if it says, and without decoding any.

    Raises:
        UnreadableVideoError: The file cannot be opened, or has no video.
    """
    with opened(path) as (container, stream):
        rate = _rate(stream)
        seconds = promised_seconds(container, stream) or _count_packets(container, stream) / rate
        return -(-round(seconds * (frame_format.fps or rate)) // frame_format.stride)


class _DamageError(Exception):
    """Error about an incomplete frame."""


def _decode_or_refuse(
    path: Path | ArchivedFile, container: InputContainer, stream: VideoStream
) -> Iterator[av.VideoFrame]:
    """Yield the frames of a video up to the first damaged one; then raise an error if frames are damaged or missing."""
    extent, damaged = Extent(), False
    try:
        yield from _decode_until_damaged(container, stream, extent)
    except (av.error.FFmpegError, _DamageError):
        damaged = True
    if extent.is_cut or not damaged:
        missing = extent.missing(path, stream, promised_seconds(container, stream))
        if missing:
            there = extent.packets
            raise UnreadableVideoError(f"it is incomplete: {there} of about {there + missing} frames are there")
    if damaged:
        raise UnreadableVideoError(f"it is damaged after {extent.frames} frames")
    if not extent.frames:
        raise UnreadableVideoError("none of its frames can be decoded" if extent.packets else "it has no frames")


def _decode_until_damaged(container: InputContainer, stream: VideoStream, extent: Extent) -> Iterator[av.VideoFrame]:
    """Yield the frames of a video until one is damaged."""
    begun = False
    for packet in _packets(container, stream):
        if packet.has_sidedata("encryption_info"):
            raise UnreadableVideoError("it is encrypted")
        extent.add(packet)
        begun = begun or packet.is_keyframe or extent.frames > 0
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            # A recording may begin between key frames, and packets before the first one cannot be decoded.
            if begun:
                raise
            continue
        for frame in frames:
            if frame.is_corrupt:
                raise _DamageError
            extent.frames += 1
            yield frame


def _require_equal_size(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    size = None
    for frame in frames:
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise UnreadableVideoError(
                f"its frames have different sizes, {size[0]}×{size[1]} and then {frame.width}×{frame.height}"
            )
        yield frame


def _with_times(
    frames: Iterable[av.VideoFrame], stream: VideoStream
) -> Iterator[tuple[av.VideoFrame, float | None, float]]:
    """Yield each frame with its time and its duration, in seconds."""
    usual, unit = 1 / _rate(stream), float(stream.time_base)
    for frame in frames:
        yield frame, frame.time, frame.duration * unit or usual


def _rate(stream: VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or _USUAL_RATE)


def _count_packets(container: InputContainer, stream: VideoStream) -> int:
    """Count the packets that can be read."""
    count = 0
    with contextlib.suppress(av.error.FFmpegError):
        for packet in _packets(container, stream):
            count += packet.size > 0
    return count


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Yield the packets of a stream, and then an empty one that flushes the decoder."""
    for packet in container.demux(stream):
        yield packet
        if not packet.size:
            # Reading stops here, since PyAV would now fail if other streams began in the middle of the file.
            return
