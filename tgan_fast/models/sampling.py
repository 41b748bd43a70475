"""Videos from a generator, without disturbing its training."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tgan_fast.models.generator import VideoGenerator


def draw_latents(count: int, latent_dim: int, seed: int) -> torch.Tensor:
    """Latents [count, latent_dim], uniform in (-1, 1); the same on every device."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, latent_dim, generator=random).mul_(2).sub_(1)


@torch.no_grad()
def sample_videos(
    generator: VideoGenerator, latents: torch.Tensor, *, batch_size: int = 32, batch_statistics: bool = False
) -> torch.Tensor:
    """Generate a video for every latent.

    The generator's mode and running statistics are afterwards what they were.

    Args:
        latents: [N, latent_dim], on any device.
        batch_size: most videos made at once.
        batch_statistics: normalise with each batch's own statistics, as in training, not with the running ones.

    Returns:
        Videos [N, C, 16, 64, 64] in (-1, 1), on the CPU.
    """
    device = next(generator.parameters()).device
    with undisturbed(generator, batch_statistics=batch_statistics):
        # Nearly equal parts: a remainder of one video would have no batch statistics.
        parts = latents.tensor_split(math.ceil(len(latents) / batch_size))
        return torch.cat([generator(part.to(device)).cpu() for part in parts])


@contextmanager
def undisturbed(module: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Inside, batch norms use the running statistics, or the batch's; afterwards modes and buffers are as before."""
    training = {child: child.training for child in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.train(batch_statistics)
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
        for child, mode in training.items():
            child.training = mode
