"""Bytes of clips and the numbers of videos, from -1 to 1."""

import torch

# 127.5 is 0. Differences from it are exact even in bfloat16, so that only the division rounds.
_MIDDLE = 127.5


def scaled(clips: torch.Tensor, dtype: torch.dtype = torch.float32, channels: int | None = None) -> torch.Tensor:
    """Clips uint8 [N, T, H, W, C] → videos [N, C, T, H, W] in [-1, 1] on the same device, channels last in memory.

    `channels` makes that many equal ones of a single channel.
    """
    shape = *clips.shape[:-1], channels or clips.shape[-1]
    videos = torch.empty(shape, dtype=dtype, device=clips.device).copy_(clips)
    return videos.sub_(_MIDDLE).div_(_MIDDLE).permute(0, 4, 1, 2, 3)


def to_videos(clips: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Clips uint8 [N, T, H, W, C] → videos float32 [N, C, T, H, W] in [-1, 1] on `device`, channels last in memory."""
    return scaled(clips.to(device))


def to_clips(videos: torch.Tensor) -> torch.Tensor:
    """Videos [N, C, T, H, W] in [-1, 1] → clips uint8 [N, T, H, W, C], the inverse of `to_videos`."""
    levels = videos.permute(0, 2, 3, 4, 1).float().add(1).mul(127.5)
    return levels.round_().clamp_(0, 255).to(torch.uint8)
