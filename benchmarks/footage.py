"""Videos that give a codec as much to do as real ones: textures that move across each other, and a camera's noise."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

HEIGHT, WIDTH, RATE = 240, 320, 25  # of UCF-101
BIT_RATE = 500_000  # about what UCF-101 has

# Pixels from one random colour to the next, and how far those are apart: from large shapes to fine grain.
_TEXTURE = {64: 60, 16: 30, 4: 12, 1: 5}
_NOISE = 2


def moving_scene(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield frames uint8 [240, 320, 3]: a camera pans over a background, in front of which something circles."""
    choices = np.random.default_rng(seed)
    background = _texture(HEIGHT + count // 2, WIDTH + count, choices)
    height, width = HEIGHT // 2, WIDTH // 3
    thing = _texture(height, width, choices)
    for number in range(count):
        noise = choices.standard_normal((HEIGHT, WIDTH, 3), np.float32)
        frame = background[number // 2 :, number:][:HEIGHT, :WIDTH] + _NOISE * noise
        top = round((HEIGHT - height) * (1 + np.sin(number / 17)) / 2)
        left = round((WIDTH - width) * (1 + np.cos(number / 23)) / 2)
        frame[top : top + height, left : left + width] = thing
        yield frame.clip(0, 255).astype(np.uint8)


def encode(path: Path, frames: Iterable[np.ndarray], codec: str) -> Path:
    """Write a video file, whose name tells the container, of frames uint8 [240, 320, 3]; returns `path`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = HEIGHT, WIDTH, "yuv420p", BIT_RATE
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


def _texture(height, width, choices):
    """Random colours at several scales: float [height, width, 3] around grey."""
    layers = [_layer(height, width, cell, spread, choices) for cell, spread in _TEXTURE.items()]
    return 128 + sum(layers)


def _layer(height, width, cell, spread, choices):
    channels = choices.normal(0, spread, (3, -(-height // cell), -(-width // cell))).astype(np.float32)
    size = width, height
    return np.stack([Image.fromarray(c).resize(size, Image.Resampling.BICUBIC) for c in channels], -1)
