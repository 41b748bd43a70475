"""Triton kernel that cuts clips out of frames and scales them, in one pass.

Each program writes BLOCK values of one frame of one clip. Offsets into frames and videos have 64 bits.
"""

import math

import torch
import triton
import triton.language as tl

# A thread writes 8 values.
_LARGEST_BLOCK, _VALUES_OF_WARP = 1024, 256
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def read_windows_kernel(
    frames, windows, videos, height, width, clip_frames,
    LAYERS: tl.constexpr, CHANNELS: tl.constexpr, VIDEO_CHANNELS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write BLOCK values of a frame of a clip. BLOCK divides SIZE·SIZE·VIDEO_CHANNELS."""
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

    # In float32, only the division rounds.
    video = tl.div_rn((2 * value - 255).to(tl.float32), 255.0)
    first = tl.program_id(0).to(tl.int64) * (SIZE * SIZE * VIDEO_CHANNELS)
    tl.store(videos + first + place, video.to(videos.dtype.element_ty))


# When Triton decorates a kernel, it decides whether its interpreter runs it on a CPU, which is slow and for tests.
INTERPRETED = not isinstance(read_windows_kernel, triton.JITFunction)


def why_not(frames: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Return why the kernel cannot read these frames into videos of this dtype; None if it can."""
    if dtype not in _DTYPES:
        return f"it writes float32, float16 and bfloat16, and not {dtype}"
    if not (frames.is_cuda or INTERPRETED):
        return f"it runs on a GPU, and the frames are on {frames.device}"
    return None


def block_of(values: int) -> int:
    """Return how many of a frame's `values` a program writes: the largest power of two up to 1024 that divides them."""
    return math.gcd(values, _LARGEST_BLOCK)


def warps_of(block: int) -> int:
    """Return how many warps write a block."""
    return max(1, block // _VALUES_OF_WARP)


def read_windows(
    frames: torch.Tensor, windows: torch.Tensor, image_size: int, dtype: torch.dtype, channels: int
) -> torch.Tensor:
    """Cut clips out of frames, as the public `read_windows` does, in one pass."""
    n, layers, clip_frames, _ = windows.shape
    videos = frames.new_empty((n, clip_frames, image_size, image_size, channels), dtype=dtype)
    values = image_size * image_size * channels
    block = block_of(values)
    grid = n * clip_frames, values // block
    with torch.cuda.device_of(frames):
        read_windows_kernel[grid](
            frames, windows, videos, *frames.shape[1:3], clip_frames,
            LAYERS=layers, CHANNELS=frames.shape[-1], VIDEO_CHANNELS=channels, SIZE=image_size, BLOCK=block,
            num_warps=warps_of(block),
        )  # fmt: skip
    return videos.permute(0, 4, 1, 2, 3)
