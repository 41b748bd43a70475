"""Singular value clipping of the discriminator in a GAN of your own, here of points in the plane.

`singular_value_clip_` changes a list of weights in place, after the optimizer's step. If all singular values of
linear layers are at most 1, with leaky ReLUs between them, the slope of the discriminator is at most 1 everywhere, as a
Wasserstein GAN requires. `tgan_fast.nn.constrain_` clips a whole network, including its batch norms.

    python clip_discriminator.py

Takes 10 seconds on one CPU thread. Prints the largest singular value before and after clipping, the steepest slope of
the discriminator, and the mean distance of generated points from the nearest center of the real ones.
"""

import torch
from torch import nn

from tgan_fast.nn import constrain_
from tgan_fast.ops import singular_value_clip_

ITERATIONS, BATCH, LATENT = 800, 128, 8
torch.manual_seed(0)
angles = torch.arange(8) * (torch.pi / 4)
centers = 2 * torch.stack([angles.cos(), angles.sin()], 1)


def network(inputs, outputs):
    hidden = [nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2)]
    return nn.Sequential(*hidden, nn.Linear(64, outputs))


def largest(weights):
    return max(torch.linalg.matrix_norm(weight.flatten(1), 2).item() for weight in weights)


generator, discriminator = network(LATENT, 2), network(2, 1)
weights = [layer.weight for layer in discriminator if isinstance(layer, nn.Linear)]
generator_optimizer = torch.optim.RMSprop(generator.parameters(), 1e-3)
discriminator_optimizer = torch.optim.RMSprop(discriminator.parameters(), 1e-3)
for iteration in range(ITERATIONS + 1):
    real = centers[torch.randint(8, (BATCH,))] + 0.05 * torch.randn(BATCH, 2)
    fake = generator(torch.randn(BATCH, LATENT))
    discriminator_optimizer.zero_grad()
    (discriminator(fake.detach()).mean() - discriminator(real).mean()).backward()
    discriminator_optimizer.step()
    before = largest(weights)
    singular_value_clip_(weights)
    if iteration % 200 == 0:
        distance = torch.cdist(fake, centers).min(1).values.mean()
        print(f"{iteration}: largest singular value {before:.4f} -> {largest(weights):.6f}, distance {distance:.2f}")
    generator_optimizer.zero_grad()
    (-discriminator(fake).mean()).backward()
    generator_optimizer.step()

points = (6 * torch.rand(10_000, 2) - 3).requires_grad_()
(slopes,) = torch.autograd.grad(discriminator(points).sum(), points)
print(f"steepest slope of the discriminator: {slopes.norm(dim=1).max():.4f}")

convolutional = nn.Sequential(nn.Conv2d(3, 64, 4), nn.BatchNorm2d(64), nn.LeakyReLU(0.2), nn.Conv2d(64, 1, 4))
constrain_(convolutional, max_singular_value=0.5)
print(f"constrain_ with 0.5: largest singular value {largest([convolutional[0].weight, convolutional[3].weight]):.6f}")
