"""Conversion between clips (uint8) and videos (floating point, from -1 to 1)."""

import torch

# 127.5 becomes 0. Differences from it are exact even in bfloat16, so that only the division rounds.
_MIDDLE = 127.5


def to_videos(clips: torch.Tensor, dtype: torch.dtype = torch.float32, channels: int | None = None) -> torch.Tensor:
    """Convert clips to videos [N, C, T, H, W] in [-1, 1] on the same device, channels last in memory.

    Args:
        clips: Clips uint8 [N, T, H, W, C].
        dtype: Floating-point dtype of the videos.
        channels: Number of channels of the videos, to which a single channel is repeated; None: as many as the clips
            have.
    """
    shape = *clips.shape[:-1], channels or clips.shape[-1]
    videos = torch.empty(shape, dtype=dtype, device=clips.device).copy_(clips)
    return videos.sub_(_MIDDLE).div_(_MIDDLE).permute(0, 4, 1, 2, 3)


def to_clips(videos: torch.Tensor) -> torch.Tensor:
    """Convert videos [N, C, T, H, W] in [-1, 1] to clips uint8 [N, T, H, W, C], the inverse of `to_videos`."""
    levels = videos.permute(0, 2, 3, 4, 1).float().add(1).mul(127.5)
    return levels.round_().clamp_(0, 255).to(torch.uint8)
