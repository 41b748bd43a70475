"""Clips as files to look at: GIF, MP4, a PNG strip of frames, or the raw array."""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tgan_fast.errors import InputError
from tgan_fast.files import write_atomically


def write_videos(path: Path, clips: np.ndarray, *, fps: int = 16, columns: int | None = None) -> None:
    """Write clips in the format that the file's name asks for.

    Args:
        path: `.gif` or `.mp4`, the clips side by side in a grid; `.png`, a row of frames a clip; `.npy`, the array.
        clips: uint8 [N, T, H, W, C], C of 1 or 3; `.npy` takes any C.
        fps: frames a second of a GIF or MP4.
        columns: of the grid; as many as rows, or one more, where that is not given.

    Raises:
        InputError: another file name, or a number of channels that has no colours.
        OSError: the file cannot be written; an older one of that name is left as it was.
    """
    encode = encoder_of(path)
    if encode is not _encode_array and clips.shape[-1] not in (1, 3):
        raise InputError(f"{path} cannot show videos of {clips.shape[-1]} channels; only .npy holds them")
    write_atomically(path, encode(clips, fps, columns))


def encoder_of(path: Path) -> Callable[[np.ndarray, int, int | None], bytes]:
    """The function that makes the bytes of a file of this name from clips, frames a second and columns.

    Raises:
        InputError: the name ends in something else.
    """
    encode = _ENCODERS.get(path.suffix.lower())
    if encode is None:
        raise InputError(f"cannot write {path}: its name must end in {', '.join(_ENCODERS)}")
    return encode


def _grid(clips, columns):
    """[N, T, H, W, C] → [T, rows·H, columns·W, C], empty places black."""
    n, t, h, w, c = clips.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    places = np.zeros((rows * columns, t, h, w, c), clips.dtype)
    places[:n] = clips
    places = places.reshape(rows, columns, t, h, w, c).transpose(2, 0, 3, 1, 4, 5)
    return places.reshape(t, rows * h, columns * w, c)


def _images(frames):
    """[K, H, W, C] → K Pillow images."""
    return [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]


def _encode_gif(clips, fps, columns):
    first, *rest = _images(_grid(clips, columns))
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=rest, duration=1000 / fps, loop=0)
    return content.getvalue()


def _encode_mp4(clips, fps, columns):
    # Here, since only this format needs the codecs.
    import av

    frames = _grid(clips, columns)
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "17"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in _images(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(image.convert("RGB"))))
        container.mux(stream.encode())
    return content.getvalue()


def _encode_png(clips, fps, columns):
    n, t, h, w, c = clips.shape
    (strip,) = _images(clips.transpose(0, 2, 1, 3, 4).reshape(1, n * h, t * w, c))
    content = io.BytesIO()
    strip.save(content, "PNG")
    return content.getvalue()


def _encode_array(clips, fps, columns):
    content = io.BytesIO()
    np.save(content, clips)
    return content.getvalue()


_ENCODERS = {".gif": _encode_gif, ".mp4": _encode_mp4, ".png": _encode_png, ".npy": _encode_array}
