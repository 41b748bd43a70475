"""Generators for tests that look as if they had been trained: every batch norm does something else."""

import copy

import torch
from torch import nn

from tgan_fast import VideoGenerator
from tgan_fast.models import Generator

LATENT, WIDTH = 12, 0.125
FRAMES, IMAGE_SIZE = 8, 16


def trained_generator(
    dtype=torch.float32, device="cpu", channels=3, *, clip_frames=FRAMES, image_size=IMAGE_SIZE
) -> VideoGenerator:
    """Return a generator in training mode, with a batch's statistics and videos in which most levels occur."""
    generator = VideoGenerator(WIDTH, LATENT, channels, clip_frames=clip_frames, image_size=image_size).double()
    return as_if_trained_(generator, latents(16, torch.float64)).to(device, dtype)


def as_if_trained_(generator: Generator, inputs: torch.Tensor) -> Generator:
    """Turn a new generator in training mode into one that looks trained; `inputs` [N, inputs] have its dtype."""
    norms = [module for module in generator.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.momentum = 1.0
    with torch.no_grad():
        generator.model[-1].weight /= generator.frames(inputs).std()
    for norm in norms:
        norm.momentum = 0.1
    return generator


def latents(count, dtype=torch.float32, device="cpu") -> torch.Tensor:
    """Return latents [count, LATENT], uniform in (-1, 1)."""
    return (torch.rand(count, LATENT, dtype=torch.float64) * 2 - 1).to(device, dtype)


def in_bfloat16(generator: VideoGenerator) -> VideoGenerator:
    """Return a copy in evaluation mode that computes as training in bf16 does: only batch norms stay in float32."""
    compute_copy = copy.deepcopy(generator).eval().to(torch.bfloat16)
    for name, module in generator.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            compute_copy.set_submodule(name, copy.deepcopy(module).eval())
    return compute_copy
