"""Losses of the two networks, as functions of the discriminator's scores."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F


class Objective(ABC):
    """Losses of both networks, scalars computed from the discriminator's scores [N] without a sigmoid.

    Attributes:
        opposite: Whether the generator's loss is the discriminator's loss of fakes with the opposite sign.
    """

    opposite = False

    @abstractmethod
    def discriminator(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Return the discriminator's loss."""

    @abstractmethod
    def generator(self, fake: torch.Tensor) -> torch.Tensor:
        """Return the generator's loss."""


class Wasserstein(Objective):
    """mean(D(fake)) − mean(D(real)) and −mean(D(fake)) (Arjovsky et al., arXiv:1701.07875)."""

    opposite = True

    def discriminator(self, real, fake):
        return fake.mean() - real.mean()

    def generator(self, fake):
        return -fake.mean()


class Hinge(Objective):
    """Hinge losses of real and fake videos, and −mean(D(fake)) for the generator (Lim and Ye, arXiv:1705.02894)."""

    def discriminator(self, real, fake):
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator(self, fake):
        return -fake.mean()


class Vanilla(Objective):
    """Cross entropy, in its non-saturating form for the generator (Goodfellow et al., arXiv:1406.2661)."""

    def discriminator(self, real, fake):
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator(self, fake):
        return F.softplus(-fake).mean()


class LeastSquares(Objective):
    """Half the squared distance of scores from 1 for real and 0 for fake videos (Mao et al., arXiv:1611.04076)."""

    def discriminator(self, real, fake):
        return ((real - 1).square().mean() + fake.square().mean()) / 2

    def generator(self, fake):
        return (fake - 1).square().mean() / 2
