"""Clips that are cut out of frames by windows and scaled to [-1, 1], on the device of the frames.

A window is four numbers: the index of a frame, the top row, the column of the clip's leftmost pixel, and 1, or -1 if
the clip is mirrored. A clip may have several layers; each value is the largest one over the layers.
"""

import torch

from tgan_fast.choices import TritonBackend
from tgan_fast.ops.dispatch import choose
from tgan_fast.pixels import to_videos
from tgan_fast.sizes import FRAMES, IMAGE_SIZE


def read_windows(
    frames: torch.Tensor,
    windows: torch.Tensor,
    *,
    image_size: int = IMAGE_SIZE,
    dtype: torch.dtype = torch.float32,
    channels: int | None = None,
    backend: TritonBackend = "auto",
) -> torch.Tensor:
    """Cut clips out of frames and scale them to [-1, 1].

    Args:
        frames: Frames uint8 [F, H, W, C], contiguous.
        windows: Windows int64 [N, layers, T, 4] on the same device. They must lie within the frames; this is not
            checked.
        image_size: Side of the videos in pixels.
        dtype: Floating-point dtype of the videos.
        channels: Number of channels of the videos, to which a single channel is repeated; None: as many as frames have.
        backend: Name of an implementation: "triton" reads and writes in one pass, for float32, float16 and bfloat16;
            "torch" takes every dtype; "auto" picks "triton" on a GPU where it fits, and "torch" otherwise.

    Returns:
        Videos [N, C, T, image_size, image_size], channels last in memory.

    Raises:
        ValueError: There is no backend of that name.
        BackendError: "triton" was requested and cannot run here, or cannot take these tensors.
    """
    chosen = choose("read_windows", backend, frames, {"triton": lambda: _why_not_triton(frames, dtype)})
    channels = channels or frames.shape[-1]
    if chosen == "torch":
        return _read_windows_torch(frames, windows, image_size, dtype, channels)
    # Not at the top, because Triton need not be installed.
    from tgan_fast.ops.windows import triton as kernels

    return kernels.read_windows(frames, windows, image_size, dtype, channels)


def whole_frames(n: int, clip_frames: int = FRAMES) -> torch.Tensor:
    """Return windows int64 [n, 1, clip_frames, 4] that read `n` consecutive clips.

    The frames must have the size of the videos.
    """
    windows = torch.tensor([0, 0, 0, 1]).repeat(n, 1, clip_frames, 1)
    windows[..., 0] = torch.arange(n * clip_frames).view(n, 1, clip_frames)
    return windows


def _why_not_triton(frames, dtype):
    from tgan_fast.ops.windows.triton import why_not

    return why_not(frames, dtype)


def _read_windows_torch(frames, windows, image_size, dtype, channels):
    frame, top, left, step = windows[..., None, None].unbind(3)
    ramp = torch.arange(image_size, device=frames.device)
    layers = frames[frame, top + ramp[:, None], left + step * ramp]
    return to_videos(layers.amax(1), dtype, channels)
