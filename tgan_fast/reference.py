"""TGAN in eager PyTorch: the reference for correctness, and the baseline for speed.

The model, the training iteration and the singular value clipping of the widely used PyTorch notebook, which follows
Saito, Matsumoto and Saito, "Temporal Generative Adversarial Nets with Singular Value Clipping" (arXiv:1611.06624).
Written for reading, not for speed. It imports nothing from the rest of the package: tests compare the fast path with
this file, so the two must not share a mistake.

It keeps the notebook's wasted work, since users of the notebook pay for it: the discriminator's step sends gradients
through the generator, the generator's step computes the discriminator's weight gradients, and the content latent is
convolved sixteen times.
"""

import math

import torch
from torch import nn

FRAMES = 16


class TemporalGenerator(nn.Module):
    """One latent [N, latent_dim] → sixteen frame latents [N, 16, latent_dim] in (-1, 1)."""

    def __init__(self, width: float = 1.0, latent_dim: int = 100):
        super().__init__()
        c512, c256, c128 = (max(1, round(c * width)) for c in (512, 256, 128))
        self.model = nn.Sequential(
            nn.ConvTranspose1d(latent_dim, c512, 1),
            nn.BatchNorm1d(c512),
            nn.ReLU(),
            nn.ConvTranspose1d(c512, c256, 4, stride=2, padding=1),
            nn.BatchNorm1d(c256),
            nn.ReLU(),
            nn.ConvTranspose1d(c256, c128, 4, stride=2, padding=1),
            nn.BatchNorm1d(c128),
            nn.ReLU(),
            nn.ConvTranspose1d(c128, c128, 4, stride=2, padding=1),
            nn.BatchNorm1d(c128),
            nn.ReLU(),
            nn.ConvTranspose1d(c128, latent_dim, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        for module in self.model:
            if isinstance(module, nn.ConvTranspose1d):
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2))

    def forward(self, z):
        return self.model(z[:, :, None]).transpose(1, 2)


class Generator(nn.Module):
    """Latents [N, latent_dim] → videos [N, channels, 16, 64, 64] in (-1, 1)."""

    def __init__(self, width: float = 1.0, latent_dim: int = 100, channels: int = 3):
        super().__init__()
        c512, c256, c128, c64, c32 = (max(1, round(c * width)) for c in (512, 256, 128, 64, 32))
        self.temp = TemporalGenerator(width, latent_dim)
        self.half = c512 // 2
        self.fast = nn.Sequential(
            nn.Linear(latent_dim, self.half * 16, bias=False), nn.BatchNorm1d(self.half * 16), nn.ReLU()
        )
        self.slow = nn.Sequential(
            nn.Linear(latent_dim, self.half * 16, bias=False), nn.BatchNorm1d(self.half * 16), nn.ReLU()
        )
        self.model = nn.Sequential(
            nn.ConvTranspose2d(2 * self.half, c256, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(c256),
            nn.ReLU(),
            nn.ConvTranspose2d(c256, c128, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(c128),
            nn.ReLU(),
            nn.ConvTranspose2d(c128, c64, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(c64),
            nn.ReLU(),
            nn.ConvTranspose2d(c64, c32, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(c32),
            nn.ReLU(),
            nn.ConvTranspose2d(c32, channels, 3, stride=1, padding=1),
            nn.Tanh(),
        )
        for module in (self.fast[0], self.slow[0], *self.model):
            if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
                nn.init.uniform_(module.weight, -0.01, 0.01)

    def forward(self, z):
        n = z.shape[0]
        frame_latents = self.temp(z).reshape(n * FRAMES, -1)
        fast = self.fast(frame_latents).reshape(n * FRAMES, self.half, 4, 4)
        slow = self.slow(z).reshape(n, 1, self.half, 4, 4)
        slow = slow.expand(-1, FRAMES, -1, -1, -1).reshape(n * FRAMES, self.half, 4, 4)
        frames = self.model(torch.cat([slow, fast], dim=1))
        return frames.reshape(n, FRAMES, -1, 64, 64).transpose(1, 2)


class Discriminator(nn.Module):
    """Videos [N, channels, 16, 64, 64] → scores [N], unbounded."""

    def __init__(self, width: float = 1.0, channels: int = 3):
        super().__init__()
        c64, c128, c256, c512 = (max(1, round(c * width)) for c in (64, 128, 256, 512))
        self.model3d = nn.Sequential(
            nn.Conv3d(channels, c64, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(c64, c128, 4, stride=2, padding=1),
            nn.BatchNorm3d(c128),
            nn.LeakyReLU(0.2),
            nn.Conv3d(c128, c256, 4, stride=2, padding=1),
            nn.BatchNorm3d(c256),
            nn.LeakyReLU(0.2),
            nn.Conv3d(c256, c512, 4, stride=2, padding=1),
            nn.BatchNorm3d(c512),
            nn.LeakyReLU(0.2),
        )
        self.conv2d = nn.Conv2d(c512, 1, 4)
        for module in (*self.model3d, self.conv2d):
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.xavier_normal_(module.weight, gain=math.sqrt(2))

    def forward(self, videos):
        features = self.model3d(videos).squeeze(2)
        return self.conv2d(features).reshape(-1)


def make_optimizers(generator, discriminator, learning_rate: float = 5e-5):
    """Return the notebook's two RMSprop optimizers, the generator's first."""
    return (
        torch.optim.RMSprop(generator.parameters(), lr=learning_rate),
        torch.optim.RMSprop(discriminator.parameters(), lr=learning_rate),
    )


@torch.no_grad()
def clip_singular_values(weight, max_singular_value: float = 1.0):
    """Return `weight`, as the matrix [shape[0], -1], with singular values min(σ, max_singular_value)."""
    u, s, vh = torch.linalg.svd(weight.reshape(weight.shape[0], -1), full_matrices=False)
    return (u @ torch.diag(s.clamp(max=max_singular_value)) @ vh).reshape(weight.shape)


@torch.no_grad()
def constrain(discriminator):
    """Clip the singular values of convolutions; clamp batch-norm scales into [0.01·s, s], s = sqrt(running_var)."""
    for module in discriminator.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.weight.copy_(clip_singular_values(module.weight))
        elif isinstance(module, nn.BatchNorm3d):
            s = module.running_var.sqrt()
            module.weight.copy_(torch.minimum(torch.maximum(module.weight, 0.01 * s), s))


def training_iteration(
    generator, discriminator, generator_optimizer, discriminator_optimizer, real, z_discriminator, z_generator,
    iteration: int, clip_interval: int = 5,
):  # fmt: skip
    """Run one iteration on real videos [N, C, 16, 64, 64] with two batches of latents [N, latent_dim].

    Returns the discriminator's and the generator's loss.
    """
    discriminator_optimizer.zero_grad()
    loss_real = torch.mean(-discriminator(real))
    loss_fake = torch.mean(discriminator(generator(z_discriminator)))
    discriminator_loss = loss_real + loss_fake
    discriminator_loss.backward()
    discriminator_optimizer.step()

    generator_optimizer.zero_grad()
    generator_loss = torch.mean(-discriminator(generator(z_generator)))
    generator_loss.backward()
    generator_optimizer.step()

    if iteration % clip_interval == 0:
        constrain(discriminator)
    return discriminator_loss.detach(), generator_loss.detach()
