"""Distributions of latents, and interpolation between latents."""

from abc import ABC, abstractmethod

import torch


class LatentDistribution(ABC):
    """Distribution of independent numbers.

    Attributes:
        description: Text for readers of exported files.
    """

    description: str

    @abstractmethod
    def fill_(self, latents: torch.Tensor, random: torch.Generator) -> None:
        """Fill a tensor with latents, on its device and without waiting for it."""

    @abstractmethod
    def truncated(self, latents: torch.Tensor, limit: float) -> torch.Tensor:
        """Return latents mapped into ±`limit`, > 0: less variety, fewer failures."""

    @abstractmethod
    def between(self, begin: torch.Tensor, end: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Return latents [N, K, latent_dim] at shares [K] of the way from `begin` to `end`, [N, latent_dim]."""

    @abstractmethod
    def to_free(self, latents: torch.Tensor) -> torch.Tensor:
        """Return numbers without bounds that `from_free` turns into about these latents, for gradient descent."""

    @abstractmethod
    def from_free(self, free: torch.Tensor) -> torch.Tensor:
        """Return latents within the distribution's bounds, differentiable."""


class Uniform(LatentDistribution):
    """Uniform in (-1, 1), as in the paper. Interpolation is linear."""

    description = "uniform in (-1, 1)"

    def fill_(self, latents, random):
        latents.uniform_(-1, 1, generator=random)

    def truncated(self, latents, limit):
        return latents * min(limit, 1.0)

    def between(self, begin, end, share):
        return torch.lerp(begin.unsqueeze(1), end.unsqueeze(1), share.view(1, -1, 1))

    def to_free(self, latents):
        # Near ±1 the gradient of tanh vanishes.
        return latents.clamp(-0.99, 0.99).atanh()

    def from_free(self, free):
        # Tanh can round to 1, which is outside of the distribution.
        return free.tanh() * (1 - 2**-20)


class Normal(LatentDistribution):
    """Standard normal. Interpolation is spherical, since linearly interpolated latents would be too short."""

    description = "normal, of mean 0 and variance 1"

    def fill_(self, latents, random):
        latents.normal_(generator=random)

    def truncated(self, latents, limit):
        below = torch.special.ndtr(torch.tensor(-limit, dtype=torch.float64))
        share = below + (1 - 2 * below) * torch.special.ndtr(latents.double())
        return torch.special.ndtri(share).clamp(-limit, limit).to(latents.dtype)

    def between(self, begin, end, share):
        begin, end, share = begin.unsqueeze(1), end.unsqueeze(1), share.view(1, -1, 1)
        cosine = torch.cosine_similarity(begin, end, dim=2).unsqueeze(2)
        angle = torch.arccos(cosine.clamp(-1, 1)).clamp(min=1e-4)
        return (begin * torch.sin((1 - share) * angle) + end * torch.sin(share * angle)) / torch.sin(angle)

    def to_free(self, latents):
        return latents

    def from_free(self, free):
        return free


LATENTS: dict[str, LatentDistribution] = {"uniform": Uniform(), "normal": Normal()}
