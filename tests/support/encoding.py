"""Real video files for tests, encoded on the spot."""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SAMPLE_RATE = 48_000

# Where it is not AAC.
_SOUND = {".avi": "mp2", ".webm": "libopus"}


def moving_picture(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth waves of color that wander: uint8 [count, height, width, 3]."""
    choices = np.random.default_rng(seed)
    t, y, x = np.ogrid[:count, :height, :width]
    channels = []
    for _ in range(3):
        speed, down, across, phase = choices.uniform((0.1, 2, 2, 0), (0.3, 6, 6, 7))
        channels.append(np.sin(speed * t + down * y / height + across * x / width + phase))
    return (127.5 + 110 * np.stack(channels, -1)).round().astype(np.uint8)


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that tell their numbers, up to 255, as bars of black and white: uint8 [count, height, width]."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    bars = bits[:, np.arange(width) * 8 // width]
    return np.broadcast_to(np.uint8(255) * bars.astype(np.uint8)[:, None], (count, height, width))


def numbers_of(frames: np.ndarray) -> list[int]:
    """Read the numbers in frames uint8 [T, H, W, C], even after scaling and coding."""
    bars = frames.mean((1, 3)).reshape(len(frames), 8, -1).mean(-1)
    return ((bars > 127) << np.arange(8)).sum(-1).tolist()


def encode(
    path: Path,
    frames: np.ndarray | Sequence[av.VideoFrame],
    *,
    codec: str = "libx264",
    fps: int | Fraction = 25,
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    times: Sequence[float] | None = None,
    audio: float = 0,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    extradata: bytes | None = None,
    format: str | None = None,
    title: str | None = None,
    container_options: Mapping[str, str] | None = None,
) -> Path:
    """Write a video file.

    Args:
        path: File name; its ending determines the container unless `format` is given.
        frames: Frames uint8 [T, H, W, 3] or [T, H, W], or PyAV frames, which are encoded unchanged, flags included.
        codec: Video codec; not libsvtav1, which gives root's process real-time priority and starves other processes.
        fps: Frames per second.
        pix_fmt: Pixel format that arrays are converted to.
        options: Options of the codec.
        times: Time of each frame in seconds, instead of `fps`.
        audio: Duration of a silent sound track in seconds; 0: no sound track.
        rotation: Angle in degrees, counterclockwise, by which a player turns the frames.
        pixel_aspect: Width of a pixel divided by its height; None: square pixels.
        extradata: Extra data for the decoder, bytes; None: what the encoder writes.
        format: Name of the container format; None: by the ending of `path`.
        title: Title in the file's metadata; None: no title.
        container_options: Options of the container.

    Returns:
        `path`.
    """
    frames = _video_frames(frames, pix_fmt)
    with av.open(str(path), "w", format=format, options=dict(container_options or {})) as container:
        container.metadata.update({"title": title} if title else {})
        stream = container.add_stream(codec, rate=fps, options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        context = stream.codec_context
        context.colorspace, context.color_range = frames[0].colorspace, frames[0].color_range
        if pixel_aspect:
            context.sample_aspect_ratio = pixel_aspect
        if extradata:
            context.extradata = extradata
        if rotation:
            stream.set_display_rotation(rotation)
        unit = 1 / Fraction(fps) if times is None else Fraction(1, 1000)
        context.time_base = unit
        sound = container.add_stream(_SOUND.get(path.suffix, "aac"), rate=SAMPLE_RATE) if audio else None
        for index, frame in enumerate(frames):
            frame.pts = index if times is None else round(times[index] / unit)
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            for silence in _silence(audio):
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return path


def _video_frames(frames: np.ndarray | Sequence[av.VideoFrame], pix_fmt: str) -> Sequence[av.VideoFrame]:
    if not isinstance(frames, np.ndarray):
        return frames
    layout = "rgb24" if frames.ndim == 4 else "gray"
    return [av.VideoFrame.from_ndarray(frame, layout).reformat(format=pix_fmt) for frame in frames]


def _silence(seconds: float) -> Iterator[av.AudioFrame]:
    frame_size = 1024
    for start in range(0, round(seconds * SAMPLE_RATE), frame_size):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, frame_size), np.float32), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        yield frame
