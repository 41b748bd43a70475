"""Writers of clips as files to look at: GIF, MP4, WebP, APNG, a PNG strip of frames, or the raw array."""

import io
import math
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import GifImagePlugin, Image, ImageDraw, ImageFont

from tgan_fast.errors import InputError, counted, printable
from tgan_fast.extras import require_package
from tgan_fast.files import write_atomically

# Number of pixels that a frame's palette is computed from: more take seconds and lower the error by a few percent.
_PALETTE_PIXELS = 1 << 14
# Smallest width of a clip with labels, in pixels: narrower ones are hard to see and leave no room for text.
_LABELED_WIDTH = 64
_STRIP_HEIGHT, _STRIP_MARGIN = 15, 3
_TITLE_GRAY, _CAPTION_GRAY = 64, 0


class TitledGrid(NamedTuple):
    """Clips to show in a grid below a title.

    Attributes:
        title: Title.
        clips: Clips uint8 [N, T, H, W, C].
        captions: Texts above the clips, one for each; empty for none.
    """

    title: str
    clips: np.ndarray
    captions: Sequence[str] = ()


def stack_grids(grids: Sequence[TitledGrid], columns: int) -> np.ndarray:
    """Draw grids of clips one below the other, each under a strip with its title.

    Clips narrower than 64 pixels are enlarged by an integer factor. Texts too long for their strip are cut off.

    Args:
        grids: Grids, from top to bottom, whose clips all have the same T, H, W and C.
        columns: Columns of every grid; places without a clip are black.

    Returns:
        One clip uint8 [1, T, height, width, C] that shows all.
    """
    rows = []
    for title, clips, captions in grids:
        factor = math.ceil(_LABELED_WIDTH / clips.shape[3])
        clips = clips.repeat(factor, 2).repeat(factor, 3)
        n, t, _, w, c = clips.shape
        if captions:
            strips = np.stack([_strip(caption, w, _CAPTION_GRAY) for caption in captions])[:, None, ..., None]
            clips = np.concatenate([np.broadcast_to(strips, (n, t, _STRIP_HEIGHT, w, c)), clips], 2)
        strip = _strip(title, columns * w, _TITLE_GRAY)[..., None]
        rows += [np.broadcast_to(strip, (t, *strip.shape[:2], c)), _grid(clips, columns)]
    return np.concatenate(rows, 1)[None]


def _strip(text, width, gray):
    """Return a strip uint8 [height, width] of one gray level with a white text."""
    font = ImageFont.load_default()
    # Without FreeType, Pillow's font has only the characters of Latin-1.
    text = printable(text).encode("latin-1", "replace").decode("latin-1")
    while text and font.getlength(text) > width - 2 * _STRIP_MARGIN:
        text = text[:-1]
    image = Image.new("L", (width, _STRIP_HEIGHT), gray)
    ImageDraw.Draw(image).text((_STRIP_MARGIN, 1), text, 255, font)
    return np.asarray(image)


def write_videos(path: Path, clips: np.ndarray, *, fps: int = 16, columns: int | None = None) -> None:
    """Write clips in the format that the file's name asks for.

    Every frame is kept, even if it equals the one before. Durations are rounded so that they add up.

    Args:
        path: File name. `.gif`, `.mp4`, `.webp` and `.apng` show the clips side by side in a grid, `.png` shows a row
            of frames for each clip, and `.npy` holds the array. A GIF has at most 256 colors a frame and MP4 is lossy;
            the others are exact, and so are GIFs of gray clips.
        clips: Clips uint8 [N, T, H, W, C] with C = 1 or 3; `.npy` takes any C.
        fps: Frames per second.
        columns: Columns of the grid; None: as many as rows, or one more.

    Raises:
        InputError: The file's format is unknown, or does not support these frames per second, channels or pixels.
        OSError: The file cannot be written; an older file of that name is left as it was.
    """
    check_videos(path, clips.shape, fps=fps, columns=columns)
    write_atomically(path, _FORMATS[path.suffix.lower()].encode(clips, fps, columns))


def check_format(path: Path, fps: int) -> None:
    """Raise an InputError unless the file's format is known, supports `fps` and has its package installed."""
    file_format = _FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise InputError(f"cannot write {path}: its name must end in {', '.join(_FORMATS)}")
    if not 1 <= fps <= file_format.fastest:
        raise InputError(f"fps is {fps}, but must be 1 to {file_format.fastest:,} for {path.suffix}")
    if path.suffix.lower() == ".mp4":
        require_package("av", "MP4 files need PyAV")


def check_videos(path: Path, shape: tuple[int, ...], *, fps: int = 16, columns: int | None = None) -> None:
    """Check clips before they are made.

    Args:
        path: File name.
        shape: Shape [N, T, H, W, C] of the clips.
        fps: Frames per second.
        columns: Columns of the grid.

    Raises:
        InputError: The file's format is unknown, or does not support these frames per second, channels or pixels.
    """
    check_format(path, fps)
    n, t, h, w, c = shape
    file_format = _FORMATS[path.suffix.lower()]
    if file_format.layout == "array":
        return
    if c not in (1, 3):
        raise InputError(f"{path} cannot show videos of {c} channels; only .npy holds them")
    rows, columns = (n, t) if file_format.layout == "strip" else _rows_and_columns(n, columns)
    if max(rows * h, columns * w) > file_format.largest:
        raise InputError(
            f"cannot write {path}: {n:,} videos make a picture of {columns * w:,}×{rows * h:,} pixels, but "
            f"{path.suffix} takes {file_format.largest:,} at most: choose fewer, or .npy"
        )


