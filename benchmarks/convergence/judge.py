"""How far generated clips are from real ones: the Fréchet distance in principal components of real clips."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from tgan_fast import VideoGenerator
from tgan_fast.data import MovingDigits
from tgan_fast.models.sampling import Sampler, draw_latents
from tgan_fast.training import TrainingConfig

COMPONENTS = 32


class Sizes(NamedTuple):
    """How many points the curves have after the first, and by how many clips each is judged."""

    points: int
    real: int
    generated: int


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] in float64."""

    mean: torch.Tensor
    covariance: torch.Tensor

    @classmethod
    def of(cls, samples: torch.Tensor) -> "Gaussian":
        """The one with the moments of samples [N, D]."""
        samples = samples.double()
        return cls(samples.mean(0), samples.T.cov())


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁^½·Σ₂·Σ₁^½)^½), the square of the 2-Wasserstein distance."""
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ second.covariance @ root)
    traces = first.covariance.trace() + second.covariance.trace() - 2 * product.clamp(min=0).sqrt().sum()
    # Rounding may leave less than nothing.
    return max(0.0, ((first.mean - second.mean).square().sum() + traces).item())


class PrincipalComponents:
    """The directions in which clips vary most.

    Args:
        clips: uint8 [N, …], N > `count`.
        count: of components.

    Attributes:
        explained: their share of the clips' variance.
    """

    def __init__(self, clips: torch.Tensor, count: int):
        pixels = _pixels(clips)
        self._mean = pixels.mean(0)
        pixels -= self._mean
        # There are far fewer clips than pixels, and the products of clips have the same eigenvalues.
        values, vectors = torch.linalg.eigh((pixels @ pixels.T).double())
        largest = values[-count:]
        self.explained = (largest.sum() / values.sum()).item()
        self._basis = pixels.T @ (vectors[:, -count:] / largest.sqrt()).float()

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips uint8 [N, …] → their coordinates [N, count]."""
        return (_pixels(clips) - self._mean) @ self._basis


def _pixels(clips):
    """Levels → [N, pixels] from -1 to 1, as the networks see them."""
    return clips.flatten(1).float() / 127.5 - 1


class Judge:
    """The distance of a generator's clips from real ones.

    It computes in float32 with a generator of its own, in evaluation mode and always of the same latents; the one that
    is judged is only read.

    Attributes:
        floor: the distance of as many other real clips.
        explained: what the principal components have of the variance of real clips.
    """

    def __init__(self, config: TrainingConfig, device: torch.device, sizes: Sizes):
        real, other = (
            real_clips(config, count, config.seed + offset).to(device)
            for offset, count in ((1, sizes.real), (2, sizes.generated))
        )
        self._components = PrincipalComponents(real, COMPONENTS)
        self._real = Gaussian.of(self._components(real))
        self.explained, self.floor = self._components.explained, self._distance([other])
        with torch.random.fork_rng(devices=[]):
            self._generator = VideoGenerator(config.width, config.latent_dim, config.channels).to(device)
        self._sampler = Sampler(self._generator, precision="fp32")
        self._latents = draw_latents(sizes.generated, config.latent_dim, config.seed + 1)

    def __call__(self, generator: nn.Module) -> float:
        """The distance of what it generates."""
        self._generator.load_state_dict(generator.state_dict())
        self._sampler.refresh()
        return self._distance(self._sampler.on_device(self._latents))

    def _distance(self, batches: Iterable[torch.Tensor]):
        return frechet_distance(self._real, Gaussian.of(torch.cat([self._components(batch) for batch in batches])))


def real_clips(config: TrainingConfig, count: int, seed: int) -> torch.Tensor:
    """Moving digits uint8 [count, 16, 64, 64, C]."""
    dataset = MovingDigits(count, digits=config.digits, channels=config.channels, seed=seed)
    return torch.stack([torch.from_numpy(dataset[index][0]) for index in range(count)])
