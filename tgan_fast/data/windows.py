"""Clips as windows of frames, cut out and scaled where the frames lie.

A window of one frame is four numbers: which frame, the row of its top, the column of the clip's leftmost pixel, and 1,
or -1 where the clip is the mirror image. A clip may lie in several layers, of which the brightest counts.
"""

from typing import Literal

import torch

from tgan_fast.data.pixels import scaled
from tgan_fast.models import FRAMES, IMAGE_SIZE
from tgan_fast.ops.registry import TRITON_IS_INSTALLED

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BLOCK, _WARPS = 1024, 4


def read_windows(
    frames: torch.Tensor,
    windows: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    channels: int | None = None,
    backend: Literal["auto", "triton", "torch"] = "auto",
) -> torch.Tensor:
    """Cut clips out of frames and scale them to [-1, 1].

    Args:
        frames: uint8 [F, H, W, C], contiguous.
        windows: int64 [N, layers, T, 4] on the same device. They must lie within the frames; this is not checked.
        dtype: of the videos.
        channels: makes that many equal ones of a single channel.
        backend: "triton" reads and writes in one pass; "auto" takes it where there is a GPU.

    Returns:
        Videos [N, C, T, 64, 64], channels last in memory.
    """
    if backend == "auto":
        fits = frames.is_cuda and TRITON_IS_INSTALLED and dtype in _KERNEL_DTYPES
        backend = "triton" if fits else "torch"
    read = _triton if backend == "triton" else _torch
    return read(frames, windows, dtype, channels or frames.shape[-1])


def whole_frames(n: int) -> torch.Tensor:
    """Windows int64 [n, 1, 16, 4] of all frames of `n` clips that lie one after another, each as large as a clip's."""
    windows = torch.tensor([0, 0, 0, 1]).repeat(n, 1, FRAMES, 1)
    windows[..., 0] = torch.arange(n * FRAMES).view(n, 1, FRAMES)
    return windows


def _triton(frames, windows, dtype, channels):
    # Here, since Triton need not be installed.
    from tgan_fast.data.kernels import read_windows_kernel

    n, layers, clip_frames, _ = windows.shape
    videos = frames.new_empty((n, clip_frames, IMAGE_SIZE, IMAGE_SIZE, channels), dtype=dtype)
    grid = n * clip_frames, IMAGE_SIZE * IMAGE_SIZE * channels // _BLOCK
    with torch.cuda.device_of(frames):
        read_windows_kernel[grid](
            frames, windows, videos, *frames.shape[1:3], clip_frames,
            LAYERS=layers, CHANNELS=frames.shape[-1], VIDEO_CHANNELS=channels, SIZE=IMAGE_SIZE, BLOCK=_BLOCK,
            num_warps=_WARPS,
        )  # fmt: skip
    return videos.permute(0, 4, 1, 2, 3)


def _torch(frames, windows, dtype, channels):
    frame, top, left, step = windows[..., None, None].unbind(3)
    ramp = torch.arange(IMAGE_SIZE, device=frames.device)
    layers = frames[frame, top + ramp[:, None], left + step * ramp]
    return scaled(layers.amax(1), dtype, channels)