def arrangement(path: Path, count: int, columns: int | None = None) -> str:
    """Return in words how a file shows `count` videos, such as "9 videos in a grid of 3 × 3"."""
    rows, columns = _rows_and_columns(count, columns)
    how = {"grid": f" in a grid of {rows:,} × {columns:,}", "strip": ", each a row of its frames", "array": ""}
    return f"{counted(count, 'video')}{how[_FORMATS[path.suffix.lower()].layout]}"


def _rows_and_columns(n, columns):
    columns = columns or math.ceil(math.sqrt(n))
    return math.ceil(n / columns), columns


def _grid(clips, columns):
    """Arrange clips [N, T, H, W, C] in a grid [T, rows·H, columns·W, C], with empty places black."""
    n, t, h, w, c = clips.shape
    rows, columns = _rows_and_columns(n, columns)
    places = np.zeros((rows * columns, t, h, w, c), clips.dtype)
    places[:n] = clips
    places = places.reshape(rows, columns, t, h, w, c).transpose(2, 0, 3, 1, 4, 5)
    return places.reshape(t, rows * h, columns * w, c)


def _image(frame):
    """Return a frame [H, W, C] as a Pillow image."""
    return Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)


def _durations(frames, fps, units):
    """Return the durations of frames in whole units, `units` per second, rounded so that they add up."""
    ends = [(2 * units * number + fps - 1) // (2 * fps) for number in range(frames + 1)]
    return [after - before for before, after in pairwise(ends)]


def _encode_gif(clips, fps, columns):
    # Frame by frame, since Pillow merges equal frames when it saves them together.
    frames = [_with_palette(frame) for frame in _grid(clips, columns)]
    header, _ = GifImagePlugin.getheader(frames[0].copy(), info={"loop": 0})
    content = [*header]
    for frame, duration in zip(frames, _durations(len(frames), fps, 100), strict=True):
        # Gray frames share the palette in the header.
        content += GifImagePlugin.getdata(frame, duration=10 * duration, include_color_table=frame.mode == "P")
    return b"".join([*content, b";"])


def _with_palette(frame):
    """Return a frame [H, W, C] as a Pillow image of at most 256 colors, exact if the frame has no more."""
    image = _image(frame)
    if image.mode == "L":
        return image
    codes, indices = np.unique(frame.astype(np.uint32) @ (1 << 16, 1 << 8, 1), return_inverse=True)
    if len(codes) <= 256:
        exact = Image.fromarray(indices.reshape(frame.shape[:2]).astype(np.uint8))
        exact.putpalette(np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).astype(np.uint8).tobytes())
        return exact
    pixels = frame.reshape(-1, 3)
    chosen = np.random.default_rng(0).permutation(len(pixels))[:_PALETTE_PIXELS]
    # Without k-means, the error of one channel, mostly blue, is three times that of the others.
    palette = Image.fromarray(pixels[None, chosen]).quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def _encode_mp4(clips, fps, columns):
    # Here, since only this format needs the codecs.
    import av

    frames = _grid(clips, columns)
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "17"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(_image(frame).convert("RGB"))))
        container.mux(stream.encode())
    return content.getvalue()


def _encode_webp(clips, fps, columns):
    # The animation is assembled here, since libwebp merges equal frames.
    frames = _grid(clips, columns)
    size = b"".join((side - 1).to_bytes(3, "little") for side in (frames.shape[2], frames.shape[1]))
    animated, do_not_blend = 2, 2
    chunks = [_chunk(b"VP8X", bytes([animated, 0, 0, 0]) + size), _chunk(b"ANIM", bytes(6))]
    for frame, duration in zip(frames, _durations(len(frames), fps, 1000), strict=True):
        still = io.BytesIO()
        _image(frame).convert("RGB").save(still, "WEBP", lossless=True)
        place = bytes(6) + size + duration.to_bytes(3, "little") + bytes([do_not_blend])
        # Leave out the 12 bytes that begin the still image's own container.
        chunks.append(_chunk(b"ANMF", place + still.getvalue()[12:]))
    return _chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def _chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _encode_apng(clips, fps, columns):
    first, *rest = frames = [_image(frame) for frame in _grid(clips, columns)]
    # Pillow merges equal frames unless they are blended differently, which makes no difference to opaque frames.
    blend = [number % 2 for number in range(len(frames))]
    duration = _durations(len(frames), fps, 1000)
    content = io.BytesIO()
    first.save(content, "PNG", save_all=True, append_images=rest, duration=duration, loop=0, blend=blend)
    return content.getvalue()


def _encode_png(clips, fps, columns):
    n, t, h, w, c = clips.shape
    content = io.BytesIO()
    _image(clips.transpose(0, 2, 1, 3, 4).reshape(n * h, t * w, c)).save(content, "PNG")
    return content.getvalue()


def _encode_array(clips, fps, columns):
    content = io.BytesIO()
    np.save(content, clips)
    return content.getvalue()


class _Format(NamedTuple):
    """Kind of file.

    Attributes:
        encode: Function from clips, frames per second and columns to the bytes of a file.
        layout: Arrangement of the frames.
        fastest: Largest number of frames per second.
        largest: Largest side of a picture, in pixels.
    """

    encode: Callable[[np.ndarray, int, int | None], bytes]
    layout: Literal["grid", "strip", "array"] = "grid"
    fastest: int = 1000
    largest: int = 2**31 - 1


_FORMATS = {
    # Browsers show a frame of less than 20 ms for 100 ms.
    ".gif": _Format(_encode_gif, fastest=50, largest=65_535),
    ".mp4": _Format(_encode_mp4, largest=16_384),
    ".webp": _Format(_encode_webp, largest=16_383),
    ".apng": _Format(_encode_apng),
    ".png": _Format(_encode_png, "strip"),
    ".npy": _Format(_encode_array, "array"),
}
