"""Triton kernel that cuts clips out of frames and scales them, in one pass.

Each program writes BLOCK values of one frame of one clip. Offsets into frames and videos have 64 bits.
"""

import triton
import triton.language as tl


@triton.jit
def read_windows_kernel(
    frames, windows, videos, height, width, clip_frames,
    LAYERS: tl.constexpr, CHANNELS: tl.constexpr, VIDEO_CHANNELS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK divides SIZE·SIZE·VIDEO_CHANNELS."""
    clip, clip_frame = tl.program_id(0) // clip_frames, tl.program_id(0) % clip_frames
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pixel = place // VIDEO_CHANNELS
    row, column = pixel // SIZE, pixel % SIZE
    channel = place % VIDEO_CHANNELS if CHANNELS > 1 else 0

    value = tl.zeros((BLOCK,), tl.int32)
    for layer in tl.static_range(LAYERS):
        window = windows + 4 * ((clip * LAYERS + layer) * clip_frames + clip_frame)
        frame = frames + tl.load(window) * (height * width * CHANNELS)
        top, left, step = tl.load(window + 1), tl.load(window + 2), tl.load(window + 3)
        y, x = top.to(tl.int32) + row, left.to(tl.int32) + step.to(tl.int32) * column
        value = tl.maximum(value, tl.load(frame + (y * width + x) * CHANNELS + channel).to(tl.int32))

    # Exact up to the division.
    video = tl.div_rn((2 * value - 255).to(tl.float32), 255.0)
    first = tl.program_id(0).to(tl.int64) * (SIZE * SIZE * VIDEO_CHANNELS)
    tl.store(videos + first + place, video.to(videos.dtype.element_ty))
