"""The random inputs of a step, drawn before it into the same memory every time, so that a CUDA graph can hold it."""

import torch

from tgan_fast.models import Generator
from tgan_fast.training.processes import Processes


class Draws:
    """The random numbers of one step of one network.

    They are drawn for all processes together, in float32 whatever the precision, and every process takes its part: what
    one process draws for a batch, several draw as well. On a GPU nothing waits.

    Args:
        generator: for which the latents are.
        noise: standard deviation of what is added to the discriminator's videos; 0 is nothing.
        fakes_alone: no noise for real videos, since there are none in the step.
        mixes: also the shares at which real and fake videos are mixed.
        processes: that draw the same.
    """

    def __init__(self, generator: Generator, *, noise: float, fakes_alone: bool, mixes: bool, processes: Processes):
        self._generator, self._noise, self._mixes = generator, noise, mixes
        self._kinds = 1 if fakes_alone else 2
        self._processes = processes
        self._latents = None

    def draw(self, count: int, random: torch.Generator) -> None:
        """Draw for a step on `count` videos a process."""
        count *= self._processes.size
        if self._latents is None or len(self._latents) != count:
            self._allocate(count, random.device)
        self._generator.latent.fill_(self._latents, random)
        if self._noise:
            self._deviations.normal_(generator=random)
        if self._mixes:
            self._shares.uniform_(generator=random)

    def latents(self, dtype: torch.dtype) -> torch.Tensor:
        """[count, latent_dim]"""
        return self._part(self._latents, 0).to(dtype)

    def mix(self) -> torch.Tensor | None:
        """Uniform in [0, 1): float32 [count, 1, 1, 1, 1]; None where nothing is mixed."""
        return self._part(self._shares, 0) if self._mixes else None

    def disturbed(self, videos: torch.Tensor) -> torch.Tensor:
        """Videos [count or 2·count, C, T, H, W], the real ones first, and their noise."""
        if not self._noise:
            return videos
        deviations = self._part(self._deviations, 1).flatten(0, 1).movedim(-1, 1)
        return torch.add(videos, deviations.to(videos.dtype), alpha=self._noise)

    def _allocate(self, count, device):
        model = self._generator
        self._latents = torch.empty(count, model.latent_dim, device=device)
        if self._noise:
            video = model.clip_frames, model.image_size, model.image_size, model.channels
            self._deviations = torch.empty(self._kinds, count, *video, device=device)
        if self._mixes:
            self._shares = torch.empty(count, 1, 1, 1, 1, device=device)

    def _part(self, drawn, dim):
        return drawn.chunk(self._processes.size, dim)[self._processes.rank]
